"""Speaks the worker's protocol without torch, so that tests of its parent take milliseconds.

`--script FILE` is JSON: the beginning of a case's id -> what happens to it when it is measured, or, behind `trace `,
when a process of its own traces it. An answer is not a measurement: its numbers are made up, and only tests read them.
The error that a gate finds is the process's id, unless the request knows better.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

ENV = {
    "benchbench": "0",
    "git": {"sha": "0123456789abcdef", "branch": "main", "dirty": False},
    "python": "3.11",
    "packages": {"torch": "0"},
    "cuda": None,
    "device": "cpu",
    "gpu": None,
    "cpu": {
        "model": "Test",
        "cores": 1,
        "logical_cores": 1,
        "usable_cores": 1,
        "capability": "none",
        "threads": 1,
        "memory_bytes": 2**34,
    },
}


def say(**event):
    print(json.dumps(event), flush=True)


def case_id(case):
    return f"{case['spec']['name']}/{case['task']}/N{case['seq_len']}/"


def misbehave(does):
    if does == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "exit":
        print("Traceback: something broke", file=sys.stderr)
        sys.exit(9)
    if does == "silent":
        time.sleep(60)
    if does.startswith("sleep"):
        time.sleep(float(does.split()[1]))


def answer(request, does):
    status, reason, measured, gate_key, steps_s = "ok", None, None, None, {}
    checked = {"traced_flops": 7, "explained_flops": 7} if request["trace"] else {}
    if request["measure"]:
        gate_key = request["case"]["spec"]["name"]
        known = {name: found for name, *found in request["gates"]}
        error, tolerance = known.get(gate_key, (os.getpid(), 1e9))
        checked |= {"gate": "passed", "gate_error": error, "gate_tolerance": tolerance}
        steps_s = {"gate": 0.001, "build": 0.002, "timing": 0.016, "memory": 0.001}
        say(event="phase", phase="sampling", samples=3, half_ratio=0.01)
        misbehave(does)
        if does in ("oom", "error", "unsupported"):
            status, reason = does, f"{does} as the script says"
        else:
            measured = {"time_s": [0.002] * 6, "first_call_s": 0.004, "peak_requested_bytes": 1000}
        if does == "gate":
            checked["gate"] = "failed"
    elif does.startswith("trace "):
        say(event="phase", phase="trace", samples=0, half_ratio=None)
        misbehave(does.removeprefix("trace "))
        if does == "trace error":
            status, reason, checked = "error", "KeyError: of the tracer", {}
    if request["trace"]:
        steps_s["trace"] = 0.5
    if does == "differs" and request["trace"]:
        checked["explained_flops"] = 8
    say(
        event="result",
        status=status,
        reason=reason,
        path=request["case"]["path"] if measured else None,
        measured=measured,
        checked=checked or None,
        gate_key=gate_key,
        steps_s=steps_s,
        wall_s=0.02,
    )


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments = sys.argv[1:]
    script = json.loads(Path(arguments[arguments.index("--script") + 1]).read_text())
    if "cuda" in arguments[arguments.index("--device") + 1]:
        say(event="error", message="torch sees no GPU.", hint="On this machine: --device cpu")
        sys.exit(2)
    say(event="ready", env={**ENV, **script.get("env", {})}, memory_bytes=None)
    for line in sys.stdin:
        request = json.loads(line)
        if "calibrate" in request:
            left = script.get("memory_bytes")
            say(event="calibrated", matmul_flops_per_s=1e12, copy_bytes_per_s=1e11, memory_bytes=left)
            continue
        name = case_id(request["case"])
        does = next((action for start, action in script.items() if name.startswith(start)), "ok")
        answer(request, does)


main()
