"""A launch: an operation whose time on a device was measured, at a size."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchbench.case import Case
from benchbench.counters.op import Op

MEASURED_WIDTH = 64
"""Width of the mixture of experts whose routing was measured."""

RAGGED = ":ragged"
"""In the name of a curve whose sizes are no whole chunks of a kernel; older calibrations do not tell them apart."""


class Launch(NamedTuple):
    """A curve at a size; `dtype` is None for the case's own."""

    curve: str
    sizes: tuple[float, ...]
    times: float = 1.0
    dtype: str | None = None


Launches = Iterator[Launch]
Parts = Callable[[Op, Case], Launches]
"""What one operation of a case is made of."""


def wider(curve: str, sizes: tuple[float, ...], measured: tuple[float, ...]) -> Launches:
    """What a part costs beyond the narrow one that the curve of routing holds."""
    yield Launch(curve, sizes)
    yield Launch(curve, measured, -1)


def half(case: Case) -> bool:
    """Whether its products are of half precision."""
    return (case.autocast or case.dtype) != "float32"


def wide(case: Case) -> bool:
    """Whether the residual stream is wider than what the layers compute in."""
    return half(case) and (case.autocast is not None or case.spec.wide_stream)


def field(case: Case, name: str) -> Any:
    """A size that some families have."""
    return getattr(case.spec, name)
