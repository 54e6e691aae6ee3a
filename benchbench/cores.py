"""Who runs on which core of the host, so that nothing delays the process that launches kernels."""

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import perf_counter

import psutil

LEAST = 4
"""With fewer logical cores, a process that waits for a GPU and one that computes share them all."""

TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores() -> frozenset[int]:
    """Logical cores that this process may run on; none where the system does not say."""
    process = psutil.Process()
    return frozenset(process.cpu_affinity() or ()) if hasattr(process, "cpu_affinity") else frozenset()


def siblings(core: int, topology: Path = TOPOLOGY) -> frozenset[int]:
    """The logical cores of the same physical one, `core` among them, as Linux lists them: `3,19` or `6-7`."""
    try:
        text = (topology / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return frozenset({core})
    ends = [[int(end) for end in part.split("-")] for part in text.strip().split(",")]
    return frozenset(one for part in ends for one in range(part[0], part[-1] + 1))


def split(cores: frozenset[int], topology: Path = TOPOLOGY) -> tuple[frozenset[int], frozenset[int]] | None:
    """All but the last physical core, and that one; None where they are too few to be split."""
    if len(cores) < LEAST:
        return None
    last = siblings(max(cores), topology) & cores
    return (cores - last, last) if cores > last else None


def bind(pid: int, cores: frozenset[int]) -> None:
    """Keeps a process that has just begun, and the threads it will start, on `cores`."""
    with suppress(psutil.Error, OSError):
        psutil.Process(pid).cpu_affinity(sorted(cores))


THREADS = Path("/proc/self/task")

TURNS = 2000
"""Of the loop that a core is judged by: about a tenth of a millisecond."""

SLOW = 1.2
"""A core that takes so many times as long as the fastest was seen to is left. Between a core whose other hardware
thread is idle and one where it is not, a factor of 1.5 to 2 was seen, which came and went within seconds."""


@dataclass
class LaunchingCore:
    """The core that a process launches a GPU's kernels from, chosen anew whenever something else slows it down.

    Somebody else's work on a physical core, which a virtual machine does not show, makes whatever runs there slower,
    and with it every call that waits for its launches. That is found out before a call and not after it: no sample
    is ever left out.
    """

    seconds: Callable[[], float]
    """How long a piece of work takes that is always the same."""
    _least_s: float = field(default=inf, init=False)
    _cores: tuple[int, ...] = field(default=(), init=False)

    @contextmanager
    def held(self) -> Generator[float]:
        """Keeps every thread of this process on one core meanwhile: threads of one call take turns.

        Yields how many times as long as on the fastest core so far everything takes on this one.
        """
        if not hasattr(os, "sched_setaffinity"):
            yield self._slowdown(self.seconds())
            return
        before: dict[int, set[int]] = {}
        for thread in _threads():
            with suppress(OSError):  # it has just ended
                before[thread] = os.sched_getaffinity(thread)
        if not self._cores:
            self._cores = tuple(sorted(usable_cores()))
            self._least_s = min(map(self._on, self._cores))
        slowdown = self._settle()
        for thread in before:
            _keep(thread, self._cores[:1])
        try:
            yield slowdown
        finally:
            for thread in _threads():
                _keep(thread, before.get(thread, self._cores))

    def _settle(self) -> float:
        """Puts the core to use first in the row: the present one if it is fast, else the first that is found to be."""
        found: dict[int, float] = {}
        for core in self._cores:
            found[core] = self._slowdown(self._on(core))
            if found[core] <= SLOW:
                break
        best = min(found, key=lambda core: found[core])
        self._cores = (best, *(core for core in self._cores if core != best))
        return found[best]

    def _slowdown(self, seconds: float) -> float:
        self._least_s = min(self._least_s, seconds)
        return seconds / self._least_s

    def _on(self, core: int) -> float:
        os.sched_setaffinity(0, {core})
        return self.seconds()


def turning_s() -> float:
    """Seconds of a loop in Python: the better of two, as an interrupt may fall into one."""
    found: list[float] = []
    for _ in range(2):
        began, x = perf_counter(), 0
        for i in range(TURNS):
            x += i * i % 7
        found.append(perf_counter() - began)
    return min(found)


def _threads() -> list[int]:
    """Those of this process."""
    return [int(thread.name) for thread in THREADS.iterdir()]


def _keep(thread: int, cores: Iterable[int]) -> None:
    with suppress(OSError):
        os.sched_setaffinity(thread, cores)


launching_core = LaunchingCore(turning_s)
"""Of this process."""
