"""A run folder held for writing: described whole or not at all, records added line by line and for good."""

import fcntl
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from benchbench import __version__
from benchbench.errors import BenchError
from benchbench.record import SCHEMA, Record, latest
from benchbench.store import (
    INFO,
    RECORDS,
    Environment,
    RunInfo,
    SuiteInfo,
    canonical,
    device_name,
    environment_id,
    machine_id,
    read_info,
    read_records,
    require_same,
)
from benchbench.suite import Suite

LOCK = "lock"


class RunFolder:
    """A run folder held for writing: nobody else can write to it until it is closed."""

    def __init__(self, folder: Path, suites: Sequence[Suite], env: Environment) -> None:
        """Opens `folder`, or makes it.

        Raises:
            BenchError: It cannot be written, another run holds it, or it holds something else.
        """
        self.path = folder
        self.env = environment_id(env)
        self._records = -1
        self.notes: list[str] = []
        """What was found wrong and mended: for the user."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(folder, error) from None
        try:
            self._hold()
            self.info = self._described(suites, env)
            self._describe(self.info)
            self._records, self.notes = self._open_records()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the folder go."""
        if self._records >= 0:
            os.close(self._records)
        os.close(self._lock)

    def records(self) -> dict[str, Record]:
        """The latest record of each key."""
        return latest(read_records(self.path / RECORDS)[0])

    def allow(self, budget_s: float | None) -> None:
        """Notes the budget of a command, if it is the largest so far."""
        held = self.info.budget_s
        largest = None if budget_s is None or held is None else max(budget_s, held)
        self.info = self.info.model_copy(update={"budget_s": largest})
        self._describe(self.info)

    def append(self, record: Record) -> None:
        """Adds one line in one write and waits until the disk has it.

        Raises:
            BenchError: It could not be written. The records before it are intact.
        """
        line = (canonical(record.to_json()) + "\n").encode()
        end = os.lseek(self._records, 0, os.SEEK_END)
        try:
            if os.write(self._records, line) < len(line):
                raise OSError(0, "the disk took a part of the line only")
            os.fsync(self._records)
        except OSError as error:
            os.ftruncate(self._records, end)
            hint = "The records before it are intact. Make room, then run the same command again."
            raise BenchError(f"cannot write to {self.path / RECORDS}: {error.strerror}.", hint) from None

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "Wait for it, or pass --out with another name (--fresh for a new folder)."
            raise BenchError(f"another run is writing to {self.path}.", hint) from None

    def _described(self, suites: Sequence[Suite], env: Environment) -> RunInfo:
        """The folder's description, with this environment in it."""
        if (self.path / INFO).exists():
            require_same(self.path, suites, machine_id(env))
            info = read_info(self.path)
            return info.model_copy(update={"environments": {**info.environments, self.env: dict(env)}})
        others = sorted(path.name for path in self.path.iterdir() if path.name != LOCK)
        if others:
            message = f"'{self.path}' is no run folder and is not empty: it holds {', '.join(others[:3])}."
            raise BenchError(message, "Pass --out with the name of a new folder.")
        return RunInfo(
            schema=SCHEMA,
            benchbench=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine_id(env),
            device=device_name(env),
            suites={s.name: SuiteInfo(version=s.version, about=s.about, protocol=s.protocol) for s in suites},
            environments={self.env: dict(env)},
            budget_s=0.0,
        )

    def _describe(self, info: RunInfo) -> None:
        """Puts run.json in place whole or not at all."""
        text = json.dumps(info.model_dump(mode="json", by_alias=True), indent=1)
        draft = self.path / f"{INFO}.tmp"
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path / INFO)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def _open_records(self) -> tuple[int, list[str]]:
        """The records file, open at its end, without a torn last line; and a note if there was one."""
        path = self.path / RECORDS
        _, notes = read_records(path)
        try:
            records = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if notes:
            os.ftruncate(records, path.read_bytes().rfind(b"\n") + 1)
        return records, notes


def _unwritable(folder: Path, error: OSError) -> BenchError:
    return BenchError(f"cannot write to '{folder}': {error.strerror}.", "Pass --out with a folder that can be written.")
