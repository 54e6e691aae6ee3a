"""The worker seen from outside: a fake one speaks the protocol, misbehaves on demand, and must never be trusted."""

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from benchbench.case import Case
from benchbench.errors import BenchError
from benchbench.launch import RESERVE_BYTES, LocalLauncher, available_bytes, last_line, usable_bytes
from benchbench.record import Protocol
from benchbench.specs import preset

FAKE = Path(__file__).parent / "fake_worker.py"
CASE = Case.of(preset("mamba-tiny"), task="prefill", seq_len=8)


def launcher(tmp_path, device="cpu", beside=None, **script) -> LocalLauncher:
    file = tmp_path / "script.json"
    file.write_text(json.dumps(script))
    return LocalLauncher(device, program=(sys.executable, str(FAKE), "--script", str(file)), beside=beside)


def outcome(tmp_path, does, protocol=None, **options):
    started = launcher(tmp_path, **{"mamba-tiny": does})
    started.start()
    try:
        return started.run(CASE, protocol or Protocol(), **options)
    finally:
        started.close()


def test_a_worker_describes_its_environment_and_rates(tmp_path):
    started = launcher(tmp_path)
    env, rates = started.start(), started.calibrate()
    started.close()
    assert env["device"] == "cpu"
    assert (rates.flops_per_s, rates.bytes_per_s) == (1e12, 1e11)


def test_an_answer_carries_what_was_measured_and_checked(tmp_path):
    events = []
    found = outcome(tmp_path, "ok", on_event=events.append)
    assert (found.status, found.path, found.wall_s) == ("ok", "chunked", 0.02)
    assert found.measured.time_s == (0.002,) * 6
    assert found.checked.traced_flops == 7
    assert [event["phase"] for event in events] == ["sampling"]


def test_without_measuring_there_is_a_trace_alone(tmp_path):
    found = outcome(tmp_path, "kill", measure=False)
    assert (found.status, found.measured, found.checked.traced_flops) == ("ok", None, 7)


def test_a_killed_worker_is_lost_and_the_signal_is_named(tmp_path):
    found = outcome(tmp_path, "kill")
    assert (found.status, found.reason) == ("lost", "the worker was killed by SIGKILL")


def test_a_worker_that_ends_by_itself_is_an_error_with_its_last_words(tmp_path):
    found = outcome(tmp_path, "exit")
    expected = "the worker ended with exit code 9: Traceback: something broke"
    assert (found.status, found.reason) == ("error", expected)


def test_a_silent_worker_is_killed(tmp_path):
    started = launcher(tmp_path, **{"mamba-tiny": "silent"})
    started.start()
    pid = started._worker.pid
    found = started.run(CASE, Protocol(timeout_s=0.3))
    assert (found.status, found.reason) == ("timeout", "the worker said nothing for 0.3 s and was killed")
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("does", "kept"), [("ok", True), ("unsupported", True), ("oom", False), ("error", False), ("kill", False)]
)
def test_a_worker_is_kept_while_it_answers_and_replaced_when_it_failed(tmp_path, does, kept):
    started = launcher(tmp_path, **{"mamba-tiny": does})
    started.start()
    before = started._worker.pid
    assert started.run(CASE, Protocol()).status == {"kill": "lost"}.get(does, does)
    assert started.run(CASE.replace(spec=preset("gpt2"), path="flash"), Protocol()).status == "ok"
    assert (started._worker.pid == before) == kept
    started.close()


def test_a_fresh_worker_is_told_the_verdicts_of_the_gates_before(tmp_path):
    started = launcher(tmp_path, **{"mamba-tiny/decode": "oom"})
    started.start()
    first = started._worker.pid
    assert started.run(CASE, Protocol()).checked.gate_error == first
    assert started.run(CASE.replace(task="decode"), Protocol()).status == "oom"
    assert started.run(CASE, Protocol()).checked.gate_error == first
    second = started._worker.pid
    other = started.run(CASE.replace(spec=preset("gpt2"), path="flash"), Protocol())
    assert other.checked.gate_error == second != first
    started.close()


@pytest.fixture
def two(tmp_path):
    """Starts launchers with two workers, whatever their script, and ends them."""
    begun = []

    def start(**script) -> LocalLauncher:
        begun.append(launcher(tmp_path, beside=True, **script))
        begun[-1].start()
        return begun[-1]

    yield start
    for one in begun:
        one.close()


def sized(*lengths: int) -> list[tuple[Case, Protocol]]:
    return [(CASE.replace(seq_len=n), Protocol()) for n in lengths]


def test_on_a_gpu_a_second_worker_traces_and_on_a_cpu_none():
    assert LocalLauncher("cuda:1")._tracer is not None
    assert LocalLauncher("cpu")._tracer is None


def test_two_workers_make_one_outcome(two):
    started = two()
    found = started.run(CASE, Protocol())
    assert (found.status, found.wall_s, found.measured.time_s) == ("ok", 0.02, (0.002,) * 6)
    assert (found.checked.gate, found.checked.gate_error) == ("passed", started._worker.pid)
    assert (found.checked.traced_flops, found.checked.explained_flops) == (7, 7)
    assert found.steps_s == {"gate": 0.001, "build": 0.002, "timing": 0.016, "memory": 0.001, "trace": 0.5}
    assert psutil.Process(started._tracer._worker.pid).nice() == 10


def test_traces_run_ahead_in_order_a_few_at_a_time(two):
    started = two(**{"mamba-tiny/prefill/N9/": "trace sleep 30"})
    asks = sized(8, 16, 9, 32, 64, 128)
    started.ahead(asks)
    tracer = started._tracer
    assert [ask[0].seq_len for ask in tracer._asked] == [8, 16, 9, 32], "no more than the pipes surely hold"
    assert tracer.take(asks[1]).checked.traced_flops == 7
    assert [case.seq_len for case in tracer._found] == [8]
    started.ahead(asks[2:])
    assert [ask[0].seq_len for ask in tracer._asked] == [9, 32, 64, 128]
    assert tracer.take(asks[0]).status == "ok"


@pytest.mark.parametrize(
    ("does", "status", "reason"),
    [
        ("trace kill", "lost", "tracing: the worker was killed by SIGKILL"),
        ("trace exit", "error", "tracing: the worker ended with exit code 9: Traceback: something broke"),
        ("trace error", "error", "tracing: KeyError: of the tracer"),
    ],
)
def test_what_breaks_the_tracer_leaves_what_was_measured_and_the_other_traces(two, does, status, reason):
    started = two(**{"mamba-tiny/prefill/N16/": does})
    asks = sized(16, 32, 64)
    started.ahead(asks)
    before = started._tracer._worker.pid
    found = started.run(*asks[0])
    assert (found.status, found.reason, found.measured.time_s) == (status, reason, (0.002,) * 6)
    assert (found.checked.gate, found.checked.traced_flops) == ("passed", None)
    assert [started.run(*ask).status for ask in asks[1:]] == ["ok", "ok"]
    assert not psutil.pid_exists(before)


def test_a_silent_tracer_is_killed(two):
    started = two(**{"mamba-tiny/prefill/N16/": "trace silent"})
    assert started.run(CASE, Protocol()).status == "ok"
    before = started._tracer._worker.pid
    found = started.run(CASE.replace(seq_len=16), Protocol(timeout_s=0.3))
    assert (found.status, found.reason) == ("timeout", "tracing: the worker said nothing for 0.3 s and was killed")
    assert not psutil.pid_exists(before)


@pytest.mark.parametrize(("does", "status"), [("kill", "lost"), ("oom", "oom"), ("unsupported", "unsupported")])
def test_what_breaks_the_measurement_leaves_the_trace_and_its_worker(two, does, status):
    started = two(**{"mamba-tiny/prefill/N16/": does})
    started.run(CASE, Protocol())
    before = started._tracer._worker.pid
    found = started.run(CASE.replace(seq_len=16), Protocol())
    assert (found.status, found.measured, found.checked.traced_flops) == (status, None, 7)
    assert started.run(CASE, Protocol()).status == "ok"
    assert started._tracer._worker.pid == before


def test_both_workers_end_together(two):
    started = two()
    started.run(CASE, Protocol())
    pids = [started._worker.pid, started._tracer._worker.pid]
    started.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_worker_has_a_session_of_its_own(tmp_path):
    """A Ctrl-C on the terminal goes to the foreground group: the parent's, not the worker's."""
    started = launcher(tmp_path)
    started.start()
    assert os.getpgid(started._worker.pid) == started._worker.pid != os.getpgrp()
    started.close()


def test_a_device_that_is_not_there_is_an_error_with_what_to_do(tmp_path):
    with pytest.raises(BenchError) as caught:
        launcher(tmp_path, device="cuda").start()
    assert (caught.value.message, caught.value.hint) == ("torch sees no GPU.", "On this machine: --device cpu")


def test_a_worker_that_does_not_start():
    broken = LocalLauncher("cpu", program=(sys.executable, "-c", "import nothing_of_that_name; "))
    with pytest.raises(BenchError) as caught:
        broken.start()
    assert caught.value.message == "no measuring process: the worker ended with exit code 1."
    assert caught.value.hint == "ModuleNotFoundError: No module named 'nothing_of_that_name'"


def test_memory_is_bounded_below_what_is_available():
    assert usable_bytes() <= available_bytes() - RESERVE_BYTES * 0.9
    assert available_bytes() <= psutil.virtual_memory().total


def test_the_memory_of_a_gpu_is_what_its_worker_says_last(tmp_path):
    started = launcher(tmp_path, memory_bytes=7)
    started.start()
    assert 7 < started.memory_bytes() <= usable_bytes() + RESERVE_BYTES
    started.calibrate()
    assert started.memory_bytes() == 7
    started.close()


def test_the_last_line_that_says_something():
    assert last_line("a\nb \n\n") == "b"
    assert last_line("") == ""
