"""Views and parts of tensors: they share memory, and their gradients are put together or taken apart."""

from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Parameter, Storage, Tensor


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
