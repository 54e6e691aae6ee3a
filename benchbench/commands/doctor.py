"""`benchbench doctor`: what this machine can measure, what is missing for more, and what would spoil a number."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchbench import gpu, units
from benchbench.commands.options import FORMATS, echo_tables
from benchbench.extras import FIRST, piece
from benchbench.table import Column, build

GOOD, NOTE, MISSING, SPOILS = "good", "note", "missing", "spoils"
BUSY_LOAD = 0.5
"""Runnable processes beside us, a minute's mean, from which times of the CPU are no longer ours alone."""
SETTINGS = ("LD_PRELOAD", "MALLOC_", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS")


class Finding(NamedTuple):
    """One thing looked at: `verdict` is good, note, missing or spoils; `advice` is what to type or to know."""

    part: str
    what: str
    found: str
    verdict: str = GOOD
    advice: str = ""


@click.command()
@FORMATS
def command(output: str) -> None:
    """Say what this machine can measure, and what would spoil it."""
    findings = [*software(probed()), *processor(Path("/"), os.environ), *graphics()]
    if output == "json":
        click.echo(json.dumps([one._asdict() for one in findings], indent=2))
        return
    columns: tuple[Column[Finding], ...] = (
        Column("part", "part", "text", lambda one: one.part),
        Column("what", "what", "text", lambda one: one.what),
        Column("found", "found", "text", lambda one: one.found),
        Column("verdict", "verdict", "text", lambda one: one.verdict),
        Column("advice", "advice", "text", lambda one: one.advice or None),
    )
    echo_tables([build("doctor", (), columns, findings)], output, [summary(findings)])


def summary(findings: list[Finding]) -> str:
    """One sentence: how many things spoil a number here, and how many are missing."""
    spoils, missing = (sum(one.verdict == verdict for one in findings) for verdict in (SPOILS, MISSING))
    if not spoils and not missing:
        return "Nothing is missing, and nothing was found that would spoil a number."
    return f"{spoils} would spoil a number, {missing} missing: only what needs them is unsupported here."


def probed() -> dict[str, Any]:
    """What benchbench.probe finds, in a process that may die of it."""
    command = (sys.executable, "-m", "benchbench.probe")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {"torch": {"error": f"the process that imports it ended without an answer ({error})"}, "pieces": {}}


def software(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Python, torch and the pieces of the extra `cuda`, from what benchbench.probe found."""
    yield Finding("software", "Python", platform.python_version())
    torch = facts["torch"]
    if "error" in torch:
        yield Finding("software", "torch", torch["error"], MISSING, "pip install torch. Counting works without it.")
        return
    build_of = f"for CUDA {torch['cuda']}" if torch["cuda"] else "for CPUs"
    yield Finding("software", "torch", f"{torch['version']}, {build_of}")
    if not torch["gpus"]:
        advice = "Counting, tracing and CPU times work without one."
        if not torch["cuda"]:
            advice += " With one: install the build of torch for CUDA."
        yield Finding("software", "GPUs that torch can use", "none", NOTE, advice)
    for name, (major, minor) in zip(torch["gpus"], torch["capabilities"], strict=True):
        yield Finding("software", "GPU that torch can use", f"{name}, compute capability {major}.{minor}")
    lacking = [module for module, found in facts["pieces"].items() if not found["found"]]
    for module, found in facts["pieces"].items():
        if found["found"]:
            yield Finding("software", piece(module).what, found.get("version", "yes"))
        else:
            error = found["error"] or "not installed"
            yield Finding("software", piece(module).what, error, MISSING, piece(module).fix)
    if torch["gpus"]:
        yield from paths(lacking)


def paths(lacking: list[str]) -> Iterator[Finding]:
    """What the GPU can be measured with, given the modules that cannot be imported."""
    yield Finding("paths", "flash, graph", "can run")
    if "triton" in lacking:
        yield Finding("paths", "triton", "cannot run", MISSING, piece("triton").fix)
    else:
        yield Finding("paths", "triton", "can run")
    if not lacking:
        yield Finding("paths", "fused", "can run")
        return
    yield Finding("paths", "fused", f"cannot run without {', '.join(lacking)}", MISSING, f"First: {FIRST}")
    if shutil.which("nvcc") is None:
        advice = "Its compiler builds mamba-ssm and causal-conv1d: install the CUDA toolkit of torch's version."
        yield Finding("paths", "nvcc", "not on PATH", MISSING, advice)


def processor(root: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The CPU, its memory and settings, read under `root`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("CPU", "cores this process may use", f"{usable} of {os.cpu_count()}")
    yield from _quota(root, usable)
    load = os.getloadavg()[0]
    busy = Finding("CPU", "load, last minute", f"{load:.2f}")
    if load >= BUSY_LOAD:
        busy = busy._replace(verdict=SPOILS, advice="Other work is running: wait for it, or times will be its, too.")
    yield busy
    yield _governor(root)
    yield from _memory(root)
    kept = [f"{key}={value}" for key, value in sorted(environment.items()) if key.startswith(SETTINGS)]
    if any(one.startswith(("LD_PRELOAD", "MALLOC_")) for one in kept):
        advice = "Recorded with every run: runs with other settings do not compare."
        yield Finding("CPU", "allocator and threads", ", ".join(kept), NOTE, advice)
    else:
        stock = ", ".join([*kept, "stock malloc"])
        advice = "It maps every tensor of 32 MiB or more anew, which slows paths that make many: recorded with a run."
        yield Finding("CPU", "allocator and threads", stock, NOTE, advice)


def _quota(root: Path, usable: int) -> Iterator[Finding]:
    """A container's share of the cores, where it is less than they."""
    quota, period = (*_text(root, "sys/fs/cgroup/cpu.max").split(), "max", "max")[:2]
    if quota == "max" or float(quota) >= usable * float(period):
        return
    share = float(quota) / float(period)
    advice = f"The process is stopped when it has used them up: pass --threads {max(1, int(share))}."
    yield Finding("CPU", "quota", f"{share:g} cores' time", SPOILS, advice)


def _governor(root: Path) -> Finding:
    governor = _text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor in ("", "performance"):
        return Finding("CPU", "frequency governor", governor or "not told, as in most virtual machines")
    advice = "Clocks follow the load. To hold them high: sudo cpupower frequency-set -g performance"
    return Finding("CPU", "frequency governor", governor, NOTE, advice)


def _memory(root: Path) -> Iterator[Finding]:
    """Total and available memory, and swap in use, of /proc/meminfo."""
    lines = _text(root, "proc/meminfo").splitlines()
    sizes = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines if len(line.split()) > 1}
    if "MemTotal" in sizes:
        found = f"{units.size(sizes['MemAvailable'])} free of {units.size(sizes['MemTotal'])}"
        yield Finding("CPU", "memory", found)
    if swapped := sizes.get("SwapTotal", 0) - sizes.get("SwapFree", 0):
        advice = "What is swapped out comes back inside a measurement."
        yield Finding("CPU", "swap in use", units.size(swapped), NOTE, advice)


def graphics() -> Iterator[Finding]:
    """The NVIDIA GPUs that the driver shows, and the hardware counters."""
    answer = gpu.inventory()
    if not answer:
        yield Finding("GPU", "NVIDIA driver", "nvidia-smi shows none", NOTE, "Nothing is measured on a GPU here.")
        return
    for index, card in enumerate(answer):
        yield from card_findings(index, card, gpu.read(card["uuid"]), gpu.neighbours(card["uuid"]))
    yield counters_here()


def card_findings(
    index: int, card: Mapping[str, str], now: gpu.Reading | None, others: Mapping[int, int] | None
) -> Iterator[Finding]:
    """One GPU: what it is, how it is set, who else is on it."""
    part = f"GPU {index}"
    yield Finding(part, "card", f"{card['name']}, {card['memory.total']} MiB, driver {card['driver_version']}")
    if card["mig.mode.current"] == "Enabled":
        advice = "An instance is a part of a GPU: utilisation is of the whole one's peak."
        yield Finding(part, "MIG", "on", SPOILS, advice)
    ecc = card["ecc.mode.current"]
    yield Finding(part, "ECC", "not told" if ecc.startswith("[") else ecc.lower())
    if now:
        clocks = (
            f"SM {now.sm_clock_mhz} of {card['clocks.max.sm']} MHz, memory {now.memory_clock_mhz} MHz, {now.pstate}"
        )
        yield Finding(part, "clocks now", clocks)
        heat = f"{now.temperature_c} °C, {now.power_w} W of {card['power.limit']} W"
        if now.throttled:
            advice = "The clocks are held down: let it cool, or find out who set a limit."
            yield Finding(part, "throttled by", f"{', '.join(now.throttled)} ({heat})", SPOILS, advice)
        else:
            yield Finding(part, "throttled by", f"nothing ({heat})")
    if card["persistence_mode"] == "Disabled":
        advice = "Between processes the driver lets the GPU go. To keep it: sudo nvidia-smi -pm 1"
        yield Finding(part, "persistence mode", "off", NOTE, advice)
    if others is None:
        yield Finding(part, "other processes", "not told", NOTE, "Look with nvidia-smi from outside the container.")
    elif others:
        held = f"{len(others)}, with {units.size(sum(others.values()))}"
        yield Finding(part, "other processes", held, SPOILS, "They take memory, bandwidth and power: wait for them.")
    else:
        yield Finding(part, "other processes", "none")


def counters_here() -> Finding:
    """Whether this process can read the hardware counters of this machine."""
    return counters(shutil.which("ncu"), _text(Path("/"), "proc/driver/nvidia/params"), root=os.geteuid() == 0)


def counters(ncu: str | None, parameters: str, *, root: bool) -> Finding:
    """Whether Nsight Compute can read the hardware counters, by the driver's parameters."""
    if ncu is None:
        return Finding("GPU", "hardware counters", "ncu is not on PATH", MISSING, "Install NVIDIA Nsight Compute.")
    if "RmProfilingAdminOnly: 1" in parameters and not root:
        advice = "As root, or with the driver's option NVreg_RestrictProfilingToAdminUsers=0."
        return Finding("GPU", "hardware counters", "for root alone", MISSING, advice)
    return Finding("GPU", "hardware counters", "ncu may read them")


def _text(root: Path, name: str) -> str:
    """A file of the kernel's, stripped; empty where there is none."""
    try:
        return (root / name).read_text("utf-8").strip()
    except OSError:
        return ""
