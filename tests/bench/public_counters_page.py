"""The page results/counters.md, from the JSON beside it alone."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchbench import units
from benchbench.claims.page import described
from benchbench.lead import environment_line
from benchbench.specs import from_dict
from benchbench.table import Column, Table, build, markdown

Row = dict[str, Any]

INTRODUCTION = """\
What public counters report of the same models, beside the truth. Made by `python tests/bench/public_counters.py`; every
number is measured or counted, none is typed in.

The truth of a case is the sum of the prices of all operators that torch runs in it: 2 a multiply-add, 1 for every
other operation on an element. It is what our count says that the path executes, to the last FLOP, or to a named rule.
Counters that report multiply-adds are doubled before they are compared. A training step is forward and backward; the
optimizer is left out, as no counter here counts it.

A counter is **explained** where rules predict its number to the last FLOP: those of `counters/rules.py` for torch's
counter and fvcore, those of `tests/bench/public_counter_rules.py` for the others. The rules are numbered below, and
each difference is given as a share of the truth."""

REPRODUCE = "Reproduce: `python tests/bench/public_counters.py --out results/counters.md --peers DIR`"

MEMORY = """\
The second training step, on the CPU, in bytes: what the allocator reports of the unchanged program, torch's MemTracker,
which runs it under a dispatch mode, and our count, which runs nothing."""


def as_markdown(data: Row) -> str:
    """The page."""
    numbers = numbered(data["cases"])
    protocol = (
        f"Protocol: one thread, counters in turns, {units.plural(data['rounds'], 'round')} after a call that is not "
        "timed; times are medians."
    )
    specs = {case["case"]["spec"]["name"]: from_dict(case["case"]["spec"]) for case in data["cases"]}
    parts = [
        "# Public counters",
        INTRODUCTION,
        f"{environment_line([data['environment']])}  \n{protocol}  \n{REPRODUCE}",
        "\n".join(f"- {described(spec)}" for spec in specs.values()),
        "## Counters",
        markdown(counters_table(data["counters"])),
        "## Reported, of the truth",
        markdown(ratios_table(data)),
        "## The truth",
        markdown(truths_table(data["cases"])),
        *noted(data["cases"]),
        "## Peak memory of a training step",
        MEMORY,
        markdown(memory_table(data["memory"])),
    ]
    for case in data["cases"]:
        parts += [f"## {case['id']}", sentence(case), markdown(case_table(case, data["counters"], numbers))]
    rules = [f"{number}. {rule}" for rule, number in numbers.items()]
    return "\n\n".join([*parts, "## Rules", "\n".join(rules)]) + "\n"


def counters_table(counters: Sequence[Row]) -> Table:
    """One row a counter: its version, or how to install it."""
    columns: tuple[Column[Row], ...] = (
        Column("name", "counter", "text", lambda one: one["name"]),
        Column("version", "version", "text", lambda one: one["version"] or f"absent: `{installation(one)}`"),
        Column("unit", "counts", "text", lambda one: "multiply-adds" if one["unit"] == "MAC" else "FLOPs"),
        Column("backward", "backward", "text", lambda one: one["backward"] or "not counted"),
    )
    return build("counters", (), columns, counters)


def installation(one: Row) -> str:
    return " ".join(["pip install --no-deps --target DIR", one["package"], *one["needs"]])


def ratios_table(data: Row) -> Table:
    """One row a case, one column a counter."""
    present = [one["name"] for one in data["counters"] if one["version"]]

    def column(name: str) -> Column[Row]:
        return Column(name, name, "traced", lambda case: ratio(case, said(case, name)), share)

    columns: tuple[Column[Row], ...] = (
        Column("case", "case", "text", lambda case: case["id"]),
        *(column(name) for name in present),
    )
    return build("ratios", (), columns, data["cases"])


def truths_table(cases: Sequence[Row]) -> Table:
    """One row a case: what runs, what is counted, and of which kinds."""
    kinds = list(dict.fromkeys(kind for case in cases for kind in case["flops_by_kind"]))

    def kind(name: str) -> Column[Row]:
        return Column(
            name,
            name,
            "counted",
            lambda case: case["flops_by_kind"].get(name, 0) / case["flops"] or None,
            units.percent,
        )

    columns: tuple[Column[Row], ...] = (
        Column("case", "case", "text", lambda case: case["id"]),
        Column("dispatch", "FLOPs that run", "traced", lambda case: case["dispatch_flops"], units.integer),
        Column("unexplained", "unexplained", "traced", unexplained, units.integer),
        Column("executed", "executed", "counted", lambda case: case["executed_flops"], units.integer),
        Column("flops", "the model's", "counted", lambda case: case["flops"], units.integer),
        *(kind(name) for name in kinds),
    )
    return build("truths", (), columns, cases)


def noted(cases: Sequence[Row]) -> list[str]:
    """The rules that stand between what runs and what is counted, a line each."""
    rules = dict.fromkeys(rule for case in cases for rule in case["dispatch_rules"])
    lines = [f"- {rule}" for rule in rules]
    return ["What runs is more or less than what is counted where", "\n".join(lines)] if lines else []


def case_table(case: Row, counters: Sequence[Row], numbers: dict[str, int]) -> Table:
    """One row a counter that was asked."""
    unit = {one["name"]: one["unit"] for one in counters}
    columns: tuple[Column[Row], ...] = (
        Column("name", "counter", "text", lambda one: one["name"]),
        Column("reported", "reports", "traced", lambda one: one["reported"], units.integer),
        Column("unit", "of", "text", lambda one: unit[one["name"]]),
        Column("ratio", "of the truth", "traced", lambda one: ratio(case, one), share),
        Column("explained", "explained", "text", explained),
        Column("why", "rule: what it adds or leaves out", "text", lambda one: why(case, one, numbers)),
        Column("time_s", "time", "measured", lambda one: time(one["time_s"]), units.seconds),
        Column("plain", "× a plain run", "measured", lambda one: times(one["time_s"], case["plain_s"]), units.digits),
        Column("count", "× our count", "measured", lambda one: times(one["time_s"], case["count_s"]), units.digits),
    )
    return build(case["id"], (), columns, case["counters"])


def memory_table(rows: Sequence[Row]) -> Table:
    def off(key: str) -> Column[Row]:
        def difference(row: Row) -> float:
            return row[key] / row["allocator_bytes"] - 1

        return Column(f"{key}_off", "off by", "traced", difference, lambda value: units.percent(value, signed=True))

    columns: tuple[Column[Row], ...] = (
        Column("case", "case", "text", lambda row: row["id"]),
        Column("allocator", "allocator", "measured", lambda row: row["allocator_bytes"], units.integer),
        Column("tracker", "MemTracker", "measured", lambda row: row["tracker_bytes"], units.integer),
        off("tracker_bytes"),
        Column("counted", "ours", "counted", lambda row: row["counted_bytes"], units.integer),
        off("counted_bytes"),
    )
    return build("memory", (), columns, rows)


def sentence(case: Row) -> str:
    """The case's truth and what it takes to know it."""
    plain, ours = (units.seconds(median(case[key])) for key in ("plain_s", "count_s"))
    return f"{units.integer(case['dispatch_flops'])} FLOPs run. A plain run takes {plain}, our count {ours}."


def said(case: Row, name: str) -> Row | None:
    return next((one for one in case["counters"] if one["name"] == name), None)


def unexplained(case: Row) -> int:
    return case["dispatch_flops"] - case["expected_flops"]


def ratio(case: Row, one: Row | None) -> float | None:
    return one["flops"] / case["dispatch_flops"] if one and one["flops"] is not None else None


def explained(one: Row) -> str:
    if one["error"] is not None:
        return f"fails: {one['error']}"
    if one["predicted"] is None:
        return "no rules"
    missed = one["reported"] - one["predicted"]
    return f"no: {missed:+,} beyond the rules" if missed else "to the last FLOP"


def why(case: Row, one: Row, numbers: dict[str, int]) -> str:
    """Rules by number, with what each adds to the truth or leaves out, the largest first."""
    found = sorted(one["differences"].items(), key=lambda item: -abs(item[1]))
    truth = case["dispatch_flops"]
    return ", ".join(f"{numbers[rule]}: {units.percent(flops / truth, signed=True)}" for rule, flops in found)


def numbered(cases: Iterable[Row]) -> dict[str, int]:
    """Every rule, in the order of its first use."""
    rules = dict.fromkeys(rule for case in cases for one in case["counters"] for rule in one["differences"])
    return {rule: number for number, rule in enumerate(rules, start=1)}


def share(value: float) -> str:
    """A ratio to four digits behind the point: most are near 1."""
    return f"{value:.4f}"


def time(samples: Sequence[float]) -> float | None:
    return median(samples) if samples else None


def times(samples: Sequence[float], base: Sequence[float]) -> float | None:
    """How many times the other's median."""
    return median(samples) / median(base) if samples else None
