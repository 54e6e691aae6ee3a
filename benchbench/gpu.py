"""What a GPU was doing around a measurement: clocks, what holds them down, temperature, power, and who else is there.

Read from NVML where its bindings (nvidia-ml-py) are installed, which takes a millisecond, else from nvidia-smi, which
takes a good part of a second. What cannot be read is None. Nothing here imports torch or changes a setting.
"""

import os
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from benchbench.value import Value

T = TypeVar("T")

REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
"""NVML's bits of why the clocks are not at their highest."""

CHOSEN = frozenset({"idle", "application clocks", "display clocks"})
"""Those that nothing forced on the GPU."""

QUERY = "clocks.sm,clocks.mem,temperature.gpu,power.draw,pstate,utilization.gpu,clocks_event_reasons.active"


CARD = (
    "uuid",
    "name",
    "driver_version",
    "memory.total",
    "ecc.mode.current",
    "mig.mode.current",
    "persistence_mode",
    "clocks.max.sm",
    "power.limit",
)
"""What nvidia-smi tells of a card that no measurement changes; amounts in MiB, MHz and W."""


class Reading(Value, frozen=True):
    """One look at a GPU."""

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    pstate: str | None = None
    """P0, the fastest, to P15."""
    busy_percent: int | None = None
    """Of the driver's last sampling period, a second or less, how much of it some kernel ran."""
    clock_reasons: tuple[str, ...] | None = None

    @property
    def throttled(self) -> tuple[str, ...]:
        """What held the clocks down, idleness and settings apart."""
        return tuple(reason for reason in self.clock_reasons or () if reason not in CHOSEN)


class GpuUse(Value, frozen=True):
    """A GPU before and after something was timed on it."""

    before: Reading
    after: Reading
    neighbours: int | None = None
    """Other processes with memory on this GPU; None where processes cannot be told apart."""
    neighbours_bytes: int | None = None


def watched(uuid: str | None, work: Callable[[], T]) -> tuple[T, GpuUse | None]:
    """What `work` returns, and the GPU called `uuid` around it; None without a GPU or a way to read it."""
    before = read(uuid) if uuid else None
    done = work()
    if uuid is None or before is None:
        return done, None
    after, others = read(uuid), neighbours(uuid)
    use = GpuUse(
        before=before,
        after=after or Reading(),
        neighbours=None if others is None else len(others),
        neighbours_bytes=None if others is None else sum(others.values()),
    )
    return done, use


def read(uuid: str) -> Reading | None:
    """The GPU called `uuid` (`GPU-...`) now; None where neither NVML nor nvidia-smi knows it."""
    if nvml := _nvml():
        return _by_nvml(nvml, uuid)
    answer = _smi(f"--id={uuid}", f"--query-gpu={QUERY}")
    return parsed(answer) if answer else None


def inventory() -> list[dict[str, str]]:
    """The NVIDIA GPUs of this machine, by the names of CARD; none without nvidia-smi."""
    lines = (_smi(f"--query-gpu={','.join(CARD)}") or "").splitlines()
    rows = ([field.strip() for field in line.split(",")] for line in lines)
    return [dict(zip(CARD, row, strict=True)) for row in rows if len(row) == len(CARD)]


def neighbours(uuid: str) -> dict[int, int] | None:
    """Bytes that each other process holds on the GPU, by its id; None where our own cannot be told from theirs."""
    if nvml := _nvml():
        held = _processes_by_nvml(nvml, uuid)
    else:
        answer = _smi(f"--id={uuid}", "--query-compute-apps=pid,used_memory")
        held = None if answer is None else parsed_processes(answer)
    return None if held is None else others(held, os.getpid())


def others(held: Mapping[int, int], own: int) -> dict[int, int] | None:
    """`held` without `own`. In a container the ids can be the host's: then ours is not among them."""
    if held and own not in held:
        return None
    return {pid: size for pid, size in held.items() if pid != own}


def parsed(line: str) -> Reading:
    """A line of nvidia-smi's answer to QUERY, in CSV without units."""
    sm, memory, temperature, power, pstate, busy, mask = (_number(field) for field in line.split(","))
    return Reading(
        sm_clock_mhz=_whole(sm),
        memory_clock_mhz=_whole(memory),
        temperature_c=_whole(temperature),
        power_w=float(power) if power else None,
        pstate=pstate,
        busy_percent=_whole(busy),
        clock_reasons=reasons(int(mask, 16)) if mask else None,
    )


def parsed_processes(lines: str) -> dict[int, int]:
    """nvidia-smi's processes and their MiB, as bytes by process id; an amount it may not tell counts as 0."""
    rows = [[_number(field) for field in line.split(",")] for line in lines.splitlines() if line.strip()]
    return {int(pid): 2**20 * int(size or 0) for pid, size in rows if pid}


def reasons(mask: int) -> tuple[str, ...]:
    return tuple(name for bit, name in REASONS.items() if mask & bit)


def _number(field: str) -> str | None:
    text = field.strip()
    return None if text.startswith("[") or text in ("", "N/A") else text


def _whole(text: str | None) -> int | None:
    return round(float(text)) if text else None


def _smi(*options: str) -> str | None:
    """What nvidia-smi prints; None if it is not installed, fails or takes too long."""
    command = ("nvidia-smi", *options, "--format=csv,noheader,nounits")
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _nvml() -> Any:
    """NVML's bindings, started; None where they are not installed or find no driver."""
    try:
        bindings: Any = import_module("pynvml")
    except ImportError:
        return None
    try:
        bindings.nvmlInit()
    except bindings.NVMLError:
        return None
    return bindings


def _by_nvml(nvml: Any, uuid: str) -> Reading | None:
    try:
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return None

    def ask(name: str, *arguments: int) -> Any:
        """What a device supports differs from card to card."""
        try:
            return getattr(nvml, name)(gpu, *arguments)
        except nvml.NVMLError:
            return None

    power_mw, state = ask("nvmlDeviceGetPowerUsage"), ask("nvmlDeviceGetPerformanceState")
    rates, mask = ask("nvmlDeviceGetUtilizationRates"), ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    return Reading(
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        temperature_c=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        pstate=None if state is None else f"P{state}",
        busy_percent=None if rates is None else rates.gpu,
        clock_reasons=None if mask is None else reasons(mask),
    )


def _processes_by_nvml(nvml: Any, uuid: str) -> dict[int, int] | None:
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
    except nvml.NVMLError:
        return None
    return {process.pid: process.usedGpuMemory or 0 for process in running}
