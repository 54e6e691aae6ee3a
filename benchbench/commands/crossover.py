"""`benchbench crossover`: the context lengths where two models cost the same."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from benchbench import units
from benchbench.case import TASKS, Case
from benchbench.commands.names import ModelName
from benchbench.commands.options import FORMATS, case_of, echo_tables
from benchbench.errors import BenchError
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.counters.crossover import Comparison, Stretch
    from benchbench.time_crossover import Stretch as TimeStretch

METRICS = {
    "flops": ("FLOPs", "cheaper", units.flops),
    "executed": ("executed FLOPs", "cheaper", units.flops),
    "bytes": ("bytes moved", "cheaper", units.size),
    "memory": ("peak memory", "smaller", units.size),
    "state": ("decoding state", "smaller", units.size),
    "time": ("time", "faster", units.seconds),
}
"""What is compared, how the lesser one is called, and its unit."""

LONGEST_TIME = 2**20
"""Tokens up to which times are predicted: calibrations do not reach much further."""


class Turn(NamedTuple):
    """A stretch of lengths, and both costs where it begins."""

    stretch: "Stretch"
    winner: str
    first: int
    second: int


@click.command()
@click.argument("first", type=ModelName(), metavar="MODEL")
@click.argument("second", type=ModelName(), metavar="MODEL")
@click.option("--task", type=click.Choice(TASKS), default="prefill", show_default=True)
@click.option("--metric", type=click.Choice(list(METRICS)), default="flops", show_default=True)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16.")
@click.option("--optimizer", help="sgd, momentum, adam or adamw (the default where a case trains).")
@click.option("--device", "on", metavar="NAME|FILE", help="With --metric time: where. See: benchbench list devices")
@click.option("--max", "most", type=click.IntRange(min=2), default=2**40, metavar="N", help="Default: 2^40.")
@FORMATS
def command(first: str, second: str, metric: str, on: str | None, most: int, output: str, **sizes: Any) -> None:
    """Solve for the context lengths where two models cost the same."""
    if metric == "time":
        in_time(first, second, on, most, output, sizes)
        return
    if on:
        raise BenchError(f"--device goes with --metric time, and --metric {metric} is the same on every device.")
    from benchbench.counters.crossover import compare

    cases = [case_of(model=name, seq_len=2, path=None, **sizes) for name in (first, second)]
    found = compare(cases[0], cases[1], metric, most)
    if output == "json":
        click.echo(json.dumps(as_json(found), indent=2))
        return
    echo_tables([stretches_table(found)], output, sentences(found))


def in_time(first: str, second: str, on: str | None, most: int, output: str, sizes: dict[str, Any]) -> None:
    """The same for predicted times on a device, each model on its path for a GPU."""
    from benchbench.devices import device
    from benchbench.time_crossover import stretches

    if on is None:
        raise BenchError("--metric time: on what?", "Pass --device NAME. See: benchbench list devices")
    where = device(on)
    one, other = (case_of(model=name, seq_len=2, path=None, device="cuda", **sizes) for name in (first, second))
    limits = [case.spec.longest - (case.task == "decode") for case in (one, other) if case.spec.longest]
    found = stretches((one, other), where, min(*limits, most, LONGEST_TIME))
    names = (one.model, other.model)
    if output == "json":
        rows = [{"from": s.low, "to": s.high, "faster": names[s.faster], "time_s": list(s.seconds)} for s in found]
        click.echo(json.dumps({"metric": "time", "device": where.name, "stretches": rows}, indent=2))
        return
    columns: tuple[Column[TimeStretch], ...] = (
        Column("n", "N from", "text", lambda stretch: stretch.low, units.integer),
        Column("to", "to", "text", lambda stretch: stretch.high, units.integer),
        Column("less", "faster", "text", lambda stretch: names[stretch.faster]),
        Column("first", f"{names[0]} at N from", "counted", lambda stretch: stretch.seconds[0], units.seconds),
        Column("second", f"{names[1]} at N from", "counted", lambda stretch: stretch.seconds[1], units.seconds),
    )
    title = f"time of {names[0]} and {names[1]} on {where.name}: {_setting(one)}"
    said = [
        f"{names[now.faster]} overtakes {names[1 - now.faster]} at N={units.integer(now.low)}, as predicted."
        for now in found[1:]
    ]
    notes = said or [f"{names[found[0].faster]} is faster at every length looked at."]
    echo_tables([build(title, (("metric", "time"),), columns, found)], output, notes)


def as_json(found: "Comparison") -> dict[str, Any]:
    """`verified` are counts beside and at each crossover, and at both ends."""
    cases = (found.first.case, found.second.case)
    return {
        "metric": found.metric,
        "cases": [case.model_dump(mode="json", exclude={"seq_len"}) for case in cases],
        "from": found.low,
        "to": found.high,
        "ends": list(found.ends),
        "crossovers": list(found.crossings),
        "complete": not found.cut,
        "stretches": [
            {"from": one.low, "to": one.high, "less": found.models(one.order)[0] if one.order else None}
            for one in found.stretches
        ],
        "closed_forms": [
            [{"from": low, "to": high, "expression": str(form)} for low, high, form in line.of(found.name)]
            for line in (found.first, found.second)
        ],
        "verified": [{"n": one.n, "counted": [one.first, one.second]} for one in found.verified],
    }


def stretches_table(found: "Comparison") -> Table:
    """One row a stretch of lengths in which the order does not change."""
    what, better, show = METRICS[found.metric]
    counted = {one.n: one for one in found.verified}
    turns = [
        Turn(
            stretch,
            found.models(stretch.order)[0] if stretch.order else "equal",
            counted[stretch.low].first,
            counted[stretch.low].second,
        )
        for stretch in found.stretches
    ]
    names = [case.model for case in (found.first.case, found.second.case)]
    columns: tuple[Column[Turn], ...] = (
        Column("n", "N from", "text", lambda turn: turn.stretch.low, units.integer),
        Column("to", "to", "text", lambda turn: turn.stretch.high, units.integer),
        Column("less", better, "text", lambda turn: turn.winner),
        Column("first", f"{names[0]} at N from", "counted", lambda turn: turn.first, show),
        Column("second", f"{names[1]} at N from", "counted", lambda turn: turn.second, show),
    )
    paths = " and ".join(f"{case.model} ({case.path})" for case in (found.first.case, found.second.case))
    where = " on a CPU" if found.metric == "memory" else ""
    title = f"{what} of {paths}{where}: {_setting(found.first.case)}"
    return build(title, (("metric", found.metric),), columns, turns)


def sentences(found: "Comparison") -> list[str]:
    """Who overtakes whom where, on what it stands, and why a model goes no further."""
    lines = [_overtaking(found, index) for index in range(1, len(found.stretches))] or [_never(found)]
    if found.cut:
        lines.append(f"They go on turning over beyond N={units.integer(found.high)}: the rest is not listed.")
    if found.crossings:
        lines.append("Solved on the closed forms, and verified by counting one token before, at and after each.")
    return [*lines, *(f"{reason}: they are compared up to N={units.integer(found.high)}." for reason in found.ends)]


def _overtaking(found: "Comparison", index: int) -> str:
    before, now = found.stretches[index - 1], found.stretches[index]
    span = f"N={units.integer(now.low)}" + (f" to {units.integer(now.high)}" if now.high > now.low else "")
    if not now.order:
        return f"They are equal at {span}."
    less, more = found.models(now.order)
    how = METRICS[found.metric][1]
    if not before.order:
        return f"{less} is {how} than {more} at {span}."
    return f"{less} overtakes {more} at N={units.integer(now.low)}: {how} up to N={units.integer(now.high)}."


def _never(found: "Comparison") -> str:
    (stretch,) = found.stretches
    where = f"every N from {units.integer(stretch.low)} to {units.integer(stretch.high)}"
    if not stretch.order:
        return f"They never differ: equal at {where}, by their closed forms."
    less, more = found.models(stretch.order)
    return f"They never cross: {less} is {METRICS[found.metric][1]} than {more} at {where}, by their closed forms."


def _setting(case: Case) -> str:
    return ", ".join([case.task, f"batch {case.batch}", case.dtype, *([case.optimizer] if case.optimizer else [])])
