"""What is allocated and freed, in order, and the fullest moment of it.

A timeline is a list of events and of stretches that repeat: a model of 64 equal layers is walked as three.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple

Category = Literal["params", "grads", "optimizer", "activations", "state", "workspace", "logits"]
CATEGORIES: tuple[Category, ...] = ("params", "grads", "optimizer", "activations", "state", "workspace", "logits")


class Block:
    """The memory of a tensor, or of `count` equal ones: `size` bytes each, as requested.

    Its category may show only later: it is what the tensor was last used for. What is held, and was made in a loop, was
    made in so many `rounds` together with its neighbours.
    """

    __slots__ = ("category", "count", "name", "place", "rounds", "size")

    def __init__(
        self, size: int, name: str, category: Category, place: str = "", count: int = 1, rounds: int = 1
    ) -> None:
        self.size = size
        self.name = name
        self.category: Category = category
        self.place = place
        self.count = count
        self.rounds = rounds


class Repeat:
    """Events that happen `times` times in a row, each time to blocks of their own."""

    __slots__ = ("items", "times")

    def __init__(self, times: int) -> None:
        self.times = times
        self.items: Items = []


Event = tuple[Block, int]
"""A block, and 1 where it is allocated or -1 where it is freed; -k frees the blocks of k rounds at once."""
Items = list[Event | Repeat]
Weigh = Callable[[int], int]
"""What an allocator hands out for a request."""
Moment = tuple[tuple[int, int], ...]
"""A place in a timeline: an item's index, and the round of the stretch that it is, from the outermost inwards."""


def one_by_one(blocks: Iterable[Block]) -> Iterator[Block]:
    """Each block as often as it is there, in the order in which rounds made them."""
    for rounds, made in groupby(blocks, key=lambda block: block.rounds):
        together = [block for block in made for _ in range(block.count // rounds)]
        for _ in range(rounds):
            yield from together


class Alive(NamedTuple):
    """`count` tensors alike that are alive together; `place` is the module or operation that made them."""

    name: str
    place: str
    category: Category
    size: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def bytes(self) -> int:
        return self.size * self.count


def requested(size: int) -> int:
    return size


@dataclass(frozen=True)
class Timeline:
    """`held` is alive before the first event and after the last one."""

    held: tuple[Block, ...]
    items: Items

    def peak(self, weigh: Weigh = requested) -> int:
        """The most bytes alive at once."""
        return sum(block.count * weigh(block.size) for block in self.held) + _highest(self.items, weigh).height

    @cached_property
    def fullest(self) -> Moment:
        """The first moment with as many bytes alive as ever."""
        return _highest(self.items, requested).moment

    @property
    def plain(self) -> bool:
        """Whether all sizes are plain numbers, and none carries a closed form."""
        return all(_plain(block) for block in self.held) and _all_plain(self.items)

    def blocks(self, moment: Moment) -> Iterator[tuple[Block, int]]:
        """Blocks, each with how often it was allocated and not freed until then; one may come several times."""
        yield from ((block, block.count) for block in self.held)
        yield from ((block, number * block.count) for block, number in _until(self.items, moment))

    def balance(self) -> dict[Block, int]:
        """How often each block is allocated and not freed, or, below zero, freed too often for its allocations."""
        left: dict[Block, int] = {}
        _balance(self.items, 1, left)
        return left

    def requests(self) -> list[int]:
        """The sizes of all blocks, of a stretch that repeats those of one round."""
        return [block.size for block in self.held] + list(_requests(self.items))

    def alive(self, moment: Moment) -> tuple[Alive, ...]:
        """What is alive then, the largest first."""
        counts: Counter[tuple[str, str, Category, int]] = Counter()
        for block, number in self.blocks(moment):
            counts[block.name, block.place, block.category, block.size] += number
        found = [Alive(*kind, count) for kind, count in counts.items() if count]
        return tuple(sorted(found, key=lambda one: -one.bytes))

    def at(self, moment: Moment) -> Block | None:
        """The block that was allocated then; None at the start."""
        items, block = self.items, None
        for index, _ in moment:
            item = items[index]
            if isinstance(item, Repeat):
                items = item.items
            else:
                block = item[0]
        return block

    def events(self) -> Iterator[Event]:
        """Every event, stretches written out."""
        return _written_out(self.items)


def _plain(block: Block) -> bool:
    return type(block.size) is int and type(block.count) is int


def _all_plain(items: Items) -> bool:
    for item in items:
        if isinstance(item, Repeat):
            if type(item.times) is not int or not _all_plain(item.items):
                return False
        elif not _plain(item[0]):
            return False
    return True


class _Walk(NamedTuple):
    """A stretch walked once: what it adds, the highest it comes above its start, and where."""

    added: int
    height: int
    moment: Moment


def _highest(items: Items, weigh: Weigh) -> _Walk:
    now = height = 0
    moment: Moment = ()
    for index, item in enumerate(items):
        if isinstance(item, Repeat):
            once = _highest(item.items, weigh)
            # Rounds that add are fullest in the last, rounds that free in the first.
            last = item.times - 1 if once.added > 0 else 0
            top = now + last * once.added + once.height
            if once.moment and top > height:
                height, moment = top, ((index, last), *once.moment)
            now += item.times * once.added
            continue
        block, sign = item
        now += sign * block.count * weigh(block.size)
        if now > height:
            height, moment = now, ((index, 0),)
    return _Walk(now, height, moment)


def _until(items: Items, moment: Moment) -> Iterator[Event]:
    """Blocks with how often they were allocated and not freed, up to and including a moment."""
    if not moment:
        return
    (end, rounds), *rest = moment
    for item in items[:end]:
        yield from _times(item, 1)
    last = items[end]
    if isinstance(last, Repeat):
        for item in last.items:
            yield from _times(item, rounds)
        yield from _until(last.items, tuple(rest))
    else:
        yield last


def _times(item: Event | Repeat, times: int) -> Iterator[Event]:
    if isinstance(item, Repeat):
        for inner in item.items:
            yield from _times(inner, times * item.times)
    else:
        yield item[0], item[1] * times


def _balance(items: Items, times: int, left: dict[Block, int]) -> None:
    for item in items:
        if isinstance(item, Repeat):
            _balance(item.items, times * item.times, left)
        else:
            block, sign = item
            left[block] = left.get(block, 0) + times * sign


def _requests(items: Items) -> Iterator[int]:
    for item in items:
        if isinstance(item, Repeat):
            yield from _requests(item.items)
        elif item[1] > 0:
            yield item[0].size


def _written_out(items: Iterable[Event | Repeat]) -> Iterator[Event]:
    for item in items:
        if isinstance(item, Repeat):
            for _ in range(item.times):
                yield from _written_out(item.items)
        else:
            yield item
