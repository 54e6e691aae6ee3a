# pyright: standard
"""A case's operations with their formulas in symbols, as a table and as JSON."""

from typing import TYPE_CHECKING, Any

from benchbench import units
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.counters import Cost, Op
    from benchbench.counters.op_forms import Quantity

    Line = tuple[Op, Any]

WRITTEN: "tuple[Quantity, ...]" = ("repeat", "flops", "executed_flops", "bytes_moved", "saved_bytes")
"""What JSON has a formula of."""


def table(cost: "Cost") -> tuple[Table, str]:
    """One row an operation, the formula of its FLOPs beside their number; and what the symbols stand for.

    Numbers are of one repetition, but those in `all`.
    """
    from benchbench.counters.notation import readable
    from benchbench.counters.op_forms import op_forms

    columns: tuple[Column[Line], ...] = (
        Column("path", "module", "text", lambda line: line[0].path or "(model)"),
        Column("op", "op", "text", lambda line: line[0].formula.name),
        Column("kind", "kind", "text", lambda line: line[0].kind, detail=3),
        Column("phase", "phase", "text", lambda line: line[0].phase),
        Column("formula", "FLOPs =", "text", lambda line: readable(line[1])),
        Column("flops", "FLOPs", "counted", lambda line: line[0].flops, units.integer),
        Column("repeat", "times", "counted", lambda line: line[0].repeat, units.integer),
        Column("all_flops", "all", "counted", lambda line: line[0].repeat * line[0].flops, units.integer, detail=1),
        Column("executed_flops", "executed", "counted", lambda line: line[0].executed_flops, units.integer, detail=4),
        Column("bytes_moved", "bytes moved", "counted", lambda line: line[0].bytes_moved, units.integer, detail=2),
    )
    forms = op_forms(cost.case)
    lines = list(zip(cost.ops, forms.of("flops"), strict=True))
    conditions = "; ".join(readable(condition.relation) for condition in forms.conditions)
    legend = "N is seq_len, B is batch" + (f"; the formulas hold for {conditions}." if conditions else ".")
    return build(f"{cost.case.id}: operations", (("case", cost.case.id),), columns, lines), legend


def as_json(cost: "Cost") -> dict[str, Any]:
    """`ops` as `Cost.rows` has them, each with its `formulas` as sympy reads them, and `conditions` for their sizes."""
    from benchbench.counters.op_forms import op_forms

    forms = op_forms(cost.case)
    written = zip(*([str(form) for form in forms.of(quantity)] for quantity in WRITTEN), strict=True)
    return {
        "conditions": [str(condition.relation) for condition in forms.conditions],
        "ops": [
            {**row, "formulas": dict(zip(WRITTEN, line, strict=True))}
            for row, line in zip(cost.rows(), written, strict=True)
        ],
    }
