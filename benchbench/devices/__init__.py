"""Devices: what their datasheets promise, how their names are recognised, and what was measured of them."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchbench.devices.calibration import Calibration, load
from benchbench.errors import unknown

DTYPES = ("float32", "tf32", "bfloat16", "float16")

FOLDER = Path("results/devices")
"""Where calibrations lie, one file a device."""


@dataclass(frozen=True)
class Device:
    """One row: peaks in FLOP/s by dtype, dense, and bytes a second of its memory, as its maker states them."""

    key: str
    """What a user types."""
    name: str
    memory_bytes: int | None
    memory_bytes_per_s: float | None
    flops_per_s: Mapping[str, float]
    source: str
    names: tuple[str, ...] = ()
    calibration: Calibration | None = None

    def peak(self, dtype: str) -> float | None:
        """The dense peak of a dtype; None where the device has none, or it is not known."""
        return self.flops_per_s.get(dtype)


@cache
def devices() -> dict[str, Device]:
    """The table, by key."""
    rows = tomllib.loads((files(__name__) / "devices.toml").read_text("utf-8"))
    return {key: _device(key, row) for key, row in rows.items()}


def _device(key: str, row: dict[str, Any]) -> Device:
    return Device(
        key=key,
        name=row["name"],
        memory_bytes=row["memory_bytes"],
        memory_bytes_per_s=row["memory_bytes_per_s"],
        flops_per_s={dtype: row[dtype] for dtype in DTYPES if dtype in row},
        source=row["source"],
        names=tuple(row["names"]),
    )


def reported(name: str) -> Device | None:
    """The device whose driver reports `name`: 'NVIDIA A100-SXM4-80GB'. None where it is not in the table.

    The whole name must match: an H200 NVL, a slice of an H100 or an A100 80GB PCIe are other devices.
    """
    plain = re.sub(r"^(nvidia|amd)\s+", "", " ".join(name.lower().split()))
    for device in devices().values():
        if any(re.fullmatch(pattern, plain) for pattern in device.names):
            return device
    return None


def device(name: str) -> Device:
    """The device that a user names: by its key, by what its driver reports, or by the file of its calibration.

    Raises:
        BenchError: There is none, or the file is no calibration.
    """
    if name.endswith(".toml"):
        return calibrated(load(Path(name)))
    found = devices().get(re.sub(r"[\s_]+", "-", name.lower())) or reported(name)
    if found is None:
        hint = "See: benchbench list devices. Any other device: benchbench calibrate, and name the file it writes."
        raise unknown("device", name, devices(), hint)
    return with_calibration(found)


def calibrated(calibration: Calibration) -> Device:
    """The device that was calibrated; one that is not in the table has no peaks."""
    known = reported(calibration.device)
    if known:
        return replace(known, calibration=calibration)
    return Device(calibration.device, calibration.device, None, None, {}, "", calibration=calibration)


def with_calibration(found: Device, folder: Path = FOLDER) -> Device:
    """`found` with what was measured of it, if a file in `folder` is of a device of that name."""
    for path in sorted(folder.glob("*.toml")):
        calibration = load(path)
        if reported(calibration.device) == found:
            return replace(found, calibration=calibration)
    return found


def name_of(environment: Mapping[str, Any]) -> str:
    """What a machine is called in its calibration: the name its GPU's driver reports, or its CPU and its threads."""
    gpu, cpu = environment["gpu"], environment["cpu"]
    return gpu["name"] if gpu else f"{cpu['model']}, {cpu['threads']} threads"


def here(environment: Mapping[str, Any], folder: Path = FOLDER) -> Device | None:
    """The calibrated device that `environment` describes; None where it was not calibrated with this torch."""
    for path in sorted(folder.glob("*.toml")):
        found = load(path)
        same_torch = found.environment["packages"]["torch"] == environment["packages"]["torch"]
        if found.device == name_of(environment) and same_torch:
            return calibrated(found)
    return None
