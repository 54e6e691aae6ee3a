"""Run folders: nothing that was measured is lost, mixed up or written over."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from benchbench.case import Case
from benchbench.errors import BenchError
from benchbench.files import require_writable, whole, write_whole
from benchbench.fingerprint import fingerprint, sources
from benchbench.record import SCHEMA, Protocol, Record
from benchbench.run_folder import RunFolder
from benchbench.specs import preset
from benchbench.store import (
    RECORDS,
    device_name,
    environment_id,
    find,
    key,
    machine_id,
    new_folder,
    read_run,
    runs,
)
from benchbench.suite import Suite

CASE = Case.of(preset("mamba-tiny"), task="prefill", seq_len=8)
SUITE = Suite(name="mine", version=1, about="?", protocol=Protocol(), cases=(CASE,))
ENV = {"device": "cpu", "gpu": None, "git": {"sha": "0123456789", "branch": "main", "dirty": False}, "python": "3.11"}


def record(name: str = "a" * 12, **changes) -> Record:
    fields = {
        "schema": SCHEMA,
        "key": name,
        "suite": "mine",
        "suite_version": 1,
        "case": CASE,
        "status": "ok",
        "protocol": Protocol(),
        "env": environment_id(ENV),
        "started_at": "2026-01-01T00:00:00Z",
        "wall_s": 1.0,
        "host": "h",
    }
    return Record.model_validate(fields | changes)


def held(folder: Path, suites=(SUITE,), env=ENV) -> RunFolder:
    return RunFolder(folder, suites, env)


def test_what_is_appended_is_read_back(tmp_path):
    with held(tmp_path / "run") as folder:
        folder.append(record("a" * 12))
        folder.append(record("b" * 12, status="oom", reason="too large"))
    run = read_run(tmp_path / "run")
    assert [(r.key, r.status) for r in run.records] == [("a" * 12, "ok"), ("b" * 12, "oom")]
    assert run.info.environments == {environment_id(ENV): ENV}
    assert run.notes == ()


def test_a_repeated_key_counts_once_and_both_lines_stay(tmp_path):
    with held(tmp_path / "run") as folder:
        folder.append(record(status="error", reason="why"))
        folder.append(record(status="ok"))
    assert [r.status for r in read_run(tmp_path / "run").records] == ["ok"]
    assert len((tmp_path / "run" / RECORDS).read_text().splitlines()) == 2


def test_a_torn_last_line_is_told_ignored_and_cleared_away_by_the_next_run(tmp_path):
    with held(tmp_path / "run") as folder:
        folder.append(record("a" * 12))
    path = tmp_path / "run" / RECORDS
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    run = read_run(tmp_path / "run")
    assert [r.key for r in run.records] == ["a" * 12]
    assert run.notes == (f"{RECORDS} line 2 is cut short (killed while writing?); that case will be measured again.",)
    with held(tmp_path / "run") as folder:
        assert folder.notes == list(run.notes)
        folder.append(record("b" * 12))
    assert [r.key for r in read_run(tmp_path / "run").records] == ["a" * 12, "b" * 12]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    with held(tmp_path / "run") as folder:
        folder.append(record())
    path = tmp_path / "run" / RECORDS
    path.write_bytes(b"{nonsense\n" + path.read_bytes())
    with pytest.raises(BenchError, match=r"records\.jsonl:1: not JSON"):
        read_run(tmp_path / "run")


def test_records_of_a_newer_schema_are_refused(tmp_path):
    with held(tmp_path / "run") as folder:
        folder.append(record())
    path = tmp_path / "run" / RECORDS
    line = json.loads(path.read_text())
    path.write_text(json.dumps({**line, "schema": SCHEMA + 1, "news": True}) + "\n")
    with pytest.raises(BenchError, match=f"newer benchbench \\(schema {SCHEMA + 1};"):
        read_run(tmp_path / "run")


def test_a_run_json_of_a_newer_schema_is_refused(tmp_path):
    held(tmp_path / "run").close()
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(BenchError, match="newer benchbench"):
        held(tmp_path / "run")


def test_a_folder_of_another_suite_or_version_is_refused(tmp_path):
    held(tmp_path / "run").close()
    other = SUITE.model_copy(update={"name": "other", "version": 3})
    with pytest.raises(BenchError) as caught:
        held(tmp_path / "run", suites=(other,))
    assert caught.value.message == f"{tmp_path / 'run'} holds suite 'mine' v1; you asked for 'other' v3."
    with pytest.raises(BenchError, match="'mine' v1; you asked for 'mine' v2"):
        held(tmp_path / "run", suites=(SUITE.model_copy(update={"version": 2}),))


def test_a_folder_of_another_machine_is_refused(tmp_path):
    held(tmp_path / "run").close()
    with pytest.raises(BenchError, match="another machine"):
        held(tmp_path / "run", env={**ENV, "python": "3.12"})


def test_another_commit_goes_on_in_the_same_folder_and_is_kept_apart(tmp_path):
    later = {**ENV, "git": {"sha": "fedcba9876", "branch": "main", "dirty": True}}
    held(tmp_path / "run").close()
    with held(tmp_path / "run", env=later) as folder:
        assert folder.env == environment_id(later)
    assert read_run(tmp_path / "run").info.environments == {environment_id(ENV): ENV, environment_id(later): later}


def test_two_runs_do_not_share_a_folder(tmp_path):
    with held(tmp_path / "run"), pytest.raises(BenchError, match="another run is writing"):
        held(tmp_path / "run")
    held(tmp_path / "run").close()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(BenchError, match="cannot write to"):
        held(tmp_path / "run")


def test_a_folder_that_cannot_be_made():
    with pytest.raises(BenchError, match="cannot write to '/proc/run'"):
        held(Path("/proc/run"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(BenchError, match=r"is not empty: it holds thesis\.tex"):
        held(tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_what_is_no_run_folder(tmp_path):
    with pytest.raises(BenchError, match="is not a run folder"):
        read_run(tmp_path)


@pytest.mark.parametrize("fault", ["full", "partial"])
def test_a_full_disk_is_told_and_the_records_before_it_stay(tmp_path, monkeypatch, fault):
    real = os.write

    def full(file, data):
        if fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[:10])

    with held(tmp_path / "run") as folder:
        folder.append(record("a" * 12))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(BenchError, match=r"cannot write to .*records\.jsonl"):
                folder.append(record("b" * 12))
        assert [r.key for r in read_run(tmp_path / "run").records] == ["a" * 12]
        folder.append(record("c" * 12))
    run = read_run(tmp_path / "run")
    assert ([r.key for r in run.records], run.notes) == (["a" * 12, "c" * 12], ())


def test_the_latest_folder_of_the_same_suite_and_machine_is_found(tmp_path):
    held(tmp_path / "a").close()
    held(tmp_path / "b").close()
    held(tmp_path / "c", env={**ENV, "python": "3.12"}).close()
    held(tmp_path / "d", suites=(SUITE.model_copy(update={"version": 2}),)).close()
    for number, name in enumerate("abcd"):
        path = tmp_path / name / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "created": f"2026-01-0{number + 1}"}))
    assert [folder.name for folder in runs(tmp_path)] == ["a", "b", "c", "d"]
    assert find([SUITE], machine_id(ENV), tmp_path) == tmp_path / "b"
    assert find([SUITE], "elsewhere", tmp_path) is None


def test_new_folders_have_names_of_their_own(tmp_path):
    first = new_folder(ENV, tmp_path)
    assert first.name.endswith("-cpu-0123456")
    first.mkdir()
    assert new_folder(ENV, tmp_path).name == f"{first.name}-2"


def test_devices_are_named_for_file_names():
    assert device_name({"device": "cuda", "gpu": {"name": "NVIDIA H200 (x)"}}) == "nvidia-h200-x"


def test_a_key_changes_with_everything_that_makes_it_another_measurement():
    machine = machine_id(ENV)
    same = key(CASE, Protocol(), SUITE, machine, "s")
    assert same == key(CASE.replace(), Protocol(), SUITE, machine, "s")
    assert len(same) == 12
    others = {
        key(CASE.replace(seq_len=9), Protocol(), SUITE, machine, "s"),
        key(CASE, Protocol(min_samples=7), SUITE, machine, "s"),
        key(CASE, Protocol(), SUITE.model_copy(update={"version": 2}), machine, "s"),
        key(CASE, Protocol(), SUITE, "elsewhere", "s"),
        key(CASE, Protocol(), SUITE, machine, "edited"),
    }
    assert len({same, *others}) == 6


def test_the_commit_alone_does_not_change_the_machine():
    assert machine_id(ENV) == machine_id({**ENV, "git": None})
    assert environment_id(ENV) != environment_id({**ENV, "git": None})


def test_sources_of_a_family_are_its_module_what_it_imports_and_its_task():
    names = {path.name for path in sources("mamba", "prefill", "chunked")}
    assert {"base.py", "mamba.py", "selective_scan.py", "prefill.py"} <= names
    assert not names & {"transformer.py", "resnet_bk.py", "resolvent.py", "train.py", "decode.py"}


def test_what_builds_and_captures_is_among_the_sources():
    plain, graph = (
        {path.parent.name + "/" + path.name for path in sources("mamba", "decode", one)} for one in ("fused", "graph")
    )
    assert "models/__init__.py" in plain
    assert graph - plain == {"tasks/graph.py"}


@pytest.mark.parametrize("family", ["mamba", "resnet-bk"])
def test_the_sources_of_a_family_have_every_kernel_that_they_launch(family: str):
    found = sources(family, "prefill", "triton")
    launched = {f"{name}.py" for path in found for name in re.findall(r'"(\w+_kernels\w*)"', path.read_text("utf-8"))}
    assert launched
    assert launched <= {path.name for path in found}


def test_editing_one_model_makes_its_own_measurements_old_and_no_others(monkeypatch):
    before = {family: fingerprint(family, "prefill", "chunked") for family in ("mamba", "transformer", "resnet-bk")}
    real = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: real(path) + (b"#" if path.name == "selective_scan.py" else b"")
    )
    after = {family: fingerprint(family, "prefill", "chunked") for family in before}
    assert {family for family in before if before[family] != after[family]} == {"mamba"}


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(BenchError, match="is no run folder and is not empty: it holds mine"):
        held(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    require_writable(tmp_path / "a" / "b")
    require_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match=r"cannot write to '.*file/a': Not a directory"):
        require_writable(tmp_path / "file" / "a")


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new" / "file"
    write_whole(path, "first")

    def half():
        with whole(path) as draft:
            draft.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
    write_whole(Path(os.devnull), "dropped")
    assert not Path(os.devnull).is_file()


def test_commands_are_kept_each_once_where_all_are_known(tmp_path):
    with held(tmp_path / "run") as folder:
        for command in ("a", "b", "a", ""):
            folder.note(command)
    assert read_run(tmp_path / "run").info.commands == ("a", "b")
    path = tmp_path / "run" / "run.json"
    before = {name: value for name, value in json.loads(path.read_text()).items() if name != "commands"}
    path.write_text(json.dumps(before))
    with held(tmp_path / "run") as folder:
        folder.note("b")
    assert read_run(tmp_path / "run").info.commands is None


def test_a_folder_whose_run_was_killed_before_it_was_described_is_taken(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "run.json.tmp").write_text("{")
    held(tmp_path).close()
    assert read_run(tmp_path).records == ()
    assert not (tmp_path / "run.json.tmp").exists()
