"""The worker processes seen from outside: started, asked, listened to, replaced when they break. No torch here."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchbench.case import Case
from benchbench.cores import split, usable_cores
from benchbench.errors import BenchError
from benchbench.plan import Rates
from benchbench.process import Event, Worker, WorkerGone, WorkerSilent
from benchbench.record import Checked, Measured, Protocol, Status

PROGRAM = (sys.executable, "-m", "benchbench.worker")
START_TIMEOUT_S = 180.0
"""Importing torch from a cold disk takes a minute on some machines."""

RESERVE_BYTES = 512 * 2**20
"""Left to everything else on the machine when a worker's memory is bounded."""

REUSABLE: frozenset[str] = frozenset({"ok", "unsupported"})

AHEAD = 4
"""Traces asked for at once: the pipes to and from their worker hold that many requests and answers."""

NICE = 10
"""How far the worker that traces stands back, should it share its cores with the one that launches kernels."""

OnEvent = Callable[[Event], None]
Ask = tuple[Case, Protocol]


@dataclass(frozen=True)
class Outcome:
    """How one case ended, as the worker said, or as its end showed."""

    status: Status
    wall_s: float
    reason: str | None = None
    path: str | None = None
    measured: Measured | None = None
    checked: Checked | None = None
    steps_s: dict[str, float] = field(default_factory=dict[str, float])


@dataclass
class Tracer:
    """A worker that only traces, beside the one that measures: asked ahead, it answers in the order it was asked."""

    command: Sequence[str]
    cores: frozenset[int] = frozenset()
    """Where it runs; anywhere if none are named."""
    _worker: Worker | None = field(default=None, init=False, repr=False)
    _ready: bool = field(default=False, init=False)
    _asked: deque[Ask] = field(default_factory=deque[Ask], init=False, repr=False)
    _found: dict[Case, Outcome] = field(default_factory=dict[Case, Outcome], init=False, repr=False)

    def ahead(self, asks: Iterable[Ask]) -> None:
        """Asks for what will be wanted, in order, as far as that needs no waiting."""
        while self._asked and self._worker is not None and self._worker.heard:
            self._hear(None)
        for ask in asks:
            if len(self._asked) >= AHEAD:
                break
            if ask[0] not in self._found and ask not in self._asked:
                self._ask(ask)

    def take(self, ask: Ask, on_event: OnEvent | None = None) -> Outcome:
        """The trace of a case, waited for if need be; it is not kept."""
        while ask[0] not in self._found:
            if ask not in self._asked:
                self._ask(ask)
            self._hear(on_event)
        return self._found.pop(ask[0])

    def close(self) -> None:
        """Ends the worker, if there is one. What it was asked is forgotten."""
        self._asked.clear()
        if self._worker is not None:
            self._worker.kill()
            self._worker, self._ready = None, False

    def _ask(self, ask: Ask) -> None:
        if self._worker is None:
            self._worker = Worker(self.command, self.cores)
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self._worker.pid).nice(NICE)
        self._asked.append(ask)
        with suppress(WorkerGone):  # which is heard of as well
            self._worker.send(asked(*ask, trace=True, measure=False))

    def _hear(self, on_event: OnEvent | None) -> None:
        """Takes in the next event; what breaks the worker is the outcome of the case that it had in hand."""
        assert self._worker is not None
        timeout_s = self._asked[0][1].timeout_s
        began = time.monotonic()
        try:
            event = self._worker.receive(timeout_s if self._ready else max(timeout_s, START_TIMEOUT_S))
        except (WorkerGone, WorkerSilent) as failure:
            outcome = broken(failure, timeout_s, time.monotonic() - began)
        else:
            if event["event"] != "result":
                self._ready = True
                if on_event is not None and event["event"] == "phase":
                    on_event(event)
                return
            outcome = outcome_of(event)
        self._found[self._asked.popleft()[0]] = outcome
        if outcome.status not in REUSABLE:
            left = list(self._asked)
            self.close()
            for ask in left:
                self._ask(ask)


@dataclass
class LocalLauncher:
    """Runs cases one at a time in a worker on this machine; a worker that failed is not used again."""

    device: str
    threads: int | None = None
    program: Sequence[str] = field(default_factory=lambda: PROGRAM)
    beside: bool | None = None
    """Whether cases are traced in a second process while the first measures. By default on a GPU, whose times that
    leaves alone; on a CPU it would spoil them."""
    _worker: Worker | None = field(default=None, init=False, repr=False)
    _cores: frozenset[int] = field(default=frozenset(), init=False, repr=False)
    _tracer: Tracer | None = field(default=None, init=False, repr=False)
    _gates: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]], init=False)
    _memory_bytes: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.device.startswith("cuda") if self.beside is None else self.beside:
            self._cores, apart = split(usable_cores()) or (frozenset(), frozenset())
            self._tracer = Tracer([*self.program, "--device", "cpu", *_limit(), "--threads", "1"], apart)

    def start(self) -> dict[str, Any]:
        """The environment, as the worker describes it.

        Raises:
            BenchError: The worker cannot use the device, or does not start.
        """
        threads = ["--threads", str(self.threads)] if self.threads else []
        worker = Worker([*self.program, "--device", self.device, *_limit(), *threads], self._cores)
        self._worker = worker
        try:
            event = worker.receive(START_TIMEOUT_S)
        except WorkerGone as gone:
            self.close()
            raise _not_started(str(gone), gone.said) from None
        except WorkerSilent:
            self.close()
            raise _not_started(f"the worker said nothing for {START_TIMEOUT_S:g} s", "") from None
        if event["event"] == "error":
            self.close()
            raise BenchError(event["message"], event.get("hint") or "")
        self._memory_bytes = event["memory_bytes"]
        return event["env"]

    def calibrate(self) -> Rates:
        """What the machine computes and copies in a second, measured in about half a second."""
        assert self._worker is not None
        try:
            self._worker.send({"calibrate": True})
            event = self._worker.receive(START_TIMEOUT_S)
        except (WorkerGone, WorkerSilent) as failure:
            said = failure.said if isinstance(failure, WorkerGone) else ""
            self.close()
            raise _not_started(str(failure) or "the worker did not answer", said) from None
        self._memory_bytes = event["memory_bytes"]
        return Rates(flops_per_s=event["matmul_flops_per_s"], bytes_per_s=event["copy_bytes_per_s"])

    def ahead(self, asks: Iterable[Ask]) -> None:
        """What will be run next, in order: where cases are traced beside, that begins at once."""
        if self._tracer is not None:
            self._tracer.ahead(asks)

    def run(
        self,
        case: Case,
        protocol: Protocol,
        *,
        measure: bool = True,
        trace: bool = True,
        on_event: OnEvent | None = None,
    ) -> Outcome:
        """Measures `case`, or with `measure=False` only builds it on the meta device and traces it."""
        tracer = self._tracer if trace else None
        if tracer is None:
            return self._run(asked(case, protocol, trace=trace, measure=measure), protocol.timeout_s, on_event)
        tracer.ahead([(case, protocol)])
        if not measure:
            return tracer.take((case, protocol), on_event)
        measured = self._run(asked(case, protocol, trace=False, measure=True), protocol.timeout_s, on_event)
        return together(measured, tracer.take((case, protocol), on_event))

    def memory_bytes(self) -> int:
        """What a case can have: what is left of the GPU's memory, or what is free on the host."""
        return usable_bytes() if self._memory_bytes is None else self._memory_bytes

    def close(self) -> None:
        """Ends the workers, if there are any."""
        if self._tracer is not None:
            self._tracer.close()
        self._end()

    def _end(self) -> None:
        """Ends the worker that measures, if there is one."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _run(self, request: dict[str, Any], timeout_s: float, on_event: OnEvent | None) -> Outcome:
        began = time.monotonic()
        try:
            outcome = self._answer(request, timeout_s, on_event)
        except (WorkerGone, WorkerSilent) as failure:
            outcome = broken(failure, timeout_s, time.monotonic() - began)
        if outcome.status not in REUSABLE:
            self._end()
        return outcome

    def _answer(self, request: dict[str, Any], timeout_s: float, on_event: OnEvent | None) -> Outcome:
        if self._worker is None:
            self.start()
        assert self._worker is not None
        gates = [(key, *found) for key, found in self._gates.items()]
        self._worker.send({**request, "gates": gates})
        while True:
            event = self._worker.receive(timeout_s)
            if event["event"] == "result":
                break
            if on_event is not None:
                on_event(event)
        outcome = outcome_of(event)
        checked = outcome.checked
        if checked is not None and checked.gate_error is not None and checked.gate_tolerance is not None:
            self._gates[event["gate_key"]] = checked.gate_error, checked.gate_tolerance
        return outcome


def asked(case: Case, protocol: Protocol, *, trace: bool, measure: bool) -> dict[str, Any]:
    """A request as a worker reads it."""
    values = {"case": case.model_dump(mode="json"), "protocol": protocol.model_dump(mode="json")}
    return {**values, "trace": trace, "measure": measure}


def outcome_of(event: Event) -> Outcome:
    """What a worker's answer says."""
    measured, checked = event["measured"], event["checked"]
    return Outcome(
        status=event["status"],
        wall_s=event["wall_s"],
        reason=event["reason"],
        path=event["path"],
        measured=Measured.model_validate(measured) if measured else None,
        checked=Checked.model_validate(checked) if checked else None,
        steps_s=event["steps_s"],
    )


def broken(failure: WorkerGone | WorkerSilent, timeout_s: float, wall_s: float) -> Outcome:
    """What it means for a case that its worker ended, or had to be ended."""
    if isinstance(failure, WorkerSilent):
        return Outcome("timeout", wall_s, f"the worker said nothing for {timeout_s:g} s and was killed")
    last = last_line(failure.said)
    return Outcome("lost" if failure.signal else "error", wall_s, f"{failure}: {last}" if last else str(failure))


def together(measured: Outcome, traced: Outcome) -> Outcome:
    """One outcome of the two processes: as if one had measured and then traced, though neither waited."""
    both = replace(
        measured,
        checked=joined(measured.checked, traced.checked),
        steps_s={**measured.steps_s, **traced.steps_s},
    )
    if measured.status != "ok" or traced.status == "ok":
        return both
    reasons = [f"tracing: {traced.reason}", measured.reason]
    return replace(both, status=traced.status, reason="; ".join(reason for reason in reasons if reason))


def joined(gated: Checked | None, traced: Checked | None) -> Checked | None:
    """The gate of one request and the trace of another."""
    if gated is None or traced is None:
        return gated or traced
    gate = {name: getattr(gated, name) for name in ("gate", "gate_error", "gate_tolerance")}
    return traced.model_copy(update=gate | ({} if gated.params is None else {"params": gated.params}))


def _limit() -> list[str]:
    return ["--memory-limit", str(usable_bytes())]


def usable_bytes() -> int:
    """Host memory that a worker may take: what is available, but for a reserve."""
    return max(RESERVE_BYTES, available_bytes() - RESERVE_BYTES)


def available_bytes() -> int:
    """Host memory that a process can have now: the machine's, or what its control group leaves."""
    group = [
        limit - used
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        )
        if (limit := _number(Path("/sys/fs/cgroup") / limit_file)) is not None
        and (used := _number(Path("/sys/fs/cgroup") / used_file)) is not None
    ]
    return min([psutil.virtual_memory().available, *group])


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no such file or it says `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def last_line(text: str) -> str:
    """The last line that says something, or nothing."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _not_started(what: str, said: str) -> BenchError:
    return BenchError(f"no measuring process: {what}.", last_line(said))
