"""What GPU kernels must count, from the count and from their own names: the rules of the hardware witness.

Products run in whole tiles (see products.py), flash attention in whole blocks of queries and keys, those above the
diagonal left out; our own kernels run what the formula of their path derives. So what the hardware counts is predicted
exactly.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchbench.case import Case
from benchbench.counters.cost import Cost
from benchbench.counters.fused_scan import fused_apart
from benchbench.counters.launch import field
from benchbench.counters.op import Op
from benchbench.counters.products import GROUPED, Product, on_vectors, products, routed, tiled, up

TILES = "a product runs in whole tiles"
SCALED = "on vector units a product is its multiply-adds, and one an output in kernels that scale by them"
DENSE = "cuDNN takes the gradient of a depthwise weight from dense products of groups of channels"
BLOCKS = "flash attention runs whole blocks of queries and keys"
STRUCTURE = "the kernel's structure, as the formula of the path derives it"

KINDS = (
    ("attention", r"flash|fmha"),
    ("scan", r"selective_scan|scan_chunk|ssd_"),
    ("conv", r"conv|wgrad"),
    ("resolvent", r"resolvent|left_fraction|two_sided"),
    ("matmul", r"nvjet|gemm|cutlass|splitKreduce|cublas|wgmma"),
    ("loss", r"SoftMax|nll_loss"),
    ("norm", r"layer_norm|rms_norm|GammaBeta"),
    ("optimizer", r"multi_tensor|Adam"),
)
"""Kinds of kernels by their names; all others are elementwise, copies, sorts and sums."""

OWN_KIND = {"flash": "attention", "triton": "resolvent"}
"""Of a path, the operations that have kernels of their own, and a rule."""


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
    def product_flops(self) -> int:
        """What it multiplied matrices with: tensor cores, or the multiply-adds of the vector units."""
        return self.tensor_flops or (2 * self.counts["multiply_add"] if on_vectors(self.name) else 0)

    @property
    def dram_bytes(self) -> int:
        return self.counts["read_bytes"] + self.counts["written_bytes"]


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
    """Every phase and kind, in the order in which they first ran; last what never ran and had to."""
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.phase, kernel.kind), []).append(kernel)
    for op in cost.ops:
        if any(products(op)) and not routed(op):
            groups.setdefault((op.phase, "matmul"), [])
        if op.kind == OWN_KIND.get(cost.case.path):
            groups.setdefault((op.phase, op.kind), [])
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
        return _sum_held(kind, sum(_attention_flops(op, cost.case, kernels) for op in ops), found, BLOCKS)
    if kind == "conv":
        dense = [found for kernel in kernels if (found := DENSE_GRADIENT.search(kernel.name))]
        if not dense:
            return Held()
        expected = sum(_dense_gradient(op, *map(int, dense[0].groups())) for op in ops)
        return _sum_held(kind, expected, sum(kernel.tensor_flops for kernel in kernels), DENSE)
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
        if op.phase == phase and not routed(op)
        for product, times in products(op)
        for _ in range(times)
    ]
    ran = [kernel for kernel in kernels if kernel.product_flops and GROUPED not in f"{kernel.path}."]
    choices = [
        [i for i, (path, product) in enumerate(expected) if beneath(path, kernel.path) and fits(product, kernel)]
        for kernel in ran
    ]
    taken = matched(choices)
    wrong = [f"{short(ran[j].name)} in {ran[j].path or '(model)'}: {ran[j].product_flops:,}"
             for j in range(len(ran)) if j not in taken.values()]  # fmt: skip
    wrong += [f"{path}: {p} did not run" for i, (path, p) in enumerate(expected) if i not in taken]
    found = sum(kernel.product_flops for kernel in ran)
    rules = (TILES, *([SCALED] if any(not kernel.tensor_flops for kernel in ran) else []))
    return Held(sum(ran[j].product_flops for j in taken.values()), found, rules, tuple(wrong))


def fits(product: Product, kernel: Kernel) -> bool:
    """Whether the kernel's tiles make exactly what it counted out of this product."""
    return kernel.product_flops in set(tiled(product, kernel.name, kernel.layers))


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


def _attention_flops(op: Op, case: Case, kernels: Iterable[Kernel]) -> int:
    """Products over the blocks that hold a visible pair: two forward, five backward, where scores are made again.

    Of one query a head, the heads that share keys and values are the queries of one block.
    """
    pattern = r"Flash_(?:fwd|bwd)_kernel_traits<(?:\(int\))?(\d+), (?:\(int\))?(\d+), (?:\(int\))?(\d+)"
    shapes = {tuple(map(int, found.groups())) for kernel in kernels if (found := re.search(pattern, kernel.name))}
    if len(shapes) != 1:
        return op.repeat * op.executed_flops
    ((width, queries, keys),) = shapes
    size = op.formula.sizes
    pairs = block_pairs(size["new"], size["keys"], queries, keys)
    heads = field(case, "n_kv_heads") if size["new"] == 1 else size["n_heads"]
    each = 10 if op.phase == "backward" else 4
    again = 4 if op.again.extra_flops else 0
    return op.repeat * size["batch"] * heads * (each + again) * up(size["d_head"], width) * pairs


DENSE_GRADIENT = re.compile(r"wgrad_implicit_gemm.*_tilesize(\d+)x(\d+)x(\d+)_.*_g(\d+)_")
"""In the name of cuDNN's kernel for a convolution's weight: a tile's extents, and the channels that share a product."""


def _dense_gradient(op: Op, outputs: int, inputs: int, depth: int, group: int) -> int:
    """The channels of a group as if all met all: a product of (group, tokens) by (tokens, group·taps)."""
    size = op.formula.sizes
    area = up(group, outputs) * up(group * size["taps"], inputs)
    return op.repeat * 2 * -(-size["channels"] // group) * area * up(size["rows"], depth)


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
