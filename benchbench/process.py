"""A worker process: lines of JSON go in, lines of JSON come out, and its end tells what became of it."""

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from benchbench.cores import bind

Event = dict[str, Any]


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
    """One worker process in a session of its own, so that a Ctrl-C reaches the parent alone; on `cores`, if named."""

    def __init__(self, command: Sequence[str], cores: frozenset[int] = frozenset()) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        if cores:
            bind(self._process.pid, cores)
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def heard(self) -> bool:
        """Whether `receive` has something to read at once."""
        assert self._process.stdout is not None
        return b"\n" in self._unread or bool(select.select([self._process.stdout], [], [], 0)[0])

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
