"""Formulas of Mamba's causal convolution with its SiLU."""

from dataclasses import replace

from benchbench.counters import dense, pointwise
from benchbench.counters.op import Formula, Step, inside, recomputed

TRITON_TOKENS = 128
"""Tokens whose gradients one program of the convolution in Triton writes, and sums dw and db over."""
SLOPE = pointwise.silu(1, 4).backward.flops
"""FLOPs of a SiLU's slope, times a gradient, an element."""


def causal_conv(step: Step, channels: int, taps: int, *, state_bytes: int = 0) -> tuple[Formula, Formula, Formula]:
    """silu(conv(x) + b), as the convolution, its bias and its SiLU.

    `fused`: one kernel, whose output is not kept but made again in backward.
    `triton`: see `_in_triton`. Any other path: three operations.
    """
    rows, s = step.rows, step.width
    conv = dense.depthwise_conv(rows, channels, taps, s, state_bytes=state_bytes)
    if step.steps_on:  # the tokens before it are read, and moved on by one
        conv = replace(conv, forward=replace(conv.forward, bytes_moved=conv.forward.bytes_moved + 2 * state_bytes))
    shift, act = dense.bias(rows, channels, s), pointwise.silu(rows * channels, s, saves=step.path != "triton")
    if step.path == "fused":
        return recomputed(conv), recomputed(shift), recomputed(inside(act))
    if step.path == "triton":
        return _in_triton(step, conv), inside(shift), inside(act)
    return conv, shift, act


def _in_triton(step: Step, conv: Formula) -> Formula:
    """Our kernels, which move all of the bytes.

    Forward: x read, u written. The first product is added to the bias, which so has no addition of its own; the SiLU is
    its sigmoid 4 (scale, exp, add, divide) and a product, which is one operation more than its formula.
    Backward: one kernel reads x and du, computes the sum again, a multiply-add a tap, and g = du·silu' from it, writes
    dx, and sums g·x and g over its tokens; it does the first two for as many tokens behind its own as reach back to
    them, taps - 1. Its shares of dw and db are written, read and summed.
    What it keeps is x, half of in_proj's output, which is kept whole for the gate.
    """
    size, s = conv.sizes, step.width
    n, weights = size["rows"] * size["channels"], size["weights"]
    programs = step.batch * -(-step.new // TRITON_TOKENS)
    size = {**size, "shares": programs * (weights + size["channels"])}
    again = programs * (size["taps"] - 1) * size["channels"]
    backward = replace(
        conv.backward,
        extra_flops=conv.forward.flops + again * (2 * size["taps"] + SLOPE) + size["shares"],
        bytes_moved=3 * s * n + 2 * s * weights + 8 * size["shares"],
    )
    return replace(conv, backward=backward, saved_bytes=0, sizes=size)
