"""What GPU kernels must count, from the count and from their own names: the rules of the hardware witness.

A GPU's tensor cores work in whole tiles, and a kernel's name says which: a product of (m, k) by (k, n) matrices runs
2·m'·n'·k' operations, with every extent rounded up to the tile's. Flash attention runs whole blocks of queries and
keys, those above the diagonal left out. So the number that the hardware counts is predicted exactly.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchbench.counters.cost import Cost
from benchbench.counters.fused_scan import fused_apart
from benchbench.counters.op import Op

TILES = "a product runs in whole tiles"
BLOCKS = "flash attention runs whole blocks of queries and keys"
STRUCTURE = "the kernel's structure, as the formula of the path derives it"

KINDS = (
    ("attention", r"flash|fmha"),
    ("scan", r"selective_scan|scan_chunk|ssd_"),
    ("conv", r"conv"),
    ("resolvent", r"resolvent|left_fraction|two_sided"),
    ("matmul", r"nvjet|gemm|cutlass|splitKreduce|cublas|wgmma"),
    ("loss", r"SoftMax|nll_loss"),
    ("norm", r"layer_norm|rms_norm|GammaBeta"),
    ("optimizer", r"multi_tensor|Adam"),
)
"""Kinds of kernels by their names; all others are elementwise, copies, sorts and sums."""


@dataclass(frozen=True)
class Kernel:
    """One launch: where, and what the hardware counted."""

    name: str
    path: str
    phase: str
    counts: dict[str, int]
    layers: int = 1
    """The third extent of the launch's grid."""

    @property
    def kind(self) -> str:
        return next((kind for kind, pattern in KINDS if re.search(pattern, self.name)), "elementwise")

    @property
    def vector_flops(self) -> int:
        """FLOPs of float32 instructions: a fused multiply-add is 2; special functions are not among them."""
        return self.counts["add"] + self.counts["multiply"] + 2 * self.counts["multiply_add"]

    @property
    def tensor_flops(self) -> int:
        """Operations of the tensor cores, whatever they multiply."""
        return sum(value for key, value in self.counts.items() if key.startswith("tensor"))

    @property
    def dram_bytes(self) -> int:
        return self.counts["read_bytes"] + self.counts["written_bytes"]


class Product(NamedTuple):
    """A product of (m, k) by (k, n) matrices."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


class Line(NamedTuple):
    """One phase and kind: what the count says that the path runs, what the hardware counted, and what it had to."""

    phase: str
    kind: str
    kernels: int
    counted_flops: int
    counted_bytes: int
    vector_flops: int
    tensor_flops: int
    special: int
    dram_bytes: int
    expected: int | None
    """Of the operations that a rule predicts; None where no rule does."""
    found: int | None
    rules: tuple[str, ...]
    unexplained: tuple[str, ...]
    """Kernels whose number no rule gives, with the number."""


def lines(cost: Cost, kernels: Iterable[Kernel]) -> tuple[Line, ...]:
    """Every phase and kind, in the order in which they first ran."""
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.phase, kernel.kind), []).append(kernel)
    return tuple(_line(cost, phase, kind, members) for (phase, kind), members in groups.items())


def _line(cost: Cost, phase: str, kind: str, kernels: list[Kernel]) -> Line:
    ops = [op for op in cost.ops if op.phase == phase and op.kind == kind]
    return Line(
        phase,
        kind,
        len(kernels),
        sum(op.repeat * op.executed_flops for op in ops),
        sum(op.repeat * op.bytes_moved for op in ops),
        sum(kernel.vector_flops for kernel in kernels),
        sum(kernel.tensor_flops for kernel in kernels),
        sum(kernel.counts["special"] for kernel in kernels),
        sum(kernel.dram_bytes for kernel in kernels),
        *_held(cost, phase, kind, kernels),
    )


class Held(NamedTuple):
    """What a rule predicts of kernels, what they counted, the rules, and the kernels that none explains."""

    expected: int | None = None
    found: int | None = None
    rules: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()


def _held(cost: Cost, phase: str, kind: str, kernels: list[Kernel]) -> Held:
    if kind == "matmul":
        return _products_held(cost, phase, kernels)
    ops = [op for op in cost.ops if op.phase == phase and op.kind == kind]
    if kind == "attention":
        found = sum(kernel.tensor_flops for kernel in kernels)
        return _sum_held(kind, sum(_attention_flops(op, kernels) for op in ops), found, BLOCKS)
    if kind == "resolvent":
        expected = sum(op.repeat * op.executed_flops for op in ops)
    elif kind == "scan" and all(FUSED_SCAN[phase] in kernel.name for kernel in kernels):
        expected = _fused_scan_flops(cost, phase)
    else:
        return Held()
    return _sum_held(kind, expected, sum(kernel.vector_flops for kernel in kernels), STRUCTURE)


def _sum_held(kind: str, expected: int, found: int, rule: str) -> Held:
    return Held(expected, found, (rule,), () if expected == found else (f"{kind}: {found:,}, not {expected:,}",))


def _products_held(cost: Cost, phase: str, kernels: list[Kernel]) -> Held:
    """Each kernel that multiplies is one of the model's products, in that kernel's tiles, and each product ran."""
    expected = [
        (op.path, product)
        for op in cost.ops
        if op.phase == phase and GROUPED not in f"{op.path}."
        for product, times in products(op)
        for _ in range(times)
    ]
    ran = [kernel for kernel in kernels if kernel.tensor_flops and GROUPED not in f"{kernel.path}."]
    choices = [
        [i for i, (path, product) in enumerate(expected) if beneath(path, kernel.path) and fits(product, kernel)]
        for kernel in ran
    ]
    taken = matched(choices)
    wrong = [f"{short(ran[j].name)} in {ran[j].path or '(model)'}: {ran[j].tensor_flops:,}"
             for j in range(len(ran)) if j not in taken.values()]  # fmt: skip
    wrong += [f"{path}: {p.m}x{p.k} by {p.k}x{p.n} did not run"
              for i, (path, p) in enumerate(expected) if i not in taken]  # fmt: skip
    found = sum(kernel.tensor_flops for kernel in ran)
    return Held(sum(ran[j].tensor_flops for j in taken.values()), found, (TILES,), tuple(wrong))


def beneath(path: str, place: str) -> bool:
    """Whether an operation's module is the one that launched a kernel, or inside it: a fused layer launches for all."""
    return path == place or path.startswith(f"{place}." if place else "")


def matched(choices: Sequence[Sequence[int]]) -> dict[int, int]:
    """A largest matching of things 0, 1, ... to one of their choices each: by choice, the thing that has it (Kuhn)."""
    taken: dict[int, int] = {}

    def place(thing: int, tried: set[int]) -> bool:
        for choice in choices[thing]:
            if choice not in tried:
                tried.add(choice)
                if choice not in taken or place(taken[choice], tried):
                    taken[choice] = thing
                    return True
        return False

    for thing in range(len(choices)):
        place(thing, set())
    return taken


def products(op: Op) -> Iterator[tuple[Product, int]]:
    """The matrix products of an operation in its phase, with how often each runs.

    y = x Wᵀ; backward dx = dy W and dW = dyᵀ x; a chunked head runs chunk by chunk, and forward again in backward.
    """
    size = op.formula.sizes
    if op.formula.name not in ("linear", "head"):
        return
    rows, d_in, d_out = size["rows"], size["d_in"], size["d_out"]
    for chunk, times in _chunks(rows, size.get("chunks", 1)):
        forward = Product(chunk, d_out, d_in)
        repeat = op.repeat * times
        again = op.again.extra_flops or op.work.extra_flops >= op.formula.forward.flops
        if op.phase == "forward" or again:
            yield forward, repeat
        if op.phase == "backward":
            yield Product(chunk, d_in, d_out), repeat
            yield Product(d_out, d_in, chunk), repeat


def _chunks(rows: int, chunks: int) -> Iterator[tuple[int, int]]:
    """Rows of a chunk, and how many have them: all but the last are powers of two."""
    if chunks == 1:
        yield rows, 1
        return
    whole = 1 << (-(-rows // chunks) - 1).bit_length()
    yield whole, rows // whole
    if rest := rows % whole:
        yield rest, 1


TILE = re.compile(r"_(\d+)x(\d+)_(\d+)x\d+_(\d+)x(\d+)_")
"""In the names of cuBLAS's kernels for Hopper: a tile's extents, its depth, and a cluster's tiles each way."""
OLDER_TILE = re.compile(r"_(\d+)x(\d+)(?:_(\d+)x\d+)?_[nt]{2}_align")
"""In those of CUTLASS, which have no clusters, and of the oldest no depth: theirs is 32."""

GROUPED = ".experts."
"""Modules whose products' extents are the router's choice: no rule predicts them."""

MAX_PARTS = 32
ALIGNED = 8
"""Numbers of 2 bytes that are read at once, and that the depth of a layer is a multiple of."""


def fits(product: Product, kernel: Kernel) -> bool:
    """Whether the kernel's tiles make exactly what it counted out of this product."""
    return kernel.tensor_flops in set(tiled(product, kernel.name, kernel.layers))


def tiled(product: Product, name: str, layers: int = 1) -> Iterator[int]:
    """What the tensor cores count for a product, in a kernel's tiles, by clusters; either operand may come first.

    A split-K kernel cuts the depth in parts. Those for Hopper take parts of whole tiles; how many is not in their
    names. CUTLASS's have a layer of blocks for each.
    """
    if older := OLDER_TILE.search(name):
        first, second, depth = (int(number or 32) for number in older.groups())
        for m, n in ((first, second), (second, first)):
            yield 2 * up(product.m, m) * up(product.n, n) * layered(product.k, layers, depth)
        return
    found = TILE.search(name)
    if found is None:
        yield product.flops
        return
    first, second, depth, wide, high = map(int, found.groups())
    parts = range(2, MAX_PARTS + 1) if "splitK" in name else range(1, 2)
    for m, n in ((first, second), (second, first)):
        for across, down in ((wide, high), (high, wide)):
            area = up(product.m, m * across) * up(product.n, n * down)
            for part in parts:
                yield 2 * area * up(product.k, depth * part)


def layered(depth: int, layers: int, tile: int) -> int:
    """What `layers` run that share a depth evenly, as far as it is aligned, each in whole tiles."""
    each = up(-(-depth // layers), ALIGNED)
    whole, rest = divmod(depth, each)
    return whole * up(each, tile) + up(rest, tile)


def up(extent: int, tile: int) -> int:
    """The least multiple of `tile` that holds `extent`."""
    return -(-extent // tile) * tile


def _attention_flops(op: Op, kernels: Iterable[Kernel]) -> int:
    """Products over the blocks that hold a visible pair: two forward, five backward, where scores are made again."""
    pattern = r"Flash_(?:fwd|bwd)_kernel_traits<(?:\(int\))?(\d+), (?:\(int\))?(\d+), (?:\(int\))?(\d+)"
    shapes = {tuple(map(int, found.groups())) for kernel in kernels if (found := re.search(pattern, kernel.name))}
    if len(shapes) != 1:
        return op.repeat * op.executed_flops
    ((width, queries, keys),) = shapes
    size = op.formula.sizes
    pairs = block_pairs(size["new"], size["keys"], queries, keys)
    each = 10 if op.phase == "backward" else 4
    again = 4 if op.again.extra_flops else 0
    return op.repeat * size["batch"] * size["n_heads"] * (each + again) * up(size["d_head"], width) * pairs


def block_pairs(new: int, keys: int, query_block: int, key_block: int) -> int:
    """Query-key pairs in the blocks that causal attention does not leave out, its last query seeing the last key."""
    past = keys - new
    pairs = 0
    for first in range(0, new, query_block):
        seen = min(keys, past + min(first + query_block, new))
        pairs += query_block * up(seen, key_block)
    return pairs


FUSED_SCAN = {"forward": "selective_scan_fwd_kernel", "backward": "selective_scan_bwd_kernel"}
"""Mamba-ssm's kernels, which compute the softplus before the scan and the gate behind it, too."""


def _fused_scan_flops(cost: Cost, phase: str) -> int:
    """Of float32 instructions."""
    scans = [op for op in cost.ops if op.phase == phase and op.formula.name == "selective_scan"]
    paths = {op.path for op in scans}
    executed = sum(op.repeat * op.executed_flops for op in cost.ops if op.phase == phase and op.path in paths)
    return executed - sum(op.repeat * fused_apart(op.formula.sizes, phase) for op in scans)


def short(name: str) -> str:
    """A kernel's name without return type, namespaces and template arguments."""
    return re.sub(r"<.*|\(.*|^void ", "", name).rsplit("::", 1)[-1]
