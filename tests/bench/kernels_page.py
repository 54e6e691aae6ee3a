"""The page results/kernels.md, from what the scripts of our kernels print on a GPU.

    python tests/bench/kernel_resnet_bk.py --only sizes > resolvent.jsonl
    python tests/bench/kernel_selective_scan.py --compare > scan.jsonl
    python tests/bench/kernels_page.py --commit COMMIT resolvent.jsonl scan.jsonl

Writes results/kernels.json, which holds those lines as they are, and the page beside it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchbench import units
from benchbench.table import Column, Table, build, markdown

Row = dict[str, Any]

RESULTS = Path(__file__).parents[2] / "results"
MANY, MILLION = 2**24, 2**20
"""Positions."""

INTRODUCTION = """\
Our Triton kernels, alone: the resolvent of ResNet-BK beside a copy of the bytes that it must read and write, and the
selective scan of Mamba beside mamba-ssm's. Made by `python tests/bench/kernels_page.py`; every number is measured."""

RESOLVENT = """\
The left fraction is the causal form, the two-sided one is exact. Times are medians of CUDA events, each after 256 MB of
zeros have been written, so that nothing is left in the L2 cache. **Of a copy** is the time in which torch copies as
many bytes, over the kernel's: 1 is as fast as a copy."""

SCAN = """\
bfloat16, 16 states, calls as a model makes them, each in its own layout: ours (B, L, D), mamba-ssm's (B, D, L). The two
take turns, the device is waited for after each; medians of CUDA events, so what the host needs before its first kernel
is in them: short sequences measure that. **Ratio** is mamba-ssm's time over ours. What bounds ours is derived in
`models/selective_scan_kernels.py`, and `kernel_selective_scan.py --profile` measures it."""

REPRODUCE = (
    "Reproduce: `python tests/bench/kernel_resnet_bk.py --only sizes > resolvent.jsonl`, "
    "`python tests/bench/kernel_selective_scan.py --compare > scan.jsonl`, "
    "`python tests/bench/kernels_page.py --commit COMMIT resolvent.jsonl scan.jsonl`"
)


def as_markdown(data: Row) -> str:
    """The page."""
    resolvent = [line for line in data["lines"] if line.get("section") == "sizes"]
    scan = [line for line in data["lines"] if line.get("kind") == "compare" and "ours" in line]
    parts = [
        "# Kernels",
        INTRODUCTION,
        f"Environment: {data['device']} · torch {data['torch']} · commit {data['commit']}  \n{REPRODUCE}",
        "## Resolvent",
        RESOLVENT,
        "\n".join(resolvent_sentences(resolvent)),
        markdown(resolvent_table(resolvent)),
        "## Selective scan",
        SCAN,
        "\n".join(scan_sentences(scan)),
        markdown(scan_table(scan)),
    ]
    return "\n\n".join(parts) + "\n"


def named(line: Row) -> str:
    """left_fraction_forward as "left fraction, forward"."""
    form, _, phase = line["kernel"].rpartition("_")
    return f"{form.replace('_', ' ')}, {phase}"


def resolvent_sentences(lines: Sequence[Row]) -> list[str]:
    forward = [line for line in lines if line["kernel"].endswith("forward")]
    many = [line["copy_ratio"] for line in forward if line["batch"] * line["length"] >= MANY]
    one = [line["time_s"] for line in forward if line["batch"] * line["length"] == MILLION]
    return [
        f"- Forward, from {MANY:,} positions on: {units.percent(min(many))} to {units.percent(max(many))} of a copy.",
        f"- Forward, {MILLION:,} positions: {units.seconds(min(one))} to {units.seconds(max(one))}.",
    ]


def resolvent_table(lines: Sequence[Row]) -> Table:
    columns: tuple[Column[Row], ...] = (
        Column("kernel", "kernel", "text", named),
        Column("dtype", "dtype", "text", lambda line: line["dtype"]),
        Column("batch", "batch", "text", lambda line: line["batch"], units.integer),
        Column("n", "positions a row", "text", lambda line: line["length"], units.integer),
        Column("time_s", "time", "measured", lambda line: line["time_s"], units.seconds),
        Column("bytes_per_s", "bytes a second", "measured", lambda line: line["bytes_per_s"], units.size),
        Column("copy_ratio", "of a copy", "measured", lambda line: line["copy_ratio"], units.percent),
    )
    return build("resolvent", (), columns, lines)


def ratio(line: Row) -> float:
    return line["mamba_ssm"] / line["ours"]


def scan_sentences(lines: Sequence[Row]) -> list[str]:
    found: list[str] = []
    for what in dict.fromkeys(line["what"] for line in lines):
        long = [ratio(line) for line in lines if line["what"] == what and line["batch"] * line["length"] >= 2**17]
        least, most = (units.digits(value) for value in (min(long), max(long)))
        found.append(
            f"- {what.capitalize()}, from {2**17:,} tokens on: {least} to {most} times as fast as mamba-ssm, median "
            f"{units.digits(median(long))}."
        )
    return found


def scan_table(lines: Sequence[Row]) -> Table:
    columns: tuple[Column[Row], ...] = (
        Column("what", "pass", "text", lambda line: line["what"]),
        Column("batch", "batch", "text", lambda line: line["batch"], units.integer),
        Column("n", "tokens", "text", lambda line: line["length"], units.integer),
        Column("channels", "channels", "text", lambda line: line["channels"], units.integer),
        Column("ours_s", "ours", "measured", lambda line: line["ours"] / 1e3, units.seconds),
        Column("mamba_ssm_s", "mamba-ssm", "measured", lambda line: line["mamba_ssm"] / 1e3, units.seconds),
        Column("ratio", "ratio", "measured", ratio, units.digits),
    )
    return build("selective scan", (), columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", required=True, help="of the kernels that were measured")
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    lines = [json.loads(line) for path in given.files for line in path.read_text("utf-8").splitlines() if line]
    devices = {(line["name"], line["torch"]) for line in lines if "torch" in line}
    if len(devices) != 1:
        parser.error(f"the lines are of {len(devices)} devices or versions, not of one")
    ((device, torch),) = devices
    kept = [line for line in lines if "torch" not in line]
    data = {"device": device, "torch": torch, "commit": given.commit, "lines": kept}
    shown = ",\n".join(json.dumps(line) for line in kept)
    head = ", ".join(f'"{key}": {json.dumps(data[key])}' for key in ("device", "torch", "commit"))
    (RESULTS / "kernels.json").write_text(f'{{{head}, "lines": [\n{shown}\n]}}\n', "utf-8")
    (RESULTS / "kernels.md").write_text(as_markdown(data), "utf-8")


if __name__ == "__main__":
    main()
