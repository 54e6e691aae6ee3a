"""What the fused kernels of attention allocate, save and free: torch's on the CPU, and its two on the GPU."""

from benchbench.counters.allocations import ops
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Storage, Tensor
from benchbench.counters.allocations.workspaces import MULTIPROCESSORS
from benchbench.counters.op import Step
from benchbench.specs.transformer import TransformerSpec

TILE_KEYS = 512
"""Keys that a thread of the CPU's kernel takes at a time."""
SEED, OFFSET = 16, 8
"""Bytes of the flash kernel's random state, which it has without dropout too."""


def fused(t: Tape, spec: TransformerSpec, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ)·v, without a mask but causality."""
    v, k, q = (ops.lowered(t, x) for x in (v, k, q))
    if not t.cuda:
        return on_cpu(t, spec, step, q, k, v)
    return flash(t, spec, step, q, k, v) if q.width == 2 else efficient(t, spec, step, q, k, v)


def turns(t: Tape, q: Tensor) -> bool:
    """Whether the output has q's order of tokens and heads; the efficient kernel's has its own."""
    return not t.cuda or q.width == 2


def on_cpu(t: Tape, spec: TransformerSpec, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A thread works on a tile of queries and keys."""
    sizes, new = (q.size, k.size, v.size), step.new
    rows = min(new, 256 if new >= 768 else 64 if new >= 192 else 32)
    tile = 4 * t.threads * rows * min(TILE_KEYS, step.context + new)

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        made: Gradients = [Gradient(t.new(size, name)) for size, name in zip(sizes, ("dq", "dk", "dv"), strict=True)]
        t.new(2 * tile, "tile")
        return made

    node = t.node((q, k, v), (q, k, v), backward)
    y = t.tensor(q.rows, q.cols, q.width, "attention", node)
    lse = t.new(4 * q.rows * spec.n_heads, "log-sum-exp")
    t.new(tile + 4 * t.threads * rows * (2 + spec.d_head), "tile")
    t.save(node, y.storage, lse)
    return y


def efficient(t: Tape, spec: TransformerSpec, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The memory-efficient kernel: a key head for every query head, statistics padded to 32 queries."""
    group, heads, new = spec.n_heads // spec.n_kv_heads, step.batch * spec.n_heads, step.new
    if group > 1 and new > 1:
        k, v = (repeated(t, x, group) for x in (k, v))
    elif group > 1:  # the queries of a group stand for the rows of one head
        heads, new = step.batch * spec.n_kv_heads, group
    width = 1 << (spec.d_head - 1).bit_length()
    blocks = -(-new // 64)
    sizes, size, statistics = (q.size, k.size, v.size), q.size, 4 * heads * new

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        made: Gradients = [Gradient(t.new(one, name)) for one, name in zip(sizes, ("dq", "dk", "dv"), strict=True)]
        product = t.new(size, "product")
        summed = t.new(statistics, "delta")
        delta = t.new(statistics, "delta")
        del product, summed
        workspace = t.new(heads * blocks * (64 * width * 4 + 16), "workspace")
        del delta, workspace
        return made

    node = t.node((q, k, v), (q, k, v), backward)
    y = t.tensor(q.rows, q.cols, q.width, "attention", node)
    if node is not None:
        t.save(node, y.storage, t.new(4 * heads * -(-new // 32) * 32, "log-sum-exp"))
    return ops.copy(t, y) if group > 1 and step.new == 1 else y


def repeated(t: Tape, x: Tensor, times: int) -> Tensor:
    """Every head so often; its gradient is the sum of theirs."""
    size = x.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "sum"))]

    return t.tensor(x.rows, x.cols * times, x.width, "repeated heads", t.node((x,), (), backward))


def flash(t: Tape, spec: TransformerSpec, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Flash attention (2205.14135), in half precision."""
    grouped = spec.n_kv_heads < spec.n_heads
    heads, new = step.batch * spec.n_heads, step.new
    width = -(-spec.d_head // 32) * 32
    tall = -(-new // 128) * 128
    wide, sizes = q.width * step.batch * (step.context + new) * q.cols, (q.size, k.size, v.size)

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        turned = t.new(sizes[0], "dy") if spec.positions == "rotary" else None
        made: Gradients = [Gradient(t.new(size, name)) for size, name in zip(sizes, ("dq", "dk", "dv"), strict=True)]
        aside = [t.new(4 * heads * tall, "delta"), t.new(4 * heads * tall * width, "dq in float32")]
        if grouped:
            aside += [t.new(wide, "dk of all heads"), t.new(wide, "dv of all heads")]
        del aside, turned
        return made

    node = t.node((q, k, v), (q, k, v), backward)
    y = t.tensor(q.rows, q.cols, q.width, "attention", node)
    lse = t.new(4 * heads * new, "log-sum-exp")
    parts = [t.new(size, "parts") for size in split_bytes(spec, step)]
    seed, offset = t.new(SEED, "seed"), t.new(OFFSET, "offset")
    del parts
    t.save(node, y.storage, lse, seed, offset)
    return y


def split_bytes(spec: TransformerSpec, step: Step) -> tuple[int, ...]:
    """What each part of split keys leaves of every query, in float32: a number, and an output; nothing if in one."""
    parts, queries = splits(spec, step), step.rows * spec.n_heads
    width = -(-spec.d_head // 32) * 32
    return (4 * parts * queries, 4 * parts * queries * width) if parts > 1 else ()


def splits(spec: TransformerSpec, step: Step) -> int:
    """How many pieces the keys are cut into, so that few queries occupy all multiprocessors: the kernel's own rule."""
    new, heads = step.new, step.batch * spec.n_heads
    if new == 1:  # the queries of a group stand for the rows of one head
        new, heads = spec.n_heads // spec.n_kv_heads, step.batch * spec.n_kv_heads
    blocks = heads * -(-new // 64)
    slots = 2 * MULTIPROCESSORS
    if 5 * blocks >= 4 * slots:
        return 1
    width = 256 if spec.d_head <= 64 else 128 if spec.d_head <= 128 else 64
    keys = -(-(step.context + step.new) // width)
    counts = [n for n in range(1, min(128, slots, keys) + 1) if n == 1 or -(-keys // n) != -(-keys // (n - 1))]
    used = {n: blocks * n / slots / -(-blocks * n // slots) for n in counts}
    return next(n for n in counts if used[n] >= 0.85 * max(used.values()))
