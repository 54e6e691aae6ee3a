"""The inverse of a count: the longest context, or the largest batch, whose memory is there.

Searched on the bytes that any allocator must hand out, which take a millisecond to count; then decided, on a GPU, by
torch's allocator: simulated with no more memory than there is, at the answer and one step past it.
"""

import dataclasses
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from benchbench.case import Case, loss_chunk_rows
from benchbench.counters.allocator import rounded, segment_bytes
from benchbench.counters.cost import Kind, count
from benchbench.counters.limited import Limited, played, played_within
from benchbench.counters.memory import Fullest
from benchbench.counters.timeline import Items, Repeat, Timeline
from benchbench.errors import BenchError

Field = Literal["seq_len", "batch"]

LIMIT = 2**40
"""Where a search ends that nothing else ends."""
GROWTH = 64
MOST_EVENTS = 50_000
"""Allocations and frees of a call that are simulated: about a twentieth of a second."""
ENOUGH = 15_000
"""Once a question has simulated as many, it looks no farther past its answer than where chunks end."""
SPAN = 16
"""How requests grow is seen from a size that is about this part of the size away."""
LEADS = 8
PARTS = 4
CHUNKS = (8, 256, 2048)
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


class Line(NamedTuple):
    """The bytes of a block that are `size` at `n` and `more` than that `step` further on."""

    n: int
    step: int
    size: int
    more: int

    def at(self, n: int) -> int:
        return self.size + self.more * (n - self.n) // self.step


@dataclass
class Sizes:
    """One case at every length or batch, counted once each."""

    case: Case
    field: Field
    device: Kind
    events: int = dataclasses.field(default=0, init=False)
    """Allocations and frees that were simulated."""
    _counted: dict[int, Fullest] = dataclasses.field(default_factory=dict[int, Fullest], init=False, repr=False)
    _least: dict[int, int] = dataclasses.field(default_factory=dict[int, int], init=False, repr=False)
    _points: dict[tuple[int, int], Point | None] = dataclasses.field(
        default_factory=dict[tuple[int, int], Point | None], init=False, repr=False
    )
    """None where it does not fit, and nobody asked by how much."""
    _taken: dict[tuple[int, int], Counter[int]] = dataclasses.field(
        default_factory=dict[tuple[int, int], Counter[int]], init=False, repr=False
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
        if self.least(n) > memory:
            return False
        if (n, memory) not in self._points:
            self._points[n, memory] = self._point(n, memory, played_within)
        point = self._points[n, memory]
        return point is not None and point.fits

    def point(self, n: int, memory: int) -> Point:
        """What size `n` needs where there is so much memory."""
        point = self._points.get((n, memory)) or self._point(n, memory, played)
        assert point is not None
        self._points[n, memory] = point
        return point

    def _point(self, n: int, memory: int, play: Callable[[Timeline, int], Limited | None]) -> Point | None:
        found, least = self.fullest(n), self.least(n)
        events = _events(found.timeline.items)
        if not found.caching or events > MOST_EVENTS:
            return Point(n, least, least, least <= memory, simulated=not found.caching)
        self.events += events
        allocator = play(found.timeline, memory)
        if allocator is None:
            return None
        self._taken[n, memory] = allocator.requests
        return Point(n, allocator.most_allocated, allocator.taken, allocator.taken <= memory, simulated=True)

    def lines(self, n: int) -> dict[int, Line]:
        """What the blocks of size `n` are handed out, each with its line; empty where others are needed elsewhere."""
        before = self.fullest(n).timeline.requests()
        # Not from one step to the next, over which what is padded grows by chance.
        others = sorted((one for one in self._counted if one != n), key=lambda one: abs(SPAN * abs(one - n) - n))
        for one in others:
            after = self.fullest(one).timeline.requests()
            if len(after) == len(before):
                pairs = zip(before, after, strict=True)
                return {rounded(size): Line(n, one - n, size, other - size) for size, other in pairs}
        return {}

    def last_like(self, n: int, memory: int, among: range) -> int | None:
        """The last of `among` to fit if as many segments were taken there as were at `n`, for requests on their lines.

        None where none would.
        """
        lines, taken = self.lines(n), self._taken[n, memory].items()
        if not lines:
            return None
        fitting = bisect_right(
            among, memory, key=lambda one: sum(times * segment_bytes(lines[size].at(one)) for size, times in taken)
        )
        return among[fitting - 1] if fitting else None

    def looked_at(self, memory: int) -> list[int]:
        """Sizes of which it is known whether they fit, in order."""
        return sorted(n for n, least in self._least.items() if least > memory or (n, memory) in self._points)

    def misfit(self, n: int, memory: int) -> int:
        """The first past `n` that is known not to fit."""
        return next(one for one in self.looked_at(memory) if one > n and not self.fits(one, memory))

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
    at = bound = None
    for start in _starts(sizes):
        if (bound is None or start > bound) and sizes.least(start) <= memory:
            bound = _bound(sizes, start, memory)
            at = _most(sizes, start, bound, memory) or at
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


def _starts(sizes: Sizes) -> Iterator[int]:
    """Sizes from which on more needs more: the least, and the least whose loss is taken in chunks."""
    yield sizes.first
    if sizes.case.task == "train" and sizes.first < (chunked := _loss_in_chunks(sizes)) <= sizes.last:
        yield chunked


def _again(sizes: Sizes, at: int | None, memory: int) -> tuple[tuple[int, int], ...]:
    """Where what was looked at below the answer does not fit, and the next that does."""
    if at is None:
        return ()
    if sizes.case.task == "train" and sizes.first < (whole := _loss_in_chunks(sizes) - 1) < at:
        sizes.least(whole)  # where the loss is last in one piece, memory is at its most before it drops
    seen = [(n, sizes.fits(n, memory)) for n in sizes.looked_at(memory) if n <= at]
    return tuple((no, yes) for (no, fits), (yes, again) in pairwise(seen) if again and not fits)


def _bound(sizes: Sizes, start: int, memory: int) -> int:
    """A size from `start` on whose blocks alone fit, as those of `start` do, and the next one's do not."""
    low, high = start, min(start * GROWTH, sizes.last)
    while high > low and sizes.least(high) <= memory:
        # Just past where the line through both ends, as far as it grows.
        more = sizes.least(high) - sizes.least(low)
        reach = (memory - sizes.least(high)) * (high - low) // more + 1 if more > 0 else sizes.last
        low, high = high, min(high + reach, high * GROWTH, sizes.last)
    return _between(low, high, sizes.least, memory)


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


def _most(sizes: Sizes, start: int, bound: int, memory: int) -> int | None:
    """A size from `start` to `bound` that fits, and the next does not; None where none was found."""
    if sizes.point(bound, memory).fits:
        return bound
    enough = sizes.events + ENOUGH
    low, high = _near(sizes, start - 1, bound, memory)
    while True:
        if start <= low < high - 1:
            low, high = _farther(sizes, low, high, bound, memory, enough)
        low = _edge(sizes, low, high, memory)
        if low < start:
            return None
        larger = next((n for n in _larger(sizes, low, bound, enough) if sizes.fits(n, memory)), None)
        if larger is None:
            return low
        low, high = larger, sizes.misfit(larger, memory)


def _near(sizes: Sizes, low: int, high: int, memory: int) -> tuple[int, int]:
    """Two sizes from `low` to `high`: the first fits, or is `low`, and the other does not.

    They are next to one another, unless other segments are taken at the one than at the other.
    """
    known = high
    for _ in range(LEADS):
        guess = sizes.last_like(known, memory, range(low + 1, high))
        if known == low and guess is None:
            guess = low + 1
        if high - low == 1 or guess is None or (known == low and guess == high - 1 > low + 1):
            break
        known = guess
        low, high = (guess, high) if sizes.point(guess, memory).fits else (low, guess)
    return low, high


def _farther(sizes: Sizes, low: int, high: int, bound: int, memory: int, enough: int) -> tuple[int, int]:
    """Two sizes as `low` and `high` are, as far up to `bound` as those go that take the segments that `low` does.

    Up to there others are taken in turns, so that some fit and some do not.
    """
    last, past = sizes.last_like(low, memory, range(low + 1, bound)), bound
    step = CHUNKS[0] if sizes.field == "seq_len" else 1
    if last is not None and sizes.fits(last, memory):
        return (last + 1, bound) if sizes.fits(last + 1, memory) else (last, last + 1)
    while last is not None and last > low and sizes.events < enough:
        if sizes.fits(last, memory):
            return last, past
        last, step, past = last - step, 2 * step, last
    return low, high


def _edge(sizes: Sizes, low: int, high: int, memory: int) -> int:
    """A size from `low` on that fits, or is `low`, where the next does not, as `high` does not."""
    while high - low > 1:
        guess = _roundest(low, high)
        fits = sizes.fits(guess, memory)
        beside = guess + 1 if fits else guess - 1
        low, high = (guess, high) if fits else (low, guess)
        # Where chunks end is likely to be where it ends.
        if guess % CHUNKS[1] == 0 and low < beside < high:
            low, high = (beside, high) if sizes.fits(beside, memory) else (low, beside)
    return low


def _roundest(low: int, high: int) -> int:
    """The number between both with the highest power of two in it."""
    power = 1 << (high - low).bit_length()
    while (high - 1) // power * power <= low:
        power //= 2
    return (high - 1) // power * power


def _larger(sizes: Sizes, at: int, bound: int, enough: int) -> Iterator[int]:
    """Sizes past `at` that may need less than one step past it: where chunks end, and some up to `bound`."""
    yield from (n for chunk in reversed(CHUNKS) if (n := chunk * (at // chunk + 1)) <= bound)
    for part in range(PARTS - 1, 0, -1):
        if sizes.events < enough and bound - at > PARTS:
            yield at + part * (bound - at) // PARTS


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
