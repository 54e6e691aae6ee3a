"""The context lengths where two models cost the same: solved on their closed forms, verified by counting."""

from dataclasses import dataclass, replace

from benchbench.case import Case
from benchbench.counters.cost import count
from benchbench.counters.stepwise import Stepwise
from benchbench.counters.symbolic import LIMIT, InLength, in_length

METRICS = {
    "flops": "flops",
    "executed": "executed_flops",
    "bytes": "bytes_moved",
    "memory": "peak_bytes",
    "state": "state_bytes",
}
"""What may be compared, and how the count calls it."""

MOST_STRETCHES = 100
"""Models that trade places with every rounded part would do so for ever."""


@dataclass(frozen=True)
class Stretch:
    """Lengths low ≤ N ≤ high, at all of which the order is the same."""

    low: int
    high: int
    order: int
    """-1 where the first model costs less than the second, 0 where as much, 1 where more."""


@dataclass(frozen=True)
class Counted:
    """Both models, counted at one length."""

    n: int
    first: int
    second: int


@dataclass(frozen=True)
class Comparison:
    """Two models along the context length. `stretches` leave no length out, up to the shorter model's end."""

    metric: str
    first: InLength
    second: InLength
    stretches: tuple[Stretch, ...]
    verified: tuple[Counted, ...]
    """Around each crossover, and at both ends."""
    cut: bool
    """Whether there are more stretches than are kept."""

    @property
    def name(self) -> str:
        """The metric as the count calls it."""
        return METRICS[self.metric]

    @property
    def crossings(self) -> tuple[int, ...]:
        """The first length of every stretch but the first."""
        return tuple(stretch.low for stretch in self.stretches[1:])

    @property
    def low(self) -> int:
        return self.stretches[0].low

    @property
    def high(self) -> int:
        return self.stretches[-1].high

    @property
    def ends(self) -> tuple[str, ...]:
        """Why a model goes no further, for those that do not."""
        return tuple(line.end for line in (self.first, self.second) if line.end)

    def models(self, order: int) -> tuple[str, str]:
        """The cheaper model and the other, by an order that is not 0."""
        names = (self.first.case.model, self.second.case.model)
        return names if order < 0 else (names[1], names[0])


def compare(first: Case, second: Case, metric: str, limit: int = LIMIT) -> Comparison:
    """Where `first` and `second` cost the same by `metric`, whatever their own lengths, up to `limit` tokens.

    Raises:
        BenchError: A model cannot do this at any length.
    """
    lines = in_length(first, limit), in_length(second, limit)
    stretches = _stretches(*lines, METRICS[metric])
    kept = tuple(stretches[:MOST_STRETCHES])
    found = Comparison(metric, *lines, kept, (), len(stretches) > len(kept))
    return replace(found, verified=_verified(found))


def _stretches(first: InLength, second: InLength, name: str) -> list[Stretch]:
    """Every stretch of one order, and one more than are kept where there are too many."""
    found: list[Stretch] = []
    for low, high, difference in _differences(first, second, name):
        while low <= high and len(found) <= MOST_STRETCHES:
            order = difference.sign(low)
            turn = difference.first_outside(frozenset({order}), low + 1, high)
            last = high if turn is None else turn - 1
            if found and found[-1].order == order:
                found[-1] = replace(found[-1], high=last)
            else:
                found.append(Stretch(low, last, order))
            low = last + 1
    return found


def _differences(first: InLength, second: InLength, name: str) -> list[tuple[int, int, Stepwise]]:
    """The first model's cost less the second's, wherever both have one."""
    return [
        (max(low, other_low), min(high, other_high), Stepwise(form - other))
        for low, high, form in first.of(name)
        for other_low, other_high, other in second.of(name)
        if max(low, other_low) <= min(high, other_high)
    ]


def _verified(found: Comparison) -> tuple[Counted, ...]:
    """Counts one below, at and one above each crossover, and at both ends: each has the order of its stretch."""
    around = {n for at in found.crossings for n in (at - 1, at, at + 1)} | {found.low, found.high}
    lines: list[Counted] = []
    for n in sorted(n for n in around if found.low <= n <= found.high):
        ours, theirs = (_counted(line.case, n, found.name) for line in (found.first, found.second))
        order = next(stretch.order for stretch in found.stretches if stretch.low <= n <= stretch.high)
        assert (ours > theirs) - (ours < theirs) == order, f"the closed forms and the count differ at N={n}"
        lines.append(Counted(n, ours, theirs))
    return tuple(lines)


def _counted(case: Case, n: int, name: str) -> int:
    return getattr(count(case.model_copy(update={"seq_len": n})).counted, name)
