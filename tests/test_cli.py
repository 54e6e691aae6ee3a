"""The command line: what a user sees who does something wrong, and what completes."""

import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

import benchbench
from benchbench import launch
from benchbench.__main__ import SUMMARIES, cli, main
from benchbench.case import Case
from benchbench.commands import run as run_verb
from benchbench.errors import BenchError
from benchbench.selection import Wishes, select
from benchbench.specs import preset
from benchbench.store import read_run, runs
from benchbench.suite import load

FAKE = Path(__file__).parent / "fake_worker.py"
RESULT = str(Path(__file__).parents[1] / "results" / "memory" / "nvidia-h200.json")
SUITE = """
name = "mine"
version = 1
about = "?"
[protocol]
budget_s = 100
[[cases]]
task = "prefill"
model = ["mamba-tiny", "transformer-tiny"]
seq_len = [64, 128]
[[cases]]
task = "train"
model = "mamba-tiny"
seq_len = 64
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with mine.toml, and the fake worker, which plays a CPU, in place of the real one."""
    monkeypatch.setattr(run_verb, "default_device", lambda: "cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(SUITE)
    (tmp_path / "script.json").write_text("{}")
    program = (sys.executable, str(FAKE), "--script", str(tmp_path / "script.json"))
    monkeypatch.setattr(launch, "PROGRAM", program)
    return tmp_path


def failure(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, first and second line of stderr; stdout must stay empty."""
    code = main(words)
    out, err = capsys.readouterr()
    assert out == ""
    first, _, second = err.rstrip("\n").partition("\n")
    return code, first, second


def ids(place: Path, *words: str) -> set[str]:
    """The cases that `run --suite mine.toml` with these options leaves records of."""
    assert main(["run", "--suite", "mine.toml", "-q", "--fresh", *words]) == 0
    return {record.case.id for record in read_run(runs()[-1]).records}


@pytest.mark.parametrize("verb", list(SUMMARIES))
def test_the_summary_of_a_verb_is_its_own(verb):
    command = import_module(f"benchbench.commands.{verb}").command
    assert command.get_short_help_str(200) == SUMMARIES[verb]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"benchbench {benchbench.__version__}\n"


def test_help_lists_every_verb(capsys):
    assert main(["-h"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in SUMMARIES)


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (["rnu"], "benchbench: no verb 'rnu'. Did you mean 'run'?", "Verbs: run, "),
        (
            ["run", "--suit", "smoke"],
            "benchbench: no option '--suit'. Did you mean '--suite'?",
            "See: benchbench run",
        ),
        (["run"], "benchbench: Missing option '--suite'.", "See: benchbench run -h"),
        (["run", "--suite", "smok"], "benchbench: no suite 'smok'. Did you mean 'smoke'?", "Suites: "),
        (
            ["run", "--suite", "smoke", "--model", "mamba-130"],
            "benchbench: no model 'mamba-130'. Did you mean 'mamba-130m'?",
            "See: benchbench list models",
        ),
        (
            ["run", "--suite", "smoke", "--task", "tran"],
            "benchbench: Invalid value for '--task': 'tran' is not one of 'prefill', 'decode', 'train', 'core'.",
            "See: benchbench run -h",
        ),
        (
            ["run", "--suite", "smoke", "--seq-len", "7"],
            "benchbench: no case with seq_len 7 in what was asked for.",
            "There is 128, 512.",
        ),
        (
            ["run", "--suite", "smoke", "-k", "nothing"],
            "benchbench: no case is left by -k 'nothing'.",
            "Cases have names",
        ),
        (
            ["run", "--suite", "smoke", "-k", "a and"],
            "benchbench: -k 'a and': a word is missing at the end.",
            "Write words",
        ),
        (
            ["run", "--suite", "smoke", "--set", "protocol.min_samples=three"],
            'benchbench: --set protocol.min_samples=three: min_samples = "three": expected a whole number.',
            "",
        ),
        (
            ["run", "--suite", "smoke", "--set", "protocol.min_sample=3"],
            "benchbench: --set protocol.min_sample=3: no setting 'protocol.min_sample'. "
            "Did you mean 'protocol.min_samples'?",
            "Known: ",
        ),
        (
            ["run", "--suite", "smoke", "--set", "batch=0"],
            "benchbench: --set batch=0: batch = 0: expected more than 0.",
            "",
        ),
        (
            ["run", "--suite", "smoke", "--set", "d_state=4"],
            "benchbench: --set d_state=4: transformer-tiny has no key 'd_state'.",
            "Keys: ",
        ),
        (
            ["run", "--suite", "smoke", "--model", "transformer-tiny", "--set", "d_model=66"],
            "benchbench: --set d_model=66: d_model 66 is not divisible by n_heads 4",
            "",
        ),
        (
            ["run", "--suite", "smoke", "--model", "transformer-tiny", "--set", "dropout=1.0"],
            "benchbench: --set dropout=1.0: dropout = 1.0: expected less than 1.",
            "",
        ),
        (
            ["run", "--suite", "smoke", "--task", "train", "--set", "seq_len=1"],
            "benchbench: --set seq_len=1: training needs seq_len of 2 or more: one token alone has no next token",
            "",
        ),
        (["run", "--suite", "smoke", "--set", "batch"], "benchbench: --set batch: expected KEY=VALUE.", "For example"),
        (["run", "--suite", "smoke", "--shard", "3/2"], "benchbench: --shard 3/2: expected I/N with I from 1", "For "),
        (["run", "--suite", "smoke", "--budget", "soon"], "benchbench: --budget soon: expected a time", "For example"),
        (["run", "--suite", "smoke", "--budget", "10x"], "benchbench: --budget 10x: expected a time: a number", "For"),
        (["run", "--suite", "smoke", "--budget", "0m"], "benchbench: --budget 0m: expected a time of more", "For"),
        (["run", "--suite", "smoke", "--budget", ""], "benchbench: --budget : expected a time", "For example"),
        (["run", "--suite", "smoke", "--shard", ""], "benchbench: --shard : expected I/N", "For example"),
        (["run", "--suite", "smoke", "--device", ""], "benchbench: --device : expected cpu, cuda", "See: "),
        (["run", "--suite", "smoke", "--device", "meta"], "benchbench: --device meta: expected cpu, cuda", "See: "),
        (["run", "--suite", "smoke", "--out", ""], "benchbench: Invalid value for '--out': a folder needs a", "See: "),
        (["run", "--suite", "smoke", "--launcher", "ray"], "benchbench: no launcher 'ray'", "For many machines"),
        (
            ["run", "--suite", "smoke", "--require", "fused"],
            "benchbench: --require fused: transformer-tiny would run path=flash in transformer-tiny/prefill/N128",
            "transformer has the paths flash, eager, graph.",
        ),
        (["show", "mamba-tiny/prefil/N1"], "benchbench: no case 'mamba-tiny/prefil/N1'.", "See: benchbench list cases"),
        (["list", "models", "--suite", "smoke"], "benchbench: list models takes no --suite.", "It goes with"),
        (["check", "--set", "d_model=8"], "benchbench: --set d_model=8: no model is named.", "Pass --model NAME"),
        (
            ["check", "--model", "mamba-tiny", "--set", "d_modle=8"],
            "benchbench: no field 'd_modle'. Did you mean 'd_model'?",
            "Known: ",
        ),
        (
            ["check", "--suite", "smoke", "--model", "mamba-tiny", "--set", "d_model=8"],
            "benchbench: --set goes without --suite.",
            "",
        ),
        (
            ["check", "--witness", "hardware", "--ops"],
            "benchbench: --witness hardware runs cases of its own, on the GPU.",
            "Without --suite",
        ),
        (["completion", "tcsh"], "benchbench: Invalid value for '{bash|zsh|fish}'", "See: benchbench completion -h"),
    ],
)
def test_errors_are_two_lines_and_code_2(capsys, place, words, first, second):
    code, said, hint = failure(capsys, *words)
    assert (code, said[: len(first)], hint[: len(second)]) == (2, first, second)
    assert not Path("results").exists()


def test_a_gpu_that_is_not_there(capsys, place):
    code, first, second = failure(capsys, "run", "--suite", "mine.toml", "--device", "cuda")
    assert (code, first, second) == (2, "benchbench: torch sees no GPU.", "On this machine: --device cpu")


def test_tracebacks_are_shown_with_v_alone(capsys):
    main(["rnu"])
    assert "Traceback" not in capsys.readouterr().err
    main(["-v", "rnu"])
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_ours_is_told_as_one(capsys, monkeypatch):
    monkeypatch.setattr(run_verb, "default_device", lambda: 1 / 0)
    assert main(["run", "--suite", "smoke"]) == 70
    assert capsys.readouterr().err.startswith(
        "benchbench: a defect in benchbench: ZeroDivisionError: division by zero\n"
    )


def test_ctrl_c_outside_a_run_is_130(monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_verb, "default_device", interrupted)
    assert main(["run", "--suite", "smoke"]) == 130
    assert capsys.readouterr().err.strip() == "benchbench: interrupted."


@pytest.mark.parametrize("form", ["json", "table"])
def test_a_reader_that_goes_away_is_no_error(form):
    code = f"from benchbench.__main__ import main; raise SystemExit(main(['list', 'cases', '--format', '{form}']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["list", "models"], ["count", "--model", "mamba-tiny", "--format", "json"]])
def test_output_that_cannot_be_written_is_no_defect(words):
    code = f"from benchbench.__main__ import main; raise SystemExit(main({words}))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "benchbench: cannot write: No space left on device.")
    assert len(done.stderr.splitlines()) == 2


def test_a_file_that_the_system_refuses_is_no_defect(capsys, monkeypatch):
    monkeypatch.setattr(run_verb, "default_device", lambda: Path("/nonexistent/file").read_text())
    assert failure(capsys, "run", "--suite", "smoke")[:2] == (
        2,
        "benchbench: cannot use '/nonexistent/file': No such file or directory.",
    )


@pytest.mark.parametrize("words", [["claims"], ["report", RESULT], ["show", "mamba-tiny/prefill/N1", "--timeline"]])
def test_files_that_cannot_be_written_are_no_defect(capsys, tmp_path, words):
    (tmp_path / "file").touch()
    words = [*words, *([] if "--timeline" in words else ["--out"]), str(tmp_path / "file" / "x.svg")]
    code, said, _ = failure(capsys, *words)
    assert code == 2
    assert said.startswith(f"benchbench: cannot write to '{tmp_path}/file/x.svg")
    assert said.endswith("Not a directory.")


def test_the_tables_are_printed_even_if_their_files_cannot_be_written(capsys, place):
    assert main(["run", "--suite", "mine.toml", "--out", "r", "-q"]) == 0
    Path("r/mine.md").unlink()
    Path("r/mine.md").mkdir()
    assert main(["run", "--suite", "mine.toml", "--out", "r"]) == 2
    out, err = capsys.readouterr()
    assert "Reproduce: `benchbench run --suite mine.toml --device cpu` (version 1 of the suite)" in out.splitlines()
    assert "benchbench: cannot write to 'r/mine.md': Is a directory." in err


def test_run_measures_writes_and_prints(capsys, place):
    assert main(["run", "--suite", "mine.toml"]) == 0
    out, err = capsys.readouterr()
    assert "mamba-tiny" in out
    assert "5 ok. results/runs/" in err
    (folder,) = runs()
    assert {path.name for path in folder.iterdir()} >= {"run.json", "records.jsonl", "mine.md", "mine.json"}
    main(["run", "--suite", "mine.toml"])
    assert "5 cases, 5 already measured here" in capsys.readouterr().err
    assert len(runs()) == 1


def test_filters(place):
    assert ids(place, "--model", "mamba-tiny", "--task", "prefill", "--seq-len", "64") == {
        "mamba-tiny/prefill/N64/B1/float32/chunked"
    }
    assert ids(place, "-k", "TRAIN or (n128 and not mamba)") == {
        "mamba-tiny/train/N64/B1/float32/chunked",
        "transformer-tiny/prefill/N128/B1/float32/flash",
    }


def test_settings(place):
    assert main(["run", "--suite", "mine.toml", "-q", "-k", "mamba", "--set", "batch=2", "--set", "n_layers=3",
                 "--set", "optimizer=sgd", "--set", "protocol.min_samples=9"]) == 0  # fmt: skip
    records = read_run(runs()[-1]).records
    assert {record.case.id for record in records} == {
        "mamba-tiny+n_layers=3/prefill/N64/B2/float32/chunked",
        "mamba-tiny+n_layers=3/prefill/N128/B2/float32/chunked",
        "mamba-tiny+n_layers=3/train/N64/B2/float32/chunked/sgd",
    }
    assert {record.case.optimizer for record in records} == {None, "sgd"}
    assert {record.protocol.min_samples for record in records} == {9}


def test_a_model_that_the_suite_lacks_gets_its_cases():
    suite = load("smoke")
    (chosen,) = select([suite], Wishes(models=("gpt2", "mamba-tiny"), tasks=("prefill",)))
    assert [(case.model, case.seq_len, case.path) for case in chosen.cases] == [
        ("gpt2", 128, "flash"),
        ("gpt2", 512, "flash"),
        ("mamba-tiny", 128, "chunked"),
        ("mamba-tiny", 512, "chunked"),
    ]


def test_shards_are_a_partition():
    suite = load("long-context")
    parts = [set(select([suite], Wishes(shard=(i, 3)))[0].cases) for i in (1, 2, 3)]
    assert sum(map(len, parts)) == len(suite.cases)
    assert set.union(*parts) == set(suite.cases)


def test_a_shard_keeps_its_cases_when_the_suite_grows():
    suite = load("long-context")
    longer = suite.model_copy(update={"cases": (*suite.cases, Case.of(preset("gpt2"), task="prefill", seq_len=3))})
    before, after = (set(select([one], Wishes(shard=(1, 3)))[0].cases) for one in (suite, longer))
    assert before == after - {longer.cases[-1]}


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_budgets(text, seconds):
    assert run_verb.seconds_of(text) == seconds


def test_what_continues_is_spelled_without_what_must_not_be_repeated():
    words = ["--suite", "my suite.toml", "-k", "a or b", "--set", "batch=2", "--retry", "--fresh", "--out", "x", "-q"]
    with run_verb.command.make_context("run", words) as ctx:
        said = run_verb.spelled(ctx, run_verb.NOT_AGAIN)
    assert said == "benchbench run --suite 'my suite.toml' -k 'a or b' --set batch=2 --retry -q"


def test_a_page_says_which_cases_were_chosen(place):
    options = ["--model", "mamba-tiny", "--set", "batch=2", "--threads", "1"]
    assert main(["run", "--suite", "mine.toml", *options, "-q", "--out", "r"]) == 0
    said = f"benchbench run --suite mine.toml {' '.join(options)} --device cpu"
    assert read_run(Path("r")).info.commands == (said,)
    assert f"Reproduce: `{said}` (version 1" in Path("r/mine.md").read_text()


def test_a_dry_run_prints_the_plan_and_writes_nothing(capsys, place):
    assert main(["run", "--suite", "mine.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("measure") >= 5
    assert not Path("results").exists()


@pytest.mark.parametrize("what", ["models", "families", "suites", "cases", "runs"])
def test_lists_in_json_parse_and_in_csv_have_as_many_rows(capsys, place, what):
    main(["run", "--suite", "mine.toml", "-q"])
    capsys.readouterr()
    assert main(["list", what, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert main(["list", what, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


def test_list_models_counts_parameters(capsys):
    main(["list", "models", "--format", "json"])
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["gpt2"]["params"] == 124_439_808  # as published
    assert rows["resnet-bk-baseline"]["warning"].startswith("bk-compat sees later tokens")


def test_show_a_case_and_a_record(capsys, place):
    assert main(["show", "mamba-tiny/prefill/N128", "--suite", "smoke", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["id"] == "mamba-tiny/prefill/N128/B1/float32/chunked"
    assert shown["counted"]["params"] == 75_712
    main(["run", "--suite", "mine.toml", "-q"])
    record = read_run(runs()[-1]).records[0]
    capsys.readouterr()
    assert main(["show", record.key, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == record.to_json()
    assert main(["show", record.case.id, "--run", str(runs()[-1])]) == 0
    assert record.key in capsys.readouterr().out


def completions(*words: str) -> list[str]:
    completion = ShellComplete(cli, {}, "benchbench", "_BENCHBENCH_COMPLETE")
    return [item.value for item in completion.get_completions(list(words[:-1]), words[-1])]


def test_names_complete():
    assert completions("re") == ["report"]
    assert "long-context" in completions("run", "--suite", "lo")
    assert sorted(completions("run", "--model", "mamba-1")) == ["mamba-1.4b", "mamba-130m"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(capsys, shell):
    assert main(["completion", shell]) == 0
    assert "_BENCHBENCH_COMPLETE" in capsys.readouterr().out


def test_require_passes_where_every_case_runs_that_path(place):
    assert ids(place, "-k", "mamba", "--require", "chunked")


def test_an_error_of_ours_is_a_click_free_exception():
    assert not issubclass(BenchError, click.ClickException)


def test_the_command_line_leaves_torch_alone():
    code = (
        "import sys; from benchbench.__main__ import main; main(['list', 'suites']); main(['list', 'models']);"
        "import benchbench.runner, benchbench.launch; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_real_worker_measures_the_smoke_suite(tmp_path, monkeypatch, capsys):
    """One length of every family and task, from the command line to the table."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--suite", "smoke", "--seq-len", "128", "--threads", "1"]) == 0
    records = read_run(runs()[0]).records
    assert len(records) == 9
    for record in records:
        assert record.status == "ok"
        assert record.checked.gate == "passed"
        assert record.checked.traced_flops == record.checked.explained_flops
        assert record.checked.params == record.counted.params
        assert record.measured.time_s
    assert "prefill" in capsys.readouterr().out


def test_the_real_worker_says_that_there_is_no_gpu(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.chdir(tmp_path)
    code, first, second = failure(capsys, "run", "--suite", "smoke", "--device", "cuda")
    assert (code, first[:42]) == (2, "benchbench: cannot use the device 'cuda': ")
    assert second.startswith("Use --device cpu")
