"""The inverse of a count: the longest context, or the largest batch, whose memory is there.

Searched on the bytes that any allocator must hand out, which take a millisecond to count; then decided, on a GPU, by
torch's allocator: simulated with no more memory than there is, at the answer and one step past it.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Literal

from benchbench.case import Case, loss_chunk_rows
from benchbench.counters.cost import Kind, count
from benchbench.counters.limited import played
from benchbench.counters.memory import Fullest
from benchbench.counters.timeline import Items, Repeat
from benchbench.errors import BenchError

Field = Literal["seq_len", "batch"]

LIMIT = 2**40
"""Where a search ends that nothing else ends."""
GROWTH = 64
MOST_EVENTS = 50_000
"""Allocations and frees of a call that are simulated: about a third of a second."""
PARTS = 6
STEPS = (8, 64, 256, 1024, 2048)
"""Multiples of these are looked at past the answer: paths work in chunks."""

UNITS = {"": 1, "B": 1} | {
    f"{letter}{end}": (1000 if end == "B" else 1024) ** power
    for power, letter in enumerate("KMGT", 1)
    for end in ("iB", "B", "", "i")
}


def bytes_of(text: str) -> int:
    """24GiB and 24G (both 1024³), 24GB (1000³), or plain bytes.

    Raises:
        BenchError: `text` is no amount of memory.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip().replace(",", "").replace("_", ""), re.I)
    unit = next((size for name, size in UNITS.items() if match and name.lower() == match[2].lower()), None)
    if match is None or unit is None:
        raise BenchError(f"'{text}' is no amount of memory.", "Give 24GiB, 24GB, 24G (as GiB) or plain bytes.")
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


@dataclass(frozen=True)
class Point:
    """What a case of this length, or of this batch, needs."""

    n: int
    allocated: int
    """Peak bytes handed out."""
    taken: int
    """Peak bytes of the allocator's segments, those given back that it could: what must be there."""
    fits: bool
    simulated: bool
    """Whether torch's allocator was simulated, and not only its blocks summed up."""


@dataclass(frozen=True)
class Answer:
    """`at` fits in `memory` and is the largest that was found to; None where the least does not fit."""

    case: Case
    field: Field
    memory: int
    at: int | None
    bound: int | None
    """The largest whose blocks alone fit, were each handed out of segments without a gap."""
    points: tuple[Point, ...]
    """The answer, then one step past it, as far as there are such."""
    end: str | None
    """Why it goes no further although there is memory left."""
    again: tuple[tuple[int, int], ...]
    """Sizes that do not fit, each with a larger one that does: of those that were looked at."""
    exact: bool
    """Whether the case's memory was walked, and not summed up as a bound."""

    @property
    def any(self) -> bool:
        """Whether nothing that grows was found to end it."""
        return self.at == LIMIT


@dataclass
class Sizes:
    """One case at every length or batch, counted once each."""

    case: Case
    field: Field
    device: Kind
    _counted: dict[int, Fullest] = dataclasses.field(default_factory=dict[int, Fullest], init=False, repr=False)
    _least: dict[int, int] = dataclasses.field(default_factory=dict[int, int], init=False, repr=False)
    _points: dict[tuple[int, int], Point] = dataclasses.field(
        default_factory=dict[tuple[int, int], Point], init=False, repr=False
    )

    def at(self, n: int) -> Case:
        return self.case.model_copy(update={self.field: n})

    def fullest(self, n: int) -> Fullest:
        if n not in self._counted:
            self._counted[n] = count(self.at(n), self.device).fullest
        return self._counted[n]

    def least(self, n: int) -> int:
        """Bytes that an allocator hands out at the least."""
        if n not in self._least:
            self._least[n] = self.fullest(n).rounded
        return self._least[n]

    def fits(self, n: int, memory: int) -> bool:
        return self.least(n) <= memory and self.point(n, memory).fits

    def point(self, n: int, memory: int) -> Point:
        """What size `n` needs where there is so much memory."""
        if (n, memory) not in self._points:
            self._points[n, memory] = self._point(n, memory)
        return self._points[n, memory]

    def _point(self, n: int, memory: int) -> Point:
        fullest, least = self.fullest(n), self.least(n)
        if fullest.whole is None or _events(fullest.timeline.items) > MOST_EVENTS:
            return Point(n, least, least, least <= memory, simulated=fullest.whole is None)
        allocator = played(fullest.whole(), memory)
        return Point(n, allocator.most_allocated, allocator.taken, allocator.taken <= memory, simulated=True)

    def looked_at(self, memory: int) -> list[int]:
        """Sizes of which it is known whether they fit, in order."""
        return sorted(n for n, least in self._least.items() if least > memory or (n, memory) in self._points)

    @property
    def first(self) -> int:
        """The least size that there is."""
        return 2 if self.field == "seq_len" and self.case.task == "train" else 1

    @property
    def last(self) -> int:
        """The largest that the model accepts, or `LIMIT`."""
        longest = self.case.spec.longest
        if self.field == "batch" or longest is None or self.case.task == "core":
            return LIMIT
        return longest - (self.case.task == "decode")


def largest(sizes: Sizes, memory: int) -> Answer:
    """The largest size that fits in `memory` bytes, as far as some past each that does not are looked at."""
    at, bound, start = None, None, sizes.first
    while start is not None:
        if bound is None or start > bound:
            bound = _bound(sizes, start, memory)
        found = _edge(sizes, start, bound, memory) if bound is not None else None
        if found is not None:
            at = found
        elif at is not None:
            break
        start = next((n for n in _larger(sizes, start if at is None else at, bound) if sizes.fits(n, memory)), None)
    shown = [sizes.first] if at is None else [n for n in (at, at + 1) if n <= sizes.last]
    return Answer(
        case=sizes.case,
        field=sizes.field,
        memory=memory,
        at=at,
        bound=bound,
        points=tuple(sizes.point(n, memory) for n in shown),
        end=_end(sizes) if at == sizes.last else None,
        again=_again(sizes, at, memory),
        exact=sizes.fullest(shown[0]).exact,
    )


def _again(sizes: Sizes, at: int | None, memory: int) -> tuple[tuple[int, int], ...]:
    """Where what was looked at below the answer does not fit, and the next that does."""
    if at is None:
        return ()
    if sizes.case.task == "train" and sizes.first < (whole := _loss_in_chunks(sizes) - 1) < at:
        sizes.least(whole)  # where the loss is last in one piece, memory is at its most before it drops
    seen = [(n, sizes.fits(n, memory)) for n in sizes.looked_at(memory) if n <= at]
    return tuple((no, yes) for (no, fits), (yes, again) in pairwise(seen) if again and not fits)


def _bound(sizes: Sizes, start: int, memory: int) -> int | None:
    """A size from `start` on whose blocks alone fit, and the next one's do not; None where those of `start` do not."""
    if sizes.least(start) > memory:
        return None
    low, high = start, min(start * GROWTH, sizes.last)
    while high > low and sizes.least(high) <= memory:
        low, high = high, min(high * GROWTH, sizes.last)
    return _between(low, high, sizes.least, memory)


def _edge(sizes: Sizes, start: int, bound: int, memory: int) -> int | None:
    """A size from `start` to `bound` that fits, and the next does not; None where none was found."""
    if sizes.fits(bound, memory):
        return bound
    # What the allocator cannot hand out of what it took is about as much at sizes near one another.
    below = max(start, bound // 2)
    one_more = max(1, (sizes.least(bound) - sizes.least(below)) // max(1, bound - below))
    low = high = bound
    step = 1
    while not sizes.fits(low, memory):
        if low == start:
            return None
        over = sizes.point(low, memory).taken - memory
        high, low = low, max(start, low - max(step, ceil(over / one_more)))
        step *= 2
    return _between(low, high, lambda n: max(sizes.least(n), sizes.point(n, memory).taken), memory)


def _between(low: int, high: int, needs: Callable[[int], int], memory: int) -> int:
    """The last size before one that needs more than `memory`: bisection, led by the straight line between both ends."""
    turn = 0
    while high - low > 1:
        below, above = needs(low), needs(high)
        turn += 1
        guess = (low + high) // 2 if turn % 3 == 0 else low + (high - low) * (memory - below) // (above - below)
        guess = min(max(guess, low + 1), high - 1)
        if needs(guess) <= memory:
            low = guess
        else:
            high = guess
    return low


def _larger(sizes: Sizes, at: int, bound: int | None) -> Iterator[int]:
    """Sizes past `at` that may need less than one step past it: where chunks end, where the loss's begin, and some
    of those whose blocks alone would fit.
    """
    found = {step * (at // step + 1) for step in STEPS} | {at + at // 4, at + at // 2, 2 * at}
    if bound is not None:
        found |= {at + part * (bound - at) // PARTS for part in range(1, PARTS)}
    if sizes.case.task == "train":
        found.add(_loss_in_chunks(sizes))
    yield from sorted((n for n in found if at + 1 < n <= sizes.last), reverse=True)


def _loss_in_chunks(sizes: Sizes) -> int:
    """The least size whose loss is taken in chunks."""
    vocab_size = sizes.case.spec.vocab_size
    whole = loss_chunk_rows(2**62, vocab_size)
    while loss_chunk_rows(2 * whole, vocab_size) == 2 * whole:
        whole *= 2
    low, high = whole, 2 * whole
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if loss_chunk_rows(middle, vocab_size) == middle else (low, middle)
    others = sizes.case.batch if sizes.field == "seq_len" else sizes.case.seq_len
    return low // others + 1


def _end(sizes: Sizes) -> str:
    if sizes.last < LIMIT:
        return f"{sizes.case.spec.name} has learned positions for {sizes.case.spec.longest} tokens"
    return f"the search ends at {LIMIT:,}"


def _events(items: Items) -> int:
    return sum(item.times * _events(item.items) if isinstance(item, Repeat) else 1 for item in items)
