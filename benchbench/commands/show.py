"""`benchbench show`: one case with its formulas, numbers and witnesses, or one record with all that is known of it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from benchbench.case import Case, completed
from benchbench.commands.names import SuiteName
from benchbench.commands.options import FORMATS, echo_tables, kind_of, runs_for_real
from benchbench.counters.rules import WITNESSES, Witness
from benchbench.errors import BenchError, unknown
from benchbench.reading import read
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.commands.check import Outcome
    from benchbench.counters.cost import Kind

Leaf = tuple[str, str | int | float | None]

ID = re.compile(
    r"(?P<model>[^/]+)/(?P<task>[^/]+)/N(?P<seq_len>\d+)/B(?P<batch>\d+)/(?P<dtype>[^/]+)/(?P<path>[^/]+)"
    r"(?:/autocast-(?P<autocast>[^/]+))?(?:/(?P<optimizer>sgd|momentum|adam))?(?:/(?P<checkpoint>checkpoint))?"
    r"(?:/accumulate(?P<accumulate>\d+))?"
)
"""What `Case.id` writes."""


@click.command()
@click.argument("name", metavar="CASE_OR_KEY")
@click.option("--suite", "suites", multiple=True, type=SuiteName(), help="Look in this suite. Default: all.")
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Look among the records of this run folder.")
@click.option("--device", default="cpu", show_default=True, help="The device whose cases a suite lists.")
@click.option("--witness", "chosen", multiple=True, type=click.Choice(WITNESSES), help="Run this tracer beside.")
@click.option("--witnesses", "every", is_flag=True, help="Run every tracer that can see the case.")
@click.option("--formulas/--no-formulas", default=True, show_default=True, help="With each operation's closed form.")
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw a case's memory over a call: .png or .svg.",
)
@FORMATS
def command(
    name: str,
    suites: tuple[str, ...],
    folder: Path | None,
    device: str,
    chosen: tuple[Witness, ...],
    every: bool,
    formulas: bool,
    timeline: Path | None,
    output: str,
) -> None:
    """Show one case with its counted cost, or one record of a run.

    CASE_OR_KEY is an id, as `list cases` prints it, or its beginning; an id of that form that no suite has is counted
    too. Among the records of a run, or without --suite in any run under results/runs, also a key.

    A case is shown op by op, each with its formula. A tracer's number stands beside the one that the count and the
    named rules predict for it; it runs the real module, which takes seconds.
    """
    if folder or _is_key(name):
        if timeline:
            raise BenchError("--timeline draws what is counted of a case, not a record.", "Name the case by its id.")
        found = record_of(name, folder)
        shown = [leaves_table(str(found.get("id") or found.get("key")), found)]
        notes: list[str] = []
    else:
        case = case_of(name, suites, device)
        if timeline:
            from benchbench import timeline_plot
            from benchbench.counters import count

            timeline_plot.draw(count(case, kind_of(device)), timeline)
        witnessed = [] if case.unsupported() else outcomes(case, WITNESSES if every else chosen)
        if output == "json":
            found, shown, notes = case_json(case, kind_of(device), witnessed, formulas=formulas), [], []
        else:
            found, (shown, notes) = {}, case_tables(case, kind_of(device), witnessed, formulas=formulas)
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        echo_tables(shown, output, notes)


def case_of(name: str, suites: tuple[str, ...], device: str) -> Case:
    """A suite's case with this id, else the one that the id spells out, else the one suite's case that begins so.

    Raises:
        BenchError: There is none, or several, or the id names what does not exist.
    """
    from benchbench.suite import built_in, load

    cases = {case.id: case for suite in suites or tuple(built_in()) for case in load(suite, device).cases}
    if name not in cases and not suites and (found := parsed(name)):
        return found
    return cases[_pick(name, list(cases), "case", "See: benchbench list cases")]


def parsed(name: str) -> Case | None:
    """The case whose `id` is `name`, of a preset or `preset+field=value`; None where `name` has not the form of one.

    Raises:
        BenchError: It has the form, but a part of it does not exist or does not fit the others.
    """
    from benchbench.suite import variant

    match = ID.fullmatch(name)
    if match is None:
        return None
    parts = {key: value for key, value in match.groupdict().items() if value is not None}
    sizes = {key: int(value) if value.isdigit() else value for key, value in parts.items() if key != "model"}
    if "checkpoint" in sizes:
        sizes["checkpoint"] = True
    model, *changes = parts["model"].split("+")
    fields = {key: value for key, _, value in (change.partition("=") for change in changes)}
    case = read(Case, completed(variant(model, fields, lambda _: f"{name}: "), sizes), name)
    if case.id != name:
        raise BenchError(f"no case '{name}'. Did you mean '{case.id}'?", "See: benchbench list cases")
    return case


def outcomes(case: Case, witnesses: Sequence[Witness]) -> "list[Outcome]":
    """The case under each witness: with numbers where the model is small, as shapes otherwise."""
    if not witnesses:
        return []
    from benchbench.commands.check import outcome

    on = "cpu" if runs_for_real(case) else "meta"
    return [outcome(case, on, witness) for witness in witnesses]


def case_json(case: Case, kind: "Kind | None", witnessed: "Sequence[Outcome]", *, formulas: bool) -> dict[str, Any]:
    """What the case is, what it costs, op by op, and what the witnesses say."""
    from benchbench import cost_tables
    from benchbench.counters import count

    found: dict[str, Any] = {"id": case.id, "case": case.model_dump(mode="json"), "unsupported": case.unsupported()}
    if case.unsupported():
        return {**found, "counted": None}
    from benchbench.commands.check import as_json

    found |= cost_tables.as_json(count(case, kind), ops=True)
    if formulas:
        from benchbench import formula_tables

        found |= formula_tables.as_json(count(case, kind))
    return {**found, "witnesses": [as_json(one) for one in witnessed]}


def case_tables(
    case: Case, kind: "Kind | None", witnessed: "Sequence[Outcome]", *, formulas: bool
) -> tuple[list[Table], list[str]]:
    """The same as tables, with the notes below them."""
    from benchbench import cost_tables
    from benchbench.counters import count

    facts = leaves_table(case.id, {"case": case.model_dump(mode="json"), "unsupported": case.unsupported()})
    if case.unsupported():
        return [facts], []
    from benchbench.commands.check import ops_table

    cost, notes = count(case, kind), [case.spec.warning] if case.spec.warning else []
    operations = cost_tables.ops_table(cost)
    if formulas:
        from benchbench import formula_tables

        operations, legend = formula_tables.table(cost)
        notes = [legend, *notes]
    notes += [f"{one.witness} on {one.device}: {one.reason}." for one in witnessed if one.check is None]
    checks = [ops_table(one.check) for one in witnessed if one.check]
    return [facts, *cost_tables.tables(cost), operations, *checks], notes


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


def leaves_table(title: str, data: Any) -> Table:
    """One row a field."""
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
    return build(title, (), columns, leaves(data))


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
