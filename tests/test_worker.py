import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from benchbench.case import Case
from benchbench.errors import BenchError
from benchbench.record import Checked, Measured, Protocol
from benchbench.specs import preset
from benchbench.worker import usable

SHORT = Protocol(min_samples=1, max_samples=2, warmup_calls=0)


class Worker:
    """The real process, spoken to line by line."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "benchbench.worker", "--threads", "1", *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def hear(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.readline())

    def say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, case: Case, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The phases told, and the result."""
        request = {"case": case.model_dump(mode="json"), "protocol": SHORT.model_dump(mode="json"), **options}
        self.say(json.dumps(request))
        phases = []
        while (event := self.hear())["event"] == "phase":
            phases.append(event)
        return phases, event

    def end(self) -> int:
        self.process.stdin.close()
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as one:
        assert one.hear()["event"] == "ready"
        yield one


def case(task: str = "prefill", **sizes: object) -> Case:
    return Case.of(preset("transformer-tiny"), task=task, **{"seq_len": 16, **sizes})


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_answers_a_case_of_every_task(worker: Worker, task: str):
    phases, result = worker.ask(case(task))

    assert [event["phase"] for event in phases if event["samples"] == 0] == [
        "gate",
        "build",
        "warm-up",
        "sampling",
        "memory",
        "trace",
    ]
    assert set(phases[0]) == {"event", "phase", "samples", "half_ratio"}
    assert set(result) == {
        *("event", "status", "reason", "path", "measured", "checked", "gate_key", "steps_s", "wall_s"),
    }
    assert result["event"] == "result"
    assert result["status"] == "ok", result["reason"]
    assert result["path"] == "flash"
    assert Measured.model_validate(result["measured"]).time_s
    assert Checked.model_validate(result["checked"]).gate == "passed"
    assert result["wall_s"] >= sum(result["measured"]["time_s"])
    assert set(result["steps_s"]) == {"gate", "build", "timing", "memory", "trace"}
    assert result["wall_s"] >= sum(result["steps_s"].values())
    assert result["steps_s"]["timing"] >= sum(result["measured"]["time_s"])


def test_calibrates(worker: Worker):
    worker.say(json.dumps({"calibrate": True}))
    event = worker.hear()

    assert set(event) == {"event", "matmul_flops_per_s", "copy_bytes_per_s", "memory_bytes"}
    assert event["memory_bytes"] is None, "the parent knows the host's"
    assert event["event"] == "calibrated"
    assert event["matmul_flops_per_s"] > 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "bad request: Expecting"),
        ("[1, 2]", "bad request: "),
        ('{"case": {}}', "bad request: "),
        ('{"cases": {}}', "bad request: request: "),
    ],
)
def test_a_bad_line_is_an_error_and_it_lives_on(worker: Worker, line: str, said: str):
    worker.say(line)
    result = worker.hear()

    assert result["event"] == "result"
    assert result["status"] == "error"
    assert result["reason"].startswith(said)
    assert worker.ask(case(), trace=False)[1]["status"] == "ok"


def test_an_interrupt_is_not_for_it(worker: Worker):
    worker.process.send_signal(signal.SIGINT)

    assert worker.ask(case(), trace=False)[1]["status"] == "ok"


def test_too_little_memory_is_oom_and_stdins_end_is_the_end():
    # 4 GiB hold the interpreter and torch, but not the eager path's scores: 32768² · 4 heads · 4 bytes = 16 GiB.
    with Worker("--memory-limit", str(2**32)) as one:
        ready = one.hear()
        assert ready["event"] == "ready"
        assert ready["env"]["device"] == "cpu"
        assert ready["env"]["cpu"]["threads"] == 1

        _, result = one.ask(case(seq_len=2**15, path="eager"), trace=False)
        assert result["status"] == "oom"
        assert result["reason"].startswith("out of memory: asked for ")
        assert result["measured"] is None
        assert result["checked"]["gate"] == "passed"

        assert one.end() == 0


@pytest.mark.parametrize("name", ["meta", "tpu", ""])
def test_a_device_of_another_kind_is_refused(name):
    with pytest.raises(BenchError, match=f"no device '{name}' to measure on"):
        usable(name)


def test_a_device_that_is_not_there_is_said_before_anything_else():
    with Worker("--device", "cuda:99") as one:
        event = one.hear()

        assert event["event"] == "error"
        assert event["message"].startswith("cannot use the device 'cuda:99': ")
        assert event["hint"]
        assert one.end() == 2


def test_workers_end_with_a_parent_that_is_killed_outright():
    program = (
        "import time;"
        "from benchbench.case import Case; from benchbench.launch import LocalLauncher;"
        "from benchbench.record import Protocol; from benchbench.specs import preset;"
        "both = LocalLauncher('cpu', threads=1, beside=True);"
        "both.ahead([(Case.of(preset('mamba-tiny'), task='prefill', seq_len=8), Protocol())]);"
        "both.start();"
        "print(both._worker.pid, both._tracer._worker.pid, flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert [psutil.Process(pid).ppid() for pid in pids] == [parent.pid] * 2
        parent.kill()
    until = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_else_is_printed_never_gets_between_the_events():
    program = (
        "from benchbench import worker;"
        "real = worker.describe;"
        "worker.describe = lambda device: print('chatter') or real(device);"
        "worker.main([])"
    )
    done = subprocess.run([sys.executable, "-c", program], input="", capture_output=True, text=True, timeout=120)

    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["ready"]
    assert "chatter" in done.stderr


@pytest.mark.gpu
def test_answers_on_a_gpu_under_a_limit_of_host_memory():
    with Worker("--device", "cuda", "--memory-limit", str(2**36)) as one:
        ready = one.hear()
        # The driver, this process's context, and whatever else runs there take their part.
        assert 2**28 < ready["memory_bytes"] < ready["env"]["gpu"]["memory_bytes"]
        for task in ("prefill", "decode", "train"):
            _, result = one.ask(case(task))
            assert result["status"] == "ok", result["reason"]
            assert result["measured"]["peak_requested_bytes"] > 0
        assert one.end() == 0
