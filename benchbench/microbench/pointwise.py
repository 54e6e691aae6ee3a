# pyright: standard
"""What is done to each element or row, by number of elements or by rows and width."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from benchbench.microbench.supplies import VOCABULARY, Make, Points, Supplies, backward_of


def elements(s: Supplies) -> tuple[int, ...]:
    return s.grid(tuple(2**e for e in (8, 12, 16, 19, 21, 23, 25, 27)), tuple(2**e for e in (8, 12, 16, 19, 21, 23)))


def unary(function: Callable[[Tensor], Tensor], s: Supplies, dtype: str) -> Points:
    for n in elements(s):
        x = s.tensor(n, dtype=dtype)
        yield (n,), Make(lambda _, x=x: function(x))


def unary_backward(function: Callable[[Tensor], Tensor], s: Supplies, dtype: str) -> Points:
    for n in elements(s):
        x = s.tensor(n, dtype=dtype, grad=True)
        yield (n,), backward_of(function(x), [x])


def binary(function: Callable[[Tensor, Tensor], Tensor], s: Supplies, dtype: str) -> Points:
    for n in elements(s):
        x, y = s.tensor(n, dtype=dtype), s.tensor(n, dtype=dtype)
        yield (n,), Make(lambda _, x=x, y=y: function(x, y))


def multiply_backward(s: Supplies, dtype: str) -> Points:
    for n in elements(s):
        x, y = s.tensor(n, dtype=dtype, grad=True), s.tensor(n, dtype=dtype, grad=True)
        yield (n,), backward_of(x * y, [x, y])


def copy(s: Supplies, dtype: str) -> Points:
    """Up to twice 4 GiB."""
    for n in (*elements(s), *s.grid((2**30,), ())):
        x = s.tensor(n, dtype=dtype)
        y = torch.empty_like(x)
        yield (n,), Make(lambda _, x=x, y=y: y.copy_(x))


def rows_and_widths(s: Supplies) -> Iterator[tuple[int, int]]:
    for d, n in product((640, 2560), s.grid((1, 64, 1024, 8192, 65536), (1, 64, 1024, 4096))):
        if s.fits(n * d):
            yield n, d


def rms(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w, 1e-5)


def layer(x: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, w, 1e-5)


def normed(function: Callable[[Tensor, Tensor], Tensor], s: Supplies, dtype: str, *, backward: bool) -> Points:
    for n, d in rows_and_widths(s):
        x, w = s.tensor(n, d, dtype=dtype, grad=backward), s.tensor(d, dtype=dtype, grad=backward)
        if backward:
            yield (n, d), backward_of(function(x, w), [x, w])
        else:
            yield (n, d), Make(lambda _, x=x, w=w: function(x, w))


def add_norm(s: Supplies, dtype: str, *, backward: bool) -> Points:
    """mamba-ssm's kernel: added to a float32 stream, normalised, both written."""
    from benchbench.models.mamba_fused import kernels

    for n, d in rows_and_widths(s):
        x, w = s.tensor(1, n, d, dtype=dtype, grad=backward), s.tensor(d, dtype=dtype, grad=backward)
        stream = s.tensor(1, n, d, grad=backward)
        call = partial(kernels().norm, x, w, None, residual=stream, eps=1e-5, prenorm=True, residual_in_fp32=True)
        call = partial(call, is_rms_norm=True)
        if backward:
            y, total = call()
            given = [torch.ones_like(y), torch.ones_like(total)]
            wanted = [x, w, stream]
            yield (
                (n, d),
                Make(
                    lambda _, out=[y, total], wanted=wanted, given=given: torch.autograd.grad(
                        out, wanted, given, retain_graph=True
                    ),
                    "backward",
                ),
            )
        else:
            yield (n, d), Make(lambda _, call=call: call())


def row_sum(s: Supplies, dtype: str) -> Points:
    """The gradient of a bias: rows summed."""
    for n, d in rows_and_widths(s):
        x = s.tensor(n, d, dtype=dtype)
        yield (n, d), Make(lambda _, x=x: x.sum(0))


def looked_up(s: Supplies) -> Iterator[tuple[int, int]]:
    yield from ((n, 64) for n in s.grid((1, 1024, 65536), (1, 1024)))
    yield from rows_and_widths(s)


def look_up(s: Supplies, dtype: str) -> Points:
    for n, d in looked_up(s):
        table, index = s.tensor(VOCABULARY, d, dtype=dtype), s.integers(VOCABULARY, n)
        yield (n, d), Make(lambda _, t=table, i=index: F.embedding(i, t))


def look_up_backward(s: Supplies, dtype: str) -> Points:
    for entries in (1_000, VOCABULARY):
        for n, d in rows_and_widths(s):
            table, index = s.tensor(entries, d, dtype=dtype, grad=True), s.integers(entries, n)
            yield (entries, n, d), backward_of(F.embedding(index, table), [table])


def cross_entropy(s: Supplies, dtype: str, *, backward: bool) -> Points:
    rows = s.grid((16, 256, 1024, 4096), (16, 128, 512))
    for vocabulary, n in product((1_000, VOCABULARY), rows):
        logits, targets = s.tensor(n, vocabulary, dtype=dtype, grad=backward), s.integers(vocabulary, n)

        def loss(logits: Tensor = logits, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(logits.float(), targets, reduction="sum")

        yield (vocabulary, n), backward_of(loss(), [logits]) if backward else Make(lambda _, loss=loss: loss())
