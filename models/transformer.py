"""The pre-norm decoder: GPT-2 (Radford et al. 2019), or Llama (2302.13971) with rotary positions, RMSNorm and SwiGLU.

    x = x + Attention(norm1(x))
    x = x + MLP(norm2(x))

Shape suffixes: B batch, N new tokens, M all tokens (past and new), D d_model, H query heads, K key and value heads,
R = N·H/K query rows beside one key head, C d_head, E = C/2 rotated pairs.
"""

from collections.abc import Iterator
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchbench.errors import UnsupportedError
from benchbench.models.base import Backbone, LanguageModel, State
from benchbench.models.core import Core
from benchbench.specs.transformer import TransformerSpec

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
"""The attention kernels whose memory is linear in N. torch's own fallback, which is not, is shut out."""


def fused_kernels(q_BHNC: Tensor, visible_NM: Tensor | None) -> list[SDPBackend]:
    """Those that the path `flash` may run: on CUDA exactly one, so that no other is ever timed under its name.

    In half precision without a mask it is flash attention, else the memory-efficient kernel, which flash has no
    float32 and no mask for. torch raises an error where that one cannot run.
    """
    if q_BHNC.device.type != "cuda":
        return FUSED
    return FUSED[:1] if q_BHNC.dtype in (torch.bfloat16, torch.float16) and visible_NM is None else FUSED[1:]


class KVCache(State):
    """Keys and values of every layer, (B, K, capacity, C) each; the first `length` of `capacity` are in use."""

    def __init__(self, spec: TransformerSpec, batch: int, capacity: int, like: Tensor) -> None:
        self.capacity = capacity
        shape = (batch, spec.n_kv_heads, capacity, spec.d_head)
        self.layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(spec.n_layers)]

    def tensors(self) -> Iterator[Tensor]:
        for keys, values in self.layers:
            yield keys
            yield values

    def extend(self, layer: int, k_BKNC: Tensor, v_BKNC: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values behind the old; returns all, as views."""
        end = self.length + k_BKNC.shape[2]
        keys, values = self.layers[layer]
        keys[:, :, self.length : end] = k_BKNC
        values[:, :, self.length : end] = v_BKNC
        return keys[:, :, :end], values[:, :, :end]


class Shared(NamedTuple):
    """What all layers use in one pass."""

    rotation: tuple[Tensor, Tensor] | None
    visible: Tensor | None
    """(N, M), True where a query sees a key. None for one query, which sees all, and where `flash` is causal itself."""
    state: KVCache | None


class RotaryTable(nn.Module):
    """The angle p·theta^(-2e/C) of position p and pair e, as its cosine and sine."""

    def __init__(self, d_head: int, theta: float) -> None:
        super().__init__()
        self.d_head = d_head
        self.theta = theta

    def forward(self, position_N: Tensor) -> tuple[Tensor, Tensor]:
        exponent_E = torch.arange(0, self.d_head, 2, device=position_N.device, dtype=torch.float32) / self.d_head
        angle_NE = position_N.float()[:, None] * self.theta**-exponent_E
        return angle_NE.cos(), angle_NE.sin()


class Rotary(nn.Module):
    """Rotates pair e of a head, which is (x[e], x[e + C/2]): the halves of Llama's released weights, not neighbours.

    The table is float32, so a half-precision head is turned in float32 and rounded once.
    """

    def forward(self, x_BHNC: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        cos_NE, sin_NE = rotation
        a_BHNE, b_BHNE = x_BHNC.chunk(2, dim=-1)
        turned = (a_BHNE * cos_NE - b_BHNE * sin_NE, b_BHNE * cos_NE + a_BHNE * sin_NE)
        return torch.cat(turned, dim=-1).to(x_BHNC.dtype)


class FlashCore(nn.Module):
    """softmax(q·kᵀ/√C)·v in one fused kernel, whose scores never reach memory.

    Raises:
        UnsupportedError: Attention dropout on the CPU, whose fused kernel has none.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q_BHNC: Tensor, k_BKMC: Tensor, v_BKMC: Tensor, visible_NM: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if dropout and q_BHNC.device.type == "cpu":
            raise UnsupportedError(
                f"the path 'flash' has no attention dropout on the CPU, but dropout is {dropout}.",
                "Use the path 'eager', or dropout 0.",
            )
        kernels = fused_kernels(q_BHNC, visible_NM)
        group, N = q_BHNC.shape[1] // k_BKMC.shape[1], q_BHNC.shape[2]
        if group > 1 and kernels == [SDPBackend.EFFICIENT_ATTENTION]:  # wants a key head for every query head
            if N == 1:  # one query sees all keys, so those of a group can be the rows of one head
                q_BKRC = q_BHNC.unflatten(1, (-1, group)).squeeze(3)
                return self._attend(kernels, q_BKRC, k_BKMC, v_BKMC).flatten(1, 2)[:, :, None]
            k_BKMC, v_BKMC = (x_BKMC.repeat_interleave(group, dim=1) for x_BKMC in (k_BKMC, v_BKMC))
        return self._attend(
            kernels,
            q_BHNC,
            k_BKMC,
            v_BKMC,
            attn_mask=visible_NM,
            dropout_p=dropout,
            # While torch.jit traces, sizes are tensors.
            is_causal=bool(visible_NM is None and N > 1),
            enable_gqa=bool(q_BHNC.shape[1] != k_BKMC.shape[1]),
        )

    @staticmethod
    def _attend(kernels: list[SDPBackend], q_BHNC: Tensor, k_BKMC: Tensor, v_BKMC: Tensor, **how: Any) -> Tensor:
        # Here, and not around all layers: a checkpointed layer runs again when the backward comes to it.
        with sdpa_kernel(kernels):
            return F.scaled_dot_product_attention(q_BHNC, k_BKMC, v_BKMC, **how)


class EagerCore(nn.Module):
    """softmax(q·kᵀ/√C)·v step by step; the queries that share a key head are its rows, so no key is copied."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q_BHNC: Tensor, k_BKMC: Tensor, v_BKMC: Tensor, visible_NM: Tensor | None) -> Tensor:
        B, H, N, C = q_BHNC.shape
        K, M = k_BKMC.shape[1:3]
        q_BKRC = (q_BHNC * C**-0.5).reshape(B, K, -1, C)
        scores_BHNM = (q_BKRC @ k_BKMC.mT).view(B, H, N, M)
        if visible_NM is not None:
            scores_BHNM = torch.where(visible_NM, scores_BHNM, -torch.inf)
        weights_BHNM = self.dropout(scores_BHNM.softmax(-1))
        return (weights_BHNM.view(B, K, -1, M) @ v_BKMC).view(B, H, N, C)


class Attention(nn.Module):
    def __init__(self, spec: TransformerSpec, path: str, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.d_head = spec.d_head
        kv_width = spec.n_kv_heads * spec.d_head
        self.q_proj = nn.Linear(spec.d_model, spec.d_model, bias=spec.bias)
        self.k_proj = nn.Linear(spec.d_model, kv_width, bias=spec.bias)
        self.v_proj = nn.Linear(spec.d_model, kv_width, bias=spec.bias)
        self.o_proj = nn.Linear(spec.d_model, spec.d_model, bias=spec.bias)
        self.rotary = Rotary()
        self.core = FlashCore(spec.dropout) if path == "flash" else EagerCore(spec.dropout)

    def forward(self, x_BND: Tensor, shared: Shared) -> Tensor:
        q_BHNC, k_BKMC, v_BKMC = (
            project(x_BND).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if shared.rotation is not None:
            q_BHNC, k_BKMC = self._rotated(q_BHNC, k_BKMC, shared.rotation)
        if shared.state is not None:
            k_BKMC, v_BKMC = shared.state.extend(self.layer, k_BKMC, v_BKMC)
        y_BHNC = self.core(q_BHNC, k_BKMC, v_BKMC, shared.visible)
        return self.o_proj(y_BHNC.transpose(1, 2).flatten(2))

    def _rotated(self, q_BHNC: Tensor, k_BKNC: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if q_BHNC.shape[2] > 1 or torch.is_grad_enabled():
            return self.rotary(q_BHNC, rotation), self.rotary(k_BKNC, rotation)
        # Of one token the calls cost more than their arithmetic: both at once are half of them.
        heads = (q_BHNC.shape[1], k_BKNC.shape[1])
        q_BHNC, k_BKNC = self.rotary(torch.cat((q_BHNC, k_BKNC), dim=1), rotation).split(heads, dim=1)
        return q_BHNC, k_BKNC


class GELUMLP(nn.Module):
    """down(GELU(up(x))), with the tanh form of GELU, as in GPT-2."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=spec.bias)
        self.act = nn.GELU(approximate="tanh")
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=spec.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(x_BND)))


class SwiGLUMLP(nn.Module):
    """down(SiLU(gate(x)) * up(x)) (Shazeer, 2002.05202)."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.d_model, spec.d_ff, bias=spec.bias)
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=spec.bias)
        self.act = nn.SiLU()
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=spec.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x_BND)) * self.up_proj(x_BND))


def norm(spec: TransformerSpec) -> nn.Module:
    if spec.norm == "rms":
        return nn.RMSNorm(spec.d_model, eps=1e-5)
    return nn.LayerNorm(spec.d_model, eps=1e-5, bias=spec.bias)


class Layer(nn.Module):
    def __init__(self, spec: TransformerSpec, path: str, layer: int) -> None:
        super().__init__()
        self.norm1 = norm(spec)
        self.attn = Attention(spec, path, layer)
        self.norm2 = norm(spec)
        self.mlp = SwiGLUMLP(spec) if spec.activation == "swiglu" else GELUMLP(spec)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x_BND: Tensor, shared: Shared) -> Tensor:
        x_BND = x_BND + self.dropout(self.attn(self.norm1(x_BND), shared))
        return x_BND + self.dropout(self.mlp(self.norm2(x_BND)))


class Decoder(Backbone):
    """Raises `ValueError` past the room in the state, or past the last learned position."""

    def __init__(self, spec: TransformerSpec, path: str) -> None:
        super().__init__()
        self.path = path
        self.longest = spec.longest
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.positions = nn.Embedding(spec.longest, spec.d_model) if spec.longest is not None else None
        self.rotary = RotaryTable(spec.d_head, spec.rope_theta) if spec.positions == "rotary" else None
        self.dropout = nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList(Layer(spec, path, layer) for layer in range(spec.n_layers))
        self.norm_f = norm(spec)

    def forward(self, tokens_BN: Tensor, state: State | None = None) -> Tensor:
        assert state is None or isinstance(state, KVCache)
        past = state.length if state is not None else 0
        end = past + tokens_BN.shape[1]
        if state is not None and end > state.capacity:
            raise ValueError(f"the state has room for {state.capacity} tokens, not {end}")
        if self.longest is not None and end > self.longest:
            raise ValueError(f"the model has learned positions for {self.longest} tokens, not {end}")

        position_N = torch.arange(past, end, device=tokens_BN.device)
        x_BND = self.embedding(tokens_BN)
        if self.positions is not None:
            x_BND = x_BND + self.positions(position_N)
        x_BND = self.dropout(x_BND)
        shared = Shared(
            rotation=self.rotary(position_N) if self.rotary is not None else None,
            visible=self._visible(position_N, past),
            state=state,
        )
        for layer in self.layers:
            x_BND = self.through(layer, x_BND, shared)
        if state is not None:
            state.length = end
        return self.norm_f(x_BND)

    def _visible(self, position_N: Tensor, past: int) -> Tensor | None:
        if len(position_N) == 1 or (self.path == "flash" and past == 0):
            return None
        key_M = torch.arange(past + len(position_N), device=position_N.device)
        return key_M <= position_N[:, None]


class Transformer(LanguageModel):
    """Weights start as GPT-2's: N(0, 0.02), those that write into the residual stream smaller by √(2·n_layers)."""

    def __init__(self, spec: TransformerSpec, path: str) -> None:
        super().__init__(spec, Decoder(spec, path), path)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=0.02 / sqrt(2 * spec.n_layers))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def new_state(self, batch: int, capacity: int) -> KVCache:
        assert isinstance(self.spec, TransformerSpec)
        return KVCache(self.spec, batch, capacity, like=self.lm_head.weight)


def build(spec: TransformerSpec, path: str) -> Transformer:
    return Transformer(spec, path)


class AttentionCore(Core):
    """Causal attention of projected queries, keys and values, by the paths of the model."""

    def __init__(self, spec: TransformerSpec, path: str) -> None:
        super().__init__(spec, path)
        self.heads = (spec.n_heads, spec.n_kv_heads, spec.n_kv_heads)
        self.d_head = spec.d_head
        self.mixer = FlashCore(0.0) if path == "flash" else EagerCore(0.0)

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """q (B, H, N, C), k and v (B, K, N, C), a token's heads side by side; for `eager` also its mask (N, N)."""
        qkv = tuple(self.normal(batch, length, heads, self.d_head).transpose(1, 2) for heads in self.heads)
        if self.path == "flash" or length == 1:
            return qkv
        return (*qkv, torch.ones(length, length, dtype=torch.bool, device=self.like.device).tril_())

    def forward(self, q_BHNC: Tensor, k_BKNC: Tensor, v_BKNC: Tensor, visible_NN: Tensor | None = None) -> Tensor:
        """(B, H, N, C)."""
        return self.mixer(q_BHNC, k_BKNC, v_BKNC, visible_NN)


def core(spec: TransformerSpec, path: str) -> AttentionCore:
    return AttentionCore(spec, path)
