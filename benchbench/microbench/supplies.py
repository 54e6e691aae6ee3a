# pyright: standard
"""What the timed operations are made from: calls, grids of sizes, and tensors cut from one pool of random numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor

from benchbench.tasks.prepared import DTYPES

POOL = 2**26
"""Random numbers drawn once; every tensor is cut from them."""

WEIGHTS_BYTES = {"cuda": 2**29, "cpu": 2**28}
"""Weights that take turns, so that none is read from a cache that a model's own would not be in."""

LARGEST = {"cuda": 2**28, "cpu": 2**24}
"""Elements of the largest tensor."""

VOCABULARY = 48_000


@dataclass(frozen=True)
class Make:
    """One call, given its number: under inference mode, or of autograd from the loss on, or of an optimizer."""

    call: Callable[[int], object]
    mode: Literal["inference", "backward", "step"] = "inference"


Points = Iterator[tuple[tuple[int, ...], Make]]


@dataclass(frozen=True)
class Spec:
    """A curve to measure."""

    name: str
    axes: tuple[str, ...]
    how: str
    points: Callable[["Supplies", str], Points]
    cuda: tuple[str, ...] = ("bfloat16", "float32")
    cpu: tuple[str, ...] = ("float32",)

    def dtypes(self, device: str) -> tuple[str, ...]:
        return self.cuda if device == "cuda" else self.cpu


@dataclass
class Supplies:
    """Tensors on a device, filled from one pool of random numbers."""

    device: torch.device
    _pool: Tensor = field(init=False)
    _weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._pool = torch.randn(POOL // 16, generator=generator).repeat(16).to(self.device)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def tensor(self, *shape: int, dtype: str = "float32", grad: bool = False) -> Tensor:
        made = torch.empty(prod(shape), dtype=DTYPES[dtype], device=self.device)
        for part in made.split(POOL):
            part.copy_(self._pool[: len(part)])
        return made.view(shape).requires_grad_(grad)

    def integers(self, below: int, *shape: int) -> Tensor:
        return (self.tensor(*shape).abs() * 1e6).long() % below

    def weights(self, *shape: int, dtype: str) -> list[Tensor]:
        """As many of `shape` as the pool of weights holds, 100 at most; one at least."""
        if dtype not in self._weights:
            width = DTYPES[dtype].itemsize
            self._weights[dtype] = self.tensor(WEIGHTS_BYTES[self.device.type] // width, dtype=dtype) * 0.02
        pool, size = self._weights[dtype], prod(shape)
        count = min(100, pool.numel() // size)
        if not count:
            return [self.tensor(*shape, dtype=dtype)]
        return list(pool[: count * size].view(count, *shape).unbind())

    def grid(self, cuda: tuple[int, ...], cpu: tuple[int, ...]) -> tuple[int, ...]:
        return cuda if self.cuda else cpu

    def fits(self, *elements: int) -> bool:
        return max(elements) <= LARGEST[self.device.type]

    def tidy(self) -> None:
        self._weights.clear()
        if self.cuda:
            torch.cuda.empty_cache()


def backward_of(output: Tensor, inputs: list[Tensor]) -> Make:
    """The gradients of `inputs`, again and again."""
    dy = torch.ones_like(output)
    return Make(lambda _: torch.autograd.grad(output, inputs, dy, retain_graph=True), "backward")
