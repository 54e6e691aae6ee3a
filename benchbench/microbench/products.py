# pyright: standard
"""Products of matrices, attention, and an optimizer's step.

Shape suffixes: T rows, I inputs, O outputs, B batch, H heads, N tokens, C d_head.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from benchbench.microbench.supplies import LARGEST, VOCABULARY, Make, Points, Supplies, backward_of
from benchbench.models.moe import grouped_linear
from benchbench.models.transformer import FlashCore, Rotary, RotaryTable
from benchbench.tasks.train import OPTIMIZERS

GPU_CACHES = 8
"""On a GPU caches of keys are up to so many times as large as other tensors: only where they take gigabytes is reading
them all that a call does."""


def widths(s: Supplies, dtype: str) -> Iterator[tuple[int, int]]:
    """Pairs (d_in, d_out): narrow against wide, wide against wide, and the vocabulary."""
    narrow, wide = (4, 64), s.grid((640, 1280, 2560, 5120), (640, 2560))
    if s.cuda and dtype == "float32":
        wide = (640, 2560)
    yield from ((i, o) for i in (*narrow, *wide) for o in (*narrow, *wide) if max(i, o) >= 640)
    yield from ((i, VOCABULARY) for i in wide[:3] if i <= s.grid((5120,), (640,))[0])


def linear(s: Supplies, dtype: str) -> Points:
    rows = s.grid((1, 4, 16, 64, 256, 1024, 4096, 16384, 65536), (1, 16, 128, 1024))
    if s.cuda and dtype == "float32":
        rows = (1, 16, 256, 4096)
    for d_in, d_out in widths(s, dtype):
        weights = s.weights(d_out, d_in, dtype=dtype)
        for n in rows:
            if s.fits(n * d_in, n * d_out) and 2 * n * d_in * d_out < s.grid((2 * 10**13,), (10**10,))[0]:
                x = s.tensor(n, d_in, dtype=dtype)
                yield (n, d_in, d_out), Make(partial(turning_linear, x, weights))


def turning_linear(x_TI: Tensor, weights: list[Tensor], number: int) -> Tensor:
    return F.linear(x_TI, weights[number % len(weights)])


def weight_gradient(s: Supplies, dtype: str) -> Points:
    rows = s.grid((64, 256, 1024, 4096, 16384, 65536), (128, 1024))
    if s.cuda and dtype == "float32":
        rows = (256, 4096)
    for d_in, d_out in widths(s, dtype):
        for n in rows:
            if s.fits(n * d_in, n * d_out) and 2 * n * d_in * d_out < s.grid((2 * 10**13,), (10**10,))[0]:
                x, dy = s.tensor(n, d_in, dtype=dtype), s.tensor(n, d_out, dtype=dtype)
                yield (n, d_in, d_out), Make(lambda _, x=x, dy=dy: torch.mm(dy.t(), x))


def grouped(s: Supplies, dtype: str, *, backward: bool) -> Points:
    rows = s.grid((16, 256, 4096, 65536), (1, 64, 1024))
    sizes = s.grid((64, 640, 2560), (64, 640, 1280))
    for experts, n, d_in, d_out in product(s.grid((4, 16), (4,)), rows, sizes, sizes):
        x = s.tensor(n, d_in, dtype=dtype, grad=backward)
        b = s.tensor(experts, d_out, dtype=dtype, grad=backward)
        ends = torch.tensor([n * (e + 1) // experts for e in range(experts)], device=s.device)
        if backward:
            w = s.tensor(experts, d_in, d_out, dtype=dtype, grad=True)
            yield (experts, n, d_in, d_out), backward_of(grouped_linear(x, ends, w, b), [x, w, b])
        else:
            weights = s.weights(experts, d_in, d_out, dtype=dtype)
            yield (experts, n, d_in, d_out), Make(partial(turning_grouped, x, ends, weights, b))


def turning_grouped(x_TI: Tensor, ends_E: Tensor, weights: list[Tensor], b_EO: Tensor, number: int) -> Tensor:
    return grouped_linear(x_TI, ends_E, weights[number % len(weights)], b_EO)


def heads_of(s: Supplies, heads: int, n: int, c: int, dtype: str, *, grad: bool) -> list[Tensor]:
    """Three of (1, H, N, C), laid out as projections leave them."""
    return [s.tensor(1, n, heads, c, dtype=dtype, grad=grad).transpose(1, 2) for _ in range(3)]


ATTEND, ROTATE = FlashCore(0.0), Rotary()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ATTEND(q, k, v, None)


def flash(s: Supplies, dtype: str, *, backward: bool) -> Points:
    """Forward also where a head's keys and values, 100 MB, are more than a GPU's second-level cache holds."""
    lengths = s.grid((64, 256, 1024, 4096, 16384, 65536), (64, 512, 1536))
    if s.cuda and dtype == "float32":
        lengths = (64, 1024, 8192)
    grid = product(s.grid((4, 16, 64), (4, 16)), s.grid((64, 128), (64,)), lengths)
    sizes = [(h, c, n) for h, c, n in grid if 2 * h * c * n * n <= s.grid((2 * 10**13,), (10**10,))[0]]
    if s.cuda and dtype != "float32" and not backward:
        sizes += [(4, 64, 400_000), (16, 64, 400_000)]
    for heads, c, n in sizes:
        q, k, v = heads_of(s, heads, n, c, dtype, grad=backward)
        if backward:
            yield (heads, c, n), backward_of(attend(q, k, v), [q, k, v])
        else:
            yield (heads, c, n), Make(lambda _, q=q, k=k, v=v: attend(q, k, v))


def flash_step(s: Supplies, dtype: str) -> Points:
    """One query beside a cache of keys; several caches take turns."""
    lengths = s.grid((100, 1000, 10_000, 100_000), (100, 1000, 10_000))
    for heads, c, n in product(s.grid((4, 16, 64, 640), (4, 16)), s.grid((64, 128), (64,)), lengths):
        if not s.fits(2 * heads * n * c // (GPU_CACHES if s.cuda else 1)):
            continue
        copies = max(1, min(20, LARGEST[s.device.type] // (4 * heads * n * c)))
        q = s.tensor(1, heads, 1, c, dtype=dtype)
        caches = [(s.tensor(1, heads, n, c, dtype=dtype), s.tensor(1, heads, n, c, dtype=dtype)) for _ in range(copies)]
        yield (heads, c, n), Make(lambda i, q=q, caches=caches: attend(q, *caches[i % len(caches)]))


def rotary(s: Supplies, dtype: str, *, backward: bool) -> Points:
    """Heads 64 wide, laid out as a projection leaves them."""
    for n in s.grid((1, 64, 1024, 8192, 65536), (1, 64, 1024)):
        x = s.tensor(1, n, 16, 64, dtype=dtype, grad=backward).transpose(1, 2)
        turn = RotaryTable(64, 1e4)(torch.arange(n, device=s.device))
        if backward:
            yield (n * 1024,), backward_of(ROTATE(x, turn), [x])
        else:
            yield (n * 1024,), Make(lambda _, x=x, turn=turn: ROTATE(x, turn))


def optimizer(name: str, s: Supplies, dtype: str) -> Points:
    for tensors, each in product(s.grid((16, 256), (16, 128)), (2**8, 2**16, 2**19)):
        weights = [s.tensor(each, dtype=dtype, grad=True) for _ in range(tensors)]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        step = OPTIMIZERS[name](weights).step
        yield (tensors, tensors * each), Make(lambda _, step=step: step(), "step")
