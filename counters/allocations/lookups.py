"""What reads by index: embeddings, the largest of a row, rows by number, the loss of a target."""

from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Parameter, Storage, Tensor
from benchbench.counters.allocations.workspaces import sorting_bytes

SORTED = 3072
"""Rows up to which the GPU adds gradients of an embedding without sorting them by entry."""


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


def total(t: Tape, losses: list[Tensor]) -> Tensor:
    """The sum of the losses of all pieces."""
    count = len(losses)

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [Gradient(gradient.storage, view=True) for _ in range(count)]

    t.gather(*(one.storage for one in losses))
    return t.tensor(1, 1, 4, "loss", t.node(losses, (), backward))
