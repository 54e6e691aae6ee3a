"""A run as a document: where, how and with which command it was measured, its tables, and what they say.

The same records always give the same bytes: nothing here looks at a clock, a machine or a checkout.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchbench.case import Case
from benchbench.columns import case_table, grouped, model_table, ordered
from benchbench.errors import BenchError
from benchbench.files import write_whole
from benchbench.findings import findings, sizes, warnings
from benchbench.lead import Environment, command_line, device_name, environment_line, protocol_line, slug
from benchbench.record import Counted, Record
from benchbench.scaling import Finding
from benchbench.store import INFO, RECORDS, RunInfo, machine_id, read_record, read_run
from benchbench.suite import built_in
from benchbench.suite import load as load_suite
from benchbench.table import FORMAT_HINT, Table, csv, latex, markdown, terminal

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Results:
    """Records of any suites and machines, with the environments that they name.

    Beside what the worker said, an environment may hold the `commands` that measured there.
    """

    environments: dict[str, Environment]
    records: tuple[Record, ...]

    def parts(self) -> dict[tuple[str, str], "Results"]:
        """One suite on one device each, by (suite, device slug), sorted."""
        kept: dict[tuple[str, str], list[Record]] = {}
        for record in ordered(self.records):
            kept.setdefault((record.suite, slug(self.environments[record.env])), []).append(record)
        return {name: self.only(kept[name]) for name in sorted(kept)}

    def only(self, records: Sequence[Record]) -> "Results":
        used = {record.env for record in records}
        return Results({name: self.environments[name] for name in sorted(used)}, tuple(records))


@dataclass(frozen=True)
class Block:
    """A heading, the lines under it, a table, and the sentences it leads to."""

    level: int
    heading: str
    lead: tuple[str, ...]
    table: Table
    findings: tuple[Finding, ...]


def load(path: Path) -> Results:
    """A run folder, or a committed JSON file.

    Raises:
        BenchError: It is neither, or it is damaged.
    """
    if path.suffix != ".json":
        run = read_run(path)
        return _sound(_environments(run.info), run.records, str(path / INFO), str(path / RECORDS))
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BenchError(f"cannot read '{path}': {error.strerror}.") from None
    except ValueError as error:
        raise BenchError(f"{path}: not JSON: {error}.") from None
    if not isinstance(data, dict) or data.keys() != {"environments", "records"}:
        raise BenchError(f"'{path}' is not a file of results.", "It must hold environments and records, and no more.")
    held = cast("dict[str, Any]", data)
    for name, kind, what in (("environments", dict, "an object"), ("records", list, "a list")):
        if not isinstance(held[name], kind):
            raise BenchError(f"{path}: {name}: expected {what}.")
    records = tuple(read_record(line, f"{path}: record {number}") for number, line in enumerate(held["records"]))
    return _sound(held["environments"], records, str(path), str(path))


def _environments(info: RunInfo) -> dict[str, Environment]:
    commands = {"commands": list(info.commands)} if info.commands else {}
    return {name: env | commands for name, env in info.environments.items()}


def _sound(environments: dict[str, Any], records: tuple[Record, ...], described: str, recorded: str) -> Results:
    """Results whose records name environments that say what every page says of them."""
    for name in dict.fromkeys(record.env for record in records):
        if name not in environments:
            raise BenchError(f"{recorded}: a record names the environment '{name}', which {described} does not hold.")
        try:
            slug(environments[name])
            environment_line([environments[name]])
            command_line("", 0, environments[name].get("commands", ()))
        except KeyError as error:
            raise BenchError(f"{described}: environment '{name}' has no {error}.") from None
        except (AttributeError, TypeError, ValueError):
            raise BenchError(f"{described}: environment '{name}' is not as a worker describes one.") from None
    return Results(environments, records)


# The document


def count_at(case: Case) -> Counted:
    """What `case` would cost, by the cost model of this version."""
    from benchbench.counters import count

    return count(case).counted


def blocks(results: Results) -> Iterator[Block]:
    """The document of one suite on one device: the models, then a block for each table."""
    for machine in machines(results):
        first = machine.records[0]
        environments = [machine.environments[name] for name in machine.environments]
        heading = f"{first.suite} · {device_name(environments[0])}"
        commands = commands_of(machine)
        lead = lead_lines(machine.records, environments, commands)
        told = (*filter(None, [sizes(machine.records)]), *warnings(machine.records))
        yield Block(1, heading, lead, model_table(machine.records), told)
        for group, records in grouped(machine.records).items():
            environments = [machine.environments[name] for name in dict.fromkeys(r.env for r in records)]
            said = findings(records, None if group.tokens else count_at, group.axis)
            yield Block(
                2,
                group.title,
                lead_lines(records, environments, commands),
                case_table(group, records, environments=machine.environments),
                said,
            )


def machines(results: Results) -> list[Results]:
    """The records of each machine: environments that differ in their commit alone are one."""
    kept: dict[str, list[Record]] = {}
    for record in ordered(results.records):
        kept.setdefault(machine_id(results.environments[record.env]), []).append(record)
    return [results.only(records) for records in kept.values()]


def commands_of(results: Results) -> tuple[str, ...]:
    """What measures these records of one suite on one machine again.

    As it was kept with them; where it was not, the plain command if they are the suite's cases, all and no other.
    """
    environments = list(results.environments.values())
    if all(env.get("commands") for env in environments):
        return tuple(dict.fromkeys(command for env in environments for command in env["commands"]))
    name, device = results.records[0].suite, environments[0]["device"]
    if name not in built_in():
        return ()
    suite = load_suite(name, device)
    shown, protocols = {r.case for r in results.records}, {r.protocol for r in results.records}
    whole = shown == set(suite.cases) and protocols == {suite.protocol}
    return (f"benchbench run --suite {name} --device {device}",) if whole else ()


def lead_lines(
    records: Sequence[Record], environments: Sequence[Environment], commands: Sequence[str]
) -> tuple[str, ...]:
    return (
        environment_line(environments),
        protocol_line(record.protocol for record in records),
        command_line(records[0].suite, records[-1].suite_version, commands),
    )


def as_markdown(results: Results) -> str:
    """The whole document; a plot beside it is linked by whoever writes it."""
    parts: list[str] = []
    for part in results.parts().values():
        for block in blocks(part):
            parts += [f"{'#' * block.level} {block.heading}", "  \n".join(block.lead), markdown(block.table)]
            sentences = [f"- **{found.text}**" if found.alarm else f"- {found.text}" for found in block.findings]
            parts += ["\n".join(sentences)] if sentences else []
    return "\n\n".join(parts) + "\n"


def as_json(results: Results) -> str:
    """The committed form: every record, superseded ones too, one a line so that a diff shows which cases changed."""
    used = results.only(ordered(results.records))
    lines = [json.dumps(record.to_json(), ensure_ascii=False) for record in used.records]
    environments = json.dumps(used.environments, ensure_ascii=False, indent=1, sort_keys=True)
    return '{"environments": ' + environments + ',\n"records": [\n' + ",\n".join(lines) + "\n]}\n"


def case_tables(results: Results) -> Iterator[Table]:
    """The tables of all suites and devices, labelled with them."""
    for (suite, device), part in results.parts().items():
        for machine in machines(part):
            for group, records in grouped(machine.records).items():
                yield case_table(
                    group, records, (("suite", suite), ("device", device)), environments=machine.environments
                )


def as_csv(results: Results) -> str:
    return csv(list(case_tables(results)))


def as_latex(results: Results) -> str:
    return "\n".join(map(latex, case_tables(results)))


def render(results: Results, console: "Console", hint: str = FORMAT_HINT) -> None:
    """The document on a terminal, as wide as it is; what precedes every table alike is said once.

    `hint` says how to see the columns that it is too narrow for.
    """
    from rich.text import Text

    told: tuple[str, ...] = ()
    for part in results.parts().values():
        for block in blocks(part):
            console.print(Text(block.heading, style="bold"))
            for line in block.lead if block.lead != told else ():
                console.print(Text(line, style="dim"))
            told = block.lead
            for piece in terminal(block.table, console, hint):
                console.print(Text(piece, style="dim") if isinstance(piece, str) else piece)
            for found in (one for one in block.findings if not one.detail):
                console.print(Text(found.text, style="bold red" if found.alarm else ""))
            console.print()


# Files


def write_run(folder: Path) -> list[Path]:
    """`<suite>.md` and `<suite>.json` in a run folder, for each of its suites; returns what was written."""
    results = load(folder)
    written: list[Path] = []
    for suite in sorted({record.suite for record in results.records}):
        part = results.only([record for record in results.records if record.suite == suite])
        written += write(folder / suite, part)
    return written


def print_run(folder: Path, console: "Console") -> None:
    """A run folder's tables and findings on a terminal."""
    render(load(folder), console, f"Try: {shlex.join(['benchbench', 'report', str(folder), '--format', 'md'])}")


def write(stem: Path, results: Results) -> list[Path]:
    """`<stem>.md` and `<stem>.json`."""
    table, data = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.json")
    write_whole(table, as_markdown(results))
    write_whole(data, as_json(results))
    return [table, data]


@cache
def schema() -> str:
    """The JSON schema of one record, as results/schema.json holds it.

    A spec's own sizes are left open, so that a new family needs no new schema.
    """
    drawn = Record.model_json_schema(by_alias=True, mode="serialization")
    drawn["$defs"]["ModelSpec"]["additionalProperties"] = True
    return json.dumps(drawn, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
