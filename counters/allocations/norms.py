"""What norms allocate, save and free: one kernel, or the operations that torch composes them of."""

from benchbench.counters.allocations.ops import cast, scale
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Storage, Tensor


def rms_norm(t: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """γ·x/√(mean x² + ε): on the GPU one kernel, on the CPU operation by operation in float32."""
    if t.cuda:
        return _fused_norm(t, x, [weight], 1)
    wide = cast(t, x, 4)
    square = _square(t, wide)
    mean = _mean(t, square)
    inverse = _rsqrt(t, mean)
    del square, mean
    made = scale(t, scale(t, wide, inverse), weight)
    return cast(t, made, x.width)


def layer_norm(t: Tape, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """γ·(x - μ)/σ + β."""
    return _fused_norm(t, x, [weight] if bias is None else [weight, bias], 2)


def _fused_norm(t: Tape, x: Tensor, weights: list[Tensor], statistics: int) -> Tensor:
    """One kernel, which keeps so many numbers a row: on the GPU in float32, on the CPU in its weights' dtype."""
    size, rows, cols, s, row, count = x.size, x.rows, x.cols, x.width, weights[0].size, len(weights)
    kind = 4 if t.cuda else weights[0].width

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        made: Gradients = [Gradient(t.new(size, "dx")), *(Gradient(t.new(row, "dW")) for _ in range(count))]
        if not t.cuda:
            t.new(2 * t.threads * cols * s, "partial sums")
        return made

    node = t.node((x, *weights), (x, weights[0]), backward)
    made = t.tensor(rows, cols, s, "norm", node)
    kept = [t.new(kind * rows, "statistics") for _ in range(statistics)]
    t.save(node, *kept)
    return made


def _square(t: Tape, x: Tensor) -> Tensor:
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        power = t.new(size, "power")
        double = t.new(size, "power")
        made = Gradient(t.new(size, "power"))
        del power, double
        return [made]

    return t.tensor(x.rows, x.cols, x.width, "square", t.node((x,), (x,), backward))


def _mean(t: Tape, x: Tensor) -> Tensor:
    """Of each row, in float32."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "mean"))]

    return t.tensor(x.rows, 1, x.width, "mean", t.node((x,), (), backward))


def _rsqrt(t: Tape, x: Tensor) -> Tensor:
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        cube = t.new(size, "power")
        half = t.new(size, "product")
        made = Gradient(t.new(size, "product"))
        del cube, half
        return [made]

    node = t.node((x,), (), backward)
    made = t.tensor(x.rows, x.cols, x.width, "rsqrt", node)
    t.save(node, made.storage)
    return made
