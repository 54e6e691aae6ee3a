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


def launcher(tmp_path, device="cpu", **script) -> LocalLauncher:
    file = tmp_path / "script.json"
    file.write_text(json.dumps(script))
    return LocalLauncher(device, program=(sys.executable, str(FAKE), "--script", str(file)))


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
    assert LocalLauncher("cuda").memory_bytes({"gpu": {"memory_bytes": 7}}) == 7


def test_the_last_line_that_says_something():
    assert last_line("a\nb \n\n") == "b"
    assert last_line("") == ""
