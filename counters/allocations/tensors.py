"""Tensors that are only sizes, and the graph that autograd makes of what happens to them.

A tensor is freed as torch's, by Python's reference counts, when its last reference goes: a local, a node that saved it,
a gradient that waits.
"""

import sys
from collections.abc import Callable
from typing import Any

from benchbench.counters.timeline import Block, Items

FIRST = sys.maxsize // 2
"""The number of the first leaf: a leaf runs before every node."""


class Loop:
    """Something that is done `times` times alike: a layer that is neither first nor last, a token of a loop."""

    __slots__ = ("times",)

    def __init__(self, times: int) -> None:
        self.times = times


class Record:
    """Where it is noted what comes and goes."""

    def __init__(self) -> None:
        self.items: Items = []
        self.loops: tuple[Loop, ...] = ()
        """Those that are open, from the outermost."""


class Storage:
    """Memory that is freed when the last reference to it goes."""

    __slots__ = ("block", "loops", "record", "times")

    def __init__(self, record: Record, block: Block) -> None:
        self.record = record
        self.block = block
        self.loops = record.loops
        self.times = 1
        record.items.append((block, 1))

    def __del__(self) -> None:
        self.record.items.append((self.block, -self.times))


class Gradient:
    """A gradient on its way, of `size` bytes. Of a view torch keeps the base, and so never adds to it in place."""

    __slots__ = ("size", "storage", "view")

    def __init__(self, storage: Storage, *, view: bool = False, size: int | None = None) -> None:
        self.storage = storage
        self.view = view
        self.size = storage.block.size if size is None else size


Gradients = list[Gradient | None]
Backward = Callable[[Gradients, list[Storage]], Gradients]
"""Gradients of a node's outputs, and what it saved, to the gradients of its inputs; None where there is none."""
Source = tuple["Node", int]
"""The node that made a tensor, and which of its outputs it is."""


class Tensor:
    """`rows` rows of `cols` numbers of `width` bytes; views share the storage."""

    __slots__ = ("cols", "rows", "source", "storage", "width")

    def __init__(self, storage: Storage, rows: int, cols: int, width: int, source: Source | None = None) -> None:
        self.storage = storage
        self.rows = rows
        self.cols = cols
        self.width = width
        self.source = source

    @property
    def size(self) -> int:
        return self.rows * self.cols * self.width

    def viewed(self, rows: int, cols: int) -> "Tensor":
        """The same numbers in another shape."""
        return Tensor(self.storage, rows, cols, self.width, self.source)


class Node:
    """An operation of the graph; `loops` are those it is in, from the outermost; None runs in any."""

    __slots__ = ("backward", "edges", "loops", "number", "place", "saved")

    def __init__(
        self,
        number: int,
        edges: "list[Source | None]",
        backward: Backward | None,
        loops: tuple[Loop, ...] | None,
        place: str,
    ) -> None:
        self.number = number
        self.edges = edges
        self.backward = backward
        self.loops = loops
        self.place = place
        self.saved: tuple[Storage | Remade, ...] = ()

    def run(self, gradients: Gradients) -> Gradients:
        assert self.backward is not None
        saved = [one.frame.fetched(one.index) if isinstance(one, Remade) else one for one in self.saved]
        return self.backward(gradients, saved)


class Parameter(Tensor):
    """A weight, and the gradient that has reached it; `place` is its own among the weights."""

    __slots__ = ("gradient", "loops", "name", "place")

    def __init__(
        self, storage: Storage, rows: int, cols: int, width: int, name: str, loops: tuple[Loop, ...], place: int
    ) -> None:
        self.place = place
        super().__init__(storage, rows, cols, width, (_Leaf(self), 0))
        self.name = name
        self.loops = loops
        self.gradient: Storage | None = None


class _Leaf(Node):
    """Where a parameter's gradients end: it takes the first over, and adds others to it in place."""

    __slots__ = ("parameter",)

    def __init__(self, parameter: Parameter) -> None:
        super().__init__(FIRST + parameter.place, [], None, None, "")
        self.parameter = parameter

    def run(self, gradients: Gradients) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        if self.parameter.gradient is None:
            gradient.storage.block.category = "grads"
            self.parameter.gradient = gradient.storage
        return []


class Frame:
    """A checkpointed call, what `make` needs to make it again, and what it saved, once it was."""

    __slots__ = ("again", "inputs", "made", "make", "random", "saves")

    def __init__(
        self,
        make: "Callable[[Frame], None]",
        again: Callable[..., object],
        inputs: tuple[Any, ...],
        random: Storage | None,
    ) -> None:
        self.make = make
        self.again = again
        self.inputs = inputs
        self.random = random
        self.saves = 0
        self.made: list[Storage | None] = []

    def fetched(self, index: int) -> Storage:
        """What was saved as the `index`-th, which is given away."""
        if not self.made:
            self.make(self)
        storage, self.made[index] = self.made[index], None
        assert storage is not None
        return storage


class Remade:
    """A saved tensor that its checkpointed call makes again when it is asked for."""

    __slots__ = ("frame", "index")

    def __init__(self, frame: Frame, index: int) -> None:
        self.frame = frame
        self.index = index
