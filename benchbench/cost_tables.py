"""A case's cost as tables: its sums, its memory, its operations."""

from typing import TYPE_CHECKING, Any

from benchbench import units
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.counters import Cost, Op


def as_json(cost: "Cost", *, ops: bool) -> dict[str, Any]:
    """The documented shape: `case`, `counted`, and `ops` on request."""
    found = {"case": cost.case.model_dump(mode="json"), "counted": cost.counted.model_dump(mode="json")}
    return {**found, "ops": cost.rows()} if ops else found


def tables(cost: "Cost") -> list[Table]:
    """What `benchbench count` prints of one case."""
    return [sums_table(cost), memory_table(cost)]


def sums_table(cost: "Cost") -> Table:
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
    return plain_table(f"{cost.case.id}: FLOPs", ("what", "FLOPs", ""), rows)


def memory_table(cost: "Cost") -> Table:
    """Bytes of every category at its own largest, and at the fullest moment."""
    counted = cost.counted
    sizes = [
        *counted.memory.model_dump().items(),
        ("decoding state", counted.state_bytes),
        ("peak", counted.peak_bytes),
    ]
    return plain_table(
        f"{cost.case.id}: memory", ("what", "bytes", ""), [(name, units.integer(n), units.size(n)) for name, n in sizes]
    )


def ops_table(cost: "Cost") -> Table:
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


def plain_table(title: str, heads: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> Table:
    columns: tuple[Column[tuple[str, str, str]], ...] = (
        Column("what", heads[0], "text", lambda row: row[0]),
        Column("value", heads[1], "counted", lambda row: row[1]),
        Column("readable", heads[2], "counted", lambda row: row[2]),
    )
    return build(title, (), columns, rows)
