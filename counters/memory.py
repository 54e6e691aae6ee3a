"""What a case holds at its fullest moment: the timeline of everything that its call allocates and frees, walked.

A family has a program over tensors that are only sizes, in allocations/<family>.py. Where it has none yet, a first sum
stands in: the fullest of a few moments, whose temporaries are bounded, not followed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from benchbench.case import Case
from benchbench.counters import core
from benchbench.counters.allocator import BLOCK, Peaks, simulated
from benchbench.counters.op import Placed, Step
from benchbench.counters.timeline import CATEGORIES, Alive, Block, Category, Moment, Timeline
from benchbench.counters.training import OPTIMIZER_STATES
from benchbench.record import Memory

LARGEST = 10
"""How many tensors are named."""


@dataclass(frozen=True)
class Fullest:
    """The fullest moment of a call."""

    timeline: Timeline
    length: int
    """The context's, in case it is a symbol."""
    exact: bool = True
    """Whether the timeline was walked, and not summed up."""
    caching: bool = False
    """Whether torch's caching allocator hands it out, which is simulated."""

    @cached_property
    def moment(self) -> Moment:
        if self.timeline.plain:
            return self.timeline.fullest
        from benchbench.counters.fullest import fullest

        return fullest(self.timeline, self.length)

    @cached_property
    def memory(self) -> Memory:
        """Bytes of each category; they sum to the peak."""
        sizes: dict[Category, Any] = dict.fromkeys(CATEGORIES, 0)
        for block, number in self.timeline.blocks(self.moment):
            sizes[block.category] += number * block.size
        # Unvalidated: validation would make plain numbers of sizes that carry their closed form.
        return Memory.model_construct(**sizes)

    @property
    def requested(self) -> int:
        """Bytes as requested."""
        return sum(dict(self.memory).values())

    @property
    def rounded(self) -> int:
        """Bytes in whole blocks: what an allocator hands out at the least."""
        return sum(number * -(-block.size // BLOCK) * BLOCK for block, number in self.timeline.blocks(self.moment))

    @cached_property
    def peaks(self) -> Peaks:
        """The most bytes requested, handed out and reserved, by the simulated allocator.

        On the CPU they are one; and with sizes that carry closed forms, which an allocator's choices have none of.
        """
        if not self.caching or not self.timeline.plain:
            return Peaks(self.requested, self.rounded, self.rounded)
        return simulated(self.timeline)

    @property
    def at(self) -> str | None:
        """Where the last block before the peak is allocated, and what it is."""
        block = self.timeline.at(self.moment)
        return None if block is None else f"{block.place}: {block.name}"

    @property
    def largest(self) -> tuple[Alive, ...]:
        """The largest tensors alive then."""
        return self.timeline.alive(self.moment)[:LARGEST]


def fullest(case: Case, step: Step, ops: Callable[[], Sequence[Placed]], device: str = "cpu") -> Fullest:
    """What a call of `case` holds on `device`, `cpu` or `cuda`, once earlier calls have settled its states.

    Of `ops`, the model's operations, only a sum is made.
    """
    if case.task == "core":
        return Fullest(core.timeline(case, step, device), case.seq_len, exact=False)
    if has_program(case):
        from benchbench.counters.allocations.task import timeline

        return Fullest(timeline(case, step, device), case.seq_len, caching=device == "cuda")
    return summed(case, step, ops())


def has_program(case: Case) -> bool:
    """Whether the timeline of a case is known, and not only a sum."""
    if case.task not in ("train", "prefill", "decode"):
        return False
    return find_spec(f"benchbench.counters.allocations.{case.family.replace('-', '_')}") is not None


def holdings(case: Case, step: Step, ops: Sequence[Placed]) -> Memory:
    """Bytes of each category at its own largest, summed up."""
    params = step.width * sum(op.repeat * op.formula.params for op in ops)
    train = case.task == "train"
    return Memory.model_construct(
        params=params,
        grads=params if train else 0,
        optimizer=params * OPTIMIZER_STATES[case.optimizer] if case.optimizer else 0,
        activations=sum(op.repeat * op.formula.saved_bytes for op in ops) if train else 0,
        state=0 if train else sum(op.repeat * op.formula.state_bytes for op in ops),
        workspace=_workspace(step, ops, case.spec.d_model),
        logits=_logits(case, step),
    )


def peak_requested(case: Case, step: Step, memory: Memory) -> int:
    """The fullest moment of the sum.

    Training: at the loss everything saved is alive with the logits; in the first layer's backward, everything saved
    with the head's gradient and that layer's temporaries; in the optimizer, all gradients with two temporaries of the
    largest parameter. Inference: the weights, the state, the temporaries of the widest place, and the logits.
    """
    tokens = 8 * step.rows
    held = memory.params + memory.optimizer + memory.state + tokens
    if case.task != "train":
        return held + max(memory.workspace, memory.logits)
    head_grad = step.width * case.spec.vocab_size * case.spec.d_model
    loss = memory.activations + memory.logits + (head_grad if step.head_chunks > 1 else 0)
    first_layer = memory.activations + head_grad + memory.workspace
    update = memory.grads + 2 * head_grad
    return held + tokens + max(loss, first_layer, update)


def rounded(memory: Memory, peak: int) -> int:
    """`peak` with each category in whole blocks: what an allocator hands out at the least."""
    return peak + sum(-size % BLOCK for size in memory.model_dump().values())


def summed(case: Case, step: Step, ops: Sequence[Placed]) -> Fullest:
    """One moment, with everything in it that the first sum counts at its fullest."""
    memory = holdings(case, step, ops)
    kept: dict[Category, int] = {"params": memory.params, "optimizer": memory.optimizer, "state": memory.state}
    rest = peak_requested(case, step, memory) - sum(kept.values())
    blocks = [Block(size, category, category) for category, size in kept.items()]
    block = Block(rest, "activations", "activations" if case.task == "train" else "workspace")
    return Fullest(Timeline(tuple(blocks), [(block, 1)]), case.seq_len, exact=False)


def _workspace(step: Step, ops: Sequence[Placed], d_model: int) -> int:
    """The residual stream, and the output of an operation with the two outputs before it, at their widest."""
    sizes = [op.formula.scratch_bytes for op in ops if op.formula.kind != "loss" and op.path != "lm_head"]
    widest = max(sum(sizes[max(0, i - 2) : i + 1]) for i in range(len(sizes)))
    return step.width * step.rows * d_model + widest


def _logits(case: Case, step: Step) -> int:
    """Logits alive at once: one copy in inference; in training the log-probabilities and two gradients, in float32."""
    rows = -(-step.head_rows // step.head_chunks)
    elements = rows * case.spec.vocab_size
    return 3 * 4 * elements if case.task == "train" else step.width * elements
