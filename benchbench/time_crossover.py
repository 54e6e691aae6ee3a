"""Where two models take the same time on a device: searched, since a predicted time has no closed form."""

from itertools import pairwise
from typing import NamedTuple

from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.time import Time, predict
from benchbench.devices import Device
from benchbench.errors import BenchError
from benchbench.scaling import first_place

SHORTEST = 16


class Stretch(NamedTuple):
    """Lengths at which the same model is faster: `faster` is 0 or 1; seconds of both where the stretch begins."""

    low: int
    high: int
    faster: int
    seconds: tuple[float, float]


def stretches(cases: tuple[Case, Case], device: Device, most: int) -> tuple[Stretch, ...]:
    """Who is faster from 16 tokens to `most`, with each turn found to the token.

    Lengths are doubled until the order turns, and the turn is then bisected: two turns between a length and its double
    are not seen.

    Raises:
        BenchError: Of a case no more than a bound is known, or `most` is too short.
    """
    if most < SHORTEST:
        raise BenchError(f"times are compared from {SHORTEST} tokens on, not up to {most}.", "Give a larger --max.")
    lengths = [SHORTEST]
    while lengths[-1] < most:
        lengths.append(min(2 * lengths[-1], most))
    begins = [lengths[0]]
    for low, high in pairwise(lengths):
        if _faster(cases, device, low) != _faster(cases, device, high):
            begins.append(first_place(lambda n: _faster(cases, device, n), low, high))
    ends = [*(begin - 1 for begin in begins[1:]), lengths[-1]]
    return tuple(
        Stretch(low, high, _faster(cases, device, low), _seconds(cases, device, low))
        for low, high in zip(begins, ends, strict=True)
    )


def _faster(cases: tuple[Case, Case], device: Device, n: int) -> int:
    first, second = _seconds(cases, device, n)
    return int(second < first)


def _seconds(cases: tuple[Case, Case], device: Device, n: int) -> tuple[float, float]:
    first, second = (_time(case.replace(seq_len=n), device).time_s for case in cases)
    return first, second


def _time(case: Case, device: Device) -> Time:
    found = predict(count(case, "cuda"), device)
    if found is None or found.bound:
        why = f"what is known is a bound ({found.basis})" if found else f"nothing is known of {device.name}'s speed"
        raise BenchError(
            f"no time of {case.model} can be predicted: {why}.", "Measure the device: benchbench calibrate"
        )
    return found
