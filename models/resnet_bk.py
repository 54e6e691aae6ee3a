"""ResNet-BK: a mixture of experts and the resolvent of a tridiagonal matrix, side by side on one normalised input.

    h = LayerNorm(x)
    v = clamp(h·w_v + b_v, ±v_max)
    f = clamp(resolvent(v), ±10)                        real and imaginary part of one complex number a token
    x = x + MoE(h) + bk_scale · (f·W_oᵀ + b_o)

Shape suffixes: B batch, N new tokens, D d_model, 2 real and imaginary part.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchbench.models.base import Backbone, LanguageModel, State
from benchbench.models.core import Core
from benchbench.models.moe import MoE
from benchbench.models.resolvent import Resolvent
from benchbench.models.resolvent_triton import TritonResolvent
from benchbench.specs.resnet_bk import ResNetBKSpec

FEATURE_BOUND = 10.0
"""The published clamp of the features. Every resolvent here is at most 1 in modulus: it only acts in `bk-compat`."""


class ResolventState(State):
    """The left fraction at the last token read, (B, 2) a layer, in float32; nothing for the forms that look ahead."""

    def __init__(self, spec: ResNetBKSpec, batch: int, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        n_layers = spec.n_layers if spec.causal else 0
        self.layers = [like.new_zeros(batch, 2, dtype=dtype) for _ in range(n_layers)]

    def tensors(self) -> Iterator[Tensor]:
        yield from self.layers


def resolvent(spec: ResNetBKSpec, path: str) -> Resolvent | TritonResolvent:
    return TritonResolvent(spec.form) if path == "triton" else Resolvent(spec.form, path, spec.grad_blend)


class Block(nn.Module):
    def __init__(self, spec: ResNetBKSpec, path: str) -> None:
        super().__init__()
        self.v_max = spec.v_max
        self.norm = nn.LayerNorm(spec.d_model)
        self.v_proj = nn.Linear(spec.d_model, 1)
        self.core = resolvent(spec, path)
        self.o_proj = nn.Linear(2, spec.d_model)
        self.bk_scale = nn.Parameter(torch.ones(()))
        self.moe = MoE(spec.d_model, spec.d_ff, spec.n_experts, spec.top_k, spec.dropout)
        for linear in (self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BND: Tensor, state_B2: Tensor | None) -> Tensor:
        h_BND = self.norm(x_BND)
        v_BN = self.v_proj(h_BND).squeeze(-1).clamp(-self.v_max, self.v_max)
        f_BN2 = self.core(v_BN, state_B2).clamp(-FEATURE_BOUND, FEATURE_BOUND)
        mixed_BND = self.bk_scale * self.o_proj(f_BN2.to(h_BND.dtype))
        return x_BND + self.moe(h_BND) + mixed_BND


class ResNetBKBackbone(Backbone):
    """Raises `ValueError` where a form that sees later tokens is asked to continue from earlier ones."""

    def __init__(self, spec: ResNetBKSpec, path: str) -> None:
        super().__init__()
        self.causal = spec.causal
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.positions = nn.Embedding(spec.longest, spec.d_model) if spec.longest else None
        self.layers = nn.ModuleList(Block(spec, path) for _ in range(spec.n_layers))
        self.norm_f = nn.LayerNorm(spec.d_model)
        for table in (self.embedding, self.positions):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens_BN: Tensor, state: State | None = None) -> Tensor:
        past = state.length if state is not None else 0
        if past and not self.causal:
            raise ValueError(f"{past} tokens are already read, and this form sees later tokens: it cannot continue")
        x_BND = self.embedding(tokens_BN)
        if self.positions is not None:
            N, longest = tokens_BN.shape[1], self.positions.num_embeddings
            if past + N > longest:
                raise ValueError(f"{past + N} tokens, but learned positions for {longest}")
            x_BND = x_BND + self.positions(torch.arange(past, past + N, device=tokens_BN.device))
        fractions = list(state.tensors()) if state is not None else []
        for i, layer in enumerate(self.layers):
            x_BND = self.through(layer, x_BND, fractions[i] if fractions else None)
        if state is not None:
            state.length += tokens_BN.shape[1]
        return self.norm_f(x_BND)


class ResNetBK(LanguageModel):
    spec: ResNetBKSpec

    def __init__(self, spec: ResNetBKSpec, path: str) -> None:
        super().__init__(spec, ResNetBKBackbone(spec, path), path)
        if not spec.tied_head:
            nn.init.xavier_uniform_(self.lm_head.weight)
        if spec.head_bias:
            nn.init.zeros_(self.lm_head.bias)

    def new_state(self, batch: int, capacity: int) -> ResolventState:
        """`capacity` does not matter: one complex number a layer stands for any number of tokens."""
        return ResolventState(self.spec, batch, self.backbone.embedding.weight)


def build(spec: ResNetBKSpec, path: str) -> ResNetBK:
    return ResNetBK(spec, path)


class ResolventCore(Core):
    """The resolvent of clamped potentials, one number a token and layer."""

    def __init__(self, spec: ResNetBKSpec, path: str) -> None:
        super().__init__(spec, path)
        self.v_max = spec.v_max
        self.mixer = resolvent(spec, path)

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """v (B, N)."""
        return (self.normal(batch, length).clamp_(-self.v_max, self.v_max),)

    def forward(self, v_BN: Tensor) -> Tensor:
        """(B, N, 2)."""
        return self.mixer(v_BN)


def core(spec: ResNetBKSpec, path: str) -> ResolventCore:
    return ResolventCore(spec, path)
