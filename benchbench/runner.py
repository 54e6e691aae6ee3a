"""A run: cases planned by the cost model, measured while the budget lasts, and every one of them recorded."""

import shlex
import signal
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from benchbench import __version__, units
from benchbench.case import Case
from benchbench.errors import BenchError
from benchbench.job import Job, Plan, Skip, held_against_count, jobs_of, plan, record_of, spent_on, to_do
from benchbench.launch import Ask, OnEvent, Outcome, joined
from benchbench.plan import Forecast, Planner, Rates
from benchbench.progress import View, complaint, duration
from benchbench.record import Checked, Record, Status, latest
from benchbench.record import Protocol as Measuring
from benchbench.run_folder import RunFolder, require_free, require_own
from benchbench.store import (
    INFO,
    RECORDS,
    RUNS,
    Environment,
    device_name,
    find,
    machine_id,
    new_folder,
    read_info,
    read_records,
    require_same,
)
from benchbench.suite import Suite

FAILED: frozenset[str] = frozenset({"error", "timeout", "lost"})
CHECK_FAILED, SOME_FAILED, NOTHING_MEASURED, INTERRUPTED, TERMINATED = 1, 3, 4, 130, 143


class Launcher(Protocol):
    """What starts workers and asks them: on this machine, or elsewhere."""

    def start(self) -> dict[str, Any]: ...

    def calibrate(self) -> Rates: ...

    def memory_bytes(self) -> int: ...

    def ahead(self, asks: Iterable[Ask]) -> None: ...

    def run(
        self,
        case: Case,
        protocol: Measuring,
        *,
        measure: bool = True,
        trace: bool = True,
        on_event: OnEvent | None = None,
    ) -> Outcome: ...

    def close(self) -> None: ...


class Terminated(KeyboardInterrupt):
    """SIGTERM came: ended as cleanly as by Ctrl-C."""


@dataclass(frozen=True)
class Request:
    """What one command asks for."""

    suites: tuple[Suite, ...]
    out: Path | None = None
    budget_s: float | None = None
    fresh: bool = False
    retry: bool = False
    command: str = "benchbench run"
    """What to say to continue, without --out."""
    reproduce: str = ""
    """What measures the same anew: kept with the records."""

    @property
    def limit_s(self) -> float | None:
        """The budget: what was asked for, or what the suites give; None where nothing bounds it."""
        if self.budget_s is not None:
            return self.budget_s
        budgets = [suite.budget_s for suite in self.suites]
        return None if None in budgets else sum(budget for budget in budgets if budget is not None)


@dataclass(frozen=True)
class Ended:
    """How a run ended. `folder` is None if there was nothing to write yet."""

    code: int
    folder: Path | None
    records: tuple[Record, ...] = ()


def run(request: Request, launcher: Launcher, view: View) -> Ended:
    """Measures what is asked for and not yet answered.

    Raises:
        BenchError: The device or the folder cannot be used.
    """
    check_out(request)
    if request.out is not None:
        require_free(request.out)
    path = request.out
    jobs: list[Job] = []
    with terminable():
        try:
            env = launcher.start()
            path = folder_for(request, env) or new_folder(env)
            jobs = jobs_of(request.suites, env)
            with RunFolder(path, request.suites, env) as folder, view:
                records = _work(request, launcher, view, folder, jobs, env)
            return Ended(exit_code(records), path, records)
        except KeyboardInterrupt as stop:
            done = latest(read_records(path / RECORDS)[0]) if path else {}
            cases = sum(len(suite.cases) for suite in request.suites)
            view.say(f"interrupted after {sum(job.key in done for job in jobs)} of {cases} cases.")
            view.say(f"Continue with: {continuing(request, path)}")
            return Ended(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED, path)
        finally:
            launcher.close()


def continuing(request: Request, path: Path | None) -> str:
    """The command that goes on in the run folder `path`; None if there is none yet."""
    where = ["--out", str(path)] if path is not None else ["--fresh"] if request.fresh else []
    return f"{request.command} {shlex.join(where)}".rstrip()


def check_out(request: Request) -> None:
    """Raises `BenchError` if --out is something else than a run of this, before a worker is started for nothing."""
    if request.out is None:
        return
    require_own(request.out)
    if not (request.out / INFO).exists():
        return
    if request.fresh:
        raise BenchError(f"--fresh wants a new folder, and {request.out} holds a run.", "Leave out one of the two.")
    require_same(request.out, request.suites)


def folder_for(request: Request, env: Environment) -> Path | None:
    """Where the run goes on: the folder asked for, or the latest of its kind; None for a new one."""
    if request.out is not None or request.fresh:
        return request.out
    return find(request.suites, machine_id(env), RUNS)


@dataclass(frozen=True)
class Line:
    """What a run would do with one case."""

    case: Case
    does: str
    forecast: Forecast | None
    reason: str = ""


def planned(request: Request, launcher: Launcher) -> list[Line]:
    """What `run` would do, in order; nothing is written."""
    check_out(request)
    try:
        env = launcher.start()
        folder = folder_for(request, env)
        before = latest(read_records(folder / RECORDS)[0]) if folder else {}
        jobs = jobs_of(request.suites, env)
        grown = folder is None or not (folder / INFO).exists() or more_than(request.limit_s, read_info(folder).budget_s)
        left = to_do(jobs, before, retry=request.retry, more_budget=grown)
        limit = None if request.limit_s is None else request.limit_s - spent_on(jobs, before)
        planner = taught(Planner(launcher.calibrate()), jobs, before)
        found = plan(left, planner, limit, launcher.memory_bytes())
    finally:
        launcher.close()
    return [
        *(Line(job.case, before[job.key].status, None, "measured already") for job in jobs if job not in left),
        *(Line(job.case, "unsupported", None, job.case.unsupported() or "") for job in left if job.cost is None),
        *(Line(job.case, "measure", forecast, forecast.basis) for job, forecast in found.measure),
        *(Line(skip.job.case, "skip", skip.forecast, skip.reason) for skip in found.skip),
    ]


def _work(
    request: Request, launcher: Launcher, view: View, folder: RunFolder, jobs: Sequence[Job], env: Environment
) -> tuple[Record, ...]:
    """Does what is to do in an open folder; returns the records of all `jobs`."""
    for note in folder.notes:
        view.say(note)
    before = folder.records()
    grown = more_than(request.limit_s, folder.info.budget_s)
    jobs_left = to_do(jobs, before, retry=request.retry, more_budget=grown)
    known = f", {len(jobs) - len(jobs_left)} already measured here" if len(jobs_left) < len(jobs) else ""
    view.say(headline(env))
    view.say(f"{len(jobs)} cases{known} · {folder.path}")
    if jobs_left:
        folder.note(request.reproduce)
        session = Session(
            folder=folder,
            launcher=launcher,
            planner=taught(Planner(launcher.calibrate()), jobs, before),
            view=view,
            memory_bytes=launcher.memory_bytes(),
            on_gpu=env["device"] == "cuda",
            budget_s=request.limit_s,
            spent_s=spent_on(jobs, before),
        )
        session.work(jobs_left)
    after = folder.records()
    return tuple(after[job.key] for job in jobs)


def taught(planner: Planner, jobs: Sequence[Job], records: Mapping[str, Record]) -> Planner:
    """The planner, having learned from what earlier commands measured."""
    for job in jobs:
        record = records.get(job.key)
        if record and record.status == "ok" and job.cost and record.measured and record.measured.time_s:
            planner.learn(job.cost, record.measured, record.wall_s, record.steps_s)
    return planner


def headline(env: Environment) -> str:
    """`benchbench 0.1.0 · main 4be1c02 · cpu · torch 2.13.0`."""
    git = env.get("git")
    source = [f"{git['branch'] or ''} {git['sha'][:7]}{' dirty' if git['dirty'] else ''}".strip()] if git else []
    torch = env.get("packages", {}).get("torch")
    return " · ".join([f"benchbench {__version__}", *source, device_name(env), *([f"torch {torch}"] if torch else [])])


def more_than(budget_s: float | None, before_s: float | None) -> bool:
    """Whether the budget is larger than it was; None is without bound."""
    return before_s is not None and (budget_s is None or budget_s > before_s)


@dataclass
class Session:
    """One command's work on one run folder."""

    folder: RunFolder
    launcher: Launcher
    planner: Planner
    view: View
    memory_bytes: int
    on_gpu: bool
    budget_s: float | None
    spent_s: float = 0.0
    """Of the budget, by earlier commands on the same folder."""
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float | None:
        return None if self.budget_s is None else self.budget_s - self.spent_s - (time.monotonic() - self.began)

    def work(self, jobs: Sequence[Job]) -> None:
        """Measures what fits, planning anew after each case; then traces and records what does not."""
        self._record_unsupported(jobs)
        pending = [job for job in jobs if job.cost is not None]
        planned = plan(pending, self.planner, self.left_s, self.memory_bytes)
        total = len(planned.measure)
        self.view.say(outlook(planned, self.planner.rates))
        done = 0
        while planned.measure:
            job, forecast = planned.measure[0]
            self.view.begin(job.case, done, max(total, done + len(planned.measure)), planned.wall_s)
            self.view.explain(f"{job.case.id}: {units.seconds(forecast.call_s)} a call by {forecast.basis}")
            self._ahead(planned)
            self._measure(job, forecast)
            done += 1
            pending.remove(job)
            planned = plan(pending, self.planner, self.left_s, self.memory_bytes)
        self.folder.allow(self.budget_s)
        for number, skip in enumerate(planned.skip):
            self.view.begin(skip.job.case, number, len(planned.skip), 0.0)
            self._ahead(Plan([], planned.skip[number:]))
            self._trace(skip)

    def _ahead(self, planned: Plan) -> None:
        """Tells the launcher what comes: every case is traced, whether it is measured or not."""
        jobs = chain((job for job, _ in planned.measure), (skip.job for skip in planned.skip))
        self.launcher.ahead((job.case, job.suite.protocol) for job in jobs)

    def _measure(self, job: Job, forecast: Forecast) -> None:
        started = _now()
        outcome = self.launcher.run(job.case, job.suite.protocol, on_event=self.view.event)
        if outcome.status == "ok" and outcome.measured and outcome.measured.time_s:
            assert job.cost is not None
            self.planner.learn(job.cost, outcome.measured, outcome.wall_s, outcome.steps_s)
        if outcome.status != "ok" and (outcome.checked is None or outcome.checked.traced_flops is None):
            # Whatever broke the measurement, the module can still be traced.
            traced = self.launcher.run(job.case, job.suite.protocol, measure=False, on_event=self.view.event)
            steps = {**outcome.steps_s, **traced.steps_s}
            outcome = replace(outcome, checked=joined(outcome.checked, traced.checked), steps_s=steps)
        if self.on_gpu:
            outcome = held_against_count(job, outcome, self.memory_bytes)
        self._keep(job, outcome, forecast, started)

    def _trace(self, skip: Skip) -> None:
        """Records a case that is not measured, with its count and what a trace on the meta device says."""
        started = _now()
        traced = self.launcher.run(skip.job.case, skip.job.suite.protocol, measure=False, on_event=self.view.event)
        checked = traced.checked or Checked(reason=traced.reason)
        outcome = Outcome("skipped", traced.wall_s, skip.reason, checked=checked, steps_s=traced.steps_s)
        self._keep(skip.job, outcome, skip.forecast, started)

    def _record_unsupported(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.cost is None:
                self._keep(job, Outcome("unsupported", 0.0, job.case.unsupported()), None, _now())

    def _keep(self, job: Job, outcome: Outcome, forecast: Forecast | None, started: str) -> None:
        record = record_of(job, outcome, forecast, self.folder.env, started)
        self.folder.append(record)
        self.view.finished(record)


def outlook(planned: Plan, rates: Rates) -> str:
    """What the cost model expects of the run before it begins."""
    about = f"{len(planned.measure)} to measure in about {duration(planned.wall_s)} by the cost model ({rates})"
    return f"{about}, {len(planned.skip)} to count and trace" if planned.skip else about


def exit_code(records: Sequence[Record]) -> int:
    """What the outcomes of all cases asked for mean to a shell."""
    if any(record.checked and complaint(record.checked) for record in records):
        return CHECK_FAILED
    if any(record.status in FAILED for record in records):
        return SOME_FAILED
    measured: frozenset[Status] = frozenset({"ok", "oom"})
    return 0 if any(record.status in measured for record in records) else NOTHING_MEASURED


@contextmanager
def terminable() -> Generator[None, None, None]:
    """Makes SIGTERM raise `Terminated` while it lasts."""

    def stop(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
