"""What each operation allocates, saves and frees, forward and backward, in torch's order.

A composite of torch is written as the operations that it runs. Sizes of rows are in numbers; `s` is bytes a number.
"""

from benchbench.counters.workspaces import CUBLAS, CUBLAS_LT, sorting_bytes, summing_bytes
from benchbench.counters.tensors import Gradient, Gradients, Parameter, Storage, Tape, Tensor


def linear(
    t: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, flat: bool = False, made: int | None = None
) -> Tensor:
    """x Wᵀ + b. A product of matrices: unless x is one (`flat`), its gradient is a view of the product.

    The result has as many rows as x, unless `made` says how many.
    """
    # Arguments are cast from the last to the first.
    bias = bias and lowered(t, bias)
    weight = lowered(t, weight)
    x = lowered(t, x)
    rows, d_in, d_out, s = x.rows, x.cols, weight.rows, x.width
    if bias is None:

        def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
            dw = Gradient(t.new(d_in * d_out * s, "dW"), view=True)
            t.library("cuBLAS", CUBLAS)
            return [Gradient(t.new(rows * d_in * s, "dx"), view=not flat), dw]

        y = t.tensor(made or rows, d_out, s, "linear", t.node((x, weight), (x, weight), backward))
        t.library("cuBLAS", CUBLAS)
        return y

    def backward_all(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dx = Gradient(t.new(rows * d_in * s, "dx"), view=not flat)
        t.library("cuBLAS", CUBLAS)
        dw = Gradient(t.new(d_in * d_out * s, "dW"), view=True)
        saved.clear()
        return [dx, dw, Gradient(summed_rows(t, rows, d_out, s), view=True)]

    y = t.tensor(made or rows, d_out, s, "linear", t.node((x, weight, bias), (x, weight), backward_all))
    t.library("cuBLAS", CUBLAS)
    if d_out > 1:
        t.library("cuBLASLt", CUBLAS_LT)
    return y


def summed_rows(t: Tape, rows: int, cols: int, width: int) -> Storage:
    """The sum of all rows; on the GPU with what its blocks hand over."""
    made = t.new(cols * width, "sum of rows")
    if t.cuda and (handed := summing_bytes(rows, cols)):
        t.new(handed, "sums of blocks")
    return made


def embedding(t: Tape, rows: int, table: Parameter, index: Storage | None = None) -> Tensor:
    """Rows of a table, by an `index` that is saved unless it is held anyway."""
    size, entries, cols = table.size, table.rows, table.cols

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        if t.cuda and rows > SORTED:
            return [Gradient(sorted_gradient(t, rows, entries, cols, size))]
        return [Gradient(t.new(size, "dW"))]

    node = t.node((table,), (), backward)
    if index is not None:
        t.save(node, index)
    return t.tensor(rows, table.cols, table.width, "embedding", node)


SORTED = 3072
"""Rows up to which the GPU adds gradients of an embedding without sorting them by entry."""


def sorted_gradient(t: Tape, rows: int, entries: int, cols: int, size: int) -> Storage:
    """The gradient of an embedding on the GPU: rows sorted by entry, added up in pieces of ten, then by entry."""
    index = 8 * rows
    sorted_, original = t.new(index, "sorted"), t.new(index, "order")
    aside = t.new(index, "arange"), t.new(sorting_bytes(rows), "sort")
    del aside
    dw = t.new(size, "dW")
    segments = t.new(index, "segments")
    some = min(rows, entries)
    found = t.new(8 * some, "segments"), t.new(8 * some, "segments")
    pieces = rows // 10 + some
    aside = t.new(8 * pieces, "pieces"), t.new(4 * pieces * cols, "sums of pieces")
    del aside, found, segments, sorted_, original
    return dw


def add(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x + y of one shape: both take the gradient, in their own dtype."""
    wide = max(x.width, y.width)
    sizes = [None if one.width == wide else one.size for one in (x, y)]

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [gradients[0] if size is None else Gradient(t.new(size, "cast")) for size in sizes]

    node = t.node((x, y), (), backward)
    aside = [widened(t, one.rows * one.cols * wide, one.width, wide) for one in (x, y)]
    made = t.tensor(x.rows, x.cols, wide, "sum", node)
    del aside
    return made


def add_to_each(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x + y, with y the same for each sequence: its gradient is their sum."""
    less = y.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [gradients[0], Gradient(t.new(less, "sum"))]

    return t.tensor(x.rows, x.cols, x.width, "sum", t.node((x, y), (), backward))


def subtract(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    size, constant = y.size, y.source is None

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [gradients[0], None if constant else Gradient(t.new(size, "sign"))]

    return t.tensor(x.rows, x.cols, x.width, "difference", t.node((x, y), (), backward))


def divide(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x/y of one shape; x may be a constant."""
    size, constant = x.size, x.source is None

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        aside = [t.new(size, "quotient") for _ in range(3)]
        dy = Gradient(t.new(size, "product"))
        aside.clear()
        return [None if constant else Gradient(t.new(size, "quotient")), dy]

    return t.tensor(x.rows, x.cols, x.width, "quotient", t.node((x, y), (x, y), backward))


def shifted(t: Tape, x: Tensor) -> Tensor:
    """x and a number: their sum or difference."""

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [gradients[0]]

    return t.tensor(x.rows, x.cols, x.width, "sum", t.node((x,), (), backward))


def multiply(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x·y of one shape; y may be a constant."""
    size, constant = x.size, y.source is None

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "product")), None if constant else Gradient(t.new(size, "product"))]

    if constant:
        return t.tensor(x.rows, x.cols, x.width, "product", t.node((x,), (y,), lambda g, saved: backward(g, saved)[:1]))
    return t.tensor(x.rows, x.cols, x.width, "product", t.node((x, y), (x, y), backward))


def scale(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x·y, where y is a row or a column, or in another way smaller: its gradient is summed up."""
    size, less, wide, width = x.size, y.rows * y.cols * x.width, x.width, y.width

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dy = t.new(size, "product")
        dx = Gradient((widened(t, less, width, wide) and t.new(size, "product")) or t.new(size, "product"))
        return [dx, _summed(t, dy, less, saved, less // wide * width)]

    node = t.node((x, y), (x, y), backward)
    aside = widened(t, less, width, wide)
    made = t.tensor(x.rows, x.cols, wide, "product", node)
    del aside
    return made


def widened(t: Tape, size: int, width: int, wide: int) -> Storage | None:
    """What a kernel of the CPU computes with, where a number is of another dtype than the result."""
    return None if t.cuda or width == wide else t.new(size, "widened")


def _summed(t: Tape, made: Storage, size: int, saved: list[Storage], final: int) -> Gradient:
    """A gradient brought to the shape and the dtype of its input, when the node has let go of what it saved."""
    saved.clear()
    summed = t.new(size, "sum")
    return Gradient(summed if size == final else t.new(final, "cast"))


def scale_by(t: Tape, x: Tensor, constant: Tensor | None, width: int | None = None) -> Tensor:
    """x times something without a gradient, of any shape that fits; a number if None. `width`: that of the result."""
    size, wide = x.size, width or x.width
    product = x.rows * x.cols * wide

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dx = t.new(product, "product")
        return [Gradient(dx if wide == x_width else t.new(size, "cast"))]

    x_width = x.width
    node = t.node((x,), () if constant is None else (constant,), backward)
    aside = widened(t, product, x_width, wide)
    made = t.tensor(x.rows, x.cols, wide, "product", node)
    del aside
    return made


def function(t: Tape, x: Tensor, name: str) -> Tensor:
    """A function whose gradient one kernel takes from x."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, name))]

    return t.tensor(x.rows, x.cols, x.width, name, t.node((x,), (x,), backward))


def copy(t: Tape, x: Tensor, width: int | None = None) -> Tensor:
    """x in another order or dtype; the gradient goes back to x's dtype."""
    wide = width or x.width
    size, same = x.size, wide == x.width

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [gradients[0] if same else Gradient(t.new(size, "cast"))]

    return t.tensor(x.rows, x.cols, wide, "copy", t.node((x,), (), backward))


def lowered(t: Tape, x: Tensor) -> Tensor:
    """What a product gets: under autocast x in half precision; a weight, where there are gradients, once for all."""
    if t.casts is None or x.width == HALF:
        return x
    if not isinstance(x, Parameter) or not t.training:
        return copy(t, x, HALF)
    if x not in t.casts:
        t.casts[x] = copy(t, x, HALF)
    return t.casts[x]


def raised(t: Tape, x: Tensor) -> Tensor:
    """What autocast computes in float32, on the GPU: exponentials and sums."""
    return x if t.casts is None or not t.cuda else cast(t, x, 4)


def cast(t: Tape, x: Tensor, width: int) -> Tensor:
    """x itself, if it has this dtype."""
    return x if x.width == width else copy(t, x, width)


def gradient_copied(t: Tape, x: Tensor) -> Tensor:
    """A view whose gradient comes in another order than x's, and is copied."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "copy"), view=True)]

    node = t.node((x,), (), backward)
    return Tensor(x.storage, x.rows, x.cols, x.width, node and (node, 0))


def laid_out(t: Tape, weight: Parameter) -> Tensor:
    """A weight whose gradient comes in another order: what it takes over first is a copy."""
    size = weight.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "dW")) if weight.gradient is None else gradients[0]]

    node = t.node((weight,), (), backward)
    return Tensor(weight.storage, weight.rows, weight.cols, weight.width, node and (node, 0))


def viewed(t: Tape, x: Tensor) -> Tensor:
    """A view whose gradient is a view."""

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        gradient = gradients[0]
        return [gradient and Gradient(gradient.storage, view=True)]

    node = t.node((x,), (), backward)
    return Tensor(x.storage, x.rows, x.cols, x.width, node and (node, 0))


def split(t: Tape, x: Tensor, *cols: int) -> tuple[Tensor, ...]:
    """Views of so many columns each; backward puts their gradients side by side."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "concatenation"))]

    node = t.node((x,), (), backward)
    return tuple(Tensor(x.storage, x.rows, some, x.width, node and (node, i)) for i, some in enumerate(cols))


def side_by_side(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x and y in one; backward hands out views."""

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [Gradient(gradient.storage, view=True, size=size) for size in sizes]

    sizes = x.size, y.size

    return t.tensor(x.rows, x.cols + y.cols, x.width, "concatenation", t.node((x, y), (), backward))


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
    """One kernel, which keeps so many numbers a row."""
    size, rows, cols, s, row, count = x.size, x.rows, x.cols, x.width, weights[0].size, len(weights)

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        made = [Gradient(t.new(size, "dx")), *(Gradient(t.new(row, "dW")) for _ in range(count))]
        if not t.cuda:
            t.new(2 * t.threads * cols * s, "partial sums")
        return made

    node = t.node((x, *weights), (x, weights[0]), backward)
    made = t.tensor(rows, cols, s, "norm", node)
    kept = [t.new(4 * rows, "statistics") for _ in range(statistics)]
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


def cross_entropy(t: Tape, logits: Tensor) -> Tensor:
    """The summed loss: log-probabilities in float32, then the targets' of them."""
    size = logits.size

    def of_logarithms(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "dlogits", "logits"))]

    def of_loss(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "dlogits", "logits"))]

    node = t.node((logits,), (), of_logarithms)
    made = Tensor(t.new(size, "log-probabilities", "logits"), logits.rows, logits.cols, 4, node and (node, 0))
    t.save(node, made.storage)
    node = t.node((made,), (made,), of_loss)
    return Tensor(t.new(4, "loss"), 1, 1, 4, node and (node, 0))


class Pieces:
    """Rows of x handed out piece by piece; backward puts their gradients together."""

    def __init__(self, t: Tape, x: Tensor) -> None:
        size = x.size

        def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
            made = Gradient(t.new(size, "concatenation"))
            t.gather(*(one and one.storage for one in gradients))
            return [made]

        self.x = x
        self.node = t.node((x,), (), backward)
        self.handed = 0

    def next(self, rows: int) -> Tensor:
        x, source = self.x, self.node and (self.node, self.handed)
        self.handed += 1
        return Tensor(x.storage, rows, x.cols, x.width, source)


def total(t: Tape, losses: list[Tensor]) -> Tensor:
    """The sum of the losses of all pieces."""
    count = len(losses)

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [Gradient(gradient.storage, view=True) for _ in range(count)]

    t.gather(*(one.storage for one in losses))
    return t.tensor(1, 1, 4, "loss", t.node(losses, (), backward))


def batched_product(t: Tape, x: Tensor, y: Tensor, rows: int, cols: int) -> Tensor:
    """Products of `rows` rows in all, of `cols` numbers each, from what lies in x and y."""
    y = lowered(t, y)
    x = lowered(t, x)
    of_x, of_y = x.size, y.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dy = Gradient(t.new(of_y, "product"))
        t.library("cuBLAS", CUBLAS)
        return [Gradient(t.new(of_x, "product")), dy]

    made = t.tensor(rows, cols, x.width, "product", t.node((x, y), (x, y), backward))
    t.library("cuBLAS", CUBLAS)
    return made


def read_out(t: Tape, x: Tensor, y: Tensor, rows: int, cols: int) -> Tensor:
    """Σ over the states of x, a matrix a row, times y: a batched product."""
    return batched_product(t, x, y, rows, cols)


def masked(t: Tape, x: Tensor, visible: Tensor) -> Tensor:
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "mask"))]

    return t.tensor(x.rows, x.cols, x.width, "mask", t.node((x,), (visible,), backward))


def softmax(t: Tape, x: Tensor) -> Tensor:
    x = raised(t, x)
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        made = Gradient(t.new(size, "softmax"))
        if t.cuda:
            t.new(size, "product")
        return [made]

    node = t.node((x,), (), backward)
    made = t.tensor(x.rows, x.cols, x.width, "softmax", node)
    t.save(node, made.storage)
    return made


HALF = 2
LANES = 16
"""Channels that the CPU's convolution pads each group of its weights' gradient to."""


def exponential(t: Tape, x: Tensor) -> Tensor:
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "product"))]

    node = t.node((x,), (), backward)
    made = t.tensor(x.rows, x.cols, x.width, "exponential", node)
    t.save(node, made.storage)
    return made


def negative(t: Tape, x: Tensor) -> Tensor:
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "sign"))]

    return t.tensor(x.rows, x.cols, x.width, "sign", t.node((x,), (), backward))


def padded(t: Tape, x: Tensor, rows: int) -> Tensor:
    """Rows of zeros before each sequence; backward copies what is left without them."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "copy"))]

    return t.tensor(rows, x.cols, x.width, "padding", t.node((x,), (), backward))


def depthwise_conv(t: Tape, x: Tensor, rows: int, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution over one row of pixels, of which a view is taken; its channels are innermost."""
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
            if s != 4:  # noqa: PLR2004
                t.new(4 * (read + made) + 128 * cols + 16, "inner channels")
            del inner
            return [dx, dw, Gradient(t.new(cols * s, "db"))]
        t.new(weights, "blocked weight")
        blocked = t.new(cols * taps * LANES * LANES * s, "blocked dW")
        partial = t.new(cols * LANES * s + 2 * LANES * s, "partial db")
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


def outer(t: Tape, x: Tensor, y: Tensor, rows: int, cols: int) -> Tensor:
    """A product larger than both of its factors, whose gradients are summed up."""
    size, of_x, of_y = rows * cols * x.width, x.size, y.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        products = [t.new(size, "product"), t.new(size, "product")]
        saved.clear()
        dx = Gradient(t.new(of_x, "sum"))
        products.pop()
        return [dx, Gradient(t.new(of_y, "sum"))]

    return t.tensor(rows, cols, x.width, "product", t.node((x, y), (x, y), backward))


class Slices:
    """A tensor token by token; backward stacks their gradients."""

    def __init__(self, t: Tape, x: Tensor, count: int) -> None:
        size = x.size

        def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
            made = Gradient(t.new(size, "stack"))
            t.gather(*(one and one.storage for one in gradients))
            return [made]

        self.x = x
        self.rows = x.rows // count
        self.node = t.node((x,), (), backward)
        self.taken = 0

    def next(self) -> Tensor:
        source = self.node and (self.node, self.taken)
        self.taken += 1
        return Tensor(self.x.storage, self.rows, self.x.cols, self.x.width, source)


def stack(t: Tape, parts: list[Tensor], rows: int, cols: int) -> Tensor:
    """`parts` in one; of a loop that is not walked in full they stand for others. Backward hands out views."""
    count, size, width = len(parts), parts[0].size, parts[0].width

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [Gradient(gradient.storage, view=True, size=size) for _ in range(count)]

    return t.tensor(rows, cols, width, "stack", t.node(parts, (), backward))


def clamp(t: Tape, x: Tensor) -> Tensor:
    """Within bounds; backward asks of each number whether it is, in bytes."""
    size, numbers = x.size, x.rows * x.cols

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        tests = t.new(numbers, "test"), t.new(numbers, "test")
        made = Gradient(t.new(size, "clamp"))
        del tests
        return [made]

    return t.tensor(x.rows, x.cols, x.width, "clamp", t.node((x,), (x,), backward))


def learned_scale(t: Tape, x: Tensor, factor: Parameter) -> Tensor:
    """One learned number times x."""
    size, width = x.size, factor.width

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dx, product = Gradient(t.new(size, "product")), t.new(size, "product")
        saved.clear()
        summed = Gradient(t.new(width, "sum"))
        del product
        return [dx, summed]

    return t.tensor(x.rows, x.cols, x.width, "product", t.node((x, factor), (x, factor), backward))


def relu_in_place(t: Tape, x: Tensor) -> Tensor:
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "relu"))]

    node = t.node((x,), (x,), backward)
    return Tensor(x.storage, x.rows, x.cols, x.width, node and (node, 0))


def dropout(t: Tape, x: Tensor) -> Tensor:
    """One kernel with a mask of bytes on the GPU; on the CPU a product with noise."""
    size, numbers = x.size, x.rows * x.cols

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "dropout"))]

    node = t.node((x,), (), backward)
    if not t.cuda:
        noise = t.new(size, "noise")
        t.save(node, noise)
        return t.tensor(x.rows, x.cols, x.width, "dropout", node)
    made = t.tensor(x.rows, x.cols, x.width, "dropout", node)
    t.save(node, t.new(numbers, "mask"))
    return made


def top_k(t: Tape, x: Tensor, k: int) -> tuple[Tensor, Storage]:
    """The k largest of each row and their places."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "zeros"))]

    node = t.node((x,), (), backward)
    made = t.tensor(x.rows, k, x.width, "largest", node)
    places = t.new(8 * x.rows * k, "places")
    t.save(node, places)
    return made, places


def pick(t: Tape, x: Tensor, index: Storage, rows: int) -> Tensor:
    """Rows of x by number; backward adds them up in zeros."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "zeros"))]

    node = t.node((x,), (), backward)
    t.save(node, index)
    return t.tensor(rows, x.cols, x.width, "rows", node)
