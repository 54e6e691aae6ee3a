"""What a case costs: its operations, and their sums."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

from benchbench.case import DTYPE_BYTES, Case, loss_chunk_rows
from benchbench.counters import core, dense, memory, training
from benchbench.counters.op import IDLE, Op, Placed, Step
from benchbench.record import Counted

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Cost:
    """A case, taken apart into operations."""

    case: Case
    step: Step
    device: Kind = "cpu"
    """Whose kernels and allocator the memory is that of."""

    @cached_property
    def placed(self) -> tuple[Placed, ...]:
        """The model's operations in the order of its forward."""
        if self.case.task == "core":
            return core.mixer(self.case, self.step).placed
        placed = tuple(_placed(self.case, self.step))
        return (*placed, *_casts(self.case, placed))

    @cached_property
    def fullest(self) -> memory.Fullest:
        """The moment when most is held, of everything that a call allocates and frees."""
        return memory.fullest(self.case, self.step, lambda: self.placed, self.device)

    @cached_property
    def params(self) -> int:
        return sum(op.repeat * op.formula.params for op in self.placed)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every operation of every phase, in the order they run."""
        case, passes = self.case, self.case.accumulate
        width = DTYPE_BYTES[case.dtype]
        added = (Placed("", training.accumulation(self.params, width, passes)),) if passes > 1 else ()
        forward = tuple(placed.at("forward", passes=passes) for placed in self.placed)
        forward += tuple(placed.at("forward") for placed in added)
        if case.optimizer is None:
            return forward
        again = training.run_again(self.placed) if case.checkpoint else {}
        backward = tuple(
            placed.at("backward", passes=passes, again=again.get(i, IDLE))
            for i, placed in reversed(tuple(enumerate(self.placed)))
        )
        backward += tuple(placed.at("backward") for placed in added)
        update = Placed("optimizer", training.optimizer_step(case.optimizer, self.params, width))
        return (*forward, *backward, update.at("optimizer"))

    @cached_property
    def counted(self) -> Counted:
        """The sums, as `benchbench count` prints them and records keep them."""
        by_kind: dict[str, int] = defaultdict(int)
        by_phase = {"forward": 0, "backward": 0, "optimizer": 0}
        executed = square = transcendental = moved = 0
        for op in self.ops:
            flops = op.repeat * op.work.flops
            by_kind[op.formula.kind] += flops
            by_phase[op.phase] += flops
            executed += op.repeat * op.executed_flops
            square += op.repeat * op.work.square_flops
            transcendental += op.repeat * op.work.transcendental
            moved += op.repeat * op.bytes_moved
        flops = sum(by_phase.values())
        fullest = self.fullest
        # Unvalidated: validation would make plain numbers of sizes that carry their closed form.
        return Counted.model_construct(
            params=self.params,
            flops=flops,
            executed_flops=executed,
            full_square_flops=flops + square,
            transcendental=transcendental,
            flops_by_kind={kind: value for kind, value in by_kind.items() if value},
            flops_by_phase=by_phase,
            bytes_moved=moved,
            peak_bytes=fullest.peaks.allocated,
            peak_requested_bytes=fullest.requested,
            peak_reserved_bytes=fullest.peaks.reserved if self.device == "cuda" else None,
            peak_at=fullest.at,
            state_bytes=sum(op.repeat * op.formula.state_bytes for op in self.placed),
            memory=fullest.memory,
        )

    def rows(self) -> list[dict[str, Any]]:
        """One plain row an operation; the numbers are of a single repetition."""
        return [
            {
                "path": op.path,
                "op": op.formula.name,
                "kind": op.kind,
                "phase": op.phase,
                "repeat": op.repeat,
                "flops": op.flops,
                "executed_flops": op.executed_flops,
                "transcendental": op.work.transcendental,
                "bytes_moved": op.bytes_moved,
                "saved_bytes": op.saved_bytes,
                "params": op.formula.params if op.phase == "forward" else 0,
            }
            for op in self.ops
        ]


def count(case: Case, device: Kind | None = None) -> Cost:
    """What `case` costs by the cost model: no tensor is made, and any length takes the same time.

    Memory is that of `device`, by default a GPU where the path needs one, else the CPU: their kernels keep and allocate
    other things.

    Raises:
        UnsupportedError: The architecture cannot do this.
    """
    case.require_supported()
    return Cost(case, step_of(case), device or ("cuda" if case.path in case.spec.gpu_paths else "cpu"))


def step_of(case: Case) -> Step:
    """The pass over the model, or over its mixer alone, that a case's task makes."""
    decode, train, core = case.task == "decode", case.task == "train", case.task == "core"
    new = 1 if decode else case.seq_len
    context = case.seq_len if decode else 0
    rows = case.batch * new
    width = DTYPE_BYTES[case.autocast or case.dtype]
    return Step(
        batch=case.batch,
        new=new,
        context=context,
        capacity=0 if train or core else context + new if decode else new,
        width=width,
        path=case.implementation,
        training=train,
        head_rows=0 if core else rows if train else case.batch,
        head_chunks=-(-rows // loss_chunk_rows(rows, case.spec.vocab_size)) if train else 1,
        stream=4 if case.autocast or case.spec.wide_stream else width,
        weight_width=DTYPE_BYTES[case.dtype],
    )


def _placed(case: Case, step: Step) -> Iterator[Placed]:
    """Backbone, head, and loss where there is one."""
    spec, rows, s = case.spec, step.head_rows, step.width
    yield from _backbone(spec.family)(spec, step)
    head = dense.head(rows, spec.d_model, spec.vocab_size, s, tied=spec.tied_head, chunks=step.head_chunks)
    yield Placed("lm_head", head)
    if spec.head_bias:
        yield Placed("lm_head", dense.bias(rows, spec.vocab_size, s, chunks=step.head_chunks))
    if spec.tied_head:
        yield Placed("", dense.shared_weight(spec.vocab_size * spec.d_model, step.stored))
    if step.training:
        yield Placed("", training.cross_entropy(rows, spec.vocab_size, s, step.head_chunks))


def _casts(case: Case, placed: Sequence[Placed]) -> Iterator[Placed]:
    """The weights of linear maps and convolutions, brought to autocast's dtype once a pass."""
    if case.autocast is not None:
        weights = sum(op.repeat * op.formula.sizes.get("weights", 0) for op in placed)
        yield Placed("", dense.cast(weights, DTYPE_BYTES[case.dtype], DTYPE_BYTES[case.autocast]))


def _backbone(family: str) -> Callable[[Any, Step], Iterator[Placed]]:
    return import_module(f"benchbench.counters.{family.replace('-', '_')}").backbone
