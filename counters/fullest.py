# pyright: standard
"""The fullest moment of a timeline whose sizes carry closed forms.

A comparison of two sizes leaves a condition behind, so as few moments as can be are compared: one that holds no more of
any kind of block than another is never fuller, and of those that are fuller from some length on the first ones do.
"""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from math import isqrt, lcm
from typing import Any, NamedTuple

import sympy

from benchbench.counters.sized import EQUAL, MORE, Condition, Sized, expression, plain
from benchbench.counters.timeline import Block, Items, Moment, Repeat, Timeline

NEVER = 2**62
"""A length that nothing reaches."""

Kind = tuple[Any, tuple[Any, ...]]
"""The bytes of a block, and the loops whose rounds but one it is there once more for, as expressions."""


class Holding(NamedTuple):
    """A moment, with how many blocks of each kind are alive then."""

    moment: Moment
    kinds: Counter[Kind]


class Rival(NamedTuple):
    """The bytes of another moment; an earlier one would be taken where they are equal."""

    bytes: int
    earlier: bool


class Sizes:
    """The kinds of block of a timeline, with their bytes."""

    def __init__(self) -> None:
        self._bytes: dict[Kind, int] = {}

    def of(self, block: Block) -> Kind:
        size = block.size * block.count
        kind = expression(size), ()
        self._bytes[kind] = size
        return kind

    def signed(self, block: Block, sign: int) -> Counter[Kind]:
        """What an event adds: less than nothing where it frees, of all rounds of a loop at once perhaps."""
        one = Counter({self.of(block): 1})
        if not isinstance(sign, Sized):
            return self.repeated(one, sign)
        return self.repeated(_plus(one, self.repeated(one, -sign - 1)), -1)

    def repeated(self, kinds: Counter[Kind], rounds: int) -> Counter[Kind]:
        """`kinds`, so many times."""
        if not isinstance(rounds, Sized):
            return Counter({kind: rounds * number for kind, number in kinds.items()})
        more: Counter[Kind] = Counter()
        for (size, loops), number in kinds.items():
            kind = size, (*loops, rounds.expression)
            self._bytes[kind] = self._bytes[size, loops] * rounds
            more[kind] = number
        return more

    def value(self, kinds: Counter[Kind]) -> int:
        """The bytes of `kinds`, as a plain number."""
        return sum(number * plain(self._bytes[kind]) for kind, number in kinds.items())

    def total(self, kinds: Counter[Kind]) -> int:
        """The bytes of `kinds`, with their expression."""
        return sum((number * self._bytes[kind] for kind, number in kinds.items() if number), 0)


def fullest(timeline: Timeline, length: int) -> Moment:
    """The first moment with as many bytes alive as ever, on conditions; `length` may be a symbol."""
    sizes = Sizes()
    tops = [(sizes.value(one.kinds), -index, one) for index, one in enumerate(_tops(timeline.items, Counter(), sizes))]
    kept: list[tuple[int, Holding]] = []
    for _, order, one in sorted(tops, key=lambda top: top[:2], reverse=True):
        if not any(_covers(other.kinds, one.kinds) for _, other in kept):
            kept.append((order, one))
    if not kept:
        return ()
    (first, best), *others = kept
    most = sizes.total(best.kinds)
    rivals = [Rival(sizes.total(other.kinds), order > first) for order, other in others]
    for rival in _nearest(most, rivals, length):
        assert most > rival.bytes if rival.earlier else most >= rival.bytes
    return best.moment


def _nearest(most: int, rivals: list[Rival], length: int) -> list[Rival]:
    """Those that can be the first to be fuller as the length grows, where it is the only symbol.

    The trail is told that this holds from this length on.
    """
    # Whole numbers: one is fuller where this is 0 or less.
    differences = [expression(most) - expression(rival.bytes) + (0 if rival.earlier else 1) for rival in rivals]
    symbols = {symbol for difference in differences for symbol in difference.free_symbols}
    if not isinstance(length, Sized) or symbols != {length.expression}:
        return rivals
    low = plain(length)
    turns = [_turn(difference, length.expression, low) for difference in differences]
    until = min(surely for _, surely in turns)
    length.trail[Condition(length.expression - low, frozenset({EQUAL, MORE}))] = None
    return [rival for rival, (perhaps, _) in zip(rivals, turns, strict=True) if perhaps <= until and perhaps < NEVER]


def _turn(difference: Any, n: Any, low: int) -> tuple[int, int]:
    """From which length on, `low` or more, `difference` may be 0 or less, and from which it surely is.

    A rounded part lies between what is rounded and one more or less.
    """
    rest: list[Any] = []
    while parts := difference.atoms(sympy.ceiling, sympy.floor):
        part = max(parts, key=lambda one: (one.count(sympy.Function), str(one)))  # none that is within another
        dummy = sympy.Dummy()
        rest.append(dummy)
        more = dummy if isinstance(part, sympy.ceiling) else -dummy
        difference = difference.xreplace({part: part.args[0] + more})
    least: dict[int, Fraction] = {}
    most: dict[int, Fraction] = {}
    if not difference.is_polynomial(n, *rest):
        return low, NEVER
    for powers, coefficient in sympy.Poly(difference, n, *rest).terms():
        value = Fraction(int(coefficient.p), int(coefficient.q))
        rounded = any(powers[1:])
        least[powers[0]] = least.get(powers[0], Fraction()) + (min(value, Fraction()) if rounded else value)
        most[powers[0]] = most.get(powers[0], Fraction()) + (max(value, Fraction()) if rounded else value)
    return _sinks(least, low), _sinks(most, low)


def _sinks(polynomial: dict[int, Fraction], low: int) -> int:
    """The first whole number from `low` on where a polynomial is 0 or less: `low` itself above the second degree."""
    scale = lcm(*(value.denominator for value in polynomial.values()))
    whole = {power: int(value * scale) for power, value in polynomial.items() if value}
    if max(whole, default=0) > 2:
        return low
    a, b, c = (whole.get(power, 0) for power in (2, 1, 0))
    if a * low * low + b * low + c <= 0:
        return low
    if not a:
        return -(-c // -b) if b < 0 else NEVER
    inside = b * b - 4 * a * c
    if inside < 0:
        return NEVER
    # The root where it comes down, from above: for a > 0 the smaller one, for a < 0 the larger.
    root = Fraction(-b - isqrt(inside), 2 * a)
    first = max(low, int(root) - 2)
    return next((n for n in range(first, first + 6) if a * n * n + b * n + c <= 0), NEVER)


def _covers(more: Counter[Kind], less: Counter[Kind]) -> bool:
    return all(more[kind] >= number for kind, number in less.items()) and all(
        number >= 0 for kind, number in more.items() if kind not in less
    )


def _tops(items: Items, alive: Counter[Kind], sizes: Sizes) -> Iterator[Holding]:
    """Where more was never alive just before or after; of a loop in its first round and in its last."""
    now, top = Counter(alive), None
    for index, item in enumerate(items):
        if not isinstance(item, Repeat):
            block, sign = item
            if sign > 0:
                top = index
            elif top is not None:
                yield Holding(((top, 0),), Counter(now))
                top = None
            now.update(sizes.signed(block, sign))
            continue
        if top is not None:
            yield Holding(((top, 0),), Counter(now))
            top = None
        added = _added(item.items, sizes)
        others = sizes.repeated(added, item.times - 1)
        for rounds, before in ((0, now), (item.times - 1, _plus(now, others))):
            for moment, kinds in _tops(item.items, before, sizes):
                yield Holding(((index, rounds), *moment), kinds)
        now = _plus(now, added, others)
    if top is not None:
        yield Holding(((top, 0),), Counter(now))


def _added(items: Items, sizes: Sizes) -> Counter[Kind]:
    """What one round leaves behind."""
    left: Counter[Kind] = Counter()
    for item in items:
        if isinstance(item, Repeat):
            once = _added(item.items, sizes)
            left = _plus(left, once, sizes.repeated(once, item.times - 1))
        else:
            left.update(sizes.signed(*item))
    return left


def _plus(*parts: Counter[Kind]) -> Counter[Kind]:
    """Their sum, numbers below zero and all."""
    whole: Counter[Kind] = Counter()
    for part in parts:
        whole.update(part)
    return whole
