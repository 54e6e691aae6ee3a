"""`benchbench check`: the count beside what tracers say of the real modules; exit 1 on any unexplained difference."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from benchbench import units
from benchbench.case import TASKS, Case
from benchbench.commands import check_hardware, check_memory
from benchbench.commands.options import (
    FORMATS,
    LENGTH,
    echo_tables,
    refuse_beside,
    runs_for_real,
    sized,
    some,
    specs_of,
)
from benchbench.counters.rules import WITNESSES, Witness
from benchbench.errors import BenchError, UnsupportedError
from benchbench.specs import ModelSpec
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.counters.trace import CaseCheck, Row

HARDWARE = "hardware"

HELP = """Line up the count with what tracers, and a GPU's own counters, say of the real modules.

torch's FLOP counter and fvcore count products; `dispatch` prices every operator that torch runs, and is held against
the FLOPs that the path executes. `hardware` reads the counters of the kernels that two layers launch on an NVIDIA GPU,
all but the elementwise, at 2,048 tokens in bfloat16, a minute or so a model, and holds products, attention and our own
kernels to the last operation. All of them testify, as far as the machine can; with --suite, --device or --ops the
tracers alone.
"""


@dataclass(frozen=True)
class Outcome:
    """A case under a witness: its check, or why there is none."""

    case: Case
    witness: Witness
    device: str
    check: "CaseCheck | None"
    reason: str | None = None

    @property
    def verdict(self) -> str:
        if self.check is None:
            return "absent"
        return "agrees" if self.check.passed else "DIFFERS"


@click.command(help=HELP)
@click.option("--model", "names", multiple=True, metavar="NAME", help="Only this model (repeatable). Default: all.")
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), help="Only this task (repeatable).")
@click.option("--seq-len", type=LENGTH, help="Default: 48 with numbers, 1024 as shapes, 2048 on a GPU.")
@click.option("--batch", type=LENGTH, default=2, show_default=True)
@click.option("--suite", help="Check every case of this suite, as shapes, instead.")
@click.option(
    "--witness",
    "witnesses",
    multiple=True,
    type=click.Choice([*WITNESSES, HARDWARE]),
    help="Repeatable. Default: all; the tracers alone with --suite, --device or --ops.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a size of the models named: n_layers=3, form=bk-exact.",
)
@click.option("--device", type=click.Choice(["cpu", "meta"]), help="With numbers, or as shapes. Default: by size.")
@click.option("--memory", is_flag=True, help="Peak memory instead: counted, on fake tensors, and off the allocator.")
@click.option("--ops", is_flag=True, help="Module by module.")
@FORMATS
def command(
    names: tuple[str, ...],
    tasks: tuple[str, ...],
    seq_len: int | None,
    batch: int,
    suite: str | None,
    witnesses: tuple[str, ...],
    changes: tuple[str, ...],
    device: str | None,
    memory: bool,
    ops: bool,
    output: str,
) -> None:
    if suite:
        refuse_beside("--suite", "changes", "seq_len", "batch", "device")
    if memory:
        refuse_beside("--memory", "witnesses", "device")
    specs = [] if suite else specs_of(names, changes)
    if memory:
        planned_cases = [case for case, _ in suite_cases(suite, names, tasks)] if suite else None
        check_memory.command(specs, tasks, seq_len, batch, ops, output, planned_cases)
        return
    narrowed = bool(suite or device or ops)
    if HARDWARE in witnesses and narrowed:
        hint = "Without --suite, --device and --ops it can go along with any other."
        raise BenchError("--witness hardware runs cases of its own, on the GPU.", hint)
    lacking = None if witnesses or narrowed else check_hardware.lacking()
    asked = witnesses or (WITNESSES if narrowed or lacking else (*WITNESSES, HARDWARE))
    tracers = [one for one in asked if one != HARDWARE]
    own = (one for spec in specs for one in model_cases(spec, tasks or TASKS, seq_len, batch, device))
    outcomes = traced(suite_cases(suite, names, tasks) if suite else own, tracers) if tracers else []
    kernels = check_hardware.outcomes(specs, tasks, seq_len, batch) if HARDWARE in asked else iter(())
    if output == "json":
        seen = list(kernels)
        click.echo(json.dumps([*map(as_json, outcomes), *map(check_hardware.as_json, seen)], indent=2))
    else:
        tables = [ops_table(one.check) for one in outcomes if one.check] if ops else cases_tables(outcomes)
        absent = [f"{HARDWARE}: absent: {lacking}."] if lacking else []
        if output == "csv":  # one sheet
            seen = list(kernels)
            echo_tables([*tables, *(check_hardware.table(one) for one in seen if one.lines)], output)
        else:
            echo_tables(tables, output, summary(outcomes))
            seen = list(told(kernels, output))
            echo_tables([], output, [*check_hardware.notes(seen), *absent])
    verdicts = {one.verdict for one in (*outcomes, *seen)}
    if verdicts == {"absent"}:
        raise BenchError("nothing was checked: no witness could see a case.", "Each says why above.")
    if verdicts & {"DIFFERS", "FAILED"}:
        raise SystemExit(1)


def told(kernels: Iterable[check_hardware.Outcome], output: str) -> Iterator[check_hardware.Outcome]:
    """Each case, its table shown as soon as it was read: the next takes a while."""
    for one in kernels:
        if one.lines:
            echo_tables([check_hardware.table(one)], output)
        yield one


def traced(planned: Iterable[tuple[Case, str]], witnesses: Sequence[str]) -> list[Outcome]:
    """Each case, where it is traced, under each witness."""
    return [outcome(case, on, cast("Witness", one)) for case, on in some(planned) for one in witnesses]


def suite_cases(name: str, names: Sequence[str], tasks: Sequence[str]) -> Iterator[tuple[Case, str]]:
    """The suite's cases that the filters leave, each as shapes."""
    from benchbench.suite import load

    for case in load(name).cases:
        if (not names or case.model in names) and (not tasks or case.task in tasks):
            yield case, "meta"


def model_cases(
    spec: ModelSpec, tasks: Sequence[str], seq_len: int | None, batch: int, device: str | None
) -> Iterator[tuple[Case, str]]:
    """Every task of a model: on all its paths with numbers, or on its default path as shapes."""
    on = device or ("cpu" if runs_for_real(Case.of(spec, task="prefill", seq_len=2)) else "meta")
    # One short of the longest, so that a decoding step still has a position.
    length = seq_len or min(48 if on == "cpu" else 1024, (spec.longest or 1025) - 1)
    for path in spec.paths if on == "cpu" else spec.paths[:1]:
        for task in tasks:
            yield sized(spec, task=task, seq_len=length, batch=batch, path=path), on


def outcome(case: Case, device: str, witness: Witness) -> Outcome:
    from benchbench.counters.trace import check_case

    try:
        return Outcome(case, witness, device, check_case(case, witness, device))
    except UnsupportedError as error:
        return Outcome(case, witness, device, None, error.message)


def as_json(one: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = {
        "case": one.case.model_dump(mode="json"),
        "witness": one.witness,
        "device": one.device,
        "verdict": one.verdict.lower(),
        "reason": one.reason,
    }
    if (check := one.check) is None:
        return found
    return {
        **found,
        "params": check.params,
        "counted_params": check.counted_params,
        "traced_flops": check.traced_flops,
        "explained_flops": check.explained_flops,
        "rules": list(check.rules),
        "blind": check.blind,
        "rows": [
            {
                "path": row.path,
                "phase": row.phase,
                "kinds": list(row.kinds),
                "counted": row.counted,
                "expected": row.expected,
                "traced": row.traced,
                "unexplained": row.unexplained,
                "rules": list(row.rules),
            }
            for row in check.rows
        ],
    }


def cases_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """One row a case and witness; no table where there is none."""
    columns: tuple[Column[Outcome], ...] = (
        Column("case", "case", "text", lambda one: one.case.id),
        Column("device", "on", "text", lambda one: one.device),
        Column("witness", "witness", "text", lambda one: one.witness),
        Column("counted", "FLOPs", "counted", seen_flops, units.integer),
        Column("traced", "traced", "traced", lambda one: one.check and one.check.traced_flops, units.integer),
        Column(
            "unexplained",
            "unexplained",
            "traced",
            lambda one: one.check and one.check.traced_flops - one.check.explained_flops,
            units.integer,
        ),
        Column("verdict", "verdict", "text", lambda one: one.verdict, note=why),
    )
    return [build("counted against traced", (), columns, outcomes)] if outcomes else []


def seen_flops(one: Outcome) -> int | None:
    """What we count at the places that the witness looked at: executed FLOPs for `dispatch`, the model's otherwise."""
    return sum(row.counted for row in one.check.rows) if one.check else None


def why(one: Outcome) -> str:
    """Why there is no check, or where it differs, with both numbers."""
    if one.check is None:
        return one.reason or ""
    places = [
        f"{row.path or '(model)'} {row.phase}: traced {row.traced:,}, expected {row.expected:,}"
        for row in one.check.unexplained
    ]
    if one.check.params != one.check.counted_params:
        places.append(f"the module holds {one.check.params:,} parameters, the count says {one.check.counted_params:,}")
    return "; ".join(places)


def ops_table(check: "CaseCheck") -> Table:
    """One row a module and phase."""
    columns: tuple[Column[Row], ...] = (
        Column("path", "module", "text", lambda row: row.path or "(model)"),
        Column("phase", "phase", "text", lambda row: row.phase),
        Column("kinds", "kinds", "text", lambda row: " + ".join(row.kinds)),
        Column("counted", "FLOPs", "counted", lambda row: row.counted, units.integer),
        Column("expected", "by the rules", "traced", lambda row: row.expected, units.integer),
        Column("traced", "traced", "traced", lambda row: row.traced, units.integer),
        Column("unexplained", "unexplained", "traced", lambda row: row.unexplained, units.integer),
        Column("rules", "rules", "text", lambda row: "; ".join(row.rules), detail=True),
    )
    return build(f"{check.case.id} under {check.witness} on {check.device}", (), columns, check.rows)


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """How many agree, the rules that were needed, and what each witness says it cannot see; nothing of none."""
    if not outcomes:
        return []
    checks = [one.check for one in outcomes if one.check]
    agreed = sum(check.passed for check in checks)
    lines = [f"{agreed} of {len(checks)} agree to the last FLOP; {len(outcomes) - len(checks)} absent."]
    for witness in dict.fromkeys(check.witness for check in checks):
        mine = [check for check in checks if check.witness == witness]
        lines += [f"{witness}: {rule}." for rule in sorted({rule for check in mine for rule in check.rules})]
        blind = sorted({name for check in mine for name in check.blind})
        if blind:
            lines.append(f"{witness} lists as unsupported: {', '.join(blind)}.")
    return lines
