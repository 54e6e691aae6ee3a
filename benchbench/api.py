"""benchbench from Python: `count` says what a case costs, `check` what torch's FLOP counter sees of a module."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench import cost_tables, counters, table
from benchbench.case import Case, completed
from benchbench.errors import BenchError
from benchbench.reading import read
from benchbench.record import Memory
from benchbench.specs import ModelSpec, preset

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console, ConsoleOptions, RenderResult
    from torch import nn

    from benchbench.counters.module_check import ModuleCheck


class Flops(NamedTuple):
    """The model's arithmetic by phase; `executed` is what the path runs, recomputation included."""

    forward: int
    backward: int
    optimizer: int
    total: int
    executed: int


class Held(Memory, frozen=True):
    """Bytes of each category at the fullest moment, and those of all, in the allocator's blocks."""

    peak: int
    peak_requested: int


class Cost(counters.Cost):
    """What a case costs: its sums as attributes, its operations as rows, printed as tables by rich."""

    @property
    def flops(self) -> Flops:
        counted = self.counted
        phases = counted.flops_by_phase
        return Flops(phases["forward"], phases["backward"], phases["optimizer"], counted.flops, counted.executed_flops)

    @property
    def memory(self) -> Held:
        counted = self.counted
        return Held(**dict(counted.memory), peak=counted.peak_bytes, peak_requested=counted.peak_requested_bytes)

    def to_json(self, *, ops: bool = False) -> dict[str, Any]:
        """Plain data, as `benchbench count --format json` prints it."""
        return cost_tables.as_json(self, ops=ops)

    def save(self, path: str | Path, *, ops: bool = False) -> None:
        """Writes `to_json` to a file that is there in full or not at all."""
        place = Path(path)
        part = place.with_name(f".{place.name}.{os.getpid()}")
        part.write_text(json.dumps(self.to_json(ops=ops), indent=2) + "\n", encoding="utf-8")
        part.replace(place)

    def frame(self) -> "DataFrame":
        """One row an operation; the numbers are of a single repetition."""
        from pandas import DataFrame

        return DataFrame(self.rows())

    def __str__(self) -> str:
        return "\n\n".join(f"{one.title}\n\n{table.markdown(one)}" for one in cost_tables.tables(self))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        for one in cost_tables.tables(self):
            yield one.title
            yield from table.terminal(one, console)


def count(model: str | ModelSpec, task: str = "prefill", **sizes: Any) -> Cost:
    """What `model`, a preset's name or a spec, costs: `count("mamba-130m", "train", seq_len=128, batch=32)`.

    `sizes` are a case's: seq_len, batch, dtype, path, optimizer; AdamW trains, and the family's first path runs,
    where they are left out.

    Raises:
        BenchError: A name does not exist, a value is of the wrong type or range, or the model cannot do this.
    """
    spec = preset(model) if isinstance(model, str) else model
    if not isinstance(spec, ModelSpec):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BenchError(f"{model!r} is no model.", "Give a preset's name, as in count('mamba-130m'), or a spec.")
    case = read(Case, completed(spec, {**sizes, "task": task}), spec.name)
    cost = counters.count(case)
    return Cost(cost.case, cost.step, cost.device)


def check(module: "nn.Module", *inputs: Any, backward: bool = False, **named: Any) -> "ModuleCheck":
    """Runs `module(*inputs, **named)`, and with `backward` its backward, under torch's FLOP counter.

    FLOPs by module path and phase, and the operators that the counter has no formula for. `inputs` may be one tuple.
    The module is left as it was: its gradients and buffers, and the state of the random numbers.
    """
    from benchbench.counters.module_check import check_module

    if len(inputs) == 1 and isinstance(inputs[0], tuple):
        (inputs,) = inputs
    return check_module(module, inputs, named, backward=backward)
