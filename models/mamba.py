"""Mamba-1 (Gu & Dao, arXiv 2312.00752) in plain torch; parameters are named and shaped as in the published checkpoints.

Shape suffixes: B batch, L new tokens, E d_model, D d_inner, N d_state, K d_conv, R dt_rank, V vocab_size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench.models.base import Backbone, LanguageModel, State
from benchbench.models.core import Core, log_uniform
from benchbench.models.scan_inputs import Inputs
from benchbench.models.selective_scan import SelectiveScan, state_dtype
from benchbench.specs import ModelSpec
from benchbench.specs.mamba import MambaSpec

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


@dataclass(frozen=True)
class LayerState:
    """The last K inputs of a layer's convolution, (B, D, K), and the state of its scan, (B, D, N)."""

    conv: Tensor
    ssm: Tensor


class MambaState(State):
    """One `LayerState` a layer, of a size that does not depend on the tokens read. Float32 at least."""

    def __init__(self, layers: list[LayerState]) -> None:
        self.layers = layers

    def tensors(self) -> Iterator[Tensor]:
        for layer in self.layers:
            yield layer.conv
            yield layer.ssm


class RMSNorm(nn.RMSNorm):
    """Normalises in the residual stream's precision, answers in the weight's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class CausalConv1d(nn.Conv1d):
    """A depthwise convolution over the last K tokens with its SiLU, computed at exactly the L new positions."""

    def __init__(self, channels: int, width: int, path: str) -> None:
        super().__init__(channels, channels, width, groups=channels)
        self.path = path

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_BLD: Tensor, past_BDK: Tensor | None = None
    ) -> Tensor:
        """(B, L, D) from (B, L, D); `past_BDK`, if given, comes before it and is moved on by L tokens."""
        if self.path == "triton":
            from benchbench.models.causal_conv_triton import triton_conv

            assert self.bias is not None
            return triton_conv(x_BLD, self.weight, self.bias, past_BDK)
        return F.silu(self.convolved(x_BLD, past_BDK))

    def convolved(self, x_BLD: Tensor, past_BDK: Tensor | None = None) -> Tensor:
        """What `forward` gives before its SiLU."""
        width = self.kernel_size[0]
        assert self.bias is not None
        if past_BDK is None:
            seen_BLD = F.pad(x_BLD, (0, 0, width - 1, 0))
        else:
            seen_BLD = torch.cat((past_BDK.mT.to(x_BLD.dtype), x_BLD), dim=1)
            past_BDK.copy_(seen_BLD[:, -width:].mT.detach())
            seen_BLD = seen_BLD[:, 1:]
            if x_BLD.shape[1] == 1:  # three small operations: a convolution call costs more than its arithmetic
                return (seen_BLD * self.weight[:, 0].T).sum(1, keepdim=True) + self.bias
        # As a 2-d convolution the channels stay innermost; conv1d would transpose to memory and back.
        return F.conv2d(seen_BLD.mT[:, :, None], self.weight[:, :, None], self.bias, groups=self.groups)[:, :, 0].mT


class Mixer(nn.Module):
    """The selective state-space layer with its convolution and gate."""

    def __init__(self, spec: MambaSpec, path: str) -> None:
        super().__init__()
        inner, rank = spec.d_inner, spec.dt_rank
        self.sizes = (rank, spec.d_state, spec.d_state)
        self.in_proj = nn.Linear(spec.d_model, 2 * inner, bias=False)
        self.conv1d = CausalConv1d(inner, spec.d_conv, path)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, spec.d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.scan = SelectiveScan(path)
        self.out_proj = nn.Linear(inner, spec.d_model, bias=False)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
            log_dt_D = torch.empty(inner).uniform_(math.log(DT_MIN), math.log(DT_MAX))
            dt_D = log_dt_D.exp().clamp(min=DT_FLOOR)
            self.dt_proj.bias.copy_(dt_D + torch.log(-torch.expm1(-dt_D)))  # the inverse of softplus
            self.out_proj.weight /= math.sqrt(spec.n_layers)

    def forward(self, x_BLE: Tensor, state: LayerState | None = None) -> Tensor:
        """(B, L, E) from (B, L, E). Continues from `state`, which is updated in place and carries no gradient."""
        x_BLD, z_BLD = self.in_proj(x_BLE).chunk(2, dim=-1)
        u_BLD = self.conv1d(x_BLD, state.conv if state else None)
        low_BLR, B_BLN, C_BLN = self.x_proj(u_BLD).split(self.sizes, dim=-1)
        A_DN = -torch.exp(self.A_log.to(state_dtype(self.A_log.dtype)))
        inputs = Inputs(u_BLD, self.dt_proj(low_BLR), z_BLD, B_BLN, C_BLN, A_DN, self.D)
        y_BLD, after_BDN = self.scan(inputs, state.ssm if state else None)
        if state and after_BDN is not state.ssm:
            state.ssm.copy_(after_BDN.detach())
        return self.out_proj(y_BLD)


class Block(nn.Module):
    """x + mixer(norm(x)); the residual stream x is float32 at least."""

    mix: Callable[[Any, str], nn.Module] = Mixer

    def __init__(self, spec: ModelSpec, path: str) -> None:
        super().__init__()
        self.norm = RMSNorm(spec.d_model, eps=1e-5)
        self.mixer = self.mix(spec, path)

    def forward(self, x_BLE: Tensor, state: LayerState | None = None) -> Tensor:
        return x_BLE + self.mixer(self.norm(x_BLE), state)


class MambaBackbone(Backbone):
    block: Callable[[Any, str], nn.Module] = Block

    def __init__(self, spec: ModelSpec, path: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(self.block(spec, path) for _ in range(spec.n_layers))
        self.norm_f = RMSNorm(spec.d_model, eps=1e-5)

    def forward(self, tokens_BN: Tensor, state: State | None = None) -> Tensor:
        assert state is None or isinstance(state, MambaState)
        x_BLE = self.embedding(tokens_BN)
        x_BLE = x_BLE.to(state_dtype(x_BLE.dtype))
        for i, layer in enumerate(self.layers):
            x_BLE = self.through(layer, x_BLE, state.layers[i] if state else None)
        if state:
            state.length += tokens_BN.shape[1]
        return self.norm_f(x_BLE)


class Mamba(LanguageModel):
    spec: MambaSpec

    def new_state(self, batch: int, capacity: int) -> MambaState:
        """Zeros; a state of any `capacity` has the same size."""
        spec, weight = self.spec, self.backbone.embedding.weight
        dtype = state_dtype(weight.dtype)

        def zeros(columns: int) -> Tensor:
            return weight.new_zeros(batch, spec.d_inner, columns, dtype=dtype, requires_grad=False)

        return MambaState([LayerState(zeros(spec.d_conv), zeros(spec.d_state)) for _ in range(spec.n_layers)])


def build(spec: MambaSpec, path: str) -> LanguageModel:
    """A Mamba with the published initialisation."""
    if path == "fused":
        from benchbench.models.mamba_fused import FusedMamba

        return FusedMamba(spec)
    return Mamba(spec, MambaBackbone(spec, path), path)


class Scan(nn.Module):
    """The scan of a layer with its A and D."""

    def __init__(self, spec: MambaSpec, scan: nn.Module) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, spec.d_state + 1)).repeat(spec.d_inner, 1))
        self.D = nn.Parameter(torch.ones(spec.d_inner))
        self.scan = scan

    def forward(self, u_BLD: Tensor, raw_BLD: Tensor, z_BLD: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
        A_DN = -torch.exp(self.A_log.to(state_dtype(self.A_log.dtype)))
        return self.scan(Inputs(u_BLD, raw_BLD, z_BLD, B_BLN, C_BLN, A_DN, self.D))[0]


class ScanCore(Core):
    """The selective scan of what its layer projects and convolves, with the softplus of dt, the skip and the gate."""

    def __init__(self, spec: MambaSpec, path: str, scan: nn.Module) -> None:
        super().__init__(spec, path)
        self.sizes = (spec.d_inner, spec.d_state)
        self.mixer = Scan(spec, scan)

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """u, dt before its softplus, z (B, L, D); B, C (B, L, N). dt is spread as where training starts."""
        inner, states = self.sizes
        u_BLD, z_BLD = (self.normal(batch, length, inner) for _ in range(2))
        B_BLN, C_BLN = (self.normal(batch, length, states) for _ in range(2))
        dt_BLD = log_uniform(self.like, DT_MIN, DT_MAX, batch, length, inner)
        return u_BLD, dt_BLD.expm1_().log_().to(u_BLD.dtype), z_BLD, B_BLN, C_BLN  # the inverse of softplus

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, L, D)."""
        return self.mixer(*inputs)


def core(spec: MambaSpec, path: str) -> Core:
    if path == "fused":
        from benchbench.models.mamba_fused import FusedScanCore

        return FusedScanCore(spec)
    return ScanCore(spec, path, SelectiveScan(path))
