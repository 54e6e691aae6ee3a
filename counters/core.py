"""The token mixer of one layer alone: its operations, taken out of the model's, and what it holds.

Each family's file has `core(spec, step) -> Mixer`. The operations are those that the model runs at the mixer's place in
one layer; the bytes of the inputs are what its projections would have left.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import NamedTuple

from benchbench.case import Case
from benchbench.counters.op import Placed, Step
from benchbench.counters.timeline import Block, Timeline


class Mixer(NamedTuple):
    """A mixer's operations, once, and what it holds."""

    placed: tuple[Placed, ...]
    input_bytes: int
    working_bytes: int
    """Its output and temporaries, at the fullest moment of a call."""


def mixer(case: Case, step: Step) -> Mixer:
    return import_module(f"benchbench.counters.{case.family.replace('-', '_')}").core(case.spec, step)


def at(place: str, ops: Iterable[Placed]) -> tuple[Placed, ...]:
    """One layer's share of `ops`, charged to `place`."""
    return tuple(Placed(place, op.formula) for op in ops)


def timeline(case: Case, step: Step, device: str = "cpu") -> Timeline:
    """Weights and inputs throughout, output and temporaries as one that comes and goes."""
    found = mixer(case, step)
    weights = [
        Block(step.width * op.formula.params, op.formula.name, "params", op.path)
        for op in found.placed
        if op.formula.params
    ]
    inputs = Block(found.input_bytes, "inputs", "workspace")
    working = Block(found.working_bytes, "output and temporaries", "workspace", "mixer")
    blocks = [working]
    if device == "cuda":
        from benchbench.counters.allocations.core import aside

        if size := aside(case.spec, step):
            blocks.append(Block(size, "workspace", "workspace", "mixer"))
    return Timeline((*weights, inputs), [(block, sign) for sign in (1, -1) for block in blocks])
