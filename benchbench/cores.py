"""Cores of their own for two processes, so that what one computes never delays the other, which launches kernels."""

from contextlib import suppress
from pathlib import Path

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
