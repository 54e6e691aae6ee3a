"""What a device was measured to do: the time of each operation over a grid of sizes, and what lies between them."""

import tomllib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple, cast

from benchbench.errors import BenchError

SCHEMA = 1
"""Raised when the meaning of a curve changes: an older file must then be measured again."""

COLUMNS = ("time_s", "low_s", "high_s", "host_s")

TINY_S = 1e-10
"""What stands for a time of zero, so that it has a logarithm."""

STEEPEST = 2.0
"""Beyond its grid a curve goes on as steeply as it ends, but no time grows faster than with the square of a size."""

PARALLEL = ("batch", "heads", "channels", "tensors")
"""Sizes that a device may work on side by side. With any other, time beyond the grid grows in proportion at least."""


class Timing(NamedTuple):
    """Seconds of one call: on the device the median, least and most of the calls made; on the host, to launch it.

    On a CPU the host is the device, and `host_s` is 0.
    """

    time_s: float
    low_s: float
    high_s: float
    host_s: float = 0.0


class HostCost(NamedTuple):
    """Seconds that the host takes to launch one call of a model: for each layer, and for all else."""

    layer_s: float
    call_s: float
    spread: float = 1.0
    """How much longer than the median nine calls in ten take at most, as a factor."""

    def of(self, n_layers: int) -> float:
        return self.call_s + n_layers * self.layer_s


Sizes = tuple[float, ...]
Logs = tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One operation in one dtype: its timing at sizes along `axes`."""

    name: str
    dtype: str
    axes: tuple[str, ...]
    how: str
    """How it was measured."""
    points: Mapping[Sizes, Timing]

    def at(self, *sizes: float) -> Timing:
        """The timing at `sizes`: on the grid as measured, in between a power law, outside as steep as at the edge.

        Nothing is faster than the fastest of the grid: what is left of a small call is the launch.
        """
        assert len(sizes) == len(self.axes), (self.name, self.axes, sizes)
        ideal = self._ideal(sizes)
        found = _interpolate(self._tree, [log(max(size, 1e-9)) for size in sizes], self._least_slopes)
        shifted = (_exp(value + ideal) for value in found[:3])
        time_s, low_s, high_s = map(max, shifted, self._fastest)
        return Timing(time_s, low_s, high_s, _exp(found[3]))

    @cached_property
    def _fastest(self) -> tuple[float, float, float]:
        return min(self.points.values())[:3]

    @cached_property
    def _least_slopes(self) -> tuple[float, ...]:
        return tuple(0.0 if axis in PARALLEL or self.name in _WORK else 1.0 for axis in self.axes)

    @cached_property
    def rates(self) -> tuple[float, float]:
        """The most work and the most bytes a second that any point of the curve reached; 0 where it has no ideal."""
        work = _WORK.get(self.name)
        if work is None:
            return 0.0, 0.0
        done = [(work(sizes), timing.time_s) for sizes, timing in self.points.items()]
        return max(flops / time for (flops, _), time in done), max(moved / time for (_, moved), time in done)

    def _ideal(self, sizes: Sequence[float]) -> float:
        """The logarithm of the time at the curve's own ceilings, whose kink no power law would follow."""
        work = _WORK.get(self.name)
        if work is None:
            return 0.0
        (flops, moved), (flop_rate, byte_rate) = work(sizes), self.rates
        return log(max(flops / flop_rate, moved / byte_rate))

    @cached_property
    def _tree(self) -> "Tree":
        leaves = {
            tuple(log(size) for size in sizes): _logs(timing, self._ideal(sizes))
            for sizes, timing in self.points.items()
        }
        return _tree(leaves)


def _product_work(sizes: Sequence[float]) -> tuple[float, float]:
    """FLOPs and elements of (rows, d_in) times (d_in, d_out)."""
    rows, d_in, d_out = sizes[:3]
    return 2 * rows * d_in * d_out, rows * (d_in + d_out) + d_in * d_out


_WORK: dict[str, Callable[[Sequence[float]], tuple[float, float]]] = {
    "linear": _product_work,
    "weight_gradient": _product_work,
}


@dataclass(frozen=True)
class Calibration:
    """All that was measured of a device, and of the host that drives it."""

    device: str
    """The name its driver reports."""
    curves: Mapping[tuple[str, str], Curve]
    host: Mapping[str, float]
    """Seconds that the host takes for a module's call, a view, a node of autograd, the launch of a graph."""
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    """Curves that could not be measured, and why."""
    modules: Mapping[str, HostCost] = field(default_factory=dict[str, HostCost])
    """Of whole models on a GPU, by `family/task/path`."""
    _cache: dict[tuple[Any, ...], Timing | None] = field(
        default_factory=dict[tuple[Any, ...], Timing | None], repr=False, compare=False
    )

    def timing(self, name: str, dtype: str, sizes: Sizes) -> Timing | None:
        """Of one call; None where the curve was not measured."""
        place = (name, dtype, sizes)
        if place not in self._cache:
            curve = self.curves.get((name, dtype))
            self._cache[place] = curve.at(*sizes) if curve else None
        return self._cache[place]


def _exp(value: float) -> float:
    found = exp(value)
    return found if found > 2 * TINY_S else 0.0


def _logs(timing: Timing, ideal: float) -> Logs:
    times = (log(max(value, TINY_S)) - ideal for value in timing[:3])
    return (*times, log(max(timing.host_s, TINY_S)))


class Tree(NamedTuple):
    """The logarithms of the sizes along one axis, and what stands at each: the next axis, or logarithms of times."""

    sizes: tuple[float, ...]
    below: tuple[Any, ...]


def _tree(leaves: Mapping[Sizes, Logs]) -> Tree:
    groups: dict[float, dict[Sizes, Logs]] = {}
    for sizes, leaf in leaves.items():
        groups.setdefault(sizes[0], {})[sizes[1:]] = leaf
    ordered = sorted(groups)
    return Tree(
        tuple(ordered),
        tuple(groups[size][()] if () in groups[size] else _tree(groups[size]) for size in ordered),
    )


def _interpolate(tree: Tree, sizes: Sequence[float], least: Sequence[float]) -> Logs:
    """Linear in all logarithms, along one axis after the other, and beyond either end as steep as there."""

    def value(index: int) -> Logs:
        below = tree.below[index]
        return _interpolate(below, sizes[1:], least[1:]) if isinstance(below, Tree) else below

    here, known = sizes[0], tree.sizes
    if len(known) == 1 or here == known[0]:
        return value(0)
    if here < known[0]:
        first, second = value(0), value(1)
        slope = min(1.0, max(0.0, (second[0] - first[0]) / (known[1] - known[0])))
        return (*(time - slope * (known[0] - here) for time in first[:3]), first[3])
    index = min(bisect_right(known, here), len(known) - 1)
    left, right = value(index - 1), value(index)
    step = known[index] - known[index - 1]
    if here <= known[-1]:
        share = (here - known[index - 1]) / step
        return tuple(a + share * (b - a) for a, b in zip(left, right, strict=True))
    # Least and most keep their distance; to launch a kernel costs the host no more where it is larger.
    time, host = ((right[i] - left[i]) / step for i in (0, 3))
    grown, launched = min(STEEPEST, max(least[0], time)), min(STEEPEST, max(0.0, host))
    slopes = (grown, grown, grown, launched)
    return tuple(b + slope * (here - known[-1]) for b, slope in zip(right, slopes, strict=True))


# Files


def load(path: Path) -> Calibration:
    """A file that `benchbench calibrate` wrote.

    Raises:
        BenchError: It cannot be read, is no such file, or was written by another version.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BenchError(f"cannot read '{path}': {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise BenchError(f"{path}: not TOML: {error}.") from None
    if data.get("schema") != SCHEMA:
        raise BenchError(f"'{path}' is not a calibration of this version.", "Measure it with: benchbench calibrate")
    curves = [_curve(one) for one in data["curves"]]
    return Calibration(
        data["device"],
        {(curve.name, curve.dtype): curve for curve in curves},
        data["host"],
        data["environment"],
        data["skipped"],
        {name: HostCost(**cost) for name, cost in data.get("modules", {}).items()},
    )


def _curve(data: dict[str, Any]) -> Curve:
    axes = tuple(data["axes"])
    points = {tuple(row[: len(axes)]): Timing(*row[len(axes) :]) for row in data["points"]}
    return Curve(data["name"], data["dtype"], axes, data["how"], points)


def dump(calibration: Calibration) -> str:
    """The file, as TOML: one point a line, sizes first, then `COLUMNS`."""
    lines = [f"schema = {SCHEMA}", f"device = {_toml(calibration.device)}", ""]
    for name in ("host", "skipped"):
        lines += [f"[{name}]", *(f"{_toml(key)} = {_toml(v)}" for key, v in getattr(calibration, name).items()), ""]
    if calibration.modules:
        entries = (f"{_toml(name)} = {_inline(cost)}" for name, cost in calibration.modules.items())
        lines += ["[modules]", *entries, ""]
    lines += _table("environment", calibration.environment)
    for curve in calibration.curves.values():
        lines += [
            "[[curves]]",
            f"name = {_toml(curve.name)}",
            f"dtype = {_toml(curve.dtype)}",
            f"axes = {_toml(curve.axes)}",
            f"columns = {_toml((*curve.axes, *COLUMNS))}",
            f"how = {_toml(curve.how)}",
            "points = [",
            *(f"  {_toml((*sizes, *timing))}," for sizes, timing in curve.points.items()),
            "]",
            "",
        ]
    return "\n".join(lines)


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    """A table and those inside it; what is unknown is left out, for TOML has no word for it."""
    known = {key: value for key, value in values.items() if value is not None}
    plain = [f"{_toml(key)} = {_toml(value)}" for key, value in known.items() if not isinstance(value, Mapping)]
    lines = [f"[{name}]", *plain, ""]
    for key, value in known.items():
        if isinstance(value, Mapping):
            lines += _table(f"{name}.{_toml(key)}", cast("Mapping[str, Any]", value))
    return lines


def _inline(cost: HostCost) -> str:
    return "{ " + ", ".join(f"{key} = {_toml(value)}" for key, value in cost._asdict().items()) + " }"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + " ".join(escaped.split()) + '"'
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_toml, cast("Sequence[Any]", value))) + "]"
    return str(value)
