"""The causal depthwise convolution with its SiLU, in Triton: what its kernels are given, and its gradients.

Shape suffixes: B batch, L tokens, D channels, K taps, T tiles of tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchbench.models.kernels import as_rows, loaded, require_narrow


class Tile(NamedTuple):
    """Tokens that a program walks, its channels, the warps that share them, and tokens in flight."""

    tokens: int
    channels: int
    warps: int = 1
    unroll: int = 4


FORWARD, BACKWARD = Tile(32, 128, unroll=8), Tile(128, 64)
"""The fastest of those that tests/bench/kernel_causal_conv.py tries on an H200, at 131,072 tokens of 1536 channels."""


def triton_conv(x_BLD: Tensor, weight_D1K: Tensor, bias_D: Tensor, past_BDK: Tensor | None = None) -> Tensor:
    """silu(conv(x) + bias), (B, L, D); `past_BDK`, if given, comes before x, and is moved on by L tokens in place.

    Raises:
        UnsupportedError: Triton is missing, the dtype is wider than float32, or the tensors are not on a GPU.
    """
    require_narrow(x_BLD)
    x_BLD, weight_DK = as_rows(x_BLD), weight_D1K.squeeze(1)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x_BLD, weight_DK, bias_D)):
        before = None if past_BDK is None else past_BDK.clone()
        u_BLD: Tensor = _TritonConv.apply(x_BLD, weight_DK, bias_D, before)  # pyright: ignore[reportAssignmentType]
    elif past_BDK is not None and x_BLD.shape[1] == 1 and past_BDK.is_contiguous():
        return _one_token(x_BLD, weight_DK, bias_D, past_BDK)
    else:
        u_BLD = _forward(x_BLD, weight_DK, bias_D, past_BDK)
    if past_BDK is not None:
        move_on(past_BDK, x_BLD)
    return u_BLD


def move_on(past_BDK: Tensor, x_BLD: Tensor) -> None:
    """Makes `past_BDK` the last K tokens of itself and x."""
    taps, x_BDL = past_BDK.shape[-1], x_BLD.detach().mT
    if x_BDL.shape[-1] < taps:
        x_BDL = torch.cat((past_BDK, x_BDL.to(past_BDK.dtype)), dim=-1)
    past_BDK.copy_(x_BDL[..., -taps:])


class _TritonConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, weight_DK: Tensor, bias_D: Tensor, past_BDK: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BLD, weight_DK, bias_D, *(() if past_BDK is None else (past_BDK,)))
        return _forward(x_BLD, weight_DK, bias_D, past_BDK)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, weight_DK, bias_D, *past = ctx.saved_tensors
        return *_backward(x_BLD, weight_DK, bias_D, past[0] if past else None, grad_outputs[0].contiguous()), None


def _forward(x_BLD: Tensor, weight_DK: Tensor, bias_D: Tensor, past_BDK: Tensor | None) -> Tensor:
    u_BLD = x_BLD.new_empty(x_BLD.shape)
    (kernels,) = loaded(u_BLD, "causal_conv_kernels")
    masked = bool(x_BLD.shape[1] % FORWARD.tokens or x_BLD.shape[2] % FORWARD.channels)
    _launch(kernels.causal_conv, FORWARD, x_BLD, past_BDK, weight_DK, bias_D, u_BLD, MASKED=masked)
    return u_BLD


def _backward(
    x_BLD: Tensor, weight_DK: Tensor, bias_D: Tensor, past_BDK: Tensor | None, du_BLD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the weight and the bias."""
    batch, length, channels = x_BLD.shape
    dx_BLD = x_BLD.new_empty(x_BLD.shape)
    tiles = batch, -(-length // BACKWARD.tokens)
    dw_BTDK = x_BLD.new_empty(*tiles, *weight_DK.shape, dtype=torch.float32)
    db_BTD = x_BLD.new_empty(*tiles, channels, dtype=torch.float32)
    (kernels,) = loaded(x_BLD, "causal_conv_kernels")
    given = x_BLD, past_BDK, weight_DK, bias_D, du_BLD, dx_BLD, dw_BTDK, db_BTD
    _launch(kernels.causal_conv_backward, BACKWARD, *given)
    return dx_BLD, dw_BTDK.sum((0, 1)).to(weight_DK.dtype), db_BTD.sum((0, 1)).to(bias_D.dtype)


def _launch(
    kernel: Any, tile: Tile, x_BLD: Tensor, past_BDK: Tensor | None, weight_DK: Tensor, *given: Tensor, **more: bool
) -> None:
    """Runs a kernel on every tile of tokens and channels of every sequence; x may be strided, a missing past is x."""
    batch, length, channels = x_BLD.shape
    grid = -(-channels // tile.channels), -(-length // tile.tokens), batch
    pointers = x_BLD, x_BLD if past_BDK is None else past_BDK, weight_DK, *given
    sizes = {"D": channels, "K": weight_DK.shape[1], "PAST": past_BDK is not None}
    cut = {"TOKENS": tile.tokens, "BLOCK": tile.channels, "UNROLL": tile.unroll, "num_warps": tile.warps}
    kernel[grid](*pointers, length, *x_BLD.stride()[:2], **sizes, **more, **cut)


def _one_token(x_B1D: Tensor, weight_DK: Tensor, bias_D: Tensor, past_BDK: Tensor) -> Tensor:
    """The output (B, 1, D) of one token; moves `past_BDK` on in place."""
    batch, _, channels = x_B1D.shape
    out_B1D, block = x_B1D.new_empty(x_B1D.shape), 128
    (kernels,) = loaded(out_B1D, "causal_conv_kernels")
    given = (x_B1D, past_BDK, weight_DK, bias_D, out_B1D, x_B1D.stride(0))
    kernels.causal_conv_token[(-(-channels // block), batch)](*given, D=channels, K=weight_DK.shape[1], BLOCK=block)
    return out_B1D
