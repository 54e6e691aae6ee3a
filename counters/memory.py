"""A first sum of what a case holds: the fullest of a few moments, each a sum of what is alive then.

Bytes as requested; the timeline of every allocation is not walked yet, so temporaries are bounded, not followed.
"""

from collections.abc import Sequence

from benchbench.case import Case
from benchbench.counters.op import Placed, Step
from benchbench.counters.training import OPTIMIZER_STATES
from benchbench.record import Memory

BLOCK = 512
"""The CUDA allocator hands out multiples of this many bytes."""


def holdings(case: Case, step: Step, ops: Sequence[Placed]) -> Memory:
    """Bytes of each category at its own largest."""
    params = step.width * sum(op.repeat * op.formula.params for op in ops)
    train = case.task == "train"
    # Unvalidated: validation would make plain numbers of sizes that carry their closed form.
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
    """The fullest moment.

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
    sizes = memory.model_dump().values()
    return peak + sum(-size % BLOCK for size in sizes)


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
