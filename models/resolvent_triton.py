"""The resolvent on an NVIDIA GPU: the kernels of resolvent_kernels.py, differentiable, in a module of the model.

Shape suffixes: B batch, N positions, 2 real and imaginary part.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from benchbench.errors import UnsupportedError
from benchbench.models.kernels import loaded
from benchbench.models.resolvent import HALO
from benchbench.specs.resnet_bk import Form


class Tiling(NamedTuple):
    """How a kernel cuts (B, N): positions of a chunk, how many a lane reads at a time, lanes and warps of a program.

    All are powers of two.
    """

    chunk: int
    read: int
    lanes: int = 32
    warps: int = 1

    def programs(self, batch: int, length: int) -> int:
        """A row has an even number of lanes, or one."""
        count = -(-length // self.chunk)
        width = 1 if count == 1 else count + count % 2
        return -(-batch * width // self.lanes)

    def halo(self, length: int) -> int:
        """Whole reads; a row of one chunk needs none."""
        return 0 if length <= self.chunk else -(-HALO[torch.float32] // self.read) * self.read


LEFT = Tiling(chunk=32, read=32)
LEFT_GRADIENT = Tiling(chunk=32, read=8)
TWO_SIDED = Tiling(chunk=16, read=4)
TWO_SIDED_GRADIENT = Tiling(chunk=8, read=4)
TOKEN = Tiling(chunk=1, read=1)
"""A row of one position: decoding."""


def launch(name: str, *tensors: Tensor | None, length: int, tiling: Tiling) -> None:
    """Runs a kernel over the rows of `tensors`, which are contiguous; all begin with the batch.

    The compiler fuses no products into sums but those that the kernel says, so that its operations can be counted.

    Raises:
        UnsupportedError: The tensors are not on a GPU, or Triton is not installed.
    """
    first = tensors[0]
    assert first is not None
    (module,) = loaded(first, "resolvent_kernels")
    tiling = tiling if length > 1 else TOKEN
    batch = len(first)
    getattr(module, name)[(tiling.programs(batch, length),)](
        *tensors,
        batch,
        length,
        CHUNK=tiling.chunk,
        HALO=tiling.halo(length),
        READ=tiling.read,
        LANES=tiling.lanes,
        num_warps=tiling.warps,
        enable_fp_fusion=False,
    )


def left(v_BN: Tensor, state_B2: Tensor | None = None, tiling: Tiling = LEFT) -> Tensor:
    """L of every position, (B, N, 2) in float32, after the L of `state_B2`, into which the last one is written."""
    left_BN2 = v_BN.new_empty(*v_BN.shape, 2, dtype=torch.float32)
    launch("left_fraction_forward", v_BN.contiguous(), left_BN2, state_B2, length=v_BN.shape[1], tiling=tiling)
    return left_BN2


def left_gradient(left_BN2: Tensor, g_BN2: Tensor, dtype: torch.dtype, tiling: Tiling = LEFT_GRADIENT) -> Tensor:
    """dl/dv, (B, N) in v's dtype, of L and dl/dL."""
    grad_BN = left_BN2.new_empty(left_BN2.shape[:2], dtype=dtype)
    launch("left_fraction_backward", left_BN2, g_BN2.contiguous(), grad_BN, length=grad_BN.shape[1], tiling=tiling)
    return grad_BN


def two_sided(v_BN: Tensor, tiling: Tiling = TWO_SIDED) -> Tensor:
    """G of every position, (B, N, 2) in float32."""
    both_BN2 = v_BN.new_empty(*v_BN.shape, 2, dtype=torch.float32)
    launch("two_sided_forward", v_BN.contiguous(), both_BN2, length=v_BN.shape[1], tiling=tiling)
    return both_BN2


def two_sided_gradient(v_BN: Tensor, g_BN2: Tensor, tiling: Tiling = TWO_SIDED_GRADIENT) -> Tensor:
    """dl/dv, (B, N) in v's dtype, of v and dl/dG."""
    grad_BN = torch.empty_like(v_BN, memory_format=torch.contiguous_format)
    tensors = (v_BN.contiguous(), g_BN2.contiguous(), grad_BN)
    launch("two_sided_backward", *tensors, length=v_BN.shape[1], tiling=tiling)
    return grad_BN


class FusedLeft(Function):
    """L with its exact gradient, from L alone. The state is a constant."""

    @staticmethod
    def forward(ctx: Any, v_BN: Tensor, state_B2: Tensor | None) -> Tensor:
        left_BN2 = left(v_BN, state_B2)
        ctx.dtype = v_BN.dtype
        ctx.save_for_backward(left_BN2)
        return left_BN2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BN2: Tensor) -> tuple[Tensor, None]:
        (left_BN2,) = ctx.saved_tensors
        return left_gradient(left_BN2, g_BN2, ctx.dtype), None


class FusedTwoSided(Function):
    """G with its exact gradient, from v alone."""

    @staticmethod
    def forward(ctx: Any, v_BN: Tensor) -> Tensor:
        ctx.save_for_backward(v_BN)
        return two_sided(v_BN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BN2: Tensor) -> Tensor:
        (v_BN,) = ctx.saved_tensors
        return two_sided_gradient(v_BN, g_BN2)


class TritonResolvent(nn.Module):
    """v (B, N) of any dtype up to float32 to its resolvent, (B, N, 2) in float32, by one kernel; on meta, its shape.

    Raises:
        UnsupportedError: The published form, which is sequential, or no NVIDIA GPU, or no Triton.
        ValueError: v is in float64.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        if form == "bk-compat":
            raise UnsupportedError(
                "bk-compat has no path 'triton': its unscaled recursion runs position by position",
                "Take the path 'eager', or another form.",
            )
        self.form = form

    def forward(self, v_BN: Tensor, state_B2: Tensor | None = None) -> Tensor:
        """With `state_B2`, L at position -1 (`bk-causal` alone), continues from it and writes the last L into it."""
        if v_BN.dtype == torch.float64:
            raise ValueError(
                "the path 'triton' computes in float32, not in float64\nTake the path 'chunked' or 'eager'."
            )
        return FusedTwoSided.apply(v_BN) if self.form == "bk-exact" else FusedLeft.apply(v_BN, state_B2)
