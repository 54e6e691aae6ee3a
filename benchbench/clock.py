"""How long a call takes: the first call apart, warm-up until calls agree, then samples until their median is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import torch

from benchbench.cores import launching_core
from benchbench.record import Protocol
from benchbench.stats import summarize

Call = Callable[[], object]


class Lap(NamedTuple):
    """One call, timed."""

    seconds: float
    host_slowdown: float | None = None
    """How many times as long as on the fastest core everything took, just before, on the one that launched it: on a
    GPU, whose calls may wait for their launches."""


Timer = Callable[[Call], Lap]
"""Makes one call."""

OnPhase = Callable[[str, int, float | None], None]
"""Told of the phase, the samples so far, and half the median's interval over the median, if there is one."""

AGREEMENT = 0.1
MAX_WARMUP_CALLS = 20
"""Warm-up ends here even if no two calls agree, unless the protocol itself asks for more."""
WAKE_S = 0.05


@dataclass
class Timing:
    """Seconds of every call made, in order; none is ever left out."""

    first_call_s: float
    warmup_s: list[float] = field(default_factory=list[float])
    time_s: list[float] = field(default_factory=list[float])
    host_slowdown: list[float] = field(default_factory=list[float])
    """Of each sample's core, where that is known."""

    @property
    def spent_s(self) -> float:
        return self.first_call_s + sum(self.warmup_s) + sum(self.time_s)


def sample(call: Call, protocol: Protocol, timer: Timer, on_phase: OnPhase) -> Timing:
    """Times `call` again and again, as `protocol` says.

    First call and warm-up count against `case_budget_s`. No call is begun once the budget is spent, but for one:
    there is always a sample, and it is never the first call. A call longer than the budget is thus made twice.
    """
    on_phase("warm-up", 0, None)
    timing = Timing(timer(call).seconds)
    while timing.spent_s < protocol.case_budget_s and not _warm(timing, protocol):
        timing.warmup_s.append(timer(call).seconds)
    on_phase("sampling", 0, None)
    while not timing.time_s or (timing.spent_s < protocol.case_budget_s and not enough(timing.time_s, protocol)):
        lap = timer(call)
        timing.time_s.append(lap.seconds)
        if lap.host_slowdown is not None:
            timing.host_slowdown.append(lap.host_slowdown)
        on_phase("sampling", len(timing.time_s), summarize(timing.time_s).half_ratio)
    return timing


def enough(samples: Sequence[float], protocol: Protocol) -> bool:
    """Whether the median is known as closely as `protocol` wants, or no more samples are allowed."""
    if len(samples) >= protocol.max_samples:
        return True
    half_ratio = summarize(samples).half_ratio
    return len(samples) >= protocol.min_samples and half_ratio is not None and half_ratio <= protocol.target_ratio


def agree(a: float, b: float) -> bool:
    """Whether two times differ by no more than a tenth of the longer."""
    return abs(a - b) <= AGREEMENT * max(a, b)


def _warm(timing: Timing, protocol: Protocol) -> bool:
    calls = [timing.first_call_s, *timing.warmup_s]
    if len(timing.warmup_s) < max(1, protocol.warmup_calls):
        return False
    return agree(*calls[-2:]) or len(timing.warmup_s) >= MAX_WARMUP_CALLS


def timer_for(device: torch.device) -> Timer:
    """The clock of `device`: the host's counter, or a pair of CUDA events around work on an idle GPU."""
    return cuda_timer(device) if device.type == "cuda" else host_timer


def host_timer(call: Call) -> Lap:
    start = perf_counter()
    call()
    return Lap(perf_counter() - start)


def cuda_timer(device: torch.device) -> Timer:
    """Times one call from an idle GPU to the end of its last kernel, launching included, from a core left alone.

    A sample is one call, however short: calls that follow each other without a wait would hide their launching. The
    second-level cache keeps what the call before left there, as it does between the tokens of a generation; what does
    not fit in it, the weights of most models, is read from memory in every call.
    """

    def timer(call: Call) -> Lap:
        with torch.cuda.device(device), launching_core.held() as slowdown:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            end.synchronize()
            return Lap(start.elapsed_time(end) / 1e3, slowdown)

    return timer


def wake(device: torch.device, seconds: float = WAKE_S) -> None:
    """Keeps a GPU busy until its clocks have risen from idle: calls of a few microseconds would not make them."""
    if device.type != "cuda":
        return
    a = torch.ones(4096, 4096, dtype=torch.bfloat16, device=device)
    until = perf_counter() + seconds
    while perf_counter() < until:
        torch.mm(a, a)
        torch.cuda.synchronize(device)


def gpu_uuid(device: torch.device) -> str | None:
    """The name under which the driver knows a GPU, whatever its number here; None of a CPU."""
    if device.type != "cuda":
        return None
    cuda: Any = torch.cuda
    return f"GPU-{cuda.get_device_properties(device).uuid}"
