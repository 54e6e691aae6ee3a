"""What `benchbench count --symbolic` prints: closed forms as tables and as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchbench.case import Case
from benchbench.table import Column, Table, build
from benchbench.units import integer

if TYPE_CHECKING:
    from benchbench.counters.symbolic import ClosedForm, InLength

Line = tuple[str, str, str]
"""What, for which N, its expression."""

COLUMNS: tuple[Column[Line], ...] = (
    Column("what", "counted", "text", lambda line: line[0]),
    Column("for_n", "for N", "text", lambda line: line[1]),
    Column("expression", "closed form", "text", lambda line: line[2]),
)

TITLES = {
    "flops": "FLOPs",
    "executed_flops": "executed on this path",
    "full_square_flops": "with the full square",
    "bytes_moved": "bytes moved",
    "state_bytes": "decoding state, bytes",
    "peak_requested_bytes": "peak, bytes as requested",
    "peak_bytes": "peak, bytes in whole blocks",
    "params": "parameters",
}


def shown(case: Case, names: Sequence[str]) -> tuple[dict[str, Any], list[Table], list[str]]:
    """JSON, tables and notes of a case's closed forms: at every length in N alone, else around the case's sizes."""
    from benchbench.counters.symbolic import closed_form, in_length

    if [name for name in names if name not in ("N", "seq_len")]:
        form = closed_form(case, names)
        return several_json(form), [several_table(form)], several_notes(form)
    line = in_length(case)
    return length_json(line), [length_table(line)], length_notes(line)


def length_json(line: "InLength") -> dict[str, Any]:
    """`from` and `to` are lengths; sympy reads `expression`, where it is told that `symbols` are symbols."""
    return {
        "case": line.case.model_dump(mode="json"),
        "symbols": {"N": "seq_len"},
        "from": line.low,
        "to": line.high,
        "ends": line.end,
        "closed_forms": {
            name: [{"from": low, "to": high, **_written(form)} for low, high, form in line.of(name)]
            for name in line.names
        },
    }


def length_table(line: "InLength") -> Table:
    from benchbench.counters.notation import readable

    whole = (line.low, line.high)
    rows = [
        (title(name), "every" if (low, high) == whole else f"{integer(low)} to {_end(high, line)}", readable(form))
        for name in line.names
        for low, high, form in line.of(name)
    ]
    return build(_name(line.case, ["N"]), (), COLUMNS, rows)


def length_notes(line: "InLength") -> list[str]:
    beyond = f"{line.end}." if line.end else "No longer ones were walked."
    return [f"N is seq_len. Exact for every N from {integer(line.low)} to {integer(line.high)}. {beyond}"]


def several_json(form: "ClosedForm") -> dict[str, Any]:
    """`conditions` say for which sizes the expressions hold; the case's own are among them."""
    return {
        "case": form.case.model_dump(mode="json"),
        "symbols": form.symbols,
        "conditions": [str(condition.relation) for condition in form.conditions],
        "closed_forms": {name: _written(expression) for name, expression in form.forms.items()},
    }


def several_table(form: "ClosedForm") -> Table:
    from benchbench.counters.notation import readable

    # In whole blocks every category is rounded on its own: a page of ceilings, which JSON has.
    rows = [(title(name), "", readable(expression)) for name, expression in form.forms.items() if name != "peak_bytes"]
    return build(_name(form.case, form.symbols), (), (COLUMNS[0], COLUMNS[2]), rows)


def several_notes(form: "ClosedForm") -> list[str]:
    from benchbench.counters.notation import readable

    named = ", ".join(f"{symbol} is {field}" for symbol, field in form.symbols.items() if symbol != field)
    conditions = [f"  {readable(condition.relation)}" for condition in form.conditions]
    holds = "Exact for all positive whole numbers" + (" that meet" if conditions else "")
    return [*([f"{named}."] if named else []), f"{holds}{':' if conditions else '.'}", *conditions]


def title(name: str) -> str:
    """`flops_by_kind.scan` as `FLOPs by kind: scan`."""
    group, _, part = name.partition(".")
    return f"{group.replace('flops', 'FLOPs').replace('_', ' ')}: {part}" if part else TITLES.get(name, name)


def _name(case: Case, symbols: Sequence[str] | dict[str, str]) -> str:
    """The case's id with the lengths that are symbols left open."""
    length = "N" if "N" in symbols else f"N{case.seq_len}"
    batch = "B" if "B" in symbols else f"B{case.batch}"
    return f"{case.model}/{case.task}/{length}/{batch}/{case.dtype}/{case.path}"


def _end(high: int, line: "InLength") -> str:
    return "…" if high == line.high and line.end is None else integer(high)


def _written(form: Any) -> dict[str, str]:
    from benchbench.counters.notation import latex

    return {"expression": str(form), "latex": latex(form)}
