import errno
import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from records import ENVIRONMENT, counted, record, steady
from rich.console import Console

from benchbench import report
from benchbench.columns import ordered
from benchbench.commands.report import command
from benchbench.errors import BenchError
from benchbench.record import Protocol, Record
from benchbench.report import Results, as_csv, as_json, as_latex, as_markdown, load, print_run, render, write, write_run
from benchbench.store import RunInfo, canonical, machine_id
from benchbench.suite import load as load_suite

SCHEMA = Path(__file__).parents[1] / "results" / "schema.json"


def results():
    """Two models at two lengths and two tasks: measured, skipped and unsupported."""
    return Results(
        {"e1": ENVIRONMENT},
        (
            record("transformer-tiny", 512, steady(0.25), cost=counted(500)),
            record("mamba-tiny", 1024, steady(0.75), cost=counted(1000)),
            record("mamba-tiny", 512, steady(0.5), cost=counted(400)),
            record("transformer-tiny", 1024, cost=counted(1500), status="skipped", reason="predicted 40 s, 4 s left"),
            record("gpt2", 2048, status="unsupported", reason="gpt2 has learned positions for 1024 tokens"),
            record("mamba-tiny", 512, steady(0.004), task="decode", cost=counted(10, state_bytes=2**20)),
        ),
    )


def committed(tmp_path, found):
    path = tmp_path / "found.json"
    path.write_text(as_json(found), "utf-8")
    return path


def measured_by(found, *commands):
    return replace(found, environments={"e1": {**ENVIRONMENT, "commands": list(commands)}})


def test_every_table_follows_where_how_and_the_command():
    parts = as_markdown(measured_by(results(), "benchbench run --suite tiny.toml --device cpu")).split("\n\n")
    tables = [i for i, part in enumerate(parts) if part.startswith("|")]
    assert len(tables) == 3  # parameters, prefill, decode
    for i in tables:
        lines = parts[i - 1].splitlines()
        assert [line.split(":")[0] for line in lines] == ["Environment", "Protocol", "Reproduce"]
        assert parts[i - 2].startswith("#")
        assert parts[i + 1].startswith("- ")


def suite_records(name):
    suite = load_suite(name)
    return tuple(record(suite=name, protocol=suite.protocol, key=c.id).replace(case=c) for c in suite.cases)


def test_a_command_is_named_that_measures_just_what_is_shown():
    whole = Results({"e1": ENVIRONMENT}, suite_records("smoke"))
    said = "Reproduce: `benchbench run --suite smoke --device cpu` (version 1 of the suite)"
    assert as_markdown(whole).count(said) == as_markdown(whole).count("Protocol: ") > 1
    for part in (
        replace(whole, records=whole.records[1:]),
        replace(whole, records=tuple(r.replace(protocol=Protocol.model_validate({})) for r in whole.records)),
        results(),  # of a suite that is not benchbench's
    ):
        assert "Reproduce" not in as_markdown(part)
        assert "which command measured these cases of it is not known" in as_markdown(part)
    chosen = measured_by(replace(whole, records=whole.records[1:]), "benchbench run --suite smoke -k x", "b")
    assert "Reproduce: `benchbench run --suite smoke -k x`, then `b` (version 1 of" in as_markdown(chosen)


def test_commands_are_published_and_part_no_machine(tmp_path):
    info = {"commands": ["benchbench run --suite tiny.toml --seq-len 512 --device cpu"]}
    found = load(run_folder(tmp_path, results(), **info))
    assert found.environments["e1"] == {**ENVIRONMENT, **info}
    assert machine_id(found.environments["e1"]) == machine_id(ENVIRONMENT)
    assert as_markdown(load(committed(tmp_path, found))) == as_markdown(found)


def test_the_order_of_the_records_changes_no_byte(tmp_path):
    found = results()
    turned = replace(found, records=tuple(reversed(found.records)))
    for form in (as_markdown, as_json, as_csv, as_latex):
        assert form(turned) == form(found)
    again = load(committed(tmp_path, found))
    assert as_markdown(again) == as_markdown(found)
    assert as_json(again) == as_json(found)


def test_the_committed_form_holds_environments_and_records_alone():
    data = json.loads(as_json(results()))
    assert data.keys() == {"environments", "records"}
    assert data["environments"] == {"e1": ENVIRONMENT}
    assert [Record.model_validate(line) for line in data["records"]] == ordered(results().records)


def test_a_hundred_columns_hold_every_line():
    console = Console(width=100, file=StringIO(), record=True)
    render(results(), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    for name in ("transformer-tiny", "unsupported", "ms/token", "measured", "counted"):
        assert any(name in line for line in lines), name


def test_one_machine_with_two_commits_is_one_document_and_two_machines_are_not():
    later = {**ENVIRONMENT, "git": {"sha": "9" * 40, "branch": "main", "dirty": False}}
    other = {**ENVIRONMENT, "packages": {"torch": "2.14.0"}}
    records = (record("mamba-tiny", 512), record("mamba-tiny", 1024, env="e2", key="k"))
    assert as_markdown(Results({"e1": ENVIRONMENT, "e2": later}, records)).count("\n## ") == 1
    assert as_markdown(Results({"e1": ENVIRONMENT, "e2": other}, records)).count("\n## ") == 2


def test_counted_crossings_are_located_by_the_cost_model():
    from benchbench.case import Case
    from benchbench.counters import count
    from benchbench.specs import preset

    def cost(model, n):
        return count(Case.of(preset(model), task="decode", seq_len=n)).counted

    # A cache that grows beside a state that does not: the transformer's state starts smaller and ends larger.
    assert cost("transformer-tiny", 1).state_bytes < cost("mamba-tiny", 1).state_bytes
    assert cost("transformer-tiny", 512).state_bytes > cost("mamba-tiny", 512).state_bytes
    first = min(n for n in range(1, 513) if cost("transformer-tiny", n).state_bytes > cost("mamba-tiny", n).state_bytes)
    models = ("mamba-tiny", "transformer-tiny")
    records = tuple(record(m, n, task="decode", cost=cost(m, n)) for m in models for n in (1, 512))
    said = as_markdown(Results({"e1": ENVIRONMENT}, records))
    assert f"Counted state: mamba-tiny overtakes transformer-tiny at N={first}, counted to the token." in said


def run_folder(folder, found, **more):
    """A run folder that holds these results, the last record of them cut short."""
    info = RunInfo.model_validate(
        {
            "benchbench": "0.1.0",
            "created": "2026-11-22T04:00:00Z",
            "machine": machine_id(ENVIRONMENT),
            "device": "cpu",
            "suites": {},
            "environments": found.environments,
            **more,
        }
    )
    lines = [canonical(one.to_json()) for one in found.records]
    (folder / "run.json").write_text(info.model_dump_json(by_alias=True))
    (folder / "records.jsonl").write_text("\n".join([*lines, lines[0][:99]]))
    return folder


def test_a_run_folder_gets_its_tables(tmp_path):
    written = write_run(run_folder(tmp_path, results()))
    assert [path.name for path in written] == ["tiny.md", "tiny.json"]
    assert written[0].read_text("utf-8") == as_markdown(load(written[1]))
    assert load(written[1]).records == tuple(ordered(results().records))


def test_a_run_folder_is_printed(tmp_path):
    console = Console(width=120, file=StringIO(), record=True)
    print_run(run_folder(tmp_path, results()), console)
    said = " ".join(console.export_text().split())
    assert "Measured time: faster at N=512, the only length both have: transformer-tiny than mamba-tiny." in said
    assert "transformer-tiny is skipped at 1 of 2 lengths, first at N=1,024: predicted 40 s, 4 s left." in said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "is not a file of results"),
        ('{"records": []}', "is not a file of results"),
        ('{"environments": {}, "records": [{"schema": 99}]}', "record 0: written by a newer benchbench"),
        ('{"environments": {}, "records": "x"}', "records: expected a list"),
        ('{"environments": [], "records": []}', "environments: expected an object"),
        ('{"environments": {}, "records": [1, 2]}', r"found\.json: record 0: expected a JSON object"),
        ('{"environments": {}, "records": [{"kee": 1}]}', "record 0"),
    ],
)
def test_a_file_of_something_else(tmp_path, text, complaint):
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=complaint):
        load(path)


@pytest.mark.parametrize(
    ("environments", "complaint"),
    [
        ({}, "a record names the environment 'e1'"),
        ({"e1": {}}, "environment 'e1' has no 'cpu'"),
        ({"e1": 3}, "environment 'e1' is not as a worker describes one"),
    ],
)
def test_environments_are_there_and_whole(tmp_path, environments, complaint):
    path = committed(tmp_path, results())
    path.write_text(json.dumps({**json.loads(path.read_text()), "environments": environments}))
    with pytest.raises(BenchError, match=complaint):
        load(path)


def test_a_family_of_another_version_is_told_with_its_place(tmp_path):
    path = committed(tmp_path, results())
    path.write_text(path.read_text().replace('"family": "mamba"', '"family": "rwkv"'))
    with pytest.raises(BenchError, match=r"found\.json: record \d: no family 'rwkv'"):
        load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BenchError, match="cannot read"):
        load(tmp_path / "none.json")


def test_the_committed_schema_is_the_one_of_the_types():
    assert SCHEMA.read_text("utf-8") == report.schema(), "benchbench report --schema > results/schema.json"


def test_the_schema_allows_what_records_hold():
    drawn = json.loads(report.schema())
    written = results().records[0].to_json()
    assert written.keys() <= drawn["properties"].keys()
    for name in ("Case", "Counted", "Measured", "Protocol"):
        assert written[name.lower()].keys() <= drawn["$defs"][name]["properties"].keys()
    assert drawn["$defs"]["ModelSpec"]["additionalProperties"]  # n_heads and the like are of a family


def test_the_command_prints_each_format(tmp_path):
    path = str(committed(tmp_path, results()))

    def printed(*arguments):
        done = CliRunner().invoke(command, [path, *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    assert json.loads(printed("--format", "json")).keys() == {"environments", "records"}
    assert printed("--format", "md") == as_markdown(results())
    assert printed("--format", "csv").startswith("suite,device,task,dtype,batch,optimizer,ways,n,model,counted_flops,")
    assert r"\begin{tabular}" in printed("--format", "latex")
    assert "Environment:" in printed()
    # Into a pipe nothing is cut or wrapped.
    (line,) = {one for one in printed().splitlines() if one.startswith("Protocol:")}
    assert line.endswith("± is that half interval")


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    stem = tmp_path / "page"
    write(stem, results())
    before = stem.with_suffix(".json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match=r"cannot write to '.*page\.md': No space left on device\."):
        write(stem, replace(results(), records=results().records[:1]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.json", "page.md"]
    assert stem.with_suffix(".json").read_bytes() == before


def test_the_command_prints_the_schema():
    assert CliRunner().invoke(command, ["--schema"]).stdout == report.schema()


@pytest.mark.parametrize(
    ("arguments", "complaint"), [([], "report needs a run"), (["x.json", "--plot"], "--plot goes with --out")]
)
def test_what_the_command_does_not_understand(arguments, complaint):
    with pytest.raises(BenchError, match=complaint):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
