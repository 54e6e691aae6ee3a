# pyright: standard
"""Peak memory of one call, in a pass of its own: read off the allocators, never off a process list.

On CUDA the caching allocator keeps the peaks. On the CPU the allocator reports each block to torch's profiler; the
peak is what was alive at the start plus the highest running sum of the reports. Code runs unchanged under it, unlike
under a dispatch mode, which makes autograd accumulate out of place.
"""

import ctypes
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import RecordScope
from torch.autograd.profiler import profile

MAX_EVENTS = 1_000_000
"""Allocator reports held at once: each takes about 2.3 kB of host memory and 12 µs."""

REPORT = "[memory]"


@dataclass(frozen=True)
class Peaks:
    """Highest bytes during a call, those held before it included; the CPU's allocator hands out what is requested."""

    requested_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


def peaks(call: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> Peaks:
    """Peaks of one `call`, around which the tensors `held` are alive.

    `call` must not free what was allocated before it: the CPU's allocator does not report that.
    """
    if device.type == "cuda":
        return _cuda_peaks(call, device)
    return Peaks(held_bytes(held) + highest_sum(allocations(call)))


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`: views and tied weights count once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def allocations(call: Callable[[], object]) -> list[int]:
    """What the CPU's allocator reports during `call`, in order: bytes handed out, and taken back as negative.

    Only user scopes are recorded beside the reports, which are needed here; the operators would take four times as
    much memory and time.
    """
    config = profile(use_cpu=True, profile_memory=True).config()
    activities = {torch.profiler.ProfilerActivity.CPU}
    _prepare_profiler(config, activities)
    _enable_profiler(config, activities, {RecordScope.USER_SCOPE})  # pyright: ignore[reportCallIssue]
    try:
        call()
    finally:
        events = _disable_profiler().events()
    reports = [event for event in events if event.name() == REPORT]
    ordered = sorted(reports, key=lambda event: event.start_ns())
    return [event.nbytes() for event in ordered]  # pyright: ignore[reportAttributeAccessIssue]


def highest_sum(changes: Iterable[int]) -> int:
    """The largest running sum, or 0 if it never rises above the start."""
    highest = current = 0
    for change in changes:
        current += change
        highest = max(highest, current)
    return highest


def _cuda_peaks(call: Callable[[], object], device: torch.device) -> Peaks:
    settle_cuda(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    stats = torch.cuda.memory_stats(device)
    return Peaks(*(stats[f"{kind}_bytes.all.peak"] for kind in ("requested", "allocated", "reserved")))


def settle_cuda(device: torch.device) -> None:
    """Nothing is cached, and no cuBLAS workspace held: else a call's peak depends on what ran before it."""
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()  # one for each thread that ever multiplied
    torch.cuda.empty_cache()


def reset_host_peak() -> bool:
    """Starts the process's peak resident set anew, from what is in use; False where the kernel has no such thing."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def host_peak_bytes() -> int | None:
    """The process's peak resident set since the last reset, interpreter and libraries included; None if unknown."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 if found else None
