"""The README is true: its numbers are the committed results', its files exist, its commands parse."""

import importlib
import re
import shlex
import sys
from pathlib import Path
from statistics import median

import click
import pytest
from click.testing import CliRunner

from benchbench.__main__ import cli
from benchbench.devices import device
from benchbench.report import load

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/bench"))
time_model = importlib.import_module("time_model")
README = (ROOT / "README.md").read_text("utf-8")
PROMPT = ("prefill", 2048, "graph")
RESULT = re.search(r"\]\((results/[\w./-]+\.md)\)", README)


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every pipe table as rows of cells by header."""
    found: list[list[dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in block.splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def test_the_table_is_the_results() -> None:
    assert RESULT
    section = (ROOT / RESULT[1]).read_text("utf-8").split("## prefill")[1].split("\n## ")[0]
    known = {(row["N"], row["model"], row["path"]): row for row in tables(section)[0]}
    shown = next(table for table in tables(README) if "N" in table[0])
    assert len(shown) >= 9
    for row in shown:
        assert row.items() <= known[row["N"], row["model"], row["path"]].items()


def test_every_sentence_quoted_from_the_results_is_theirs() -> None:
    assert RESULT
    published = (ROOT / RESULT[1]).read_text("utf-8")
    quoted = re.findall(r"^> (.+)$", README, re.MULTILINE)
    assert quoted
    for sentence in quoted:
        assert f"- {sentence}\n" in published


def test_throughput_from_graphs_is_that_of_the_records() -> None:
    records = load(ROOT / "results/long-context/nvidia-h200.json").records
    graphs = {r.case.model: r.tokens_per_s for r in records if (r.case.task, r.case.seq_len, r.path) == PROMPT}
    bk, transformer = (graphs[name] for name in ("resnet-bk-130m", "transformer-130m"))
    assert bk
    assert transformer
    said = f"reads {bk / 1e3:.0f}k a second, and the Transformer of as many parameters {transformer / 1e3:.0f}k."
    assert said in README.replace("\n", " ")


def test_times_are_predicted_as_well_as_it_says() -> None:
    suites = sorted((ROOT / "results").glob("*/nvidia-h200.json"))
    records = [record for path in suites for record in load(path).records]
    on = device(str(ROOT / "results/devices/nvidia-h200.toml"))
    errors = [abs(row.error) for row in time_model.rows(records, on)]
    within = sum(error <= 0.25 for error in errors)
    said = (
        f"of {len(errors)} times in {len(suites)} suites the median is {100 * median(errors):.1f} % off, "
        f"and {within} are within 25 %"
    )
    assert said in README.replace("\n", " ")
    # What the time model is held to.
    assert median(errors) <= 0.10
    assert within >= 0.9 * len(errors)


def test_every_linked_file_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


COMMANDS = [line.split("#")[0] for line in re.findall(r"^benchbench .+$", README, re.MULTILINE)]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    verb, *arguments = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    if any(argument.isupper() for argument in arguments) or "DEVICE" in line:
        return  # stands for a name of the reader's
    command.make_context(verb, arguments)
    assert CliRunner().invoke(cli, [verb, "--help"]).exit_code == 0
