"""The witness `hardware` of `benchbench check`: what the GPU's own counters say of a case, beside the count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from benchbench import units
from benchbench.case import TASKS, Case
from benchbench.commands import doctor
from benchbench.commands.options import sized
from benchbench.errors import BenchError, UnsupportedError
from benchbench.specs import ModelSpec
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.counters.kernels import Line

LAYERS = 2
"""How many layers stand for all: they launch the same kernels, and ncu runs each several times."""

SEQ_LEN = 2048


@dataclass(frozen=True)
class Outcome:
    """A case under the hardware's counters, by phase and kind, or why there is nothing; `failed` if it broke."""

    case: Case
    lines: "tuple[Line, ...]"
    reason: str | None = None
    failed: bool = False

    @property
    def verdict(self) -> str:
        if self.reason is not None:
            return "FAILED" if self.failed else "absent"
        return "DIFFERS" if any(line.unexplained for line in self.lines) else "agrees"


def lacking() -> str | None:
    """Why nothing can be read on this machine, or None."""
    import torch

    if not torch.cuda.is_available():
        return "no NVIDIA GPU"
    found = doctor.counters_here()
    return None if found.verdict == doctor.GOOD else f"{found.found}. {found.advice}".rstrip(".")


def outcomes(specs: Sequence[ModelSpec], tasks: Sequence[str], seq_len: int | None, batch: int) -> Iterator[Outcome]:
    """Each case's, a model's together; which, is told on stderr, for a model takes about a minute."""
    for number, spec in enumerate(specs, 1):
        click.echo(f"hardware {number} of {len(specs)}: {spec.name}", err=True)
        if chosen := list(cases(spec, tasks or TASKS, seq_len or SEQ_LEN, batch)):
            yield from of_model(chosen)


def cases(spec: ModelSpec, tasks: Sequence[str], seq_len: int, batch: int) -> Iterator[Case]:
    """Each task of a model in bfloat16, on the path that is its family's on a GPU."""
    few = spec.replace(n_layers=min(spec.n_layers, LAYERS))
    length = min(seq_len, (spec.longest or seq_len + 1) - 1)
    for task in tasks:
        case = sized(few, task=task, seq_len=length, batch=batch, dtype="bfloat16", path=spec.cuda_path)
        if not case.unsupported():
            yield case


def of_model(chosen: Sequence[Case]) -> list[Outcome]:
    """Each case's, from one process."""
    from benchbench.counters import count
    from benchbench.counters.hardware import profile
    from benchbench.counters.kernels import lines

    try:
        found = profile(chosen)
    except UnsupportedError as error:
        return [Outcome(case, (), error.message) for case in chosen]
    except BenchError as error:  # the other models' minutes are not lost
        return [Outcome(case, (), error.message, failed=True) for case in chosen]
    return [
        Outcome(case, (), error, failed=True) if error else seen(case, lines(count(case), kernels))
        for case, (kernels, error) in zip(chosen, found, strict=True)
    ]


def seen(case: Case, found: "tuple[Line, ...]") -> Outcome:
    """Of what ran and of what had to."""
    return Outcome(case, found, None if found else "only elementwise kernels ran, and no rule holds them")


def table(one: Outcome) -> Table:
    """One row a phase and kind of kernel."""
    columns: tuple[Column[Line], ...] = (
        Column("phase", "phase", "text", lambda line: line.phase),
        Column("kind", "kind", "text", lambda line: line.kind),
        Column("kernels", "kernels", "text", lambda line: line.kernels, units.integer),
        Column("counted", "FLOPs executed", "counted", lambda line: line.counted_flops, units.integer),
        Column("expected", "by the rules", "counted", lambda line: line.expected, units.integer),
        Column("found", "of these", "measured", lambda line: line.found, units.integer),
        Column("tensor", "tensor cores", "measured", lambda line: line.tensor_flops, units.integer),
        Column("vector", "vector", "measured", lambda line: line.vector_flops, units.integer),
        Column("special", "special", "measured", lambda line: line.special, units.integer),
        Column("bytes", "bytes moved", "counted", lambda line: line.counted_bytes, units.size),
        Column("dram", "device memory", "measured", lambda line: line.dram_bytes, units.size),
        Column("unexplained", "unexplained", "text", lambda line: "; ".join(line.unexplained)),
    )
    labels = (("case", one.case.id), ("device", "cuda"), ("witness", "hardware"))
    return build(f"{one.case.id} under hardware", labels, columns, one.lines)


def notes(found: Sequence[Outcome]) -> Iterator[str]:
    """The verdict, the rules, and how to read the numbers that no rule holds; of what was not read, why."""
    held = [line for one in found for line in one.lines if line.rules]
    if any(one.lines for one in found):
        exact = sum(not line.unexplained for line in held)
        yield f"hardware: {exact} of {len(held)} numbers that a rule predicts agree to the last operation."
        yield from sorted({f"hardware: {rule}." for line in held for rule in line.rules})
        yield "vector: float32 instructions, a multiply-add as 2; special functions and half precision are not in it."
        yield "Products of routed experts depend on the routing: no rule holds them."
        yield "device memory does not see writes that stay in the cache."
    yield from (f"hardware: {one.case.id}: {one.reason}." for one in found if one.reason)


def as_json(one: Outcome) -> dict[str, object]:
    return {
        "case": one.case.model_dump(mode="json"),
        "witness": "hardware",
        "device": "cuda",
        "verdict": one.verdict.lower(),
        "reason": one.reason,
        "lines": [line._asdict() for line in one.lines],
    }
