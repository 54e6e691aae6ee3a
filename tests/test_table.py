import csv
from io import StringIO
from typing import Any

from rich.console import Console

from benchbench import table
from benchbench.table import Column, build


def small(detail=0):
    items = [(512, "mamba", 1.5, None, "ok", ""), (512, "gpt2", 20.0, 0.25, "skipped", "no time | left")]
    columns: tuple[Column[tuple[Any, ...]], ...] = (
        Column("n", "N", "text", lambda item: item[0]),
        Column("model", "model", "text", lambda item: item[1]),
        Column("counted_flops", "GFLOP", "counted", lambda item: item[2], "{:.1f}".format),
        Column("measured_time_s", "time", "measured", lambda item: item[3], "{:.2f} s".format, detail=detail),
        Column("status", "status", "text", lambda item: item[4], note=lambda item: item[5]),
    )
    return build("a table", [("task", "prefill")], columns, items)


def printed(drawn, width):
    console = Console(width=width, file=StringIO(), record=True)
    for piece in table.terminal(drawn, console):
        console.print(piece)
    return console.export_text()


def test_markdown_says_in_the_header_what_was_counted_and_what_measured():
    assert table.markdown(small()).splitlines() == [
        "|   N | model   |   GFLOP (counted) |   time (measured) | status                   |",
        "|----:|:--------|------------------:|------------------:|:-------------------------|",
        "| 512 | mamba   |               1.5 |                 — | ok                       |",
        "| 512 | gpt2    |              20.0 |            0.25 s | skipped: no time \\| left |",
    ]


def test_the_terminal_has_a_header_of_two_levels_and_numbers_the_reasons():
    lines = [line.rstrip() for line in printed(small(), 80).splitlines()]
    assert lines == [
        "          counted measured",
        "  N model   GFLOP     time status",
        "─" * 38,  # 3 + 5 + 7 + 8 + 11 and four gaps of 1
        "512 mamba     1.5        — ok",
        "    gpt2     20.0   0.25 s skipped (1)",
        "(1) no time | left.",
    ]


def test_a_narrow_terminal_leaves_out_details_and_says_so():
    wide, narrow = printed(small(detail=1), 80), printed(small(detail=1), 32)
    assert "0.25 s" in wide
    assert "0.25 s" not in narrow
    assert "Too narrow for: time (measured)" in narrow.replace("\n", " ")
    assert "…" not in narrow


def test_what_to_do_is_the_callers_to_say():
    console = Console(width=32, file=StringIO())
    assert table.terminal(small(detail=1), console, "Look there.")[-1].endswith("Look there.")


def test_csv_holds_plain_values_and_leaves_absent_ones_empty():
    rows = list(csv.DictReader(StringIO(table.csv([small(), small()]))))
    assert len(rows) == 4
    assert rows[0] == {
        "task": "prefill",
        "n": "512",
        "model": "mamba",
        "counted_flops": "1.5",
        "measured_time_s": "",
        "status": "ok",
        "reason": "",
    }
    assert rows[1]["reason"] == "no time | left"


def test_latex_groups_the_columns_by_kind_and_escapes():
    columns: tuple[Column[str], ...] = (Column("a", "±", "measured", str), Column("b", "x_y", "text", str))
    drawn = table.latex(build("t", (), columns, ["5%"]))
    assert r"measured &  \\" in drawn
    assert r"$\pm$ & x\_y \\" in drawn
    assert r"5\% & 5\% \\" in drawn


def test_what_is_still_too_wide_folds_its_texts_and_then_loses_numbers():
    columns: tuple[Column[int], ...] = (
        Column("case", "case", "text", lambda item: "transformer-130m/prefill/N2048"),
        Column("a", "a", "counted", lambda item: item, lambda value: f"{value:012d}"),
        Column("b", "b", "counted", lambda item: item, lambda value: f"{value:012d}"),
    )
    drawn = build("a table", (), columns, [7])
    folded = printed(drawn, 40)  # 40 - 2 · 13 leave 14 for the text of 30
    assert folded.count("000000000007") == 2
    assert "".join(line.split(" ")[0] for line in folded.splitlines()[3:]) == "transformer-130m/prefill/N2048"
    narrow = printed(drawn, 30)  # 30 - 13 - 13 is less than 10
    assert narrow.count("000000000007") == 1
    assert "Too narrow for: b (counted)" in narrow.replace("\n", " ")
    assert "…" not in folded + narrow
