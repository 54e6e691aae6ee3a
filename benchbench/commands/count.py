"""`benchbench count`: what a case costs, counted from its sizes alone."""

import json
from typing import Any

import click

from benchbench import units
from benchbench.case import Case
from benchbench.commands.options import FORMATS, SIZES, case_of, echo_tables
from benchbench.counters import Cost, Op, count
from benchbench.record import Counted
from benchbench.table import Column, Table, build


@click.command(help="Count what a case costs: parameters, FLOPs, bytes and memory. No tensor is made.")
@SIZES
@click.option("--suite", help="Count every case of this suite instead.")
@click.option("--ops", is_flag=True, help="Operation by operation.")
@FORMATS
def command(suite: str | None, ops: bool, output: str, **sizes: Any) -> None:
    if suite:
        from benchbench.suite import load

        costs = [count(case) for case in load(suite).cases if not case.unsupported()]
        tables = [suite_table(suite, costs)]
    else:
        costs = [count(case_of(**sizes))]
        tables = [sums_table(costs[0]), memory_table(costs[0])]
    if output == "json":
        found = [as_json(cost, ops=ops) for cost in costs]
        click.echo(json.dumps(found if suite else found[0], indent=2))
        return
    if ops:
        tables = [ops_table(cost) for cost in costs]
    notes = [] if suite else [warning for warning in (costs[0].case.spec.warning,) if warning]
    echo_tables(tables, output, notes)


def as_json(cost: Cost, *, ops: bool) -> dict[str, Any]:
    """The documented shape: `case`, `counted`, and `ops` on request."""
    found = {"case": cost.case.model_dump(mode="json"), "counted": cost.counted.model_dump(mode="json")}
    return {**found, "ops": cost.rows()} if ops else found


def suite_table(name: str, costs: list[Cost]) -> Table:
    """One row a case."""
    columns: tuple[Column[tuple[Case, Counted]], ...] = (
        Column("model", "model", "text", lambda row: row[0].model),
        Column("task", "task", "text", lambda row: row[0].task),
        Column("n", "N", "text", lambda row: row[0].seq_len, units.integer),
        Column("counted_flops", "FLOPs", "counted", lambda row: row[1].flops, units.flops),
        Column("counted_executed_flops", "executed", "counted", lambda row: row[1].executed_flops, units.flops),
        Column("counted_bytes_moved", "bytes moved", "counted", lambda row: row[1].bytes_moved, units.size),
        Column("counted_state_bytes", "state", "counted", lambda row: row[1].state_bytes, units.size),
        Column("counted_peak_bytes", "peak", "counted", lambda row: row[1].peak_bytes, units.size),
    )
    return build(name, (("suite", name),), columns, [(cost.case, cost.counted) for cost in costs])


def sums_table(cost: Cost) -> Table:
    """FLOPs by kind, and every total, of one case."""
    counted = cost.counted
    kinds = sorted(counted.flops_by_kind.items(), key=lambda item: -item[1])
    rows = [(kind, units.integer(flops), units.percent(flops / counted.flops)) for kind, flops in kinds]
    rows += [(phase, units.integer(n), units.percent(n / counted.flops)) for phase, n in counted.flops_by_phase.items()]
    rows += [
        ("total", units.integer(counted.flops), units.flops(counted.flops)),
        ("executed on this path", units.integer(counted.executed_flops), units.flops(counted.executed_flops)),
        ("with the full square", units.integer(counted.full_square_flops), units.flops(counted.full_square_flops)),
        (
            "transcendental",
            units.integer(counted.transcendental),
            units.percent(counted.transcendental / counted.flops),
        ),
        ("bytes moved", units.integer(counted.bytes_moved), units.size(counted.bytes_moved)),
        ("parameters", units.integer(counted.params), units.count(counted.params)),
    ]
    return _plain(f"{cost.case.id}: FLOPs", ("what", "FLOPs", ""), rows)


def memory_table(cost: Cost) -> Table:
    """Bytes of every category at its own largest, and at the fullest moment."""
    counted = cost.counted
    sizes = [
        *counted.memory.model_dump().items(),
        ("decoding state", counted.state_bytes),
        ("peak", counted.peak_bytes),
    ]
    return _plain(
        f"{cost.case.id}: memory", ("what", "bytes", ""), [(name, units.integer(n), units.size(n)) for name, n in sizes]
    )


def ops_table(cost: Cost) -> Table:
    """One row an operation; numbers are of one repetition."""
    columns: tuple[Column[Op], ...] = (
        Column("path", "module", "text", lambda op: op.path or "(model)"),
        Column("op", "op", "text", lambda op: op.formula.name),
        Column("kind", "kind", "text", lambda op: op.kind),
        Column("phase", "phase", "text", lambda op: op.phase),
        Column("repeat", "times", "counted", lambda op: op.repeat, units.integer),
        Column("flops", "FLOPs", "counted", lambda op: op.flops, units.integer),
        Column("executed_flops", "executed", "counted", lambda op: op.executed_flops, units.integer, detail=True),
        Column("bytes_moved", "bytes moved", "counted", lambda op: op.bytes_moved, units.integer),
        Column("saved_bytes", "saved", "counted", lambda op: op.saved_bytes, units.integer),
    )
    return build(cost.case.id, (("case", cost.case.id),), columns, cost.ops)


def _plain(title: str, heads: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> Table:
    columns: tuple[Column[tuple[str, str, str]], ...] = (
        Column("what", heads[0], "text", lambda row: row[0]),
        Column("value", heads[1], "counted", lambda row: row[1]),
        Column("readable", heads[2], "counted", lambda row: row[2]),
    )
    return build(title, (), columns, rows)
