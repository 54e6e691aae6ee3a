"""An operation with its cost: the unit that every count is a sum of.

Conventions: a multiply-add is 2 FLOPs; every other arithmetic operation on an element is 1; exp, log, tanh, sqrt, rsqrt
and division are 1 and are tallied as `transcendental` too; comparisons, selections, copies and indexing are 0.
All sizes may be sympy symbols: formulas use plain arithmetic only.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal[
    "matmul",
    "attention",
    "conv",
    "scan",
    "resolvent",
    "norm",
    "elementwise",
    "routing",
    "embedding",
    "loss",
    "optimizer",
]
Phase = Literal["forward", "backward", "optimizer"]


@dataclass(frozen=True, slots=True)
class Work:
    """What one phase of one operation does, once."""

    flops: int = 0
    """The model's arithmetic."""
    transcendental: int = 0
    """How many of `flops` are transcendental or divisions."""
    extra_flops: int = 0
    """What the path runs beyond the model's arithmetic: recomputation, masked pairs, overlap; below 0 where less."""
    square_flops: int = 0
    """What attention would add if every pair were counted, not the visible ones."""
    bytes_moved: int = 0
    """Inputs read and outputs written, once each."""


IDLE = Work()


@dataclass(frozen=True, slots=True)
class Formula:
    """One operation at one size: forward and backward work, and what it holds."""

    name: str
    kind: Kind
    forward: Work
    backward: Work = IDLE
    params: int = 0
    saved_bytes: int = 0
    """Kept from forward to backward; a tensor that several operations keep is charged to one of them."""
    state_bytes: int = 0
    """Carried from one token to the next when decoding."""
    scratch_bytes: int = 0
    """Outputs and temporaries alive while it runs forward."""
    flops_until_kept: int = 0
    """Of the forward's, those before the last tensor that backward needs exists: 0 where that is an input."""
    sizes: dict[str, int] = field(default_factory=dict[str, int])


def recomputed(formula: Formula) -> Formula:
    """The same, by a path that runs its forward once more in backward, where it is needed."""
    again, back = formula.forward, formula.backward
    more = replace(
        back,
        extra_flops=back.extra_flops + again.flops + again.extra_flops,
        bytes_moved=back.bytes_moved + again.bytes_moved,
    )
    return replace(formula, backward=more)


def inside(formula: Formula) -> Formula:
    """The same as part of another operation's kernel, which moves the bytes."""
    forward, backward = (replace(work, bytes_moved=0) for work in (formula.forward, formula.backward))
    return replace(formula, forward=forward, backward=backward)


@dataclass(frozen=True, slots=True)
class Op:
    """A formula at its place in the model: `path` is the torch module's, with `*` for the layer's number."""

    path: str
    phase: Phase
    repeat: int
    formula: Formula
    work: Work
    again: Work = IDLE
    """The forward that activation checkpointing runs once more, in backward."""

    @property
    def kind(self) -> Kind:
        return self.formula.kind

    @property
    def first(self) -> "Op":
        """The same operation's forward."""
        return Op(self.path, "forward", self.repeat, self.formula, self.formula.forward)

    @property
    def flops(self) -> int:
        return self.work.flops

    @property
    def executed_flops(self) -> int:
        return self.work.flops + self.work.extra_flops + self.again.extra_flops

    @property
    def bytes_moved(self) -> int:
        return self.work.bytes_moved + self.again.bytes_moved

    @property
    def saved_bytes(self) -> int:
        return self.formula.saved_bytes if self.phase == "forward" else 0


@dataclass(frozen=True, slots=True)
class Placed:
    """A formula, where it stands, and how often it runs in one pass."""

    path: str
    formula: Formula
    repeat: int = 1

    def at(self, phase: Phase, *, passes: int = 1, again: Work = IDLE) -> Op:
        """The operation of one phase, in each of `passes` over the model."""
        work = self.formula.backward if phase == "backward" else self.formula.forward
        return Op(self.path, phase, passes * self.repeat, self.formula, work, again)


@dataclass(frozen=True, slots=True)
class Step:
    """One pass over a model: `new` tokens of each of `batch` sequences, with `context` tokens already behind them."""

    batch: int
    new: int
    context: int
    capacity: int
    """Tokens the decoding state has room for; 0 in training and of a mixer alone, which keep none."""
    width: int
    """Bytes of an element."""
    path: str
    training: bool
    head_rows: int
    """Positions projected to the vocabulary."""
    head_chunks: int = 1
    """How many pieces the loss projects them in."""
    stream: int = 4
    """Bytes of an element of the residual stream."""
    weight_width: int | None = None
    """Bytes of an element of the weights, and of the caches beside them, where that is not `width`: under autocast."""

    @property
    def stored(self) -> int:
        """Bytes of an element of what stays from call to call."""
        return self.weight_width or self.width

    @property
    def steps_on(self) -> bool:
        """Whether a state that others left is read, and written, for a single token."""
        return self.context > 0 and self.new == 1

    @property
    def rows(self) -> int:
        return self.batch * self.new

    @property
    def pairs(self) -> int:
        """Query-key pairs a causal head sees in one sequence: the i-th new token sees context + i of them."""
        return self.new * self.context + half(self.new * (self.new + 1))

    @property
    def square_pairs(self) -> int:
        """The pairs of the full rectangle, visible or not."""
        return self.new * (self.context + self.new)


def half(product: int) -> int:
    """Half of an even number, exact for integers and symbols alike."""
    return product // 2 if isinstance(product, int) else product / 2  # pyright: ignore[reportUnnecessaryIsInstance]


def summed(work: Work, other: Work) -> Work:
    """Two pieces of work done one after the other."""
    return Work(
        work.flops + other.flops,
        work.transcendental + other.transcendental,
        work.extra_flops + other.extra_flops,
        work.square_flops + other.square_flops,
        work.bytes_moved + other.bytes_moved,
    )
