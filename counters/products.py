"""The matrix products that an operation launches on a GPU, and what a kernel must count for one, by its own name.

A GPU multiplies in whole tiles, and a kernel's name says which: a product of (m, k) by (k, n) matrices runs 2·m'·n'·k'
operations, with every extent rounded up to the tile's.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from benchbench.counters.op import Op
from benchbench.counters.ssd import SSD_SPAN


class Product(NamedTuple):
    """Products of (m, k) by (k, n) matrices, `batch` of them at once."""

    m: int
    n: int
    k: int
    batch: int = 1

    def __str__(self) -> str:
        extents = f"{self.m}x{self.k} by {self.k}x{self.n}"
        return extents if self.batch == 1 else f"{self.batch} of {extents}"

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.n * self.k


Runs = Iterator[tuple[Product, int]]
"""Products, with how often each runs."""


def products(op: Op) -> Runs:
    """The products of an operation in its phase; forward again where backward begins so, as a fused layer's may."""
    forward, backward = _TABLE.get(op.formula.name, (_none, _none))
    anew = op.kind == "matmul" and op.work.extra_flops >= op.formula.forward.flops
    again = anew or op.again.extra_flops
    runs = [*(forward(op) if op.phase == "forward" or again else ()), *(backward(op) if op.phase == "backward" else ())]
    yield from ((product, op.repeat * times) for product, times in runs)


GROUPED = ".experts."
"""Modules whose products' extents are the router's choice: no rule predicts them."""


def routed(op: Op) -> bool:
    """Whether a router chooses the products' extents."""
    return GROUPED in f"{op.path}." and not _apart(op)


def _none(op: Op) -> Runs:
    yield from ()


def _apart(op: Op) -> bool:
    """Whether each row is multiplied by a copy of its expert's weight: no more rows than experts, as in decoding."""
    size = op.formula.sizes
    if op.formula.name != "linear":
        return False
    return 1 < size["weights"] // (size["d_in"] * size["d_out"]) >= size["rows"]


def _linear(op: Op) -> Runs:
    """y = x Wᵀ, chunk by chunk in a chunked head."""
    size = op.formula.sizes
    for rows, batch, times in _rows(op):
        yield Product(rows, size["d_out"], size["d_in"], batch), times


def _linear_backward(op: Op) -> Runs:
    """dx = dy W and dW = dyᵀ x."""
    size = op.formula.sizes
    for rows, batch, times in _rows(op):
        yield Product(rows, size["d_in"], size["d_out"], batch), times
        yield Product(size["d_out"], size["d_in"], rows, batch), times


def _rows(op: Op) -> Iterator[tuple[int, int, int]]:
    """Rows of a product, products at once, and how often; all chunks of a head but the last are powers of two."""
    rows, chunks = op.formula.sizes["rows"], op.formula.sizes.get("chunks", 1)
    if chunks == 1:
        yield (1, rows, 1) if _apart(op) else (rows, 1, 1)
        return
    whole = 1 << (-(-rows // chunks) - 1).bit_length()
    yield whole, 1, rows // whole
    if rest := rows % whole:
        yield rest, 1, 1


class _Span(NamedTuple):
    """Whole chunks of Mamba-2's dual form that run at once, by group and by head; Q tokens, N states."""

    groups: int
    heads: int
    tokens: int
    n_state: int
    channels: int
    """Of all heads of a group."""
    headdim: int


def _spans(op: Op) -> Iterator[tuple[_Span, int]]:
    """The spans of a pass, and how often each runs: all have as many chunks but the last."""
    size = op.formula.sizes
    groups, tokens = size["shared"] // size["n_state"], size["chunk"]
    whole, rest = divmod(-(-size["new"] // tokens), SSD_SPAN)
    for chunks, times in ((SSD_SPAN, whole), (rest, 1)):
        if not chunks * times:
            continue
        at_once = chunks * size["batch"]
        channels, headdim = size["channels"] // groups, size["channels"] // size["heads"]
        yield _Span(at_once * groups, at_once * size["heads"], tokens, size["n_state"], channels, headdim), times


def _ssd(op: Op) -> Runs:
    """Bᵀ with what enters a state, C with the states, C Bᵀ, and its square with Δ·x; of one token, C with the state."""
    size = op.formula.sizes
    if size["single"]:
        groups = size["shared"] // size["n_state"]
        yield Product(size["channels"] // groups, 1, size["n_state"], size["batch"] * groups), 1
        return
    for span, times in _spans(op):
        yield Product(span.n_state, span.channels, span.tokens, span.groups), times
        yield Product(span.tokens, span.channels, span.n_state, span.groups), times
        yield Product(span.tokens, span.tokens, span.n_state, span.groups), times
        yield Product(span.tokens, span.headdim, span.tokens, span.heads), times


def _ssd_backward(op: Op) -> Runs:
    """The states and C Bᵀ again; C with states, dC, dh; their gradients' dB and e; d square, dΔ·x; C Bᵀ's dC and dB."""
    for span, times in _spans(op):
        yield Product(span.n_state, span.channels, span.tokens, span.groups), 2 * times
        yield Product(span.tokens, span.channels, span.n_state, span.groups), 2 * times
        yield Product(span.tokens, span.n_state, span.channels, span.groups), 2 * times
        yield Product(span.tokens, span.tokens, span.n_state, span.groups), times
        yield Product(span.tokens, span.n_state, span.tokens, span.groups), 2 * times
        yield Product(span.tokens, span.tokens, span.headdim, span.heads), times
        yield Product(span.tokens, span.headdim, span.tokens, span.heads), times


_TABLE = {"linear": (_linear, _linear_backward), "head": (_linear, _linear_backward), "ssd": (_ssd, _ssd_backward)}


TILE = re.compile(r"_(\d+)x(\d+)_(\d+)x\d+_(\d+)x(\d+)_")
"""In the names of cuBLAS's kernels for Hopper: a tile's extents, its depth, and a cluster's tiles each way."""
OLDER_TILE = re.compile(r"_(\d+)x(\d+)(?:_(\d+)x\d+)?_[nt]{2}_align")
"""In those of CUTLASS, which have no clusters, and of the oldest no depth: theirs is 32."""
FLOAT32_TILE = re.compile(r"tilesize(\d+)x(\d+)x(\d+)_.*_ffma")
"""In those of float32 on vector units."""
BY_VECTOR = re.compile("cublasGemvParams")
"""Parameters of the kernels that multiply a matrix by a vector."""
UNSCALED = re.compile("cublasGemmSmallNParams|cublasDotParams|simt_sgemm")
"""In those that multiply it by a few, whose sums a second kernel finishes, and CUTLASS's: they scale by products."""

MAX_PARTS = 32
ALIGNED = 8
"""Numbers of 2 bytes that are read at once, and that the depth of a layer is a multiple of."""


def on_vectors(name: str) -> bool:
    """Whether a kernel multiplies matrices with the vector units."""
    return any(pattern.search(name) for pattern in (FLOAT32_TILE, BY_VECTOR, UNSCALED))


def tiled(product: Product, name: str, layers: int = 1) -> Iterator[int]:
    """What a kernel may count for a product, by clusters; either operand may come first.

    A split-K kernel cuts the depth in parts. Those for Hopper take parts of whole tiles; how many is not in their
    names. CUTLASS's have a layer of blocks for each. On vector units multiply-adds are counted, one more an output
    where one scales it.
    """
    if BY_VECTOR.search(name):
        if 1 in product[:2]:
            yield 2 * product.batch * product.m * product.n * (product.k + 1)
        return
    for flops in _one_tiled(product, name, layers):
        yield product.batch * flops


def _one_tiled(product: Product, name: str, layers: int) -> Iterator[int]:
    if vector := FLOAT32_TILE.search(name):
        first, second, depth = map(int, vector.groups())
        for m, n in ((first, second), (second, first)):
            yield 2 * up(product.m, m) * up(product.n, n) * (up(product.k, depth) + 1)
        return
    if older := OLDER_TILE.search(name):
        first, second, depth = (int(number or 32) for number in older.groups())
        shared = 1 if product.batch > 1 else layers  # the layers of a batch are its products
        for m, n in ((first, second), (second, first)):
            yield 2 * up(product.m, m) * up(product.n, n) * layered(product.k, shared, depth)
        return
    found = TILE.search(name)
    if found is None:
        yield product.flops // product.batch
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
