"""What the selective scan does to memory, as models/selective_scan.py runs it.

Its tensors lie time first, and are read as rows of one token of one sequence: of several sequences by a copy.
"""

from typing import NamedTuple

from benchbench.counters.allocations import ops, views
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Storage, Tensor
from benchbench.counters.scan_paths import SCAN_CHUNK


class Sizes(NamedTuple):
    """Bytes in float32, of what a scan over `batch` sequences of `new` tokens holds."""

    batch: int
    new: int
    channels: int
    n_state: int

    @property
    def token(self) -> int:
        """A number a token and channel."""
        return 4 * self.batch * self.new * self.channels

    @property
    def rates(self) -> int:
        """A number a token and state: B, C."""
        return 4 * self.batch * self.new * self.n_state

    @property
    def matrix(self) -> int:
        """A: a number a channel and state."""
        return 4 * self.channels * self.n_state

    @property
    def state(self) -> int:
        return self.batch * self.matrix

    @property
    def steps(self) -> int:
        """Tokens that are worked on at a time."""
        return min(SCAN_CHUNK, self.new)

    @property
    def chunks(self) -> int:
        return -(-self.new // self.steps)


def chunked(t: Tape, inputs: list[Tensor], sizes: Sizes, before: Storage) -> tuple[Tensor, Storage]:
    """Outputs and last state, chunk by chunk in reused buffers."""
    u, *_ = inputs

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return chunked_backward(t, sizes, widths)

    widths = [one.width for one in inputs]
    node = t.node(inputs, inputs, backward)
    wide = [widened(t, size, width) for size, width in zip(_like_inputs(sizes)[:5], widths, strict=False)]
    matrix = t.new(sizes.matrix, "A")
    y = t.new(sizes.token, "y")
    starts = t.new(sizes.chunks * sizes.state, "states") if node is not None else None
    states = t.new((sizes.steps + 1) * sizes.state, "states")
    decays = t.new(sizes.steps * sizes.state, "decays")
    dt = t.new(sizes.token, "dt")
    product = t.new(sizes.token, "dt·u")
    rows = as_rows(t, sizes, 2, 2)
    if rows:
        del product
    gate = t.new(sizes.token, "gate")
    del gate
    out = y if u.width == 4 else t.new(sizes.token // 4 * u.width, "y")
    last = t.new(sizes.state, "state")
    if starts is not None:
        t.save(node, starts)
    del matrix, states, decays, dt, rows, wide, y
    return Tensor(out, u.rows, u.cols, u.width, node and (node, 0)), last


def chunked_backward(t: Tape, sizes: Sizes, widths: list[int]) -> Gradients:
    token, rates = sizes.token, sizes.rates
    wide = [widened(t, size, width) for size, width in zip(_like_inputs(sizes)[:5], widths, strict=False)]
    matrix = t.new(sizes.matrix, "A")
    dt, product = t.new(token, "dt"), t.new(token, "dt·u")
    dout = widened(t, token, widths[0])
    gate = t.new(token, "gate")
    dy = t.new(token, "dy")
    del gate
    y, d_dt, d_product = (t.new(token, name) for name in ("y", "d dt", "d dt·u"))
    d_b, d_c = t.new(rates, "dB"), t.new(rates, "dC")
    buffers = (
        t.new((sizes.steps + 1) * sizes.state, "states"),
        *(t.new(sizes.steps * sizes.state, name) for name in ("decays", "d states", "dA")),
    )
    carried = t.new(sizes.state, "d state")
    ones = t.new(4 * sizes.steps * sizes.batch * sizes.n_state, "ones")
    rows = as_rows(t, sizes, 3, 2)
    slope = t.new(token, "sigmoid")
    del slope
    d_z = t.new(token, "dz")
    weighted = t.new(token, "dy·u")
    d_d = ops.summed_rows(t, sizes.batch * sizes.new, sizes.channels, 4)
    del weighted
    d_a = t.new(sizes.matrix, "dA")
    found = [d_product, d_dt, d_z, d_b, d_c, d_a, d_d]
    grads: Gradients = [
        Gradient(made if width == 4 else t.new(made.block.size // 4 * width, "cast"), view=True)
        for made, width in zip(found, widths, strict=True)
    ]
    del wide, matrix, dt, product, dout, dy, y, buffers, carried, ones, rows
    return grads


def one_step(t: Tape, inputs: list[Tensor], sizes: Sizes) -> tuple[Tensor, Storage]:
    """One token without gradients."""
    u, *_ = inputs
    wide = [widened(t, size, one.width) for size, one in zip(_like_inputs(sizes), inputs, strict=True)]
    dt = t.new(sizes.token, "dt")
    rates = t.new(sizes.state, "dt·A")
    state = t.new(sizes.state, "state")
    del rates
    product = t.new(sizes.token, "dt·u")
    del product
    y = t.new(sizes.token, "y")
    gate = t.new(sizes.token, "gate")
    del gate
    out = y if u.width == 4 else t.new(sizes.token // 4 * u.width, "y")
    del dt, wide
    return Tensor(out, u.rows, u.cols, u.width), state


def eager(t: Tape, inputs: list[Tensor], sizes: Sizes, before: Storage) -> tuple[Tensor, Storage]:
    """One token after the other, each of whose states is kept."""
    u, raw, z, b, c, rates, d = (ops.cast(t, one, 4) for one in inputs)
    rows, inner, states = u.rows, u.cols, u.cols * sizes.n_state
    dt = ops.function(t, raw, "softplus")
    decay = ops.exponential(t, ops.outer(t, dt, rates, rows, states))
    added = ops.outer(t, ops.multiply(t, dt, u), b, rows, states)
    decays, adds = views.Slices(t, decay, sizes.new), views.Slices(t, added, sizes.new)
    h = Tensor(before, sizes.batch, states, 4)
    kept: list[Tensor] = []
    for _ in t.rounds(sizes.new):
        h = ops.add(t, ops.multiply(t, decays.next(), h), adds.next())
        kept.append(h)
    stacked = views.stack(t, kept, rows, states)
    y = ops.batched_product(t, stacked, c, rows, inner)
    del stacked
    y = ops.add(t, y, ops.scale(t, u, d))
    made = ops.multiply(t, y, ops.function(t, z, "silu"))
    if not t.keeps:
        t.gather(*(one.storage for one in kept))
    return ops.cast(t, made, inputs[0].width), h.storage


def as_rows(t: Tape, sizes: Sizes, wide: int, narrow: int) -> list[Storage]:
    """Copies of so many tensors of channels and of states, where the sequences of a batch do not lie in order."""
    if sizes.batch == 1:
        return []
    return [t.new(size, "rows") for size in (sizes.token,) * wide + (sizes.rates,) * narrow]


def widened(t: Tape, size: int, width: int) -> Storage | None:
    """A copy in float32 of what has another dtype."""
    return None if width == 4 else t.new(size, "widened")


def _like_inputs(sizes: Sizes) -> tuple[int, ...]:
    """u, dt, z, B, C, A and D in float32."""
    return (sizes.token,) * 3 + (sizes.rates,) * 2 + (sizes.matrix, 4 * sizes.channels)
