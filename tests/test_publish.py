from pathlib import Path

import pytest
from records import ENVIRONMENT, counted, record, steady

from benchbench.errors import BenchError
from benchbench.publish import index, publish, with_index
from benchbench.report import Results

RESULTS = Path(__file__).parents[1] / "results"
README = "Before.\n<!-- runs: written by benchbench report -->\nold\n<!-- end of runs -->\nAfter.\n"


def results(**environment):
    records = (
        record("mamba-tiny", 512, steady(0.5), cost=counted(400)),
        record("mamba-tiny", 1024, cost=counted(800), status="skipped", reason="no time"),
    )
    return Results({"e1": {**ENVIRONMENT, **environment}}, records)


def dirty():
    return results(git={"sha": "9" * 40, "branch": "main", "dirty": True})


def test_files_are_named_after_suite_and_device(tmp_path):
    (tmp_path / "README.md").write_text(README)
    written = publish(results(), tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "tiny/cpu-2-cores-intel-xeon.md",
        "tiny/cpu-2-cores-intel-xeon.json",
        "README.md",
    ]


def test_the_readme_lists_what_there_is_and_keeps_what_is_around_it(tmp_path):
    (tmp_path / "README.md").write_text(README)
    publish(results(), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("Before.\n<!-- runs")
    assert text.endswith("<!-- end of runs -->\nAfter.\n")
    row = [cell.strip() for cell in text.splitlines()[5].strip("|").split("|")]
    assert row == [
        "tiny",
        "2026-11-22",
        "Intel(R) Xeon(R) Processor @ 2.60GHz (8.00 GiB)",
        "4be1c02",
        "2.13.0",
        "1 ok, 1 skipped",
        "[cpu-2-cores-intel-xeon](tiny/cpu-2-cores-intel-xeon.md)",
    ]


def test_the_same_records_are_written_to_the_same_bytes(tmp_path):
    (tmp_path / "README.md").write_text(README)
    first = {path: path.read_bytes() for path in publish(results(), tmp_path)}
    assert {path: path.read_bytes() for path in publish(results(), tmp_path)} == first


def test_uncommitted_changes_are_refused_unless_they_are_asked_for(tmp_path):
    with pytest.raises(BenchError, match=r"uncommitted changes: 9999999 \(dirty\)"):
        publish(dirty(), tmp_path)
    assert not list(tmp_path.iterdir())
    table, *_ = publish(dirty(), tmp_path, allow_dirty=True)
    assert "commit 9999999 (dirty)" in table.read_text("utf-8").splitlines()[2]


def test_machines_of_one_name_are_drawn_apart(tmp_path):
    pytest.importorskip("matplotlib")
    environments = {"e1": ENVIRONMENT, "e2": {**ENVIRONMENT, "packages": {"torch": "2.14.0"}}}
    both = Results(environments, (*results().records, record("mamba-tiny", 512, steady(0.4), env="e2", key="other")))
    names = [path.name.removeprefix("cpu-2-cores-intel-xeon") for path in publish(both, tmp_path, plot=True)]
    assert names == [".md", ".json", ".svg", ".png", "-2.svg", "-2.png"]


def test_an_empty_folder_has_no_results(tmp_path):
    assert index(tmp_path) == "No results yet."


def test_the_committed_readme_lists_the_committed_results():
    readme = (RESULTS / "README.md").read_text("utf-8")
    assert with_index(readme, RESULTS) == readme
