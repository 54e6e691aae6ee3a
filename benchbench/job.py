"""Jobs: cases of suites on one machine. Which are still to do, which fit, and what is kept of each."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchbench import units
from benchbench.case import Case
from benchbench.counters import Cost, count
from benchbench.counters.cost import Kind
from benchbench.fingerprint import fingerprint
from benchbench.launch import Outcome
from benchbench.plan import Forecast, Planner, Series, built_of, series_of
from benchbench.progress import duration
from benchbench.record import FINAL, SCHEMA, Checked, Record
from benchbench.stats import summarize
from benchbench.store import Environment, key, machine_id, short_hash
from benchbench.suite import Suite

ROUND_S = 5.0
"""Of each series' time, in which a worker keeps to one model as far as it can: to build one takes a second or two."""


@dataclass(frozen=True)
class Job:
    """A case of a suite on this machine. `cost` is None where the architecture cannot do it."""

    suite: Suite
    case: Case
    key: str
    cost: Cost | None


@dataclass(frozen=True)
class Skip:
    """A job that will not be measured, and why."""

    job: Job
    forecast: Forecast
    reason: str


@dataclass
class Plan:
    """What is left to do: to be measured, in order, and to be skipped."""

    measure: list[tuple[Job, Forecast]]
    skip: list[Skip]

    @property
    def wall_s(self) -> float:
        return sum(forecast.wall_s for _, forecast in self.measure)


def jobs_of(suites: Sequence[Suite], env: Environment) -> list[Job]:
    """Every case with its key on this machine and its cost."""
    machine = machine_id(env)
    device: Kind = "cuda" if env.get("device") == "cuda" else "cpu"
    kinds = {(case.family, case.task, case.path) for suite in suites for case in suite.cases}
    source = {kind: fingerprint(*kind) for kind in kinds}
    return [
        Job(
            suite,
            case,
            key(case, suite.protocol, suite, machine, source[case.family, case.task, case.path]),
            None if case.unsupported() else count(case, device),
        )
        for suite in suites
        for case in suite.cases
    ]


def to_do(jobs: Sequence[Job], records: Mapping[str, Record], *, retry: bool, more_budget: bool) -> list[Job]:
    """The jobs without an answer; failed ones too with `retry`, and skipped ones if there is more budget than then."""

    def open_(record: Record | None) -> bool:
        if record is None:
            return True
        if record.status == "skipped":
            return more_budget
        return retry and record.status not in FINAL

    return [job for job in jobs if open_(records.get(job.key))]


def plan(jobs: Sequence[Job], planner: Planner, left_s: float | None, memory_bytes: int) -> Plan:
    """The jobs that fit in memory and in the seconds that are left, in order; the others with their reasons."""
    forecasts = [(job, planner.forecast(job.cost, job.suite.protocol)) for job in jobs if job.cost is not None]
    fitting = [(job, forecast) for job, forecast in forecasts if forecast.peak_bytes <= memory_bytes]
    planned = Plan([], [])
    for job, forecast in fair(fitting, planner):
        spare = float("inf") if left_s is None else left_s - planned.wall_s
        if forecast.wall_s <= spare:
            planned.measure.append((job, forecast))
        else:
            call, wall = units.seconds(forecast.call_s), duration(forecast.wall_s)
            reason = f"predicted {call} a call, {wall} to measure; {duration(max(0.0, spare))} of the budget are left"
            planned.skip.append(Skip(job, forecast, reason))
    for job, forecast in forecasts:
        if forecast.peak_bytes > memory_bytes:
            needs, has = units.size(forecast.peak_bytes), units.size(memory_bytes)
            planned.skip.append(Skip(job, forecast, f"needs {needs} by the count, {has} are available"))
    return planned


@dataclass(frozen=True)
class Turn:
    """A job and the seconds that its series will have used once it is done."""

    job: Job
    forecast: Forecast
    used_s: float

    @property
    def round(self) -> int:
        return int(self.used_s / ROUND_S)


def fair(forecasts: Sequence[tuple[Job, Forecast]], planner: Planner) -> list[tuple[Job, Forecast]]:
    """Shortest first in each series; of the series, next is the one that would then have used the least time.

    So a series whose cases are all short does not use up the time in which others could have had their first.
    Uses that differ by less than a round are alike: then one model after the other, that which the worker holds
    first, and training last, which spoils it.
    """
    used: dict[Series, float] = {}
    turns: list[Turn] = []
    for job, forecast in sorted(forecasts, key=lambda pair: pair[1].wall_s):
        series = series_of(job.case)
        used[series] = used.get(series, planner.spent_s(series)) + forecast.wall_s
        turns.append(Turn(job, forecast, used[series]))
    turns.sort(key=lambda turn: turn.used_s)
    models = dict.fromkeys(built_of(turn.job.case) for turn in turns)
    rank = {model: -1 if model == planner.held else place for place, model in enumerate(models)}
    turns.sort(key=lambda turn: (turn.round, rank[built_of(turn.job.case)], turn.job.case.task == "train"))
    return [(turn.job, turn.forecast) for turn in turns]


def spent_on(jobs: Sequence[Job], records: Mapping[str, Record]) -> float:
    """Seconds that the measured cases among `jobs` took. Traces of skipped ones count against nothing."""
    done = [records[job.key] for job in jobs if job.key in records]
    return sum(record.wall_s for record in done if record.status != "skipped")


def held_against_count(job: Job, outcome: Outcome, memory_bytes: int) -> Outcome:
    """An outcome on a GPU with a verdict on its memory, if it says anything of it; numbers that differ are its reason.

    A job that was begun had room by the count: running out of memory contradicts that.
    """
    assert job.cost is not None
    counted, said = job.cost.counted, None
    peak = outcome.measured.peak_requested_bytes if outcome.measured else None
    if outcome.status == "oom":
        said = f"{units.size(counted.peak_bytes)} by the count, {units.size(memory_bytes)} were available"
    elif peak is None:
        return outcome
    else:
        said = counted.contradicted_by(peak)
    checked = (outcome.checked or Checked()).replace(memory="differs" if said else "agrees")
    return replace(outcome, checked=checked, reason="; ".join(filter(None, (outcome.reason, said))) or None)


def record_of(job: Job, outcome: Outcome, forecast: Forecast | None, env: str, started: str) -> Record:
    """What is kept of a case."""
    measured = outcome.measured
    summary = {"time_s": summarize(measured.time_s)} if measured and measured.time_s else {}
    return Record(
        schema=SCHEMA,
        key=job.key,
        suite=job.suite.name,
        suite_version=job.suite.version,
        case=job.case,
        status=outcome.status,
        reason=outcome.reason,
        path=outcome.path,
        measured=measured,
        summary=summary,
        tokens_per_s=tokens_of(job.case) / summary["time_s"].median if summary else None,
        counted=job.cost.counted if job.cost else None,
        checked=outcome.checked,
        predicted=forecast.predicted if forecast else None,
        protocol=job.suite.protocol,
        env=env,
        started_at=started,
        wall_s=outcome.wall_s,
        steps_s=outcome.steps_s,
        # Tells hosts apart and names none.
        host=short_hash(platform.node(), 8),
    )


def tokens_of(case: Case) -> int:
    """Tokens that one call reads or writes."""
    return case.batch if case.task == "decode" else case.batch * case.seq_len


def tally(records: Sequence[Record]) -> str:
    """`62 ok, 1 oom`, in the order of first appearance."""
    statuses = [record.status for record in records]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
