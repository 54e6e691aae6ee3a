"""Formulas of Mamba's causal convolution with its SiLU."""

from dataclasses import replace

from benchbench.counters import dense, pointwise
from benchbench.counters.op import Formula, Step, inside, recomputed

TRITON_TOKENS = 64
"""Tokens that one program of the convolution in Triton sums dw and db over."""


def causal_conv(step: Step, channels: int, taps: int, *, state_bytes: int = 0) -> tuple[Formula, Formula, Formula]:
    """silu(conv(x) + b), as the convolution, its bias and its SiLU.

    `fused`: one kernel, whose output is not kept but made again in backward.
    `triton`: see `_in_triton`. Any other path: three operations.
    """
    rows, s = step.rows, step.width
    conv = dense.depthwise_conv(rows, channels, taps, s, state_bytes=state_bytes)
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
    Backward: one kernel reads x and du and computes the sum again, a multiply-add a tap, to write g = du·silu'; another
    reads g and x, writes dx, and sums g·x and g over a tile of tokens. Those shares are written, read and summed.
    What it keeps is x, half of in_proj's output, which is kept whole for the gate.
    """
    size, s = conv.sizes, step.width
    n, weights = size["rows"] * size["channels"], size["weights"]
    size = {**size, "shares": step.batch * -(-step.new // TRITON_TOKENS) * (weights + size["channels"])}
    backward = replace(
        conv.backward,
        extra_flops=conv.forward.flops + size["shares"],
        bytes_moved=6 * s * n + 3 * s * weights + 8 * size["shares"],
    )
    return replace(conv, backward=backward, saved_bytes=0, sizes=size)
