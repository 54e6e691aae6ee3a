"""A case's cost as tables: its sums, what a token costs, its memory, its operations."""

from typing import TYPE_CHECKING, Any

from benchbench import units
from benchbench.record import Counted
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.counters import Cost, Op

Per = dict[str, dict[str, float]]
"""FLOPs by phase: a token's and a sequence's."""


def as_json(cost: "Cost", *, ops: bool, counted: Counted | None = None) -> dict[str, Any]:
    """The documented shape: `case`, `counted`, what a token and a sequence cost, and `ops` on request.

    `counted` are the sums with their time on a device, where one was named.
    """
    sums = counted or cost.counted
    found = {"case": cost.case.model_dump(mode="json"), "counted": sums.model_dump(mode="json")}
    shares = {f"flops_per_{what}": phases for what, phases in per(cost).items()}
    return {**found, **shares, **({"ops": cost.rows()} if ops else {})}


def per(cost: "Cost") -> Per:
    """FLOPs of forward, backward and both, `token` by token and `sequence` by sequence, on average.

    Tokens are those read, or the one written where decoding. The optimizer's step is left out: it is the same however
    many tokens came before it.
    """
    case = cost.case
    phases = ("forward", "backward") if case.task == "train" else ("forward",)
    flops = {phase: cost.counted.flops_by_phase[phase] for phase in phases}
    if len(flops) > 1:
        flops["forward and backward"] = sum(flops.values())
    sequences = case.batch * case.accumulate
    tokens = sequences * (1 if case.task == "decode" else case.seq_len)
    return {
        what: {phase: divided(n, number) for phase, n in flops.items()}
        for what, number in (("token", tokens), ("sequence", sequences))
    }


def divided(dividend: int, divisor: int) -> int | float:
    """A whole number where it is one: floats lose FLOPs above 2^53."""
    return dividend / divisor if dividend % divisor else dividend // divisor


def tables(cost: "Cost", counted: Counted | None = None) -> list[Table]:
    """What `benchbench count` prints of one case; with `counted` on a device, its time too."""
    timed = [time_table(cost, counted)] if counted else []
    return [sums_table(cost), per_table(cost), memory_table(cost), *timed]


def time_table(cost: "Cost", counted: Counted) -> Table:
    """The time of one call on a device, with its range, and what it stands on."""
    seconds = {"time": counted.time_s, "at least": counted.time_low_s, "at most": counted.time_high_s}
    rows = [(what, units.seconds(value), "") for what, value in seconds.items() if value is not None]
    rows += [("basis", counted.time_basis or "nothing is known of this device's speed", "")]
    return plain_table(f"{cost.case.id}: time on {counted.device}", ("what", "one call", ""), rows)


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


def per_table(cost: "Cost") -> Table:
    """What one token and one sequence cost, the optimizer's step left out."""
    shares = per(cost)
    rows = [
        (f"{phase}, a {what}", units.integer(round(flops)), units.flops(flops))
        for what, phases in shares.items()
        for phase, flops in phases.items()
    ]
    return plain_table(f"{cost.case.id}: FLOPs a token and a sequence", ("what", "FLOPs", ""), rows)


def memory_table(cost: "Cost") -> Table:
    """Bytes of every category at the fullest moment, and the largest tensors alive then."""
    counted = cost.counted
    sizes = {
        **counted.memory.model_dump(),
        "requested, in all": counted.peak_requested_bytes,
        "handed out by the allocator": counted.peak_bytes,
        "taken from the driver": counted.peak_reserved_bytes,
        "decoding state, of it": counted.state_bytes,
    }
    rows = [(name, units.integer(n), units.size(n)) for name, n in sizes.items() if n is not None]
    largest = [
        (
            f"{one.place or 'held'}: {one.name}{f', {one.count}' if one.count > 1 else ''}",
            units.integer(one.bytes),
            units.size(one.bytes),
        )
        for one in cost.fullest.largest
    ]
    at = [(f"fullest at {counted.peak_at}; then the largest:", "", "")] if counted.peak_at else []
    where = "a GPU" if cost.device == "cuda" else "a CPU"
    return plain_table(f"{cost.case.id}: memory on {where}", ("what", "bytes", ""), [*rows, *at, *largest])


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
