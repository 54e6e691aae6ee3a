"""Costs along the context length or the batch: who is less where, where that turns over, and how each one grows."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import ceil, log
from statistics import linear_regression
from typing import Literal, NamedTuple

from benchbench.axis import LENGTH, Axis
from benchbench.case import Case
from benchbench.columns import time_of
from benchbench.record import Counted, Record
from benchbench.units import integer, listing

CountAt = Callable[[Case], Counted]
"""What a case costs that was not recorded."""


@dataclass(frozen=True)
class Finding:
    """One sentence; `alarm` marks what must not be overlooked."""

    text: str
    alarm: bool = False
    detail: bool = False
    """Left out on a terminal, where the files beside it have it."""


class Point(NamedTuple):
    """A value at `n` on the axis, known to lie between `low` and `high`: both equal to it where it is counted."""

    n: int
    low: float
    value: float
    high: float
    few: bool = False
    """Whether `low` and `high` are the range of too few samples for a 95 % interval."""


Points = dict[int, Point]


@dataclass(frozen=True)
class Metric:
    name: str
    better: str
    """How the lesser one is called."""
    counted: Callable[[Counted], int] | None = None
    """Where it is counted, so that it is known everywhere; None for the measured time."""
    detail: bool = False
    """Whether its growth is left out on a terminal."""

    @property
    def kind(self) -> Literal["counted", "measured"]:
        return "counted" if self.counted else "measured"

    def point(self, record: Record, axis: Axis = LENGTH) -> Point | None:
        n = axis.of(record.case)
        if self.counted:
            return _exactly(n, self.counted(record.counted)) if record.counted else None
        time = time_of(record)
        if not time or not record.measured:
            return None
        if time.low95 is not None and time.high95 is not None:
            return Point(n, time.low95, time.median, time.high95)
        samples = record.measured.time_s
        return Point(n, min(samples), time.median, max(samples), few=True)


METRICS = (
    Metric("counted FLOPs", "cheaper", lambda c: c.flops),
    Metric("counted bytes moved", "cheaper", lambda c: c.bytes_moved, detail=True),
    Metric("counted peak memory", "smaller", lambda c: c.peak_bytes),
    Metric("counted state", "smaller", lambda c: c.state_bytes, detail=True),
    Metric("measured time", "faster"),
)


def series(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by model, shortest first, then the least batch; by model and path where a model ran more than one."""
    kept = list(records)
    paths: dict[str, set[str]] = {}
    for record in kept:
        paths.setdefault(record.case.model, set()).add(record.case.path)
    lines: dict[str, list[Record]] = {}
    for record in sorted(kept, key=lambda r: (r.case.model, r.case.path, r.case.seq_len, r.case.batch)):
        model = record.case.model
        label = model if len(paths[model]) == 1 else f"{model} ({record.case.path})"
        lines.setdefault(label, []).append(record)
    return lines


def points(metric: Metric, records: Iterable[Record], axis: Axis = LENGTH) -> Points:
    """The metric wherever it is known."""
    return {point.n: point for record in records if (point := metric.point(record, axis))}


def crossovers(
    metric: Metric, lines: dict[str, list[Record]], count_at: CountAt | None = None, axis: Axis = LENGTH
) -> Finding | None:
    """Who is cheaper where, pair by pair; None where nothing is to be compared."""
    known = {label: found for label, records in lines.items() if (found := points(metric, records, axis))}
    if len(lines) < 2 or not any(point.value for found in known.values() for point in found.values()):
        return None if metric.counted or len(lines) < 2 else Finding(_capital(f"{metric.name}: nothing was measured."))
    if chain := _chain(metric, known, axis):
        return Finding(chain)
    always: dict[str, dict[str, list[str]]] = {}
    clauses: list[str] = []
    for first, second in combinations(known, 2):
        signs = compared(known[first], known[second])
        decided = {n: sign for n, sign in signs.items() if sign}
        if not signs:
            clauses.append(f"{first} and {second} have no {axis.one} in common")
        elif not decided:
            same = "are equal" if metric.counted else "cannot be told apart"
            clauses.append(f"{first} and {second} {same} {_places(signs, signs, axis)}")
        elif len(set(decided.values())) == 1:
            less, more = (first, second) if min(decided.values()) < 0 else (second, first)
            where = _places(signs, decided, axis)
            where += "" if len(decided) == len(signs) else f" ({_undecided(metric, signs, axis)})"
            always.setdefault(where, {}).setdefault(less, []).append(more)
        else:
            at = exact(metric, lines[first][0].case, lines[second][0].case, count_at, axis) if count_at else None
            clauses += [
                f"{second if sign > 0 else first} overtakes {first if sign > 0 else second} "
                + _where(low, high, at, signs, metric, axis)
                for low, high, sign in changes(decided)
            ]
    orders = [(where, [f"{a} than {listing(rest)}" for a, rest in order.items()]) for where, order in always.items()]
    clauses = [f"{metric.better} {where}: {', '.join(pairs)}" for where, pairs in orders] + clauses
    if few := sorted({point.n for found in known.values() for point in found.values() if point.few}):
        clauses.append(f"fewer than six samples, so that their range stands for the interval, at {_names(few, axis)}")
    return Finding(_capital(f"{metric.name}: {'; '.join(clauses)}.")) if clauses else None


def _chain(metric: Metric, known: dict[str, Points], axis: Axis) -> str | None:
    """One order for three models or more that holds everywhere, or None."""
    lengths = next(iter(known.values())).keys()
    if len(known) < 3 or any(found.keys() != lengths for found in known.values()):
        return None
    order = sorted(known, key=lambda label: known[label][min(lengths)].value)
    steps = [compared(known[less], known[more]) for less, more in pairwise(order)]
    if any(sign != -1 for signs in steps for sign in signs.values()):
        return None
    few = [point.n for found in known.values() for point in found.values() if point.few]
    by_range = f" (by the range of fewer than six samples at {_names(sorted(set(few)), axis)})" if few else ""
    return f"{_capital(metric.name)}: {' < '.join(order)} {_places(lengths, lengths, axis)}{by_range}."


def compared(first: Points, second: Points) -> dict[int, int]:
    """Wherever both are known: -1 where `first` is less, 1 where it is more, 0 where they are not told apart."""
    return {
        n: (first[n].low > second[n].high) - (first[n].high < second[n].low)
        for n in sorted(first.keys() & second.keys())
    }


def changes(decided: dict[int, int]) -> list[tuple[int, int, int]]:
    """Neighbours between which the order turns over, with the sign after it."""
    return [(low, high, after) for (low, before), (high, after) in pairwise(decided.items()) if before != after]


def first_place(sign_at: Callable[[int], int], low: int, high: int) -> int:
    """The first place above `low` with the sign that `high` has, where it turns over once in between."""
    after = sign_at(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sign_at(middle) == after else (middle, high)
    return high


def exact(
    metric: Metric, first: Case, second: Case, count_at: CountAt, axis: Axis = LENGTH
) -> Callable[[int], int] | None:
    """The sign of `first` minus `second` anywhere, where the metric is counted."""
    read = metric.counted
    if read is None:
        return None

    def sign(n: int) -> int:
        ours, theirs = (read(count_at(axis.at(case, n))) for case in (first, second))
        return (ours > theirs) - (ours < theirs)

    return sign


def _where(
    low: int, high: int, sign_at: Callable[[int], int] | None, signs: dict[int, int], metric: Metric, axis: Axis
) -> str:
    # A cost model that has changed since the records were written may not place their crossing.
    if sign_at and sign_at(low) == signs[low] and sign_at(high) == signs[high]:
        return f"at {_names([first_place(sign_at, low, high)], axis)}, counted to the {axis.unit}"
    between = {n: 0 for n, sign in signs.items() if low < n < high and not sign}
    undecided = f", {_undecided(metric, between, axis)}" if between else ""
    return f"between {_names([low], axis)} and {_names([high], axis)}{undecided}"


def _undecided(metric: Metric, signs: dict[int, int], axis: Axis) -> str:
    same = "equal" if metric.counted else "not told apart"
    return f"{same} at {_names([n for n, sign in signs.items() if not sign], axis)}"


def _places(signs: Collection[int], decided: Collection[int], axis: Axis) -> str:
    low, high = min(signs), max(signs)
    if low == high:
        return f"at {_names([low], axis)}, the only {axis.one} both have"
    every = "both" if len(signs) == 2 else f"all {len(signs)}"
    share = every if len(decided) == len(signs) else f"{len(decided)} of {len(signs)}"
    return f"at {share} {axis.many} from {integer(low)} to {integer(high)}"


def _names(places: Iterable[int], axis: Axis) -> str:
    return listing([f"{axis.symbol}={integer(n)}" for n in places])


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _exactly(n: int, value: float) -> Point:
    return Point(n, value, value, value)


class Growth(NamedTuple):
    """The least-squares slope of log(value) over log(n), and what it stands on."""

    exponent: float
    shortest: int
    longest: int
    points: int


def growth(found: Points) -> Growth | None:
    """How the value grows over the upper half of its points, two at least; None with fewer, or where it is zero."""
    lengths = sorted(found)
    upper = lengths[-max(2, ceil(len(lengths) / 2)) :]
    if len(upper) < 2 or any(found[n].value <= 0 for n in upper):
        return None
    slope = linear_regression([log(n) for n in upper], [log(found[n].value) for n in upper]).slope
    return Growth(slope, upper[0], upper[-1], len(upper))


def exponents(metric: Metric, lines: dict[str, list[Record]], axis: Axis = LENGTH) -> Finding | None:
    """The exponent for every model, on the upper half of its points; why there is none, where there is none."""
    alike: dict[tuple[int, int, int], dict[str, list[str]]] = {}
    absent: dict[int, list[str]] = {}
    for label, records in lines.items():
        found = points(metric, records, axis)
        if fitted := growth(found):
            power = f"{axis.symbol}^{0.0 + round(fitted.exponent, 2):.2f}"
            alike.setdefault(fitted[1:], {}).setdefault(power, []).append(label)
        elif len(found) < 2:
            absent.setdefault(len(found), []).append(label)
    clauses: list[str] = []
    for (low, high, n), powers in alike.items():
        named = listing([f"{power} ({', '.join(labels)})" for power, labels in powers.items()])
        clauses.append(f"{named} over {_names([low], axis)} to {integer(high)}, {n} {axis.many}")
    clauses += [
        f"no exponent for {listing(labels)}: {'one' if n else 'no'} {axis.one} is {metric.kind}, two are needed"
        for n, labels in absent.items()
    ]
    return Finding(f"Growth of {metric.name}: {'; '.join(clauses)}.", detail=metric.detail) if clauses else None
