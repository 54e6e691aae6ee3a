"""The worker process seen from outside: started, asked, listened to, replaced when it breaks. No torch here."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil

from benchbench.case import Case
from benchbench.errors import BenchError
from benchbench.plan import Rates
from benchbench.record import Checked, Measured, Protocol, Status

PROGRAM = (sys.executable, "-m", "benchbench.worker")
START_TIMEOUT_S = 180.0
"""Importing torch from a cold disk takes a minute on some machines."""

RESERVE_BYTES = 512 * 2**20
"""Left to everything else on the machine when a worker's memory is bounded."""

REUSABLE: frozenset[str] = frozenset({"ok", "unsupported"})

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Outcome:
    """How one case ended, as the worker said, or as its end showed."""

    status: Status
    wall_s: float
    reason: str | None = None
    path: str | None = None
    measured: Measured | None = None
    checked: Checked | None = None


class WorkerGone(Exception):  # noqa: N818
    """The worker ended by itself. `signal` is the name of what killed it, if something did."""

    def __init__(self, returncode: int, said: str) -> None:
        self.signal = signal.Signals(-returncode).name if returncode < 0 else None
        self.ended = f"killed by {self.signal}" if self.signal else f"ended with exit code {returncode}"
        self.said = said
        super().__init__(f"the worker was {self.ended}" if self.signal else f"the worker {self.ended}")


class WorkerSilent(Exception):  # noqa: N818
    """The worker said nothing for too long."""


class Worker:
    """One worker process in a session of its own, so that a Ctrl-C reaches the parent alone."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: dict[str, Any]) -> None:
        """Writes one request.

        Raises:
            WorkerGone: Nobody is there to read it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def receive(self, timeout_s: float) -> Event:
        """The next event.

        Raises:
            WorkerGone: It ended instead.
            WorkerSilent: It said nothing for `timeout_s`.
        """
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise WorkerSilent
            read = os.read(self._process.stdout.fileno(), 65536)
            if not read:
                raise self._gone()
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return cast("Event", json.loads(line))

    def kill(self) -> None:
        """Ends the process and every one it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._close()

    def _close(self) -> None:
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._errors.close()

    def _gone(self) -> WorkerGone:
        """What became of the process, which has closed its pipes: at most a moment from its end."""
        returncode = self._process.wait(timeout=10)
        self._errors.seek(0)
        return WorkerGone(returncode, self._errors.read().decode(errors="replace"))


@dataclass
class LocalLauncher:
    """Runs cases one at a time in a worker on this machine; a worker that failed is not used again."""

    device: str
    threads: int | None = None
    program: Sequence[str] = field(default_factory=lambda: PROGRAM)
    _worker: Worker | None = field(default=None, init=False, repr=False)

    def start(self) -> dict[str, Any]:
        """The environment, as the worker describes it.

        Raises:
            BenchError: The worker cannot use the device, or does not start.
        """
        limit = ["--memory-limit", str(usable_bytes())]
        threads = ["--threads", str(self.threads)] if self.threads else []
        worker = Worker([*self.program, "--device", self.device, *limit, *threads])
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
        return Rates(flops_per_s=event["matmul_flops_per_s"], bytes_per_s=event["copy_bytes_per_s"])

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
        began = time.monotonic()
        request = {
            "case": case.model_dump(mode="json"),
            "protocol": protocol.model_dump(mode="json"),
            "trace": trace,
            "measure": measure,
        }
        try:
            outcome = self._answer(request, protocol.timeout_s, on_event)
        except WorkerSilent:
            reason = f"the worker said nothing for {protocol.timeout_s:g} s and was killed"
            outcome = Outcome("timeout", time.monotonic() - began, reason)
        except WorkerGone as gone:
            status: Status = "lost" if gone.signal else "error"
            last = last_line(gone.said)
            outcome = Outcome(status, time.monotonic() - began, f"{gone}: {last}" if last else str(gone))
        if outcome.status not in REUSABLE:
            self.close()
        return outcome

    def memory_bytes(self, env: Mapping[str, Any]) -> int:
        """What a case can have: the GPU's memory, or what is free on the host."""
        gpu = env.get("gpu")
        return int(gpu["memory_bytes"]) if gpu else usable_bytes()

    def close(self) -> None:
        """Ends the worker, if there is one."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _answer(self, request: dict[str, Any], timeout_s: float, on_event: OnEvent | None) -> Outcome:
        if self._worker is None:
            self.start()
        assert self._worker is not None
        self._worker.send(request)
        while True:
            event = self._worker.receive(timeout_s)
            if event["event"] == "result":
                break
            if on_event is not None:
                on_event(event)
        measured, checked = event["measured"], event["checked"]
        return Outcome(
            status=event["status"],
            wall_s=event["wall_s"],
            reason=event["reason"],
            path=event["path"],
            measured=Measured.model_validate(measured) if measured else None,
            checked=Checked.model_validate(checked) if checked else None,
        )


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
