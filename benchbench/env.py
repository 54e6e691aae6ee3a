# pyright: standard
"""The environment a number was measured in: versions, hardware, and switches that can change it.

Facts only: no host name, no user, no path of the machine.
"""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import benchbench

PACKAGES = ("triton", "mamba-ssm", "causal-conv1d", "fvcore", "numpy")
"""Distributions, beside torch, whose version can change a number."""

SWITCHES = ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS")
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables that other libraries obey: recorded, never read as switches of ours."""


def describe(device: str | torch.device) -> dict[str, Any]:
    """What `device`, the software and its settings are, as plain JSON data; what cannot be known is None."""
    device = torch.device(device)
    return {
        "benchbench": benchbench.__version__,
        "git": git(Path(benchbench.__file__).parents[1]),
        "python": platform.python_version(),
        "packages": {"torch": str(torch.__version__), **{name: _version(name) for name in PACKAGES}},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": device.type,
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "cpu": _cpu(),
        "os": {"name": platform.system(), "kernel": platform.release(), "machine": platform.machine()},
        "flags": _flags(),
        "variables": variables(os.environ),
    }


def git(root: Path) -> dict[str, Any] | None:
    """Commit, branch (None where detached) and dirtiness of the checkout at `root`; None without one or a commit."""
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None
    sha = _output("git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD")
    if sha is None:
        return None
    branch = _output("git", "-C", str(root), "rev-parse", "--abbrev-ref", "HEAD")
    return {
        "sha": sha,
        "branch": None if branch == "HEAD" else branch,
        "dirty": bool(_output("git", "-C", str(root), "status", "--porcelain")),
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those that change how memory is handed out or kernels run. Of a preloaded library, its file name alone."""
    kept = {key: environment[key] for key in (*SWITCHES, *ALLOCATOR) if key in environment}
    kept |= {key: value for key, value in environment.items() if key.startswith("MALLOC_")}
    if preloaded := environment.get("LD_PRELOAD"):
        kept["LD_PRELOAD"] = " ".join(Path(name).name for name in re.split(r"[ :]+", preloaded.strip()))
    return dict(sorted(kept.items()))


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    query = "--query-gpu=driver_version,power.limit,ecc.mode.current,mig.mode.current,clocks.max.sm"
    answer = _output("nvidia-smi", f"--id=GPU-{properties.uuid}", query, "--format=csv,noheader")
    fields = answer.split(", ") if answer else []
    driver, power_limit, ecc, mig, max_clock = fields if len(fields) == 5 else [None] * 5
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "driver": driver,
        "power_limit": power_limit,
        "ecc": ecc,
        "mig": mig,
        "max_sm_clock": max_clock,
    }


def _cpu() -> dict[str, Any]:
    return {
        "model": cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def cpu_model() -> str | None:
    """The processor's name as the kernel gives it, or as Python knows it, or None."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or None


def _flags() -> dict[str, Any]:
    cuda = torch.backends.cuda
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "matmul_tf32": cuda.matmul.allow_tf32,
        "matmul_bf16_reduced": cuda.matmul.allow_bf16_reduced_precision_reduction,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "sdpa_flash": cuda.flash_sdp_enabled(),
        "sdpa_efficient": cuda.mem_efficient_sdp_enabled(),
        "sdpa_cudnn": cuda.cudnn_sdp_enabled(),
        "sdpa_math": cuda.math_sdp_enabled(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What `command` prints, stripped; None if it is not installed, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
