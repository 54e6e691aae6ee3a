"""`benchbench count`: what a case costs, counted from its sizes alone."""

import json
from typing import Any

import click

from benchbench import cost_tables, units
from benchbench.case import Case
from benchbench.commands import closed_forms
from benchbench.commands.options import FORMATS, SIZES, case_of, echo_tables, given, refuse_beside
from benchbench.counters import Cost, count
from benchbench.counters.time import counted_on
from benchbench.devices import Device, device
from benchbench.errors import BenchError
from benchbench.record import Counted
from benchbench.table import Column, Table, build


@click.command(help="Count what a case costs: parameters, FLOPs, bytes and memory. No tensor is made.")
@SIZES
@click.option("--suite", help="Count every case of this suite instead.")
@click.option("--device", "on", metavar="NAME|FILE", help="With its time on this device. See: benchbench list devices")
@click.option("--ops", is_flag=True, help="Operation by operation.")
@click.option("--symbolic", is_flag=True, help="As expressions in the context length N, exact at every length.")
@click.option(
    "--symbols", metavar="N,B,...", help="As expressions in these sizes: N, B (batch), d_model, n_layers, ..."
)
@FORMATS
def command(
    suite: str | None, on: str | None, ops: bool, symbolic: bool, symbols: str | None, output: str, **sizes: Any
) -> None:
    where = device(on) if on else None
    kind = "cuda" if where else "cpu"
    if symbolic or symbols is not None:
        if suite or ops or on:
            raise BenchError(f"--symbolic goes without {'--suite' if suite else '--ops' if ops else '--device'}.")
        names = [name.strip() for name in (symbols or "N").split(",")]
        if names == ["N"] and not given("seq_len"):
            sizes["seq_len"] = 2  # which the model accepts, however few positions it has
        found, tables, notes = closed_forms.shown(case_of(**sizes), names)
        if output == "json":
            click.echo(json.dumps(found, indent=2))
        else:
            echo_tables(tables, output, notes)
        return
    if suite:
        refuse_beside("--suite", *sizes)
        from benchbench.suite import load

        costs = [count(case, kind) for case in load(suite, kind).cases if not case.unsupported()]
        tables = [suite_table(suite, costs, where)]
    else:
        costs = [count(case_of(device=kind, **sizes), "cuda" if where else None)]
        tables = cost_tables.tables(costs[0], counted_on(costs[0], where) if where else None)
    if output == "json":
        found = [
            cost_tables.as_json(cost, ops=ops, counted=counted_on(cost, where) if where else None) for cost in costs
        ]
        click.echo(json.dumps(found if suite else found[0], indent=2))
        return
    if ops:
        tables = [cost_tables.ops_table(cost) for cost in costs]
    notes = [] if suite else [warning for warning in (costs[0].case.spec.warning,) if warning]
    echo_tables(tables, output, notes)


def suite_table(name: str, costs: list[Cost], where: Device | None) -> Table:
    """One row a case, with its time where a device is named."""
    timed = (Column[tuple[Case, Counted]]("time", "time", "counted", lambda row: row[1].time_s, units.seconds),)
    columns: tuple[Column[tuple[Case, Counted]], ...] = (
        Column("case", "case", "text", lambda row: row[0].id),
        Column("counted_flops", "FLOPs", "counted", lambda row: row[1].flops, units.flops),
        Column("counted_executed_flops", "executed", "counted", lambda row: row[1].executed_flops, units.flops),
        Column("counted_bytes_moved", "bytes moved", "counted", lambda row: row[1].bytes_moved, units.size),
        Column("counted_state_bytes", "state", "counted", lambda row: row[1].state_bytes, units.size),
        Column("counted_peak_bytes", "peak", "counted", lambda row: row[1].peak_bytes, units.size),
        *(timed if where else ()),
    )
    rows = [(cost.case, counted_on(cost, where) if where else cost.counted) for cost in costs]
    return build(name, (("suite", name),), columns, rows)
