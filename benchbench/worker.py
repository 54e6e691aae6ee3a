# pyright: standard
"""The measuring process: reads one request a line, answers in JSON lines, and is the only one to touch the device.

Start it as `python -m benchbench.worker --device cpu`. The parent starts, times out, kills and replaces it.
"""

import argparse
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TextIO

import torch

from benchbench.env import describe
from benchbench.errors import BenchError
from benchbench.measure import Bench, Request, Result, calibrate, obtainable_bytes
from benchbench.reading import read

KINDS = ("cpu", "cuda")
PHASE_INTERVAL_S = 0.1
PR_SET_PDEATHSIG = 1


@dataclass
class Channel:
    """Where events go. A phase is told when it begins and then no more often than ten times a second."""

    stream: TextIO
    _told: tuple[str, float] = ("", 0.0)

    def send(self, event: str, **fields: Any) -> None:
        self.stream.write(json.dumps({"event": event, **fields}, allow_nan=False) + "\n")
        self.stream.flush()

    def phase(self, phase: str, samples: int, half_ratio: float | None) -> None:
        now = perf_counter()
        if phase != self._told[0] or now - self._told[1] >= PHASE_INTERVAL_S:
            self._told = (phase, now)
            self.send("phase", phase=phase, samples=samples, half_ratio=half_ratio)


def answer(line: str, bench: Bench, channel: Channel) -> None:
    """Does what one line asks; a line that cannot be read is an error result, and the worker lives on."""
    began = perf_counter()
    try:
        data = json.loads(line)
        if data == {"calibrate": True}:
            # After the rates: what the libraries of matrix products hold is then no longer free.
            rates = calibrate(bench.device)
            channel.send("calibrated", **rates, memory_bytes=obtainable_bytes(bench.device))
            return
        request = read(Request, data, "request")
    except (ValueError, BenchError) as error:
        result = Result()
        result.fail("error", f"bad request: {error}")
    else:
        result = bench.run(request)
    channel.send("result", **result.to_json(), wall_s=perf_counter() - began)


def own_stdout() -> TextIO:
    """The real stdout for events alone: whatever else prints goes to stderr from now on."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def usable(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        BenchError: There is no such device, or torch cannot use it.
    """
    if name.partition(":")[0] not in KINDS:
        raise BenchError(f"no device '{name}' to measure on.", f"It is {' or '.join(KINDS)}.")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BenchError(f"cannot use the device '{name}': {reason}", "Use --device cpu.") from None
    return device


def cap(device: torch.device, memory_bytes: int) -> None:
    """From now on torch's allocator takes no more than so much of the GPU.

    Raises:
        BenchError: The device is no GPU, or has less.
    """
    if device.type != "cuda":
        raise BenchError(f"--cuda-memory is about a GPU, not '{device}'.", "Use --device cuda.")
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    total = torch.cuda.get_device_properties(device).total_memory
    if memory_bytes > total:
        raise BenchError(f"{memory_bytes:,} bytes are more than the {total:,} of this GPU.", "Give less memory.")
    # Half a byte more, as torch cuts the product off.
    torch.cuda.set_per_process_memory_fraction(min(1.0, (memory_bytes + 0.5) / total), device)


def die_with_parent() -> None:
    """Where the kernel can, ends this process when its parent does, by kill -9 too: nobody is left to listen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves requests until stdin ends. An interrupt is the parent's to decide about."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    parser = argparse.ArgumentParser(prog="benchbench.worker", description="Measures cases for benchbench run.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="of host data; an allocation beyond it fails")
    parser.add_argument("--cuda-memory", type=int, metavar="BYTES", help="that torch may take of the GPU's")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    channel = Channel(own_stdout())
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        device = usable(options.device)
        if options.cuda_memory:
            cap(device, options.cuda_memory)
    except BenchError as error:
        channel.send("error", message=error.message, hint=error.hint)
        return error.exit_code
    environment = describe(device)
    if options.memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory_limit, options.memory_limit))
    bench = Bench(device, channel.phase)
    channel.send("ready", env=environment, memory_bytes=obtainable_bytes(device))
    for line in sys.stdin:
        answer(line, bench, channel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
