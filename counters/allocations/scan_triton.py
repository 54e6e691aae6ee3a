"""What the selective scan in Triton does to memory, as models/selective_scan_triton.py runs it."""

from collections.abc import Iterator

from benchbench.counters.allocations import ops
from benchbench.counters.allocations.scan import Sizes
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Storage, Tensor
from benchbench.counters.scan_paths import TRITON_BLOCK, TRITON_CHUNK


def by_kernels(t: Tape, inputs: list[Tensor], sizes: Sizes, before: Storage) -> tuple[Tensor, Storage]:
    """Outputs and last state; one token without gradients moves `before` on in place."""
    u, *_ = inputs
    if sizes.new == 1 and not t.training:
        return t.tensor(u.rows, u.cols, u.width, "y"), before

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return _backward(t, sizes, widths)

    widths = [one.width for one in inputs]
    node = t.node(inputs, inputs, backward)
    y = t.tensor(u.rows, u.cols, u.width, "y", node)
    states = t.new((_chunks(sizes) + 1) * sizes.state, "states")
    prepared = list(_prepared(t, sizes, widths))
    sums = t.new(_chunks(sizes) * sizes.batch * sizes.channels * 4, "sums")
    last = t.new(sizes.state, "state")
    if node is not None:
        t.save(node, states)
    del prepared, sums
    return y, last


def _backward(t: Tape, sizes: Sizes, widths: list[int]) -> Gradients:
    """Two walks over the chunks, up and down; each block of channels has a share of dC and dB."""
    batch, channels, n_state = sizes.batch, sizes.channels, sizes.n_state
    width, chunks = widths[0], _chunks(sizes)
    blocks = -(-channels // TRITON_BLOCK)
    prepared = list(_prepared(t, sizes, widths))
    du, d_raw, d_z = (t.new(sizes.token // 4 * width, name) for name in ("du", "d raw", "dz"))
    alpha = None if width == 4 else t.new(sizes.token, "alpha")
    carries = t.new((chunks + 1) * sizes.state, "carries")
    sums, d_d = (t.new(chunks * batch * channels * 4, name) for name in ("sums", "dD of chunks"))
    slope, d_a = (t.new(chunks * sizes.state, name) for name in ("slopes", "dA of chunks"))
    walked: list[Storage] = []
    for name in ("shares of dC", "shares of dB"):
        shares = t.new(blocks * sizes.rates, name)
        walked.append(ops.summed_rows(t, blocks, sizes.rates // 4, 4))
        del shares
    d_c, d_b = walked
    rates = ops.summed_rows(t, chunks * batch, channels * n_state, 4)
    skip = ops.summed_rows(t, chunks * batch, channels, 4)
    found = [(du, width), (d_raw, width), (d_z, width), (d_b, 4), (d_c, 4), (rates, 4), (skip, 4)]
    made: Gradients = [
        Gradient(grad if have == want else t.new(grad.block.size // have * want, "cast"), view=grad is rates)
        for (grad, have), want in zip(found, widths, strict=True)
    ]
    del prepared, alpha, carries, sums, d_d, slope, d_a
    return made


def _prepared(t: Tape, sizes: Sizes, widths: list[int]) -> Iterator[Storage]:
    """B and C in float32, A turned and in units of 2, D in float32."""
    yield t.new(sizes.rates, "B")
    yield t.new(sizes.rates, "C")
    scaled = t.new(sizes.matrix, "A in units of 2")
    yield t.new(sizes.matrix, "A")
    del scaled
    if widths[6] < 4:
        yield t.new(4 * sizes.channels, "D")


def _chunks(sizes: Sizes) -> int:
    return -(-sizes.new // TRITON_CHUNK)
