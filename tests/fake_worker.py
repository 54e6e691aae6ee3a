"""Speaks the worker's protocol without torch, so that tests of its parent take milliseconds.

`--script FILE` is JSON: the beginning of a case's id -> what happens to it. An answer is not a measurement: its
numbers are made up, and only tests read them.
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


def answer(request, does):
    status, reason, measured = "ok", None, None
    checked = {"traced_flops": 7, "explained_flops": 7}
    if request["measure"]:
        say(event="phase", phase="sampling", samples=3, half_ratio=0.01)
        if does == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "exit":
            print("Traceback: something broke", file=sys.stderr)
            sys.exit(9)
        if does == "silent":
            time.sleep(60)
        if does.startswith("sleep"):
            time.sleep(float(does.split()[1]))
        if does in ("oom", "error", "unsupported"):
            status, reason = does, f"{does} as the script says"
        else:
            measured = {"time_s": [0.002] * 6, "first_call_s": 0.004, "peak_requested_bytes": 1000}
        if does == "gate":
            checked["gate"] = "failed"
    if does == "differs":
        checked["explained_flops"] = 8
    say(
        event="result",
        status=status,
        reason=reason,
        path=request["case"]["path"] if measured else None,
        measured=measured,
        checked=checked,
        wall_s=0.02,
    )


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments = sys.argv[1:]
    script = json.loads(Path(arguments[arguments.index("--script") + 1]).read_text())
    if "cuda" in arguments[arguments.index("--device") + 1]:
        say(event="error", message="torch sees no GPU.", hint="On this machine: --device cpu")
        sys.exit(2)
    say(event="ready", env={**ENV, **script.get("env", {})})
    for line in sys.stdin:
        request = json.loads(line)
        if "calibrate" in request:
            say(event="calibrated", matmul_flops_per_s=1e12, copy_bytes_per_s=1e11)
            continue
        name = case_id(request["case"])
        does = next((action for start, action in script.items() if name.startswith(start)), "ok")
        answer(request, does)


main()
