"""What each operation allocates, saves and frees, forward and backward, in torch's order.

A composite of torch is written as the operations that it runs. Sizes of rows are in numbers; `s` is bytes a number.
"""

from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Parameter, Storage, Tensor
from benchbench.counters.allocations.workspaces import CUBLAS, CUBLAS_LT, summing_bytes

HALF = 2


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
