# pyright: standard
"""Witnesses: what fvcore and torch's FLOP counter say of the real modules, beside the count.

A module is run for real on the CPU, or on the meta device, where tensors have shapes but no numbers, so that any model
at any length is traced in no memory.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from benchbench.case import Case
from benchbench.counters.cost import count
from benchbench.counters.rules import Witness, seen
from benchbench.errors import UnsupportedError
from benchbench.models import LanguageModel, build
from benchbench.specs import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Place = tuple[str, str]
"""A module path, `*` for the layer's number, and a phase."""


@dataclass(frozen=True)
class Row:
    """One place of the model: what we count there, what a witness must say of it, and what it says."""

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
    if witness == "fvcore" and device == "meta" and any(op.kind == "conv" for op in cost.ops):
        raise UnsupportedError("fvcore cannot trace a convolution of tensors without numbers")
    model = _module(case.spec, case.path, case.dtype, device)
    traced, blind = (_torch_flops if witness == "torch" else _fvcore_flops)(case, model, device)
    forward_only = witness == "fvcore"
    counted: dict[Place, list[Any]] = defaultdict(lambda: [0, 0, set(), set()])
    for op in cost.ops:
        if op.phase == "optimizer" or (forward_only and op.phase == "backward"):
            continue
        expected = seen(op, witness, device, case.path)
        place = counted[op.path, op.phase]
        place[0] += op.repeat * op.flops
        place[1] += op.repeat * expected.flops
        place[2].add(op.kind)
        place[3].update(expected.rules)
    rows = tuple(
        Row(path, phase, tuple(sorted(kinds)), flops, expected, traced.get((path, phase), 0), tuple(sorted(rules)))
        for (path, phase), (flops, expected, kinds, rules) in counted.items()
    )
    unknown = tuple(Row(*place, (), 0, 0, flops, ()) for place, flops in traced.items() if place not in counted)
    params = sum(parameter.numel() for parameter in model.parameters())
    return CaseCheck(case, witness, device, rows + unknown, params, cost.params, blind)


class ModulePaths:
    """Which module the running operation belongs to, forward and backward.

    Forward, a stack kept by module hooks. Backward, every autograd node carries the sequence number it got when it was
    made, and each module call made an interval of them: the innermost interval around the node's number is its module.
    """

    def __init__(self, root: nn.Module) -> None:
        self._names = {module: name for name, module in root.named_modules()}
        self._stack: list[tuple[str, int]] = []
        self._intervals: list[tuple[int, int, str]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "ModulePaths":
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def parents(self) -> set[Place]:
        """The one place the running operation is charged to."""
        node = torch._C._current_autograd_node()
        if self._stack:
            return {(starred(self._stack[-1][0]), "forward" if node is None else "backward")}
        if node is None:
            return {("", "forward")}
        return {(starred(self._made_by(node._sequence_nr())), "backward")}

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._stack.append((self._names[module], _sequence_number()))

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        if module in self._names:
            name, start = self._stack.pop()
            self._intervals.append((start, _sequence_number(), name))

    def _made_by(self, number: int) -> str:
        around = [interval for interval in self._intervals if interval[0] <= number < interval[1]]
        return min(around, key=lambda interval: interval[1] - interval[0])[2] if around else ""


def _sequence_number() -> int:
    """The number that the next autograd node gets."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def starred(name: str) -> str:
    """A module's path with `*` for the numbers in it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _torch_flops(case: Case, model: LanguageModel, device: str) -> tuple[dict[Place, int], dict[str, int]]:
    counter = FlopCounterMode(display=False)
    # Torch's own tracker names no module in backward reliably: a module stays open while its siblings run.
    counter.mod_tracker = ModulePaths(model)  # pyright: ignore[reportAttributeAccessIssue]
    call = _call(case, model, device)
    with counter:
        call()
    return {place: sum(flops.values()) for place, flops in counter.flop_counts.items()}, {}  # type: ignore[misc]


def _fvcore_flops(case: Case, model: LanguageModel, device: str) -> tuple[dict[Place, int], dict[str, int]]:
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import bmm_flop_jit

    analysis = FlopCountAnalysis(_Traceable(case, model), (_tokens(case, device),))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # Its own handle takes two inputs, and fails on a product written into a given output.
    analysis.set_op_handle("aten::bmm", lambda inputs, outputs: bmm_flop_jit(inputs[:2], outputs))
    flops: dict[Place, int] = defaultdict(int)
    for name, own in _own_flops(analysis.by_module()):
        flops[starred(name.removeprefix("model").removeprefix(".")), "forward"] += own
    return dict(flops), dict(analysis.unsupported_ops())


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
    """A case's forward as a function of its tokens alone."""

    def __init__(self, case: Case, model: LanguageModel) -> None:
        super().__init__()
        self.case = case
        self.model = model

    def forward(self, tokens_BN: Tensor) -> Tensor:
        return _forward(self.case, self.model, tokens_BN)


def _forward(case: Case, model: LanguageModel, tokens_BN: Tensor) -> Tensor:
    if case.task == "train":
        return model.loss(tokens_BN, tokens_BN)
    if case.task == "prefill":
        return model.prefill(tokens_BN, model.new_state(case.batch, case.seq_len))
    state = model.new_state(case.batch, case.seq_len + 1)
    state.fill_random(case.seq_len)
    return model.decode(tokens_BN[:, 0], state)


def _call(case: Case, model: LanguageModel, device: str) -> Callable[[], None]:
    tokens_BN = _tokens(case, device)

    def call() -> None:
        with torch.set_grad_enabled(case.task == "train"):
            result = _forward(case, model, tokens_BN)
        if case.task == "train":
            model.zero_grad()
            result.backward()

    return call


def _tokens(case: Case, device: str) -> Tensor:
    new = 1 if case.task == "decode" else case.seq_len
    return torch.zeros(case.batch, new, dtype=torch.int64, device=device)


@lru_cache(maxsize=1)
def _module(spec: ModelSpec, path: str, dtype: str, device: str) -> LanguageModel:
    return build(spec, path=path, device=device, dtype=DTYPES[dtype])
