# pyright: standard
"""What torch's FLOP counter sees of any module, by module path, and what it cannot see."""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchbench.counters.dispatch import graph
from benchbench.counters.places import ModulePaths
from benchbench.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class TracedRow:
    """FLOPs at one place, `*` for the numbers in a module's path, by operator."""

    path: str
    phase: str
    flops: int
    by_operator: Mapping[str, int]


@dataclass(frozen=True)
class ModuleCheck:
    """A module under torch's FLOP counter, which counts matrix products, convolutions and attention alone."""

    name: str
    rows: tuple[TracedRow, ...]
    unseen: Mapping[str, int]
    """Operators that ran without a formula, counted as 0, with how often they ran; views are left out."""
    custom: Mapping[str, int]
    """Custom autograd functions in the graph, with how often they ran: a kernel that one starts itself is not seen."""
    params: int

    @property
    def forward(self) -> int:
        return self._phase("forward")

    @property
    def backward(self) -> int:
        return self._phase("backward")

    @property
    def total(self) -> int:
        return sum(row.flops for row in self.rows)

    def _phase(self, phase: str) -> int:
        return sum(row.flops for row in self.rows if row.phase == phase)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        drawn = Table("module", "phase", "operators", box=SIMPLE_HEAD, padding=(0, 0), show_edge=False)
        drawn.add_column("FLOPs (traced)", justify="right")
        for row in self.rows:
            drawn.add_row(row.path or "(model)", row.phase, ", ".join(row.by_operator), f"{row.flops:,}")
        drawn.add_row("total", "", "", f"{self.total:,}")
        yield f"{self.name}: {self.params:,} parameters"
        yield drawn
        for what, found in (("No formula, counted as 0", self.unseen), ("Custom autograd functions", self.custom)):
            if found:
                yield f"{what}: {', '.join(f'{name} ({times:,})' for name, times in found.items())}."


class _Operators(TorchDispatchMode):
    """Counts the operators that run, as they reach the device: below the FLOP counter, which takes some apart."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times[func] += 1
        return func(*args, **(kwargs or {}))


def check_module(module: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any], *, backward: bool) -> ModuleCheck:
    """Runs the module's forward and, if asked for, the backward of all that it returns with gradients of ones."""
    counter = FlopCounterMode(display=False)
    # Torch's own tracker names no module in backward reliably: a module stays open while its siblings run.
    counter.mod_tracker = ModulePaths(module)  # pyright: ignore[reportAttributeAccessIssue]
    operators = _Operators()
    with _as_it_was(module), torch.set_grad_enabled(backward or torch.is_grad_enabled()), operators, counter:
        outputs = [leaf for leaf in tree_leaves(module(*inputs, **named)) if isinstance(leaf, Tensor)]
        trained = [output for output in outputs if output.requires_grad]
        roots = [output.grad_fn for output in trained if output.grad_fn is not None]
        custom = Counter(type(node).__name__ for node in graph(*roots) if isinstance(node, BackwardCFunction))
        if backward:
            if not trained:
                raise BenchError(
                    f"{type(module).__name__} returns nothing that has a gradient.", "Leave out backward=True."
                )
            with _disable_current_modes():
                ones = [torch.ones_like(output) for output in trained]
            torch.autograd.backward(trained, ones)
    rows = tuple(
        TracedRow(
            place[0], place[1], sum(flops.values()), {str(operator): number for operator, number in flops.items()}
        )
        for place, flops in counter.flop_counts.items()
    )
    unseen = Counter(
        {str(op): times for op, times in operators.times.items() if not _is_counted(op, counter) and not _is_view(op)}
    )
    params = sum(parameter.numel() for parameter in module.parameters())
    return ModuleCheck(type(module).__name__, rows, dict(unseen.most_common()), dict(custom.most_common()), params)


@contextmanager
def _as_it_was(module: nn.Module) -> Generator[None]:
    """Puts back gradients, buffers and the state of the random numbers."""
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    with torch.random.fork_rng({parameter.device for parameter, _ in gradients if parameter.is_cuda}):
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _is_counted(operator: Any, counter: FlopCounterMode) -> bool:
    return getattr(operator, "_overloadpacket", operator) in counter.flop_registry


def _is_view(operator: Any) -> bool:
    """Whether it returns its input's memory unchanged: no arithmetic to miss."""
    if not isinstance(operator, OpOverload):
        return False
    results = [result.alias_info for result in operator._schema.returns]
    return any(results) and not any(alias.is_write for alias in results if alias)
