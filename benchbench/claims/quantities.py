"""What the count knows of a case, by the names that claims use."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import get_args

from benchbench.case import Case
from benchbench.counters import Cost, count
from benchbench.counters.cost import Kind as Device
from benchbench.counters.op import Kind, Phase
from benchbench.errors import BenchError, unknown

CROSSING = ("flops", "executed", "bytes", "memory", "state")
LAYER = "backbone.layers.*"


class AbsentError(Exception):
    """A quantity that does not exist, which itself is an answer: two costs that never cross."""


@cache
def quantities(case: Case, device: Device | None = None) -> Mapping[str, int]:
    """Every quantity of one case.

    `params_inside` leaves out embeddings, positions and the head. `flops.forward`, `flops.scan` and
    `flops.forward.scan` are parts of `flops`. `layer.attention.saved_bytes` is what one layer's operations of that
    kind keep for backward; beside it stand `scratch_bytes`, `state_bytes`, `params`, and forward's `flops` and
    `bytes_moved`.
    """
    cost = count(case, device)
    counted = cost.counted
    sizes = {name: value for name, value in dict(case.spec).items() if type(value) is int}
    totals = {name: value for name, value in dict(counted).items() if type(value) is int}
    memory = {f"memory.{name}": value for name, value in dict(counted.memory).items()}
    own = {
        "seq_len": case.seq_len,
        "batch": case.batch,
        "tokens": case.batch * (1 if case.task == "decode" else case.seq_len),
        "params_inside": _params_inside(cost),
    }
    return {**sizes, **totals, **memory, **own, **_flops(cost), **_layer(cost)}


def _params_inside(cost: Cost) -> int:
    inside = [op for op in cost.placed if op.formula.kind != "embedding" and op.path != "lm_head"]
    return sum(op.repeat * op.formula.params for op in inside)


def _flops(cost: Cost) -> dict[str, int]:
    """By phase, by kind, and by both, zeros included."""
    kinds, phases = get_args(Kind), get_args(Phase)
    names = (*phases, *kinds, *(f"{phase}.{kind}" for phase in phases for kind in kinds))
    found = {f"flops.{name}": 0 for name in names}
    for op in cost.ops:
        # The optimizer is a phase and a kind.
        for name in {op.phase, op.kind, f"{op.phase}.{op.kind}"}:
            found[f"flops.{name}"] += op.repeat * op.flops
    return found


def _layer(cost: Cost) -> dict[str, int]:
    """One layer's forward, by kind."""
    fields = ("params", "flops", "bytes_moved", "saved_bytes", "scratch_bytes", "state_bytes")
    found = {f"layer.{kind}.{field}": 0 for kind in get_args(Kind) for field in fields}
    for op in cost.placed:
        if op.path.startswith(LAYER):
            work, formula = op.formula.forward, op.formula
            values = (formula.params, work.flops, work.bytes_moved)
            values = (*values, formula.saved_bytes, formula.scratch_bytes, formula.state_bytes)
            for field, value in zip(fields, values, strict=True):
                found[f"layer.{formula.kind}.{field}"] += value
    return found


@cache
def saved_bytes(case: Case, device: Device | None = None) -> int:
    """The most that is alive at once of what the forward leaves for the backward, autocast's weights included."""
    timeline = count(case, device).fullest.timeline
    held = tuple(block for block in timeline.held if block.category == "activations")
    items = [event for event in timeline.events() if event[0].category == "activations"]
    return replace(timeline, held=held, items=items).peak()


def lookup(name: str, case: Case, base: Case | None, device: Device | None = None) -> Fraction:
    """A quantity of `case`, one of `base` by `base.NAME`, by `crossing.METRIC` the length from which `case` costs no
    more than `base`, whatever comes after, or `saved_bytes`.

    Raises:
        BenchError: There is no such name.
        AbsentError: The costs never cross.
    """
    head, _, rest = name.partition(".")
    if head in ("base", "crossing"):
        if base is None:
            raise BenchError(f"'{name}' needs a second case.", "Give one: base = { model = ..., seq_len = ... }.")
        return Fraction(crossing(case, base, rest)) if head == "crossing" else lookup(rest, base, None, device)
    if name == "saved_bytes":
        return Fraction(saved_bytes(case, device))
    known = quantities(case, device)
    if name not in known:
        raise unknown("quantity", name, [*known, "saved_bytes"])
    return Fraction(known[name])


@cache
def crossing(case: Case, base: Case, metric: str) -> int:
    """The length from which `case` costs no more than `base`, up to the longest that both accept."""
    from benchbench.counters.crossover import compare

    if metric not in CROSSING:
        raise unknown("metric", metric, CROSSING)
    found = compare(case, base, metric)
    for stretch in reversed(found.stretches):
        if stretch.order > 0:
            break
        least = stretch.low
    else:
        return found.low
    if found.stretches[-1].order > 0:
        raise AbsentError(f"{case.model} costs more than {base.model} at every length up to {found.high:,}")
    return least  # pyright: ignore[reportPossiblyUnboundVariable] - the last stretch set it
