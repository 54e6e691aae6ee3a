"""The selective scan in Triton, split over the sequence: what its kernels are given, and its gradients.

Shape suffixes: B batch, L tokens, D d_inner, N d_state, K chunks of tokens, G blocks of channels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchbench.errors import UnsupportedError
from benchbench.models.kernels import as_rows, loaded, require_narrow
from benchbench.models.scan_inputs import Inputs
from benchbench.specs.mamba import TRITON_STATES

CHUNK = 128
"""Tokens between two states that training keeps: 4 N / CHUNK bytes a token and channel."""

LOG2E = 1.4426950408889634


class Launch(NamedTuple):
    """How a kernel is cut: channels a program, its warps, tokens in flight, and a thread's registers (0: no limit)."""

    block: int
    warps: int = 1
    unroll: int = 4
    registers: int = 0

    def options(self, n_state: int) -> dict[str, int]:
        """Keyword arguments of a kernel. Beyond 16 states, they are spread over warps, 16 each."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {
            "BLOCK": self.block,
            "WIDTH": max(1, self.block // (32 * self.warps)),
            "UNROLL": self.unroll,
            "num_warps": self.warps * max(1, n_state // 16),
            **limit,
        }


STATES = OUTPUTS = Launch(64, unroll=1, registers=128)
UP, DOWN = Launch(32), Launch(32, unroll=2, registers=128)


class Sizes(NamedTuple):
    """B, L, D, N of a scan."""

    batch: int
    length: int
    channels: int
    n_state: int

    @property
    def chunks(self) -> int:
        return -(-self.length // CHUNK)

    def grid(self, launch: Launch) -> tuple[int, int, int]:
        """A program for each block of channels, chunk and sequence."""
        return -(-self.channels // launch.block), self.chunks, self.batch


def triton_scan(inputs: Inputs, h_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and last state, as every scan; without gradients, one token moves `h_BDN` on in place and returns it.

    Raises:
        UnsupportedError: N is not a power of two up to 32, Triton is missing, the dtype is wider than float32, or the
            tensors are not on a GPU.
    """
    n_state = inputs.A.shape[1]
    if n_state & (n_state - 1) or n_state > TRITON_STATES:
        needed = f"a d_state that is a power of two up to {TRITON_STATES}"
        raise UnsupportedError(f"the path 'triton' needs {needed}, not {n_state}", "Take the path 'chunked'.")
    require_narrow(inputs.u)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, h_BDN)):
        return _TritonScan.apply(*inputs, h_BDN)  # pyright: ignore[reportReturnType]
    if inputs.u.shape[1] == 1 and h_BDN.is_contiguous():
        return _one_token(inputs, h_BDN), h_BDN
    return _forward(inputs, h_BDN)[:2]


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        y_BLD, h_BDN, states = _forward(Inputs(*tensors[:-1]), tensors[-1])
        ctx.save_for_backward(*tensors[:-1], states)
        ctx.set_materialize_grads(False)
        return y_BLD, h_BDN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor, ...]:
        *inputs, states = ctx.saved_tensors
        return _backward(Inputs(*inputs), states, *grad_outputs)


def _forward(inputs: Inputs, h_BDN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and the states (B, K + 1, N, D) between chunks."""
    sizes = Sizes(*inputs.u.shape, n_state=inputs.A.shape[1])  # pyright: ignore[reportCallIssue]
    y_BLD = inputs.u.new_empty(inputs.u.shape)
    states = h_BDN.new_empty(sizes.batch, sizes.chunks + 1, sizes.n_state, sizes.channels)
    (kernels,) = loaded(y_BLD, "selective_scan_kernels")
    u, raw, z, B, C, A, D = _prepared(inputs)
    sums_BKD = states.new_empty(sizes.batch, sizes.chunks, sizes.channels)
    states[:, 0] = h_BDN.mT
    given, rows = (u, raw, B, A, states, sums_BKD), (u, raw)
    _launch(kernels.selective_scan_states, STATES, sizes, given, rows)
    _carry(kernels, states, sums_BKD, A)
    given, rows = (u, raw, z, B, C, A, D, states, y_BLD), (u, raw, z)
    _launch(kernels.selective_scan_outputs, OUTPUTS, sizes, given, rows)
    return y_BLD, states[:, -1].mT.contiguous(), states


def _backward(inputs: Inputs, states: Tensor, dout_BLD: Tensor | None, dh_BDN: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of the inputs and of the first state."""
    sizes = Sizes(*inputs.u.shape, n_state=inputs.A.shape[1])  # pyright: ignore[reportCallIssue]
    forward, backward = loaded(states, "selective_scan_kernels", "selective_scan_kernels_backward")
    u, raw, z, B, C, A, D = _prepared(inputs)
    dout = u.new_zeros(u.shape) if dout_BLD is None else as_rows(dout_BLD)
    du, draw, dz = (u.new_empty(u.shape) for _ in range(3))
    # A float32 gradient of raw may take alpha's place: each number is read before it is written.
    alpha = draw if draw.dtype == torch.float32 else torch.empty_like(draw, dtype=torch.float32)
    carries = torch.empty_like(states)
    carries[:, -1] = 0 if dh_BDN is None else dh_BDN.mT
    sums_BKD, dD_BKD = (states.new_empty(sizes.batch, sizes.chunks, sizes.channels) for _ in range(2))
    slope_BKND, dA_BKND = (states.new_empty(sizes.batch, sizes.chunks, *A.shape) for _ in range(2))
    read = (u, raw, z, dout, B, C, A, D, states, carries)

    def walk(kernel: Any, launch: Launch, *written: Tensor | None) -> Tensor:
        """Runs a walk, with each block's share of dC or dB in the place of None; returns their sum (B, L, N)."""
        shares_GBLN = states.new_empty(sizes.grid(launch)[0], sizes.batch, sizes.length, sizes.n_state)
        given = (*read, *(shares_GBLN if tensor is None else tensor for tensor in written))
        more = {"EXACT": u.dtype == torch.float32, "DOT": sizes.n_state >= 16, "COLUMNS": max(8, launch.unroll)}
        _launch(kernel, launch, sizes, given, (u, raw, z, dout), **more)
        return shares_GBLN.sum(0)

    dC_BLN = walk(backward.selective_scan_up, UP, sums_BKD, dz, alpha, None, slope_BKND, dA_BKND, dD_BKD)
    _carry(forward, carries, sums_BKD, A, reverse=True)
    dB_BLN = walk(backward.selective_scan_down, DOWN, alpha, du, draw, None, slope_BKND, dA_BKND)
    grads = (du, draw, dz, dB_BLN, dC_BLN, dA_BKND.sum((0, 1)).T, dD_BKD.sum((0, 1)))
    return (*(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)), carries[:, 0].mT)


def _launch(
    kernel: Any, launch: Launch, sizes: Sizes, given: tuple[Tensor, ...], rows: tuple[Tensor, ...], **more: int
) -> None:
    """Runs a kernel on `given`, the length, and the strides of a sequence and a token in each of `rows`."""
    _, length, channels, n_state = sizes
    strides = (stride for tensor in rows for stride in tensor.stride()[:2])
    more["MASKED"] = bool(length % CHUNK or channels % launch.block)
    options = launch.options(n_state)
    kernel[sizes.grid(launch)](*given, length, *strides, D=channels, N=n_state, CHUNK=CHUNK, **more, **options)


def _one_token(inputs: Inputs, h_BDN: Tensor) -> Tensor:
    """The outputs (B, 1, D) of one token; moves `h_BDN` on in place."""
    u, raw, z, B, C = (as_rows(tensor) for tensor in inputs[:5])
    batch, _, channels = u.shape
    y_B1D = u.new_empty(u.shape)
    A_DN, block = inputs.A.float().contiguous(), 32
    strides = (tensor.stride(0) for tensor in (u, raw, z, B, C))
    (kernels,) = loaded(u, "selective_scan_kernels")
    kernels.selective_scan_token[(-(-channels // block), batch)](
        u, raw, z, B, C, A_DN, inputs.D, h_BDN, y_B1D, *strides, D=channels, N=A_DN.shape[1], BLOCK=block
    )
    return y_B1D


def _carry(kernels: Any, states: Tensor, sums_BKD: Tensor, A_ND: Tensor, *, reverse: bool = False) -> None:
    """Adds each chunk's state, decayed, to the next one's; from the last to the first with `reverse`."""
    batch, chunks, channels = sums_BKD.shape
    block = 64  # Of 64 chunks at a time, for the loads, not the sums, take its time.
    sizes = {"D": channels, "N": len(A_ND), "REVERSE": reverse, "BLOCK": block, "UNROLL": 64, "num_warps": block // 32}
    kernels.selective_scan_carry[-(-A_ND.numel() // block), batch](states, sums_BKD, A_ND, chunks, **sizes)


def _prepared(inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs as the kernels want them: B and C in float32, A turned and in units of 2."""
    u, raw, z = (as_rows(tensor) for tensor in inputs[:3])
    B, C = (tensor.float().contiguous() for tensor in inputs[3:5])
    return u, raw, z, B, C, (inputs.A.T.float() * LOG2E).contiguous(), inputs.D.float()
