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
from benchbench.errors import BenchError, unwritable
from benchbench.files import draft_of, require_writable, whole
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
DRAFT = draft_of(INFO)
"""What a run leaves that is killed while it writes its description."""
ELSEWHERE = "Pass --out with a folder that can be written."


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
        require_own(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unwritable(folder, error, ELSEWHERE) from None
        try:
            _hold(folder, self._lock)
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

    def note(self, command: str) -> None:
        """Adds a command to those that measured here, unless what was measured before is of commands unknown."""
        commands = self.info.commands
        if command and commands is not None and command not in commands:
            self.info = self.info.model_copy(update={"commands": (*commands, command)})
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

    def _described(self, suites: Sequence[Suite], env: Environment) -> RunInfo:
        """The folder's description, with this environment in it."""
        if (self.path / INFO).exists():
            require_same(self.path, suites, machine_id(env))
            info = read_info(self.path)
            return info.model_copy(update={"environments": {**info.environments, self.env: dict(env)}})
        return RunInfo(
            schema=SCHEMA,
            benchbench=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine_id(env),
            device=device_name(env),
            suites={s.name: SuiteInfo(version=s.version, about=s.about, protocol=s.protocol) for s in suites},
            environments={self.env: dict(env)},
            budget_s=0.0,
            commands=(),
        )

    def _describe(self, info: RunInfo) -> None:
        """Puts run.json in place whole or not at all."""
        text = json.dumps(info.model_dump(mode="json", by_alias=True), indent=1)
        with whole(self.path / INFO) as draft:
            draft.write_text(text + "\n", "utf-8")

    def _open_records(self) -> tuple[int, list[str]]:
        """The records file, open at its end, without a torn last line; and a note if there was one."""
        path = self.path / RECORDS
        _, notes = read_records(path)
        try:
            records = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise unwritable(path, error, ELSEWHERE) from None
        if notes:
            os.ftruncate(records, path.read_bytes().rfind(b"\n") + 1)
        return records, notes


def require_own(folder: Path) -> None:
    """Raises `BenchError` if `folder` holds something else than a run; nothing is written."""
    if not folder.is_dir() or (folder / INFO).exists():
        return
    try:
        others = sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, DRAFT))
    except OSError as error:
        raise BenchError(f"cannot read '{folder}': {error.strerror}.", ELSEWHERE) from None
    if others:
        message = f"'{folder}' is no run folder and is not empty: it holds {', '.join(others[:3])}."
        raise BenchError(message, "Pass --out with the name of a new folder.")


def require_free(folder: Path) -> None:
    """Raises `BenchError` if another run holds `folder` or nothing can be written there; what is there stays so."""
    require_writable(folder, ELSEWHERE)
    if not (folder / LOCK).exists():
        return
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError as error:
        raise unwritable(folder, error, ELSEWHERE) from None
    try:
        _hold(folder, lock)
    finally:
        os.close(lock)


def _hold(folder: Path, lock: int) -> None:
    """Locks `folder` until `lock` is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "Wait for it, or pass --out with another name (--fresh for a new folder)."
        raise BenchError(f"another run is writing to {folder}.", hint) from None
