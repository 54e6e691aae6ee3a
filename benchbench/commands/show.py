"""`benchbench show`: one case with its counted cost, or one record with everything that is known of it."""

import json
from pathlib import Path
from typing import Any, cast

import click

from benchbench.commands.names import SuiteName
from benchbench.commands.options import FORMATS, echo_tables
from benchbench.errors import BenchError, unknown
from benchbench.table import Column, build

Leaf = tuple[str, str | int | float | None]


@click.command()
@click.argument("name", metavar="CASE_OR_KEY")
@click.option("--suite", "suites", multiple=True, type=SuiteName(), help="Look in this suite. Default: all.")
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Look among the records of this run folder.")
@click.option("--device", default="cpu", show_default=True, help="The device whose cases a suite lists.")
@FORMATS
def command(name: str, suites: tuple[str, ...], folder: Path | None, device: str, output: str) -> None:
    """Show one case with its counted cost, or one record of a run.

    CASE_OR_KEY is an id, as `list cases` prints it, or its beginning; among the records of a run, or without --suite
    in any run under results/runs, also a key.
    """
    found = record_of(name, folder) if folder or _is_key(name) else case_of(name, suites, device)
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    columns: tuple[Column[Leaf], ...] = (
        Column("field", "field", "text", lambda leaf: leaf[0]),
        Column(
            "value",
            "value",
            "text",
            lambda leaf: leaf[1],
            lambda value: f"{value:,}" if _is_size(value) else str(value),
        ),
    )
    title = str(found.get("id") or found.get("key"))
    echo_tables([build(title, (), columns, leaves(found))], output)


def case_of(name: str, suites: tuple[str, ...], device: str) -> dict[str, Any]:
    """A suite's case: what it is, and what it costs by the count."""
    from benchbench.counters import count
    from benchbench.suite import built_in, load

    cases = {case.id: case for suite in suites or tuple(built_in()) for case in load(suite, device).cases}
    case = cases[_pick(name, list(cases), "case", "See: benchbench list cases")]
    reason = case.unsupported()
    return {
        "id": case.id,
        "case": case.model_dump(mode="json"),
        "unsupported": reason,
        "counted": None if reason else count(case).counted.model_dump(mode="json"),
    }


def record_of(name: str, folder: Path | None) -> dict[str, Any]:
    """The record with this key, or of this case, in one run or in the latest run that has it."""
    from benchbench.record import Record
    from benchbench.store import read_run, runs

    records: dict[str, Record] = {}
    for place in [folder] if folder else runs():
        for record in read_run(place).records:
            records[record.key] = records[record.case.id] = record
    return records[_pick(name, list(records), "record", "See: benchbench list runs")].to_json()


def _is_key(name: str) -> bool:
    return len(name) == 12 and all(digit in "0123456789abcdef" for digit in name)


def _pick(name: str, names: list[str], what: str, hint: str) -> str:
    """The one name that is `name` or begins with it."""
    if name in names:
        return name
    close = [one for one in names if one.startswith(name)]
    if not close:
        raise BenchError(unknown(what, name, names).message, hint)
    if len(close) > 1:
        raise BenchError(f"{len(close)} {what}s begin with '{name}'.", f"Among them: {', '.join(close[:4])}.")
    return close[0]


def leaves(data: Any, path: str = "") -> list[Leaf]:
    """Nested data as dotted names and plain values; a list of numbers as one value."""
    if isinstance(data, dict):
        items = cast("dict[str, Any]", data).items()
        return [leaf for key, value in items for leaf in leaves(value, f"{path}.{key}" if path else key)]
    if isinstance(data, list):
        return [(path, ", ".join(str(item) for item in cast("list[Any]", data)))]
    return [(path, data)]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
