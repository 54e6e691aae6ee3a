"""What a run will take, by the cost model and the machine's own rates, corrected by what has been measured so far."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, mean, median

from benchbench import units
from benchbench.case import Case
from benchbench.counters import Cost
from benchbench.record import Measured, Predicted, Protocol
from benchbench.specs import ModelSpec

Series = tuple[str, str, str, str]
Built = tuple[ModelSpec, str, str, int, bool]
Gated = tuple[ModelSpec, str, str, str, bool, str | None]


@dataclass(frozen=True)
class Rates:
    """What this machine did in a second when it was asked just now: a large product of matrices, a large copy."""

    flops_per_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return f"{units.flops(self.flops_per_s)}/s and {units.size(self.bytes_per_s)}/s"


@dataclass(frozen=True)
class Forecast:
    """What a case is expected to take: one call, and everything that its measurement does."""

    call_s: float
    wall_s: float
    peak_bytes: int
    basis: str

    @property
    def predicted(self) -> Predicted:
        return Predicted(time_s=self.call_s, peak_bytes=self.peak_bytes, basis=self.basis)


@dataclass(frozen=True)
class Finished:
    """A case that was measured: how far its call was from the uncorrected prediction, and what came on top."""

    case: Case
    ratio: float
    wall_s: float
    gate_s: float
    build_s: float
    rest_s: float
    """Beside gate, build and calls."""


@dataclass
class Planner:
    """Predicts from counted work, and learns from each case that finishes."""

    rates: Rates
    finished: list[Finished] = field(default_factory=list[Finished])

    def forecast(self, cost: Cost, protocol: Protocol) -> Forecast:
        """What measuring the case takes."""
        factor, correction = self._correction(cost.case)
        call_s = factor * uncorrected_s(cost, self.rates)
        return Forecast(
            call_s=call_s,
            wall_s=calls_s(call_s, protocol) + self._overhead_s(cost.case),
            peak_bytes=cost.counted.peak_bytes,
            basis=f"counted work at {self.rates}, {correction}",
        )

    def learn(self, cost: Cost, measured: Measured, wall_s: float, steps_s: Mapping[str, float]) -> None:
        """Takes a measured case into account; `steps_s` are the record's."""
        call_s = median(measured.time_s)
        memory_s = call_s if measured.peak_requested_bytes is not None else 0.0
        in_calls = (measured.first_call_s or call_s) + sum(measured.warmup_s) + sum(measured.time_s) + memory_s
        ratio = call_s / uncorrected_s(cost, self.rates)
        gate_s, build_s = steps_s.get("gate", 0.0), steps_s.get("build", 0.0)
        rest_s = max(0.0, wall_s - in_calls - gate_s - build_s)
        self.finished.append(Finished(cost.case, ratio, wall_s, gate_s, build_s, rest_s))

    @property
    def held(self) -> Built | None:
        """The model that the worker was left with, or will have to build once more after training."""
        return built_of(self.finished[-1].case) if self.finished else None

    def spent_s(self, series: Series) -> float:
        """Seconds that the finished cases of a series took."""
        return sum(one.wall_s for one in self.finished if series_of(one.case) == series)

    def _correction(self, case: Case) -> tuple[float, str]:
        """The factor on a prediction, and where it comes from."""
        alike = [one for one in self.finished if one.case.task == case.task]
        if nearest := _nearest(self.finished, case):
            return nearest.ratio, f"times {units.digits(nearest.ratio)} as measured at {_size(nearest.case)}"
        if alike:
            ratio = geometric_mean(one.ratio for one in alike)
            return ratio, f"times {units.digits(ratio)}, the mean of {len(alike)} finished {case.task} cases"
        return 1.0, "not corrected: nothing like it is measured yet"

    def _overhead_s(self, case: Case) -> float:
        """Seconds expected beside the calls: the gate, if it has not run; the build; and the least of all else."""
        like = [one for one in self.finished if one.case.model == case.model and _trains(one.case) == _trains(case)]
        return self._gate_s(case) + least(one.build_s for one in like) + least(one.rest_s for one in like)

    def _gate_s(self, case: Case) -> float:
        """Nothing where the verdict is known; else what gates took on average, those of the task if there are any."""
        took: dict[Gated, float] = {}
        for one in self.finished:
            took[gated_of(one.case)] = max(one.gate_s, took.get(gated_of(one.case), 0.0))
        if gated_of(case) in took:
            return 0.0
        alike = [gate_s for gated, gate_s in took.items() if gated[1] == case.task] or list(took.values())
        return mean(alike) if alike else 0.0


def least(seconds: Iterable[float]) -> float:
    """A model is built for the first of several cases: the least is what comes again. Training builds every time."""
    return min(seconds, default=0.0)


def built_of(case: Case) -> Built:
    """What a worker holds and, but for training, uses for the next case that wants the same."""
    return case.spec, case.path, case.dtype, case.seed, case.checkpoint


def gated_of(case: Case) -> Gated:
    """What a gate's verdict depends on, the smallest sizes apart."""
    return case.spec, case.task, case.path, case.dtype, case.checkpoint, case.autocast


def _trains(case: Case) -> bool:
    return case.task == "train"


def series_of(case: Case) -> Series:
    """What the sizes of one model and task have in common."""
    return case.model, case.task, case.path, case.dtype


def uncorrected_s(cost: Cost, rates: Rates) -> float:
    """One call, were every operation as fast as the rates let it be: each is bound by arithmetic or by memory."""
    return sum(
        op.repeat * max(op.executed_flops / rates.flops_per_s, op.bytes_moved / rates.bytes_per_s) for op in cost.ops
    )


def calls_s(call_s: float, protocol: Protocol) -> float:
    """The most that a case's calls take, the one for memory included.

    First call, warm-up and samples end with the case's budget, yet are two at least; memory takes one more call,
    unless a call is longer than the budget.
    """
    wanted = (1 + max(1, protocol.warmup_calls) + protocol.max_samples) * call_s
    memory_s = call_s if call_s <= protocol.case_budget_s else 0.0
    return max(2 * call_s, min(wanted, protocol.case_budget_s + call_s)) + memory_s


def _nearest(finished: Sequence[Finished], case: Case) -> Finished | None:
    """Of the same series, the largest finished case that is no larger than `case`."""
    smaller = [one for one in finished if series_of(one.case) == series_of(case) and _tokens(one.case) <= _tokens(case)]
    return max(smaller, key=lambda one: _tokens(one.case), default=None)


def _tokens(case: Case) -> int:
    return case.seq_len * case.batch


def _size(case: Case) -> str:
    return f"N={units.integer(case.seq_len)}" + (f" B={case.batch}" if case.batch > 1 else "")
