"""Run folders as they are read: `run.json` says what was run where, `records.jsonl` holds one line a case."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from pydantic import Field, ValidationError

from benchbench import __version__
from benchbench.case import Case
from benchbench.errors import BenchError
from benchbench.reading import read
from benchbench.record import SCHEMA, Protocol, Record, latest
from benchbench.suite import Suite
from benchbench.value import Value

RUNS = Path("results/runs")
INFO, RECORDS = "run.json", "records.jsonl"

Environment = Mapping[str, Any]
"""What the worker says of its machine and software: plain data."""


class SuiteInfo(Value, frozen=True):
    """What a run folder says of one suite."""

    version: int
    about: str
    protocol: Protocol


class RunInfo(Value, frozen=True):
    """run.json. The `environments` of a run, by id, are of one machine: they differ in the commit at most."""

    schema_version: int = Field(SCHEMA, alias="schema")
    benchbench: str
    created: str
    machine: str
    """`machine_id` of the environments."""
    device: str
    suites: dict[str, SuiteInfo]
    environments: dict[str, dict[str, Any]]
    budget_s: float | None = None
    """The largest that a command on this folder had; null: nothing bounded it."""
    commands: tuple[str, ...] | None = None
    """Those that measured what is here, each once; null in a folder made before they were kept."""


@dataclass(frozen=True)
class Run:
    """A run folder as it was read. `notes` are for the user: lines that were cut short."""

    folder: Path
    info: RunInfo
    records: tuple[Record, ...]
    notes: tuple[str, ...]


def canonical(data: Any) -> str:
    """JSON that equal values write alike."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def short_hash(data: Any, length: int) -> str:
    return sha256(canonical(data).encode()).hexdigest()[:length]


def environment_id(env: Environment) -> str:
    """Of all that the environment says, the commit included."""
    return short_hash(env, 8)


def machine_id(env: Environment) -> str:
    """Of hardware and software, but not the commit: keys carry the fingerprint of the files that matter.

    Nor of the commands that published results name beside it.
    """
    return short_hash({name: value for name, value in env.items() if name not in ("git", "commands")}, 8)


def device_name(env: Environment) -> str:
    """`cpu`, or the GPU's name as part of a file name: `nvidia-h200`."""
    gpu = env.get("gpu")
    return re.sub(r"[^a-z0-9]+", "-", str(gpu["name"]).lower()).strip("-") if gpu else str(env["device"])


def commit(env: Environment) -> str | None:
    """The sha of the source tree, or None where it is no git checkout."""
    git = env.get("git")
    return str(git["sha"]) if git and git.get("sha") else None


def key(case: Case, protocol: Protocol, suite: Suite, machine: str, source: str) -> str:
    """The name of one measurement: the same key, the same question asked of the same code on the same machine."""
    asked = {
        "case": case.model_dump(mode="json"),
        "protocol": protocol.model_dump(mode="json"),
        "suite": [suite.name, suite.version],
        "environment": machine,
        "source": source,
    }
    return short_hash(asked, 12)


def read_run(folder: Path) -> Run:
    """A run folder: its description, the latest record of each key, and what to tell the user about it.

    Raises:
        BenchError: It is not a run folder, is damaged, or was written by a newer benchbench.
    """
    info = read_info(folder)
    records, notes = read_records(folder / RECORDS)
    return Run(folder, info, tuple(latest(records).values()), tuple(notes))


def read_info(folder: Path) -> RunInfo:
    """run.json of `folder`."""
    path = folder / INFO
    try:
        data = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BenchError(f"'{folder}' is not a run folder: it has no {INFO}.", "See: benchbench list runs") from None
    except OSError as error:
        raise BenchError(f"cannot read '{path}': {error.strerror}.") from None
    except ValueError as error:
        raise BenchError(f"{path}: not JSON: {error}.", "Another folder is needed: pass --out.") from None
    require_readable(data, str(path))
    return read(RunInfo, data, str(path))


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """Every record of a file in order, and a note if the last line is cut short."""
    if not path.exists():
        return [], []
    *lines, rest = path.read_bytes().split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        records.append(_record(line, f"{path}:{number}"))
    if not rest:
        return records, []
    note = f"{path.name} line {len(lines) + 1} is cut short (killed while writing?); that case will be measured again."
    return records, [note]


def _record(line: bytes, where: str) -> Record:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise BenchError(f"{where}: not JSON: {error}.", "Remove the line; its case will be measured again.") from None
    return read_record(data, where)


def read_record(data: object, where: str) -> Record:
    """The record that `data` is, which stands at `where`.

    Raises:
        BenchError: It is none, or was written by a newer benchbench.
    """
    require_readable(data, where)
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BenchError(f"{where}: not a record: {place}: {first['msg']}.") from None
    except BenchError as error:  # of a family, which does not know where its name stands
        raise BenchError(f"{where}: {error.message}", error.hint) from None


def require_readable(data: object, where: str) -> None:
    """Raises `BenchError` unless `data`, which stands at `where`, is an object of a schema that this version reads."""
    if not isinstance(data, dict):
        raise BenchError(f"{where}: expected a JSON object.")
    schema = cast("dict[str, Any]", data).get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        message = (
            f"{where}: written by a newer benchbench (schema {schema}; this is {__version__}, which reads {SCHEMA})."
        )
        raise BenchError(message, "Upgrade benchbench to read it.")


def runs(root: Path = RUNS) -> list[Path]:
    """The run folders under `root`, oldest first."""
    found = [path.parent for path in root.glob(f"*/{INFO}")]
    return sorted(found, key=lambda folder: (read_info(folder).created, folder.name))


def require_same(folder: Path, suites: Sequence[Suite], machine: str | None = None) -> None:
    """Raises `BenchError` if `folder` holds something other than these suites, or was made on another machine."""
    info = read_info(folder)
    held = {name: suite.version for name, suite in info.suites.items()}
    if held != {suite.name: suite.version for suite in suites}:
        was = " and ".join(f"'{name}' v{version}" for name, version in held.items())
        asked = " and ".join(suite.label for suite in suites)
        noun = "suite" if len(held) == 1 else "suites"
        message = f"{folder} holds {noun} {was}; you asked for {asked}."
        raise BenchError(message, "Leave out --out for a new folder, or pass --out with another name.")
    if machine is not None and info.machine != machine:
        message = f"{folder} was measured on another machine or with other software."
        raise BenchError(message, "Leave out --out for a new folder, or pass --out with another name.")


def find(suites: Sequence[Suite], machine: str, root: Path = RUNS) -> Path | None:
    """The latest folder that the same suites were run in, on the same machine."""
    asked = {suite.name: suite.version for suite in suites}
    for folder in reversed(runs(root)):
        info = read_info(folder)
        if info.machine == machine and {name: suite.version for name, suite in info.suites.items()} == asked:
            return folder
    return None


def new_folder(env: Environment, root: Path = RUNS) -> Path:
    """A name that no folder has: `<date>-<device>-<sha7>`, numbered from the second on."""
    sha = commit(env)
    name = f"{datetime.now():%Y-%m-%d}-{device_name(env)}-{sha[:7] if sha else f'v{__version__}'}"
    path = root / name
    number = 2
    while path.exists():
        path = root / f"{name}-{number}"
        number += 1
    return path
