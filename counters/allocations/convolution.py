"""What a causal depthwise convolution allocates, saves and frees."""

from benchbench.counters.allocations.ops import HALF, copy, lowered, summed_rows
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Storage, Tensor
from benchbench.counters.causal_conv import TRITON_TOKENS
from benchbench.counters.op import Step

LANES = 16
"""Channels that the CPU's convolution pads each group of its weights' gradient to."""


def padded(t: Tape, x: Tensor, rows: int) -> Tensor:
    """Rows of zeros before each sequence; backward copies what is left without them."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "copy"))]

    return t.tensor(rows, x.cols, x.width, "padding", t.node((x,), (), backward))


def depthwise_conv(t: Tape, x: Tensor, length: int, rows: int, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution over one row of pixels a sequence, of which a view is taken; its channels are innermost."""
    bias = lowered(t, bias)
    # A view of the weight, which autocast does not keep.
    weight = weight if t.casts is None else copy(t, weight, HALF)
    x = lowered(t, x)
    read, cols, s, taps = x.size, x.cols, x.width, weight.cols
    made, weights = rows * cols * s, taps * cols * s

    def of_view(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(made, "zeros"))]

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        inner = t.new(made, "copy")
        dx = Gradient(t.new(read, "dx"))
        if t.cuda:
            dw = Gradient(t.new(weights, "dW"), view=True)
            if s != 4:
                t.new(4 * (read + made) + 128 * cols + 16, "inner channels")
            del inner
            return [dx, dw, Gradient(t.new(cols * s, "db"))]
        t.new(weights, "blocked weight")
        laid_out, more = _gradient_bytes(length, cols, taps, s)
        blocked = t.new(laid_out, "blocked dW")
        partial = t.new(more, "scratch of dW") if more else None
        summed = t.new(cols * s, "db")
        del partial
        db, dw = Gradient(t.new(cols * s, "db")), t.new(weights, "dW")
        dw = Gradient(t.new(weights, "dW"), view=True)
        del inner, blocked, summed
        return [dx, dw, db]

    node = t.node((x, weight, bias), (x, weight), backward)
    found = t.tensor(rows, cols, s, "convolution", node)
    if not t.cuda:
        t.new(weights, "blocked weight")
    node = t.node((found,), (), of_view)
    return Tensor(found.storage, rows, cols, s, node and (node, 0))


def _gradient_bytes(length: int, cols: int, taps: int, s: int) -> tuple[int, int]:
    """The weights' gradient as oneDNN lays it out on a CPU with AVX-512, and what it takes to compute it.

    Up to three taps it has a kernel for depthwise convolutions, which in bfloat16 adds up in float32. Beyond them it
    takes its general one, each channel as a group that fills all lanes: for that the bias's gradient in float32; in
    bfloat16 one sequence's input and gradient turned, and both sums in float32. Arrays begin on boundaries.
    """
    if taps <= 3:
        return taps * cols * s, 0 if s == 4 else 4 * cols * (taps + 2) + 384
    blocked = cols * taps * LANES * LANES
    if s == 4:
        return blocked * s, cols * LANES * s + 2 * LANES * s
    return blocked * s, 4 * blocked + 2 * LANES * s * cols * (length + 2 + taps // 2) + 8580


def by_kernels(t: Tape, x: Tensor, step: Step, weight: Tensor, bias: Tensor, *, moves: bool) -> Tensor:
    """The convolution with its SiLU, as models/causal_conv_triton.py runs it.

    `moves`: a state that keeps more tokens than are new is put together anew.
    """
    made, channels, taps, width = x.size, x.cols, weight.cols, weight.width
    tiles = step.batch * -(-step.new // TRITON_TOKENS)

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dx = Gradient(t.new(made, "dx"))
        shares = t.new(4 * tiles * taps * channels, "shares of dW"), t.new(4 * tiles * channels, "shares of db")
        dw = summed_rows(t, tiles, taps * channels, 4)
        dw = dw if width == 4 else t.new(width * taps * channels, "dW")
        db = summed_rows(t, tiles, channels, 4)
        db = db if width == 4 else t.new(width * channels, "db")
        del shares
        return [dx, Gradient(dw, view=True), Gradient(db)]

    node = t.node((x, weight, bias), (x, weight, bias), backward)
    u = t.tensor(x.rows, channels, x.width, "convolution", node)
    if moves:
        # The new tokens in float32, unless they are, then behind those before them.
        wide = None if x.width == 4 else t.new(4 * x.rows * channels, "cast")
        t.new(4 * step.batch * (step.new + taps) * channels, "concatenation")
        del wide
    return u
