"""Numbers as people read them: three significant digits, a unit that suits the size, commas in thousands.

Every function is pure and takes SI values: seconds, bytes, FLOPs, tokens a second, plain ratios.
"""

from collections.abc import Iterable, Sequence
from math import floor, log10

ABSENT = "—"
"""What a cell shows that has no value; the reason stands in the row's status."""

Scale = tuple[tuple[float, str], ...]
"""Factors and unit names, ascending."""

SECONDS: Scale = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
BYTES: Scale = ((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"))
FLOPS: Scale = ((1.0, "FLOP"), (1e6, "MFLOP"), (1e9, "GFLOP"), (1e12, "TFLOP"))
COUNTS: Scale = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"))


def digits(value: float, significant: int = 3) -> str:
    """`value` to so many significant digits: 0.0123, 1.23, 123, 12,300; below 0.0001 as 1.23e-05."""
    if value == 0:
        return "0"
    shown = float(f"{value:.{significant - 1}e}")
    exponent = floor(log10(abs(shown)))
    if exponent < -4:
        return f"{shown:.{significant - 1}e}"
    return f"{shown:,.{max(0, significant - 1 - exponent)}f}"


def integer(value: int) -> str:
    """1048576 as 1,048,576."""
    return f"{value:,}"


def unit_for(value: float, scale: Scale) -> tuple[float, str]:
    """The largest unit in which `value`, as it will be printed, is at least 1; else the smallest."""
    fitting = [unit for unit in scale if float(f"{abs(value) / unit[0]:.2e}") >= 1]
    return fitting[-1] if fitting else scale[0]


def common_unit(values: Iterable[float], scale: Scale) -> tuple[float, str]:
    """One unit for a whole column: the largest that shows its smallest positive value as 0.01 or more."""
    positive = [value for value in values if value > 0]
    return unit_for(min(positive) * 100, scale) if positive else scale[-1]


def scaled(value: float, scale: Scale) -> str:
    factor, name = unit_for(value, scale)
    return f"{digits(value / factor)} {name}".rstrip()


def seconds(value: float) -> str:
    """0.0114 as `11.4 ms`."""
    return scaled(value, SECONDS)


def size(value: float) -> str:
    """2**31 bytes as `2.00 GiB`."""
    return scaled(value, BYTES)


def flops(value: float) -> str:
    """3.69e13 as `36.9 TFLOP`."""
    return scaled(value, FLOPS)


def count(value: float) -> str:
    """129135360 as `129M`: parameters, tokens a second."""
    return scaled(value, COUNTS).replace(" ", "")


def rate(tokens_per_s: float) -> str:
    """718000 tokens a second as `718k tok/s`."""
    return f"{count(tokens_per_s)} tok/s"


def percent(ratio: float, *, signed: bool = False) -> str:
    """0.0063 as `0.63%`, to two significant digits; `signed` adds a plus."""
    shown = digits(100 * ratio, 2)
    return f"+{shown}%" if signed and ratio > 0 else f"{shown}%"


def plural(number: int, noun: str) -> str:
    """`1 core`, `2 cores`."""
    return f"{integer(number)} {noun}" + ("" if number == 1 else "s")


def listing(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
