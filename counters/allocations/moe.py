"""What the mixture of experts does to memory, operation by operation as models/moe.py runs it.

Routing is by numbers of eight bytes. However the rows are split among the experts, the parts take as much as the whole.
"""

from typing import NamedTuple

from benchbench.counters.allocations import lookups, ops, views
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Parameter, Storage, Tensor
from benchbench.counters.allocations.workspaces import CUBLAS, MULTIPROCESSORS, sorting_bytes
from benchbench.specs.resnet_bk import ResNetBKSpec

TILES_PER_EXPERT = 8
SORTED_AT_ONCE = 4096
"""Numbers that the GPU sorts in one block, without a buffer."""


class Linear(NamedTuple):
    """An expert's weights lie (inputs, outputs), below each other."""

    weight: Parameter
    bias: Parameter


def mixture(t: Tape, spec: ResNetBKSpec, h: Tensor, router: Linear, up: Linear, down: Linear) -> Tensor:
    k, pairs, index = spec.top_k, h.rows * spec.top_k, 8 * h.rows * spec.top_k
    t.place = "moe"
    x = views.viewed(t, h)
    logits, expert = lookups.top_k(t, ops.linear(t, x, *router, flat=True), k)
    gates = ops.softmax(t, logits)
    if t.cuda and pairs <= spec.n_experts:
        rows = each(t, each(t, Tensor(x.storage, pairs, x.cols, x.width), up), down)
        chosen = views.Slices(t, ops.scale(t, rows, gates.viewed(pairs, 1)), k)
        return _added(t, chosen, k)
    sorted_, order = t.new(index, "experts"), t.new(index, "order")
    aside = t.new(index, "arange"), t.new(sorting_bytes(pairs), "sort") if t.cuda and pairs > SORTED_AT_ONCE else None
    del aside
    numbers, ends = t.new(8 * spec.n_experts, "numbers"), t.new(8 * spec.n_experts, "ends")
    back = t.new(index, "back")
    t.new(index, "arange")
    rows = taken(t, x, t.new(index, "tokens"), back, k)
    rows = experts(t, spec, rows, up, down)
    picked = taken(t, gates.viewed(pairs, 1), order, back, 1)
    rows = ops.scale(t, rows, picked)
    del picked
    chosen = views.Slices(t, taken(t, rows, back, order, 1), k)
    made = _added(t, chosen, k)
    del sorted_, numbers, ends, expert
    return made


def _added(t: Tape, chosen: views.Slices, k: int) -> Tensor:
    made = chosen.next()
    for _ in t.rounds(k - 1):
        made = ops.add(t, made, chosen.next())
    return made


def taken(t: Tape, x: Tensor, index: Storage, back: Storage, copies: int) -> Tensor:
    """Rows of x, each so often. On the GPU backward takes them `back`, by an operation of ours."""
    rows, size = x.rows * copies, x.size
    if not t.cuda:
        return lookups.pick(t, x, index, rows)
    whole = rows * x.cols * x.width

    def taken_back(gradients: Gradients, saved: list[Storage]) -> Gradients:
        made = t.new(whole, "rows")
        for _ in t.rounds(copies - 1):
            made = t.new(size, "sum")
        return [Gradient(made, view=copies == 1)]

    node = t.node((x,), (), taken_back)
    made = t.tensor(rows, x.cols, x.width, "rows", node)
    t.save(node, back)  # behind it, where torch's own operations keep an index before they run
    return made


def experts(t: Tape, spec: ResNetBKSpec, x: Tensor, up: Linear, down: Linear) -> Tensor:
    t.place = "moe.experts"
    hidden = ops.relu_in_place(t, grouped(t, spec, x, up))
    if t.training and spec.dropout:
        hidden = ops.dropout(t, hidden)
    return grouped(t, spec, hidden, down)


def grouped(t: Tape, spec: ResNetBKSpec, x: Tensor, weights: Linear) -> Tensor:
    weight, bias = weights
    if t.casts is not None:
        x, weight, bias = (ops.cast(t, one, 2) for one in (x, weight, bias))
    if not t.cuda:
        return sliced(t, x, weight, bias, spec.n_experts)
    fits = x.width == 2 and spec.d_model % 8 == 0 and spec.d_ff % 8 == 0
    return (by_kernel if fits else by_tiles)(t, x, weight, bias, spec.n_experts)


def sliced(t: Tape, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Each group of rows through a linear map of its own, one after the other, and the results put together."""
    rows, d_in, d_out, s = x.rows, x.cols, weight.cols, x.width
    one = weight.size // groups

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dx = Gradient(t.new(rows * d_in * s, "dx"))
        dw = Gradient(t.new(one, "dW", count=groups))
        return [dx, dw, Gradient(t.new(d_out * s, "db", count=groups))]

    parts = _together(t, x), _together(t, weight), _together(t, bias)
    node = t.node(parts, parts[:2], backward)
    made = t.new(rows * d_out * s, "products")
    whole = t.tensor(rows, d_out, s, "concatenation", node)
    del made
    return whole


def _together(t: Tape, x: Tensor) -> Tensor:
    """x in parts, whose gradients are put together."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "concatenation"))]

    node = t.node((x,), (), backward)
    return Tensor(x.storage, x.rows, x.cols, x.width, node and (node, 0))


def each(t: Tape, x: Tensor, weights: Linear) -> Tensor:
    """A few rows, each by a copy of its expert's weights."""
    weight, bias = weights
    own = t.new(x.rows * x.cols * weight.cols * x.width, "weights of rows")
    bias_own = t.new(x.rows * bias.cols * x.width, "biases of rows")
    made = t.tensor(x.rows, weight.cols, x.width, "product")
    t.library("cuBLAS", CUBLAS)
    del own, bias_own
    return made


def by_tiles(t: Tape, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """A batched product over tiles of rows, each by a copy of its expert's weights; a group's last tile is padded."""
    rows, d_in, d_out, s = x.rows, x.cols, weight.cols, x.width
    tall = -(-rows // (TILES_PER_EXPERT * groups))
    tiles = rows // tall + min(groups, rows)
    index = 8 * rows
    expert_row = t.new(8 * tiles, "tiles")
    row, expert = t.new(index, "rows"), t.new(index, "experts")
    offset = t.new(index, "offsets")
    slot = t.new(index, "slots")
    del offset
    zeros = t.new(tiles * tall * d_in * s, "zeros")
    tiled = _placed(t, x, tiles * tall, slot)
    del zeros
    b = _picked(t, bias, tiles, d_out, expert_row)
    w = _picked(t, weight, tiles * d_in, d_out, expert_row)
    of_x, of_w, of_b = tiled.size, w.size, b.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        dx = Gradient(t.new(of_x, "product"))
        t.library("cuBLAS", CUBLAS)
        dw = Gradient(t.new(of_w, "product"))
        saved.clear()
        return [Gradient(t.new(of_b, "sum")), dx, dw]

    made = t.tensor(tiles * tall, d_out, s, "product", t.node((b, tiled, w), (tiled, w), backward))
    t.library("cuBLAS", CUBLAS)
    del b, w, tiled
    found = lookups.pick(t, made, slot, rows)
    del row, expert
    return found


def _placed(t: Tape, x: Tensor, rows: int, slot: Storage) -> Tensor:
    """x's rows at their places among more."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "rows"))]

    node = t.node((x,), (x,), backward)
    t.save(node, slot)
    return t.tensor(rows, x.cols, x.width, "tiles", node)


def _picked(t: Tape, weight: Tensor, rows: int, cols: int, index: Storage) -> Tensor:
    """Weights of experts by number."""
    size = weight.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "dW"))]

    node = t.node((weight,), (), backward)
    t.save(node, index)
    return t.tensor(rows, cols, weight.width, "weights of tiles", node)


def by_kernel(t: Tape, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """torch's grouped product, to which one with one-hot rows adds the bias."""
    rows, d_out, s = x.rows, weight.cols, x.width
    filled = -(-groups // 8) * 8
    size, dw, whole = x.size, weight.size, bias.size
    row, expert = t.new(8 * rows, "rows"), t.new(8 * rows, "experts")
    numbers, equal = t.new(8 * filled, "numbers"), t.new(rows * filled, "equal")
    onehot = Tensor(t.new(rows * filled * s, "one-hot"), rows, filled, s)
    del numbers, equal
    ends = t.new(4 * groups, "ends")

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        made = Gradient(t.new(dw, "dW"))
        _grouping(t)
        dx = Gradient(t.new(size, "dx"))
        _grouping(t)
        return [dx, made]

    node = t.node((x, weight), (x, weight), backward)
    product = t.tensor(rows, d_out, s, "product", node)
    _grouping(t)
    del ends

    def of_pad(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(whole, "copy"))]

    node = t.node((bias,), (), of_pad)
    wide = t.tensor(filled, d_out, s, "padding", node)

    def of_sum(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [gradients[0], Gradient(t.new(filled * d_out * s, "db"))]

    node = t.node((product, wide), (onehot,), of_sum)
    t.library("cuBLAS", CUBLAS)
    del wide, row, expert
    return Tensor(product.storage, rows, d_out, s, node and (node, 0))


def _grouping(t: Tape) -> None:
    """What the grouped product takes to begin with."""
    aside = t.new(240, "problems"), t.new(512 * MULTIPROCESSORS, "workspace")
    del aside
