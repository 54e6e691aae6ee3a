"""Mamba-2 (Dao & Gu, arXiv 2405.21060) in plain torch; parameters are named and shaped as in the published checkpoints.

Shape suffixes: B batch, L new tokens, E d_model, D d_inner, H heads, P headdim, G groups, N d_state, K d_conv,
V vocab_size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench.models import mamba
from benchbench.models.base import LanguageModel
from benchbench.models.core import Core, log_uniform
from benchbench.models.mamba import (
    DT_FLOOR,
    DT_MAX,
    DT_MIN,
    CausalConv1d,
    LayerState,
    MambaBackbone,
    MambaState,
)
from benchbench.models.selective_scan import state_dtype
from benchbench.models.ssd import SSD, Inputs
from benchbench.specs.mamba2 import Mamba2Spec

A_MAX = 16.0


class GatedRMSNorm(nn.Module):
    """y silu(z), the channels of each group normed together."""

    def __init__(self, spec: Mamba2Spec) -> None:
        super().__init__()
        self.n_groups = spec.n_groups
        self.weight = nn.Parameter(torch.ones(spec.d_inner))

    def forward(self, y_BLD: Tensor, z_BLD: Tensor) -> Tensor:
        groups = zip((y_BLD * F.silu(z_BLD)).chunk(self.n_groups, -1), self.weight.chunk(self.n_groups), strict=True)
        normed = [F.rms_norm(x, weight.shape, weight.to(x.dtype), eps=1e-5) for x, weight in groups]
        return normed[0] if len(normed) == 1 else torch.cat(normed, dim=-1)


class Mixer(nn.Module):
    """The state-space dual layer with its convolution and gate."""

    def __init__(self, spec: Mamba2Spec, path: str) -> None:
        super().__init__()
        inner, heads, states = spec.d_inner, spec.n_heads, spec.n_groups * spec.d_state
        self.heads, self.groups = (heads, spec.headdim), (spec.n_groups, spec.d_state)
        self.projected = (inner, spec.d_conv_inner, heads)
        self.convolved = (inner, states, states)
        self.in_proj = nn.Linear(spec.d_model, sum(self.projected), bias=False)
        self.conv1d = CausalConv1d(spec.d_conv_inner, spec.d_conv, path)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, A_MAX).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.ssd = SSD(path, spec.chunk)
        self.norm = GatedRMSNorm(spec)
        self.out_proj = nn.Linear(inner, spec.d_model, bias=False)
        with torch.no_grad():
            log_dt_H = torch.empty(heads).uniform_(math.log(DT_MIN), math.log(DT_MAX))
            dt_H = log_dt_H.exp().clamp(min=DT_FLOOR)
            self.dt_bias.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))  # the inverse of softplus
            self.out_proj.weight /= math.sqrt(spec.n_layers)

    def forward(self, x_BLE: Tensor, state: LayerState | None = None) -> Tensor:
        """(B, L, E) from (B, L, E). Continues from `state`, which is updated in place and carries no gradient."""
        wide = state_dtype(self.A_log.dtype)
        z_BLD, xBC_BLC, raw_BLH = self.in_proj(x_BLE).split(self.projected, dim=-1)
        xBC_BLC = self.conv1d(xBC_BLC, state.conv if state else None)
        x_BLD, B_BLS, C_BLS = xBC_BLC.split(self.convolved, dim=-1)
        inputs = Inputs(
            x_BLD.unflatten(-1, self.heads),
            F.softplus(raw_BLH.to(wide) + self.dt_bias.to(wide)),
            B_BLS.unflatten(-1, self.groups),
            C_BLS.unflatten(-1, self.groups),
            -torch.exp(self.A_log.to(wide)),
            self.D,
        )
        y_BLHP, after_BHPN = self.ssd(inputs, state.ssm if state else None)
        if state:
            state.ssm.copy_(after_BHPN.detach())
        return self.out_proj(self.norm(y_BLHP.flatten(-2), z_BLD))


class Block(mamba.Block):
    mix = Mixer


class Mamba2Backbone(MambaBackbone):
    block = Block


class Mamba2(LanguageModel):
    spec: Mamba2Spec

    def new_state(self, batch: int, capacity: int) -> MambaState:
        """Zeros; a state of any `capacity` has the same size. A layer's: (B, D + 2GN, K) and (B, H, P, N)."""
        spec, weight = self.spec, self.backbone.embedding.weight
        dtype = state_dtype(weight.dtype)

        def zeros(*shape: int) -> Tensor:
            return weight.new_zeros(batch, *shape, dtype=dtype, requires_grad=False)

        sizes = (spec.d_conv_inner, spec.d_conv), (spec.n_heads, spec.headdim, spec.d_state)
        return MambaState([LayerState(*(zeros(*size) for size in sizes)) for _ in range(spec.n_layers)])


def build(spec: Mamba2Spec, path: str) -> Mamba2:
    """A Mamba-2 with the published initialisation."""
    return Mamba2(spec, Mamba2Backbone(spec, path), path)


class Dual(nn.Module):
    """The dual form of a layer with its A and D."""

    def __init__(self, spec: Mamba2Spec, path: str) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(spec.n_heads).uniform_(1, A_MAX).log())
        self.D = nn.Parameter(torch.ones(spec.n_heads))
        self.ssd = SSD(path, spec.chunk)

    def forward(self, x_BLHP: Tensor, dt_BLH: Tensor, B_BLGN: Tensor, C_BLGN: Tensor) -> Tensor:
        A_H = -torch.exp(self.A_log.to(state_dtype(self.A_log.dtype)))
        return self.ssd(Inputs(x_BLHP, dt_BLH, B_BLGN, C_BLGN, A_H, self.D))[0]


class DualCore(Core):
    """The state-space dual layer of what its layer projects and convolves, with its skip."""

    def __init__(self, spec: Mamba2Spec, path: str) -> None:
        super().__init__(spec, path)
        self.heads, self.groups = (spec.n_heads, spec.headdim), (spec.n_groups, spec.d_state)
        self.mixer = Dual(spec, path)

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """x (B, L, H, P); dt (B, L, H) behind its softplus, in float32 and spread as where training starts; B and C."""
        x_BLHP = self.normal(batch, length, *self.heads)
        B_BLGN, C_BLGN = (self.normal(batch, length, *self.groups) for _ in range(2))
        return x_BLHP, log_uniform(self.like, DT_MIN, DT_MAX, batch, length, self.heads[0]), B_BLGN, C_BLGN

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, L, H, P)."""
        return self.mixer(*inputs)


def core(spec: Mamba2Spec, path: str) -> DualCore:
    return DualCore(spec, path)
