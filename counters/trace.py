# pyright: standard
"""Witnesses: what three tracers say of the real modules, beside the count.

A module is run for real on the CPU, or on the meta device, where tensors have shapes but no numbers, so that any model
at any length is traced in no memory.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchbench.case import Case
from benchbench.counters.cost import count
from benchbench.counters.dispatch import Prices
from benchbench.counters.places import ModulePaths, Place, starred
from benchbench.counters.rules import Setting, Witness, absent, seen
from benchbench.errors import UnsupportedError
from benchbench.models import LanguageModel, State, build
from benchbench.models.core import Core
from benchbench.models.moe import GroupedLinear
from benchbench.specs import ModelSpec
from benchbench.tasks.prepared import DTYPES, autocast
from benchbench.tasks.train import OPTIMIZERS


@dataclass(frozen=True)
class Trace:
    """What a witness says of a case."""

    flops: dict[Place, int]
    blind: dict[str, int] = field(default_factory=dict)
    """Operators that it says it cannot count, with how often they ran."""


@dataclass(frozen=True)
class Row:
    """One place of the model: what we count there, what a witness must say of it, and what it says.

    `counted` are the FLOPs that the path executes for the witness `dispatch`, and the model's for the others.
    """

    path: str
    phase: str
    kinds: tuple[str, ...]
    counted: int
    expected: int
    traced: int
    rules: tuple[str, ...]

    @property
    def unexplained(self) -> int:
        return self.traced - self.expected


@dataclass(frozen=True)
class CaseCheck:
    """A case's count beside one witness."""

    case: Case
    witness: Witness
    device: str
    rows: tuple[Row, ...]
    params: int
    counted_params: int
    blind: dict[str, int]
    """Operators that the witness says it cannot count, with how often they ran."""

    @property
    def traced_flops(self) -> int:
        return sum(row.traced for row in self.rows)

    @property
    def explained_flops(self) -> int:
        return sum(row.expected for row in self.rows)

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(sorted({rule for row in self.rows for rule in row.rules}))

    @property
    def unexplained(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.unexplained)

    @property
    def passed(self) -> bool:
        return not self.unexplained and self.params == self.counted_params


def check_case(case: Case, witness: Witness = "torch", device: str = "meta") -> CaseCheck:
    """Runs the real module of `case` under `witness` and lines it up with the count, module by module.

    Raises:
        UnsupportedError: The architecture cannot do this, or the witness cannot see it.
    """
    cost = count(case)
    if reason := absent(cost, witness, device):
        raise UnsupportedError(reason)
    model = _module(case.spec, case.path, case.dtype, case.checkpoint, device)
    model.train(case.task == "train")
    with lone_rows(model) as lone:
        trace = TRACERS[witness](case, model, device)
    parameters = list(model.parameters())
    setting = Setting(witness, device, case, len(parameters), lone)
    counted: dict[Place, list[Any]] = defaultdict(lambda: [0, 0, set(), set()])
    for op in cost.ops:
        if (expected := seen(op, setting)) is None:
            continue
        place = counted[op.path, op.phase]
        place[0] += op.repeat * (op.executed_flops if witness == "dispatch" else op.flops)
        place[1] += op.repeat * expected.flops + expected.once
        place[2].add(op.kind)
        place[3].update(expected.rules)
    rows = tuple(
        Row(path, phase, tuple(sorted(kinds)), flops, expected, trace.flops.get((path, phase), 0), tuple(sorted(rules)))
        for (path, phase), (flops, expected, kinds, rules) in counted.items()
    )
    unknown = tuple(Row(*place, (), 0, 0, flops, ()) for place, flops in trace.flops.items() if place not in counted)
    params = sum(parameter.numel() for parameter in parameters)
    return CaseCheck(case, witness, device, rows + unknown, params, cost.params, trace.blind)


@contextmanager
def lone_rows(model: LanguageModel) -> Iterator[Counter[str]]:
    """While open, counts how often, of first forwards, a grouped linear map doubles a row alone in its group."""
    found: Counter[str] = Counter()

    def see(module: nn.Module, args: Any) -> None:
        x_RI, ends_E, lone = args
        again = torch._C._current_autograd_node() is not None
        if not (lone or again or x_RI.is_meta):
            ends = ends_E.tolist()
            found[paths[module]] += [end - start for start, end in pairwise([0, *ends])].count(1)

    paths: dict[nn.Module, str] = {
        module: starred(name) for name, module in model.named_modules() if isinstance(module, GroupedLinear)
    }
    handles = [module.register_forward_pre_hook(see) for module in paths]
    yield found
    for handle in handles:
        handle.remove()


def _torch_flops(case: Case, model: LanguageModel, device: str) -> Trace:
    counter = FlopCounterMode(display=False)
    # Torch's own tracker names no module in backward reliably: a module stays open while its siblings run.
    counter.mod_tracker = ModulePaths(model)  # pyright: ignore[reportAttributeAccessIssue]
    call = _call(case, model, device)
    with counter:
        call()
    return Trace({place: sum(flops.values()) for place, flops in counter.flop_counts.items()})  # type: ignore[misc]


def _dispatch_flops(case: Case, model: LanguageModel, device: str) -> Trace:
    given, state = inputs(case, model, device), new_state(case, model)
    with ModulePaths(model) as paths, torch.set_grad_enabled(case.task == "train"), Prices(paths) as prices:
        if case.task != "train":
            forward(case, model, given, state)
        for loss in _losses(case, model, given):
            assert loss.grad_fn is not None
            prices.sums.watch(loss.grad_fn)
            loss.backward()
    if case.optimizer is not None:
        # A rate of 0 leaves the weights alone. The second step is like every later one.
        optimizer = OPTIMIZERS[case.optimizer](model.parameters(), lr=0.0)
        optimizer.step()
        with prices.updating():
            optimizer.step()
    return Trace(dict(prices.flops))


def _fvcore_flops(case: Case, model: LanguageModel, device: str) -> Trace:
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import bmm_flop_jit

    analysis = FlopCountAnalysis(_Traceable(case, model), inputs(case, model, device))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # Its own handle takes two inputs, and fails on a product written into a given output.
    analysis.set_op_handle("aten::bmm", lambda inputs, outputs: bmm_flop_jit(inputs[:2], outputs))
    flops: dict[Place, int] = defaultdict(int)
    # It looks at the forward alone, and a custom autograd function would hide its operators from it.
    with torch.no_grad():
        by_module = analysis.by_module()
    for name, own in _own_flops(by_module):
        flops[starred(name.removeprefix("model").removeprefix(".")), "forward"] += own
    return Trace(dict(flops), dict(analysis.unsupported_ops()))


TRACERS: dict[Witness, Callable[[Case, LanguageModel, str], Trace]] = {
    "torch": _torch_flops,
    "fvcore": _fvcore_flops,
    "dispatch": _dispatch_flops,
}


def _own_flops(total: dict[str, int]) -> Iterator[tuple[str, int]]:
    """What each module does itself: its total less its children's."""
    for name, flops in total.items():
        depth = name.count(".") + 1 if name else 0
        children = [
            value
            for child, value in total.items()
            if child and child != name and child.count(".") == depth and (not name or child.startswith(f"{name}."))
        ]
        if own := int(flops - sum(children)):
            yield name, own


class _Traceable(nn.Module):
    """A case's forwards as a function of their inputs alone."""

    def __init__(self, case: Case, model: LanguageModel) -> None:
        super().__init__()
        self.case = case
        self.model = model
        self.passes = range(case.accumulate)

    def forward(self, *given: Tensor) -> Tensor:
        passes = [forward(self.case, self.model, given, new_state(self.case, self.model)) for _ in self.passes]
        return passes[0] if len(passes) == 1 else torch.stack(passes)


def new_state(case: Case, model: LanguageModel) -> State | None:
    """What the task continues from, and writes into."""
    if case.task in ("train", "core"):
        return None
    state = model.new_state(case.batch, case.seq_len + (case.task == "decode"))
    if case.task == "decode":
        state.fill_random(case.seq_len)
    return state


def forward(case: Case, model: LanguageModel, given: Sequence[Tensor], state: State | None) -> Tensor:
    if case.task == "core":
        return model(*given)
    (tokens_BN,) = given
    with autocast(model, case):
        if state is None:
            return model.loss(tokens_BN, tokens_BN)
        return model.decode(tokens_BN[:, 0], state) if case.task == "decode" else model.prefill(tokens_BN, state)


def _call(case: Case, model: LanguageModel, device: str) -> Callable[[], None]:
    given = inputs(case, model, device)

    def call() -> None:
        if case.task == "train":
            for loss in _losses(case, model, given):
                loss.backward()
        else:
            with torch.no_grad():
                forward(case, model, given, new_state(case, model))

    return call


def _losses(case: Case, model: LanguageModel, given: Sequence[Tensor]) -> Iterator[Tensor]:
    """The loss of each pass of a training step, whose gradients begin at nothing."""
    model.zero_grad()
    for _ in range(case.accumulate if case.task == "train" else 0):
        loss = forward(case, model, given, None)
        yield loss if case.accumulate == 1 else loss / case.accumulate


def inputs(case: Case, model: LanguageModel, device: str) -> tuple[Tensor, ...]:
    """Tokens, or what a mixer alone reads."""
    if case.task == "core":
        assert isinstance(model, Core)
        return model.inputs(case.batch, case.seq_len)
    new = 1 if case.task == "decode" else case.seq_len
    return (torch.zeros(case.batch, new, dtype=torch.int64, device=device),)


@lru_cache(maxsize=1)
def _module(spec: ModelSpec, path: str, dtype: str, checkpoint: bool, device: str) -> LanguageModel:
    return build(spec, path=path, device=device, dtype=DTYPES[dtype], checkpoint=checkpoint)
