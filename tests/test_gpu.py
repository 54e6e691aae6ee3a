"""What is read of a GPU, from the words of nvidia-smi and from NVML."""

import os
from types import SimpleNamespace

import pytest
import torch

from benchbench import gpu
from benchbench.clock import gpu_uuid, wake
from benchbench.gpu import GpuUse, Reading


def test_a_line_of_nvidia_smi():
    # 0x24 = 0x20 + 0x4: two bits.
    line = "1980, 3201, 45, 350.12, P0, 97, 0x0000000000000024"

    assert gpu.parsed(line) == Reading(
        sm_clock_mhz=1980,
        memory_clock_mhz=3201,
        temperature_c=45,
        power_w=350.12,
        pstate="P0",
        busy_percent=97,
        clock_reasons=("software power cap", "software thermal slowdown"),
    )


def test_what_a_card_does_not_tell_is_absent():
    found = gpu.parsed("[N/A], 3201, [Not Supported], [N/A], P8, 0, 0x0000000000000001")

    assert (found.sm_clock_mhz, found.temperature_c, found.power_w) == (None, None, None)
    assert found.clock_reasons == ("idle",)


def test_idleness_and_settings_are_not_throttling():
    assert Reading(clock_reasons=gpu.reasons(0x1 | 0x2 | 0x40)).throttled == ("hardware thermal slowdown",)
    assert Reading().throttled == ()


def test_neighbours_are_the_other_processes():
    held = gpu.parsed_processes("17, 1024\n42, 2\n")

    assert held == {17: 2**30, 42: 2 * 2**20}
    assert gpu.others(held, own=17) == {42: 2 * 2**20}
    assert gpu.others({}, own=17) == {}
    assert gpu.others(held, own=3) is None, "our own process is not among them: the ids are of another namespace"


class NotSupportedError(Exception):
    pass


def fake_nvml(**answers: object) -> SimpleNamespace:
    """Bindings whose device answers only what it is given here."""

    def refuse(*_: object) -> object:
        raise NotSupportedError

    names = ("PowerUsage", "PerformanceState", "UtilizationRates", "CurrentClocksThrottleReasons", "ClockInfo")
    asked = {f"nvmlDeviceGet{name}": refuse for name in (*names, "Temperature", "ComputeRunningProcesses")}
    found = {f"nvmlDeviceGet{name}": lambda *_, value=value: value for name, value in answers.items()}
    return SimpleNamespace(
        NVMLError=NotSupportedError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        **(asked | found),
    )


def test_nvml_gives_watts_and_names_and_leaves_out_what_it_cannot(monkeypatch: pytest.MonkeyPatch):
    nvml = fake_nvml(PowerUsage=350_120, PerformanceState=0, ClockInfo=1980, CurrentClocksThrottleReasons=4)
    monkeypatch.setattr(gpu, "_nvml", lambda: nvml)

    found = gpu.read("GPU-1")
    assert (found.power_w, found.pstate, found.sm_clock_mhz) == (350.12, "P0", 1980)
    assert found.throttled == ("software power cap",)
    assert (found.temperature_c, found.busy_percent) == (None, None)
    assert gpu.neighbours("GPU-1") is None


def test_a_measurement_is_watched(monkeypatch: pytest.MonkeyPatch):
    running = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=5), SimpleNamespace(pid=1, usedGpuMemory=None)]
    running.append(SimpleNamespace(pid=2, usedGpuMemory=7))
    nvml = fake_nvml(ClockInfo=1980, ComputeRunningProcesses=running)
    monkeypatch.setattr(gpu, "_nvml", lambda: nvml)
    seen = Reading(sm_clock_mhz=1980, memory_clock_mhz=1980)

    assert gpu.watched("GPU-1", lambda: 3) == (3, GpuUse(before=seen, after=seen, neighbours=2, neighbours_bytes=7))


def test_without_a_gpu_the_work_is_done_all_the_same():
    assert gpu.watched(None, lambda: 3) == (3, None)
    assert gpu_uuid(torch.device("cpu")) is None
    wake(torch.device("cpu"))


@pytest.mark.gpu
def test_a_working_gpu_is_read_and_awake():
    device = torch.device("cuda")
    uuid = gpu_uuid(device)
    _, use = gpu.watched(uuid, lambda: wake(device))

    assert use is not None
    assert use.after.pstate == "P0"
    assert use.after.sm_clock_mhz is None or use.after.sm_clock_mhz > 500, "after 50 ms of matrix products"
    assert use.after.power_w is None or use.after.power_w > 50
