"""What a call of a case's task does to memory, as benchbench/tasks and models/base.py run it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from benchbench.case import DTYPE_BYTES, Case, loss_chunk_rows
from benchbench.counters.allocations import lookups, ops, views
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Parameter, Storage, Tensor
from benchbench.counters.op import Step
from benchbench.counters.timeline import Category, Timeline
from benchbench.counters.training import OPTIMIZER_STATES


class Backbone(Protocol):
    """A family's weights, states and forward."""

    def new_state(self, make: Callable[[int, str, Category], Storage]) -> None:
        """Makes the decoding state, with `make`, in use from now on."""
        ...

    def __call__(self) -> Tensor:
        """Final hidden states of every new token."""
        ...


def timeline(case: Case, step: Step, device: str = "cpu", *, threads: int = 1) -> Timeline:
    """Everything that a call of `case` allocates and frees on `device`, once earlier calls have settled the states."""
    t = Tape(
        device,
        training=step.training,
        checkpointing=case.checkpoint,
        autocast=case.autocast is not None,
        threads=threads,
    )
    spec, s = case.spec, DTYPE_BYTES[case.dtype]
    table = t.parameter(spec.vocab_size, spec.d_model, s, "embedding")
    model = _family(spec.family, step.path)(t, spec, step, table)
    head = table if spec.tied_head else t.parameter(spec.vocab_size, spec.d_model, s, "lm_head")
    bias = t.parameter(1, spec.vocab_size, s, "lm_head") if spec.head_bias else None
    t.hold(8 * step.rows * case.accumulate, "tokens", "workspace", count=1 + step.training)
    run = _train if step.training else _prefill if case.task == "prefill" else _decode
    run(t, case, step, model, head, bias)
    return t.timeline()


def _family(family: str, path: str) -> Any:
    if (family, path) == ("mamba", "fused"):
        from benchbench.counters.allocations.mamba_fused import Fused

        return Fused
    return import_module(f"benchbench.counters.allocations.{family.replace('-', '_')}").Memory


def _prefill(t: Tape, case: Case, step: Step, model: Backbone, head: Parameter, bias: Parameter | None) -> None:
    with t.casting():
        model.new_state(t.new)
        _last_logits(t, step, model, head, bias)


def _decode(t: Tape, case: Case, step: Step, model: Backbone, head: Parameter, bias: Parameter | None) -> None:
    model.new_state(t.hold)
    with t.casting():
        _last_logits(t, step, model, head, bias)


def _last_logits(t: Tape, step: Step, model: Backbone, head: Parameter, bias: Parameter | None) -> None:
    hidden = model()
    t.place = "lm_head"
    last = Tensor(hidden.storage, step.batch, hidden.cols, hidden.width)
    ops.linear(t, last, head, bias)


def _train(t: Tape, case: Case, step: Step, model: Backbone, head: Parameter, bias: Parameter | None) -> None:
    """One step in the steady state: the optimizer's states are there, gradients are not."""
    assert case.optimizer is not None
    states = OPTIMIZER_STATES[case.optimizer]
    for parameter in t.parameters:
        t.enter(parameter.loops)
        if states:
            t.hold(parameter.size, parameter.name, "optimizer", count=states)
        if states == 2 and not t.cuda:
            t.hold(4, "step", "optimizer")
    t.enter(())
    for _ in t.rounds(case.accumulate):
        with t.casting():
            loss = _loss(t, case, step, model, head, bias)
        if case.accumulate > 1:
            loss = ops.scale_by(t, loss, None)
        assert loss.source is not None
        t.backward(loss.source[0], Gradient(t.new(4, "dloss")))
    _update(t, states)


def _update(t: Tape, states: int) -> None:
    """Adam's denominators: on the GPU of all parameters at once, on the CPU of one after the other."""
    t.place = "optimizer"
    if states < 2:
        return
    denominators: list[Storage] = []
    for parameter in t.parameters:
        t.enter(parameter.loops)
        if t.cuda:
            denominators.append(t.new(parameter.size, "denominator"))
            continue
        root = t.new(parameter.size, "root")
        denominators[:] = [t.new(parameter.size, "denominator")]
        del root
    t.enter(())
    t.gather(*denominators)


def _loss(t: Tape, case: Case, step: Step, model: Backbone, head: Parameter, bias: Parameter | None) -> Tensor:
    """Mean loss, projected in pieces where the logits would be many."""
    hidden = views.viewed(t, model())
    rows = step.rows
    size = loss_chunk_rows(rows, case.spec.vocab_size)

    def summed(piece: Tensor, made: int) -> Tensor:
        t.place = "lm_head"
        logits = ops.linear(t, piece, head, bias, flat=True, made=made)
        return lookups.cross_entropy(t, ops.cast(t, logits, 4))

    if size == rows:
        total = summed(hidden, rows)
    else:
        cut = views.Pieces(t, hidden)
        losses: list[Tensor] = []
        count = -(-rows // size)
        # Backward begins with the last piece; the gradients of the head's weight meet at the last but one.
        for i in t.rounds(count, last=2):
            tall = rows - size * (count - 1) if i == -1 else size
            state = t.random_state()
            # In a closed form the last piece's logits count as whole: it is never the fullest.
            made = tall if type(rows) is int else size
            losses.append(t.checkpoint(summed, cut.next(tall), made, random=state))
            del state
        total = lookups.total(t, losses)
    seen = t.new(rows, "targets")
    wide = t.new(8 * rows, "targets")
    del seen, wide
    return ops.scale_by(t, total, None)
