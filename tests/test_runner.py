"""Runs with a fake worker: what is recorded, what goes on where it stopped, and what the exit code says."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from benchbench.errors import BenchError
from benchbench.launch import LocalLauncher
from benchbench.progress import LineView
from benchbench.run_folder import RunFolder
from benchbench.runner import Request, planned, run
from benchbench.store import RECORDS, find, machine_id, read_run
from benchbench.suite import Suite, parse

FAKE = Path(__file__).parent / "fake_worker.py"
TEXT = """
name = "mine"
version = 1
about = "?"
[protocol]
budget_s = 1000
timeout_s = 5
[[cases]]
task = "prefill"
model = ["mamba-tiny", "transformer-tiny"]
seq_len = [64, 128]
[[cases]]
task = "decode"
model = "mamba-tiny"
seq_len = 64
"""
SUITE = parse(TEXT, "mine.toml")
HUGE = parse(TEXT + '[[cases]]\ntask = "decode"\nmodel = "transformer-130m"\nseq_len = 1000000000', "mine.toml")


class Bench:
    """A folder, a script for the fake worker, and what was said."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.out = tmp_path / "run"
        self.script: dict[str, object] = {}
        self.beside = False
        self.said = ""

    def launcher(self) -> LocalLauncher:
        file = self.tmp_path / "script.json"
        file.write_text(json.dumps(self.script))
        program = (sys.executable, str(FAKE), "--script", str(file))
        return LocalLauncher("cpu", program=program, beside=self.beside)

    def run(self, suite: Suite = SUITE, **options: object) -> int:
        stream = io.StringIO()
        view = LineView(Console(file=stream, width=300))
        ended = run(Request((suite,), out=self.out, **options), self.launcher(), view)
        self.said = stream.getvalue()
        return ended.code

    @property
    def records(self):
        return {record.case.id: record for record in read_run(self.out).records}

    def status(self, start: str) -> str:
        return next(record.status for name, record in self.records.items() if name.startswith(start))

    @property
    def lines(self) -> int:
        return len((self.out / RECORDS).read_text().splitlines())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def two(bench):
    """With a second worker, which traces while the first measures, as on a GPU."""
    bench.beside = True
    return bench


def test_every_case_has_a_record_with_its_count_and_its_prediction(bench):
    assert bench.run() == 0
    assert {record.status for record in bench.records.values()} == {"ok"}
    assert len(bench.records) == 5
    record = bench.records["mamba-tiny/prefill/N128/B1/float32/chunked"]
    assert record.counted.flops > 0
    assert record.checked.traced_flops == 7
    assert record.predicted.basis.startswith("counted work at 1.00 TFLOP/s")
    assert record.summary["time_s"].n == 6
    assert record.steps_s == {"gate": 0.001, "build": 0.002, "timing": 0.016, "memory": 0.001, "trace": 0.5}
    assert record.checked.memory is None, "the memory of a CPU is not held against the count yet"
    # 128 tokens in the fake's 2 ms; a decoding step writes one.
    assert record.tokens_per_s == pytest.approx(64_000)
    assert bench.records["mamba-tiny/decode/N64/B1/float32/chunked"].tokens_per_s == pytest.approx(500)
    assert "ok mamba-tiny/prefill/N128/B1/float32/chunked 2.00 ms 1,000 B 64.0k tok/s" in bench.said


def test_the_same_command_again_measures_nothing(bench):
    bench.run()
    assert bench.run() == 0
    assert "5 cases, 5 already measured here" in bench.said
    assert bench.lines == 5


def test_a_case_that_breaks_its_worker_is_recorded_and_the_run_goes_on(bench):
    bench.script = {"mamba-tiny/prefill/N64": "kill", "transformer-tiny/prefill/N64": "exit"}
    assert bench.run() == 3
    assert bench.status("mamba-tiny/prefill/N64") == "lost"
    assert bench.status("transformer-tiny/prefill/N64") == "error"
    assert bench.status("transformer-tiny/prefill/N128") == "ok"
    lost = bench.records["mamba-tiny/prefill/N64/B1/float32/chunked"]
    assert lost.counted.flops > 0
    assert lost.checked.traced_flops == 7
    assert (lost.measured, lost.path, lost.tokens_per_s) == (None, None, None)


def test_failed_cases_are_repeated_with_retry_alone(bench):
    bench.script = {"mamba-tiny/prefill/N64": "kill"}
    bench.run()
    bench.script = {}
    assert bench.run() == 3
    assert bench.lines == 5
    assert bench.run(retry=True) == 0
    assert bench.lines == 6
    assert bench.status("mamba-tiny/prefill/N64") == "ok"


def test_running_out_of_memory_is_an_answer(bench):
    bench.script = {"mamba-tiny/prefill/N64": "oom"}
    assert bench.run() == 0
    assert bench.status("mamba-tiny/prefill/N64") == "oom"


def test_a_silent_case_times_out(bench):
    bench.script = {"mamba-tiny/decode": "silent"}
    suite = SUITE.model_copy(update={"protocol": SUITE.protocol.replace(timeout_s=0.3)})
    assert bench.run(suite) == 3
    assert bench.status("mamba-tiny/decode") == "timeout"


@pytest.mark.parametrize(
    ("does", "said"), [("gate", "(FAILED: the gate)"), ("differs", "(FAILED: traced 7 FLOPs, 8 expected by the count)")]
)
def test_a_failed_gate_or_an_unexplained_trace_fails_the_command(bench, does, said):
    bench.script = {"mamba-tiny/decode": does}
    assert bench.run() == 1
    assert said in bench.said


def test_two_workers_leave_the_records_that_one_does(bench):
    def told(record):
        return record.model_copy(update={"started_at": "", "predicted": None})

    bench.script = {"memory_bytes": 2**34}  # what this machine has left differs from run to run
    bench.run(HUGE)
    one = {name: told(record) for name, record in bench.records.items()}
    bench.out, bench.beside = bench.tmp_path / "two", True
    assert bench.run(HUGE) == 0
    both = {name: told(record) for name, record in bench.records.items()}
    for name, record in both.items():
        assert record.checked.traced_flops == 7
        if record.status == "ok":
            gate_error = {"gate_error": one[name].checked.gate_error}  # the fake's process id
            both[name] = record.model_copy(update={"checked": record.checked.model_copy(update=gate_error)})
    assert both == one


def test_a_worker_killed_beside_another_loses_one_case(two):
    two.script = {"mamba-tiny/prefill/N64": "kill", "transformer-tiny/prefill/N64": "trace kill"}
    assert two.run() == 3
    assert two.lines == 5
    assert two.status("mamba-tiny/prefill/N64") == two.status("transformer-tiny/prefill/N64") == "lost"
    measured, traced = (
        next(r for name, r in two.records.items() if name.startswith(start))
        for start in ("mamba-tiny/prefill/N64", "transformer-tiny/prefill/N64")
    )
    assert (measured.measured, measured.checked.traced_flops) == (None, 7)
    # What was measured is kept; a trace that is tried again after a failure was not lost with its worker.
    assert (traced.measured.time_s, traced.checked.gate) == ((0.002,) * 6, "passed")
    two.script = {}
    assert two.run(retry=True) == 0
    assert {record.status for record in two.records.values()} == {"ok"}


@pytest.mark.parametrize("beside", [False, True])
def test_a_full_disk_ends_the_run_and_its_workers(bench, beside, monkeypatch):
    bench.beside = beside

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(BenchError, match=r"cannot write to .*No space left on device"):
            bench.run()
    assert not workers(bench.tmp_path)
    assert bench.lines == 0
    assert bench.run() == 0
    assert bench.lines == 5


def test_a_gpus_memory_is_held_against_the_count(bench):
    # The fake takes 1000 bytes, whatever the case, and says that it is on a GPU with 1 GiB left.
    bench.script = {"env": {"device": "cuda"}, "memory_bytes": 2**30, "mamba-tiny/decode": "oom"}
    assert bench.run() == 1
    assert {record.checked.memory for record in bench.records.values()} == {"differs"}
    assert "1.00 GiB were available" in bench.records["mamba-tiny/decode/N64/B1/float32/chunked"].reason
    assert "peak memory 1,000 B, " in bench.said
    assert "(FAILED: the memory beside the count)" in bench.said


def test_nothing_measured_is_not_success(bench):
    assert bench.run(budget_s=1e-9) == 4
    assert {record.status for record in bench.records.values()} == {"skipped"}


def test_what_does_not_fit_is_skipped_counted_traced_and_told_why(bench):
    bench.script = {"memory_bytes": 2**34}
    assert bench.run(HUGE) == 0
    record = bench.records["transformer-130m/decode/N1000000000/B1/float32/flash"]
    assert record.status == "skipped"
    # Keys and values: 12 layers x 2 x 768 x 4 bytes x (10^9 + 1) tokens.
    assert record.counted.state_bytes == 73_728 * 1_000_000_001
    assert record.predicted.peak_bytes == record.counted.peak_bytes
    assert record.reason == "needs 68,700 GiB by the count, 16.0 GiB are available"
    assert record.checked.traced_flops == 7
    assert record.measured is None


def test_more_budget_measures_what_was_skipped_and_the_same_budget_does_not(bench):
    bench.run(budget_s=1e-9)
    bench.run(budget_s=1e-9)
    assert bench.lines == 5
    assert bench.run(budget_s=100.0) == 0
    assert {record.status for record in bench.records.values()} == {"ok"}


def test_what_the_architecture_cannot_do_is_an_answer_too(bench):
    suite = parse(TEXT + '[[cases]]\ntask = "train"\nmodel = "gpt2"\nseq_len = 2048', "mine.toml")
    assert bench.run(suite) == 0
    record = bench.records["gpt2/train/N2048/B1/float32/flash"]
    assert (record.status, record.counted) == ("unsupported", None)
    assert "learned positions for 1024 tokens" in record.reason


def test_fresh_wants_a_folder_of_its_own(bench):
    bench.run()
    with pytest.raises(BenchError, match="--fresh wants a new folder"):
        bench.run(fresh=True)


def test_the_folder_of_another_suite_is_refused_before_a_worker_starts(bench):
    bench.run()
    launcher = LocalLauncher("cpu", program=("/nonexistent",))
    other = SUITE.model_copy(update={"version": 2})
    with pytest.raises(BenchError, match="holds suite 'mine' v1; you asked for 'mine' v2"):
        run(Request((other,), out=bench.out), launcher, LineView(Console(file=io.StringIO())))


def test_a_folder_in_use_or_of_something_else_is_refused_before_a_worker_starts(bench):
    bench.run()
    launcher = LocalLauncher("cpu", program=("/nonexistent",))

    def refused(out):
        with pytest.raises(BenchError) as caught:
            run(Request((SUITE,), out=out), launcher, LineView(Console(file=io.StringIO())))
        return caught.value.message

    env = next(iter(read_run(bench.out).info.environments.values()))
    with RunFolder(bench.out, (SUITE,), env):
        assert refused(bench.out) == f"another run is writing to {bench.out}."
    assert "is no run folder and is not empty: it holds run, script.json" in refused(bench.tmp_path)
    assert not (bench.tmp_path / "lock").exists()
    assert "Not a directory" in refused(bench.tmp_path / "script.json" / "a")


def test_the_command_is_kept_with_what_it_measured(bench):
    bench.run(reproduce="benchbench run --suite mine.toml --device cpu")
    bench.run(reproduce="measures nothing")
    assert read_run(bench.out).info.commands == ("benchbench run --suite mine.toml --device cpu",)


@pytest.mark.parametrize(
    ("options", "said"), [({}, "--out '{}'"), ({"out": None}, ""), ({"out": None, "fresh": True}, "--fresh")]
)
def test_an_interruption_before_anything_is_written_names_what_was_asked_for(bench, monkeypatch, options, said):
    def interrupted(_):
        raise KeyboardInterrupt

    bench.out = bench.tmp_path / "my run"
    monkeypatch.setattr(LocalLauncher, "start", interrupted)
    stream = io.StringIO()
    request = Request((SUITE,), **{"out": bench.out, "command": "benchbench run --suite mine", **options})
    assert run(request, bench.launcher(), LineView(Console(file=stream, width=300))).code == 130
    assert stream.getvalue().splitlines() == [
        "interrupted after 0 of 5 cases.",
        f"Continue with: benchbench run --suite mine {said}".rstrip().format(bench.out),
    ]
    assert not bench.out.exists()


def test_a_new_machine_measures_anew_in_a_folder_of_its_own(bench, monkeypatch):
    monkeypatch.chdir(bench.tmp_path)
    bench.out = None
    bench.run()
    bench.run()
    assert len(list(Path("results/runs").iterdir())) == 1
    bench.script = {"env": {"python": "3.12"}}
    bench.run()
    assert len(list(Path("results/runs").iterdir())) == 2
    env = next(iter(read_run(sorted(Path("results/runs").iterdir())[0]).info.environments.values()))
    assert find((SUITE,), machine_id(env)) is not None
    bench.run(fresh=True)
    assert len(list(Path("results/runs").iterdir())) == 3


def test_a_dry_run_writes_nothing(bench):
    lines = planned(Request((HUGE,), out=bench.out), bench.launcher())
    assert [line.does for line in lines] == ["measure"] * 5 + ["skip"]
    assert lines[0].forecast.wall_s <= lines[1].forecast.wall_s
    assert not bench.out.exists()


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from rich.console import Console
from benchbench.progress import LineView
from benchbench.runner import run, Request
from test_runner import Bench, SUITE
bench = Bench(Path({folder!r}))
bench.beside = {beside}
bench.script = {{"mamba-tiny/prefill/N128": {does!r}}}
request = Request((SUITE,), out=bench.out, command="benchbench run --suite mine")
ended = run(request, bench.launcher(), LineView(Console(stderr=True, width=300)))
sys.exit(ended.code)
"""


def workers(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


def started(tmp_path: Path, beside: bool, does: str) -> subprocess.Popen[str]:
    """A run in a process of its own, whose case in hand takes very long, after others have finished."""
    code = PROGRAM.format(tests=str(FAKE.parent), folder=str(tmp_path), beside=beside, does=does)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    records = tmp_path / "run" / RECORDS
    until = time.monotonic() + 30
    while not (records.exists() and records.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


LONG = pytest.mark.parametrize(
    ("beside", "does"),
    [(False, "sleep 30"), (True, "sleep 30"), (True, "trace sleep 30")],
    ids=["one", "both", "tracer"],
)
"""Who has work left when the end comes."""


@LONG
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_leaves_no_worker(bench, number, code, beside, does):
    process = started(bench.tmp_path, beside, does)
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not workers(bench.tmp_path)
    assert f"Continue with: benchbench run --suite mine --out {bench.out}" in errors
    finished = bench.lines
    assert bench.run() == 0
    assert f"5 cases, {finished} already measured here" in bench.said
    assert bench.lines == 5


@LONG
def test_a_run_killed_outright_loses_no_record(bench, beside, does):
    process = started(bench.tmp_path, beside, does)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    finished = bench.lines
    assert bench.run() == 0
    assert f"5 cases, {finished} already measured here" in bench.said
    assert bench.lines == 5
