"""Mamba-1 on the CUDA kernels of mamba-ssm and causal-conv1d, called as that project's own modules call them.

- Forward without a state: `mamba_inner_fn`, one autograd function from the convolution to the output projection, which
  keeps no convolution and no dt and computes both again in backward.
- Prefill: `causal_conv1d_fn` and `selective_scan_fn`, which gives the last state.
- Decode: `causal_conv1d_update` and `selective_state_update`, which move the states on in place.
- Between layers: `layer_norm_fn`, which adds to the residual stream and normalises it in one kernel.

The published model keeps A_log, D and dt's bias in float32; here they have the weights' dtype like every other path's,
and are widened before use: the kernels compute with them in float32. The states have the weights' dtype, as there; the
residual stream is float32. The kernels want the tokens innermost, (B, D, L).

Shape suffixes: B batch, L new tokens, T = B·L rows, E d_model, D d_inner, N d_state, K d_conv, R dt_rank.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench.errors import UnsupportedError
from benchbench.extras import CONV1D, refusal
from benchbench.models.base import State, has_numbers
from benchbench.models.mamba import LayerState, Mamba, MambaBackbone, MambaState, Mixer, RMSNorm, ScanCore
from benchbench.models.scan_inputs import Inputs
from benchbench.specs.mamba import MambaSpec

PATH = "fused"


class Kernels(NamedTuple):
    """Functions of mamba-ssm and causal-conv1d, by what they do here."""

    inner: Callable[..., Tensor]
    conv: Callable[..., Tensor]
    scan: Callable[..., tuple[Tensor, Tensor]]
    conv_step: Callable[..., Tensor]
    scan_step: Callable[..., Tensor]
    norm: Callable[..., Any]


@cache
def kernels() -> Kernels:
    """The functions, imported once.

    Raises:
        UnsupportedError: A piece is not installed or does not fit this torch: which one, and what to type.
    """
    try:
        from causal_conv1d import causal_conv1d_fn, causal_conv1d_update  # pyright: ignore[reportMissingImports]
        from mamba_ssm.ops import selective_scan_interface as scans  # pyright: ignore[reportMissingImports]
        from mamba_ssm.ops.triton.layer_norm import layer_norm_fn  # pyright: ignore[reportMissingImports]
        from mamba_ssm.ops.triton.selective_state_update import (  # pyright: ignore[reportMissingImports]
            selective_state_update,
        )
    except ImportError as error:
        raise refusal(PATH, error) from None
    if scans.causal_conv1d_fwd_function is None:  # mamba-ssm goes on without it, on a slow path
        raise UnsupportedError(f"the path '{PATH}' needs a newer causal-conv1d: mamba-ssm cannot use this one.", CONV1D)
    return Kernels(
        inner=scans.mamba_inner_fn,
        conv=causal_conv1d_fn,
        scan=scans.selective_scan_fn,
        conv_step=causal_conv1d_update,
        scan_step=selective_state_update,
        norm=layer_norm_fn,
    )


def require_gpu(tensor: Tensor) -> None:
    """Raises `UnsupportedError` where the kernels cannot run."""
    if not has_numbers(tensor):
        raise UnsupportedError(
            f"the path '{PATH}' runs CUDA kernels that cannot be traced without data.",
            "The path 'chunked' computes the same and can be traced.",
        )
    if not tensor.is_cuda:
        raise UnsupportedError(
            f"the path '{PATH}' needs an NVIDIA GPU, not the device '{tensor.device.type}'.",
            "Pass --device cuda, or use the path 'chunked'.",
        )


CONV_THREADS = 128


def require_right_gradient(x_BDL: Tensor) -> None:
    """Raises `UnsupportedError` where causal-conv1d's backward pass is wrong.

    It works through chunks of 128 threads that hold 4 tokens each, 8 in half precision. A last chunk of fewer tokens
    than one thread holds reads zeros for some of those just before it: csrc/causal_conv1d_bwd.cu compares where they
    would lie after, not before, the chunk's start with the sequence's end. The last tokens' gradients are then wrong,
    by up to a quarter of the largest at 2,050 tokens in float32 on an H200 (1.7.0), and with them those of the weights.
    """
    length, held = x_BDL.shape[-1], 4 if x_BDL.element_size() == 4 else 8
    chunk = CONV_THREADS * held
    if x_BDL.requires_grad and length > chunk and 0 < length % chunk < held:
        raise UnsupportedError(
            f"the path '{PATH}' cannot train on {length:,} tokens: 1 to {held - 1} more than a multiple of {chunk:,}, "
            "where causal-conv1d computes wrong gradients.",
            "Take a few tokens more or fewer, or the path 'triton' or 'chunked'.",
        )


class AddNorm(RMSNorm):
    """Adds a layer's output to the residual stream and normalises the sum."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_BLE: Tensor, residual_BLE: Tensor | None, *, last: bool = False
    ) -> Any:
        """The normalised sum in the dtype of `x_BLE`, and, unless `last`, the sum in float32."""
        return kernels().norm(
            x_BLE,
            self.weight,
            None,
            residual=residual_BLE,
            eps=self.eps,
            prenorm=not last,
            residual_in_fp32=True,
            is_rms_norm=True,
        )


class FusedMixer(Mixer):
    """The layer of `Mixer`, with its parameters."""

    def forward(self, x_BLE: Tensor, state: LayerState | None = None) -> Tensor:
        """(B, L, E) from (B, L, E). A `state` is empty, or L is 1; it is updated in place."""
        A_DN = -torch.exp(self.A_log.float())
        if state is not None and x_BLE.shape[1] == 1:
            return self._step(x_BLE[:, 0], A_DN, state)[:, None]
        # One product writes the tokens innermost; a transposed copy would read and write them once more.
        xz_BDL = _by_channel(self.in_proj.weight @ x_BLE.flatten(0, 1).T, x_BLE.shape[1])
        if state is not None:
            return self._prefill(xz_BDL, A_DN, state)
        require_right_gradient(xz_BDL)
        return kernels().inner(
            xz_BDL,
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            None,
            A_DN,
            D=self.D.float(),
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
        )

    def _prefill(self, xz_BDL: Tensor, A_DN: Tensor, state: LayerState) -> Tensor:
        x_BDL, z_BDL = xz_BDL.chunk(2, dim=1)
        B, _, L = x_BDL.shape
        state.conv[..., -L:].copy_(x_BDL[..., -state.conv.shape[-1] :])
        u_BDL = kernels().conv(x_BDL, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu")
        low_TR, B_TN, C_TN = self.x_proj(u_BDL.mT.flatten(0, 1)).split(self.sizes, dim=-1)
        y_BDL, last_BDN = kernels().scan(
            u_BDL,
            _by_channel(self.dt_proj.weight @ low_TR.T, L),
            A_DN,
            B_TN.unflatten(0, (B, L)).mT.contiguous(),
            C_TN.unflatten(0, (B, L)).mT.contiguous(),
            self.D.float(),
            z=z_BDL,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
            return_last_state=True,
        )
        state.ssm.copy_(last_BDN)
        return self.out_proj(y_BDL.mT)

    def _step(self, x_BE: Tensor, A_DN: Tensor, state: LayerState) -> Tensor:
        x_BD, z_BD = self.in_proj(x_BE).chunk(2, dim=-1)
        # The kernel takes no input of another dtype than its state's; they differ under autocast alone.
        x_BD = x_BD.to(state.conv.dtype)
        u_BD = kernels().conv_step(x_BD, state.conv, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        low_BR, B_BN, C_BN = self.x_proj(u_BD).split(self.sizes, dim=-1)
        y_BD = kernels().scan_step(
            state.ssm,
            u_BD,
            F.linear(low_BR, self.dt_proj.weight),
            A_DN,
            B_BN,
            C_BN,
            self.D,
            z=z_BD,
            dt_bias=self.dt_proj.bias,
            dt_softplus=True,
        )
        return self.out_proj(y_BD)


def _by_channel(x_DT: Tensor, length: int) -> Tensor:
    """(B, D, L) as a view of (D, B·L)."""
    return x_DT.unflatten(1, (-1, length)).transpose(0, 1)


class FusedBlock(nn.Module):
    """Takes and returns a layer's output and the residual stream that it is not yet added to."""

    def __init__(self, spec: MambaSpec, path: str) -> None:
        super().__init__()
        self.norm = AddNorm(spec.d_model, eps=1e-5)
        self.mixer = FusedMixer(spec, path)

    def forward(self, x_BLE: Tensor, residual_BLE: Tensor | None, state: LayerState | None) -> tuple[Tensor, Tensor]:
        normed_BLE, sum_BLE = self.norm(x_BLE, residual_BLE)
        return self.mixer(normed_BLE, state), sum_BLE


class FusedBackbone(MambaBackbone):
    """Raises `UnsupportedError` without a GPU, without a piece, or where tokens follow others more than one at once."""

    block = FusedBlock

    def __init__(self, spec: MambaSpec) -> None:
        super().__init__(spec, PATH)
        self.norm_f = AddNorm(spec.d_model, eps=1e-5)

    def forward(self, tokens_BN: Tensor, state: State | None = None) -> Tensor:
        assert state is None or isinstance(state, MambaState)
        require_gpu(tokens_BN)
        kernels()
        new = tokens_BN.shape[1]
        if state and state.length and new > 1:
            raise UnsupportedError(
                f"the path '{PATH}' cannot read {new} tokens behind {state.length} others: its scan starts from zero.",
                "Read the prompt at once, or use the path 'chunked'.",
            )
        x_BLE, residual_BLE = self.embedding(tokens_BN), None
        for i, layer in enumerate(self.layers):
            x_BLE, residual_BLE = self.through(layer, x_BLE, residual_BLE, state.layers[i] if state else None)
        if state:
            state.length += new
        return self.norm_f(x_BLE, residual_BLE, last=True)


class FusedMamba(Mamba):
    def __init__(self, spec: MambaSpec) -> None:
        super().__init__(spec, FusedBackbone(spec), PATH)

    def new_state(self, batch: int, capacity: int) -> MambaState:
        """Zeros in the weights' dtype; a state of any `capacity` has the same size."""
        spec, weight = self.spec, self.backbone.embedding.weight

        def zeros(columns: int) -> Tensor:
            return weight.new_zeros(batch, spec.d_inner, columns, requires_grad=False)

        return MambaState([LayerState(zeros(spec.d_conv), zeros(spec.d_state)) for _ in range(spec.n_layers)])


class FusedScan(nn.Module):
    """`selective_scan_fn`, called as `SelectiveScan` is. Inputs whose tokens are innermost in memory are not copied."""

    def forward(self, inputs: Inputs) -> tuple[Tensor]:
        require_gpu(inputs.u)
        u_BDL, raw_BDL, z_BDL, B_BNL, C_BNL = (tensor.mT for tensor in inputs[:5])
        scan: Any = kernels().scan
        y_BDL = scan(u_BDL, raw_BDL, inputs.A, B_BNL, C_BNL, inputs.D.float(), z=z_BDL, delta_softplus=True)
        return (y_BDL.mT,)


class FusedScanCore(ScanCore):
    def __init__(self, spec: MambaSpec) -> None:
        super().__init__(spec, PATH, FusedScan())

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Those of every scan, with the tokens innermost in memory."""
        return tuple(tensor.mT.contiguous().mT for tensor in super().inputs(batch, length))
