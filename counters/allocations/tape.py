"""A program over tensors that are only sizes, recorded: what it does to memory.

A program over a `Tape` mirrors the program over torch: the same operations in the same order, the same locals and the
same calls. Autograd is torch's engine (torch/csrc/autograd: engine.cpp, input_buffer.cpp, functions/accumulate_grad.h):
the node made last runs first, as soon as all its gradients are in; when it has run, the gradients that came in go, then
what it saved; a leaf takes its first gradient over and adds others to it in place.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import heappop, heappush
from sys import getrefcount
from typing import Any

from benchbench.counters.allocations.tensors import (
    Backward,
    Frame,
    Gradient,
    Loop,
    Node,
    Parameter,
    Record,
    Remade,
    Storage,
    Tensor,
)
from benchbench.counters.timeline import Block, Category, Items, Repeat, Timeline

RANDOM_STATE = 5056
"""Bytes of the CPU's generator of random numbers."""


def _references_alone() -> int:
    slots = [object()]
    there = slots[0]
    return getrefcount(there)


ALONE = _references_alone()
"""What `getrefcount` says of a gradient that waits in its slot and that nothing else refers to but a local."""


OWNED = 2
"""What it says of a storage that one tensor alone refers to."""


class _Enough(Exception):  # noqa: N818
    """Everything that was saved is made again."""


class Tape(Record):
    """Records what a program allocates and frees.

    `device` picks the kernels, here and in the operations.
    """

    def __init__(
        self,
        device: str,
        *,
        training: bool,
        checkpointing: bool = False,
        autocast: bool = False,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.cuda = device == "cuda"
        self.training = training
        self.checkpointing = checkpointing
        self.autocast = autocast
        self.casts: dict[Parameter, Tensor] | None = None
        """Weights that autocast keeps in half precision until it ends; None where it is off."""
        self.threads = threads
        self.place = ""
        """The module that runs; blocks are labelled with it."""
        self.held: list[Block] = []
        self.parameters: list[Parameter] = []
        self._all = self.items
        self._around: list[Items] = []
        self._kept: list[Storage] = []
        self._number = 0
        self._libraries: dict[tuple[str, bool], Storage] = {}
        self._differentiating = False
        self._frame: Frame | None = None
        self._again: Frame | None = None

    # Memory

    def new(self, size: int, name: str, category: Category = "workspace", *, count: int = 1) -> Storage:
        """Memory of `size` bytes, or `count` times that, freed together."""
        return Storage(self, Block(size, name, category, self.place, count))

    def hold(self, size: int, name: str, category: Category, *, count: int = 1) -> Storage:
        """Memory that was there before, and stays."""
        rounds = 1
        for loop in self.loops:
            rounds *= loop.times
        block = Block(size, name, category, self.place, count * rounds, rounds)
        self.held.append(block)
        items, self.items = self.items, []
        storage = Storage(self, block)
        self.items = items
        self._kept.append(storage)
        return storage

    def tensor(self, rows: int, cols: int, width: int, name: str, node: Node | None = None) -> Tensor:
        """A new tensor, the first output of `node`."""
        storage = Storage(self, Block(rows * cols * width, name, "workspace", self.place))
        return Tensor(storage, rows, cols, width, None if node is None else (node, 0))

    def parameter(self, rows: int, cols: int, width: int, name: str) -> Parameter:
        """A weight of (rows, cols)."""
        parameter = Parameter(
            self.hold(rows * cols * width, name, "params"), rows, cols, width, name, self.loops, len(self.parameters)
        )
        if not self.training:
            parameter.source = None
        self.parameters.append(parameter)
        return parameter

    def timeline(self) -> Timeline:
        """What happened so far; what happens from now on is forgotten."""
        self.items = []
        return Timeline(tuple(self.held), self._all)

    @contextmanager
    def casting(self) -> Generator[None]:
        """Under autocast, if it is asked for."""
        casts: dict[Parameter, Tensor] = {}
        self.casts = casts if self.autocast else None
        yield
        self.casts = None
        self.gather(*(cast.storage for cast in casts.values() if getrefcount(cast.storage) == OWNED))

    def library(self, name: str, size: int) -> None:
        """A library's own workspace on the GPU, from its first call in a thread: backward has a thread of its own."""
        key = name, self._differentiating
        if self.cuda and key not in self._libraries:
            loops = self.loops
            self.enter(())
            self._libraries[key] = self.new(size, name)
            self.enter(loops)

    # Loops

    def rounds(self, times: int, last: int = 1, first: int = 1) -> Iterator[int]:
        """The rounds of a loop that are walked: the `first` ones, one that stands for many, the `last` ones.

        As places in it, from 0 up, and the last ones from the end: -1 is the last.
        """
        if times <= first + 1 + last:
            walked: list[int] = []
            while len(walked) < times:  # not range(times): a number that carries its closed form shall know of it
                walked.append(len(walked))
            yield from (number if number + last < len(walked) else number - len(walked) for number in walked)
            return
        around = self.loops
        yield from range(first)
        self.enter((*around, Loop(times - first - last)))
        yield first
        self.enter(around)
        yield from range(-last, 0)

    def enter(self, loops: tuple[Loop, ...]) -> None:
        """What follows happens inside `loops`."""
        if loops is self.loops:
            return
        same = 0
        for ours, theirs in zip(self.loops, loops, strict=False):
            if ours is not theirs:
                break
            same += 1
        if same < len(self._around):
            self.items = self._around[same]
            del self._around[same:]
        for loop in loops[same:]:
            repeat = Repeat(loop.times)
            self.items.append(repeat)
            self._around.append(self.items)
            self.items = repeat.items
        self.loops = loops

    def gather(self, *storages: Storage | None) -> None:
        """What each round of a loop made is here together, to be freed at once."""
        for storage in storages:
            if storage is not None:
                for loop in storage.loops:
                    if loop not in self.loops:
                        storage.times *= loop.times

    # Autograd

    @property
    def keeps(self) -> bool:
        """Whether what is saved is kept: not without gradients, and not in a checkpointed call."""
        return self.training and self._frame is None

    def node(self, inputs: Sequence[Tensor], saved: Sequence[Tensor], backward: Backward) -> Node | None:
        """The node of an operation that is about to run; None where nobody asks for a gradient."""
        if not self.training or all(tensor.source is None for tensor in inputs):
            return None
        self._number += 1
        node = Node(self._number, [tensor.source for tensor in inputs], backward, self.loops, self.place)
        node.saved = tuple([self._packed(tensor.storage) for tensor in saved])
        return node

    def save(self, node: Node | None, *made: Storage) -> None:
        """Has a node save what its operation made, too."""
        if node is not None:
            node.saved = (*node.saved, *[self._packed(storage) for storage in made])

    def through(self, layer: Callable[..., Any], *inputs: Any, random: bool = False) -> Any:
        """`inputs` through a layer, which may be checkpointed, and may draw random numbers."""
        if not self.checkpointing:
            return layer(*inputs)
        return self.checkpoint(layer, *inputs, random=self.random_state() if random else None)

    def random_state(self) -> Storage | None:
        """What torch.get_rng_state() takes; the GPU's state lies on the CPU, too."""
        return None if self.cuda else self.new(RANDOM_STATE, "random state")

    def checkpoint(self, function: Callable[..., Any], *inputs: Any, random: Storage | None = None) -> Any:
        """`function` of `inputs`, which are kept, with the state of the `random` numbers: backward calls it again.

        It then stops at the last thing that was saved.
        """
        if not self.training:
            return function(*inputs)
        for one in inputs:
            if isinstance(one, Tensor):
                _keep(one.storage)
        assert self._frame is None
        self._frame = Frame(self._make_again, function, inputs, random)
        made = function(*inputs)
        self._frame = None
        return made

    def _make_again(self, frame: Frame) -> None:
        """Runs a checkpointed call until all that it saved is there."""
        frame.made = []
        aside = frame.random and self.new(frame.random.block.size, "random state")
        self._again, loops = frame, self.loops
        with self.casting(), suppress(_Enough):
            frame.again(*frame.inputs)
        self.enter(loops)
        self._again = None
        del aside

    def backward(self, root: Node, gradient: Gradient) -> None:
        """Runs the graph behind `root`, whose output has this gradient."""
        self._differentiating = True
        missing = _edges_into(root)
        waiting: dict[Node, list[Gradient | None]] = {root: [gradient]}
        ready = [(-root.number, root)]
        del gradient
        while ready:
            _, node = heappop(ready)
            if node.loops is not None:
                self.enter(node.loops)
                self.place = node.place
            gradients = waiting.pop(node)
            found = node.run(gradients)
            del gradients
            node.saved = ()
            for index, edge in enumerate(node.edges):
                if edge is None:
                    continue
                made, found[index] = found[index], None
                target, slot = edge
                slots = waiting.setdefault(target, [])
                slots.extend([None] * (slot + 1 - len(slots)))
                if slots[slot] is None:
                    slots[slot] = made
                elif made is not None:
                    self._add(slots, slot)
                del made, slots
                missing[target] -= 1
                if not missing[target]:
                    heappush(ready, (-target.number, target))
        self.enter(())
        self._differentiating = False

    def _add(self, slots: list[Gradient | None], slot: int) -> None:
        """Adds another gradient: in place, if nothing else refers to the one that is there."""
        there = slots[slot]
        assert there is not None
        if there.view or getrefcount(there) > ALONE:
            slots[slot] = Gradient(self.new(there.size, "sum of gradients"))

    def _packed(self, storage: Storage) -> Storage | Remade:
        if self._frame is not None:
            self._frame.saves += 1
            return Remade(self._frame, self._frame.saves - 1)
        _keep(storage)
        frame = self._again
        if frame is not None:
            frame.made.append(storage)
            if len(frame.made) == frame.saves:
                raise _Enough
        return storage


def _keep(storage: Storage) -> None:
    if storage.block.category == "workspace":
        storage.block.category = "activations"


def _edges_into(root: Node) -> Counter[Node]:
    """How many gradients each node behind `root` waits for."""
    edges: Counter[Node] = Counter()
    nodes = [root]
    while nodes:
        for edge in nodes.pop().edges:
            if edge is not None:
                target = edge[0]
                if target not in edges:
                    nodes.append(target)
                edges[target] += 1
    return edges
