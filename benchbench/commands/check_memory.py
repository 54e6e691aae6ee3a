"""`benchbench check --memory`: the memory of a case, three times: counted, followed on fake tensors, and measured.

The measured timeline tells the tensors of the program from what kernels take and give back while they run: the first
must be what fake tensors show, both together what is counted.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

from benchbench import units
from benchbench.case import TASKS, Case
from benchbench.commands.options import echo_tables, runs_for_real, sized, some
from benchbench.counters.cost import Kind
from benchbench.errors import UnsupportedError
from benchbench.specs import ModelSpec
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.counters.memory import Fullest
    from benchbench.counters.timeline import Alive, Timeline

ALLOWED_BYTES = 1024
"""How far two of the three may lie apart: numbers of a few bytes that no tensor of the model holds."""
ALLOWED_RATIO = 0.01
"""How far the count may lie above fake tensors where nothing is measured: these do not see temporaries of kernels."""
LARGEST = 10
VARIATIONS: tuple[dict[str, Any], ...] = ({"optimizer": "sgd"}, {"checkpoint": True}, {"accumulate": 2})


@dataclass(frozen=True)
class Outcome:
    """Peaks of a case in bytes, and what is alive then; None where there is no such witness, and `reasons` why."""

    case: Case
    device: Kind
    counted: "Fullest"
    fake: "Timeline | None"
    measured: int | None = None
    visible: int | None = None
    """The measured peak without what kernels take and give back."""
    reserved: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def seen(self) -> int | None:
        return self.fake.peak() if self.fake else None

    @property
    def differences(self) -> tuple[str, ...]:
        """What lies further apart than the rules allow."""
        counted = self.counted.requested if self.counted.exact else None
        return tuple(_differences(counted, self.seen, self.measured, self.visible))

    @property
    def verdict(self) -> str:
        if self.differences:
            return "DIFFERS"
        return "agrees" if self.seen is not None or self.measured is not None else "absent"


def _differences(counted: int | None, seen: int | None, measured: int | None, visible: int | None) -> Iterator[str]:
    if counted is not None and measured is not None and abs(counted - measured) > ALLOWED_BYTES:
        yield f"counted {counted - measured:+,} bytes from what is measured"
    if seen is not None and visible is not None and abs(seen - visible) > ALLOWED_BYTES:
        yield f"fake tensors {seen - visible:+,} bytes from the tensors that are measured"
    if counted is not None and seen is not None and measured is None:
        above = ALLOWED_BYTES + ALLOWED_RATIO * seen
        if not -ALLOWED_BYTES <= counted - seen <= above:
            yield f"counted {counted - seen:+,} bytes from fake tensors"


def command(
    specs: Sequence[ModelSpec],
    tasks: Sequence[str],
    seq_len: int | None,
    batch: int,
    ops: bool,
    output: str,
    planned: Sequence[Case] | None = None,
) -> None:
    """Checks the cases `planned`, or those of the models; exits with 1 where a difference has no rule."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    own = (case for spec in specs for case in cases(spec, tasks or TASKS, seq_len, batch, device))
    found = [outcome(case, device) for case in some(own if planned is None else planned)]
    if output == "json":
        click.echo(json.dumps([as_json(one) for one in found], indent=2))
    else:
        details = [table for one in found for table in (categories_table(one), largest_table(one))]
        echo_tables([cases_table(found), *(details if ops else [])], output, list(notes(found)))
    if any(one.differences for one in found):
        raise SystemExit(1)


def cases(spec: ModelSpec, tasks: Sequence[str], seq_len: int | None, batch: int, device: Kind) -> Iterator[Case]:
    """Every task of a model, and training's variations: on all paths where it is small, else on the device's own."""
    small = runs_for_real(Case.of(spec, task="prefill", seq_len=2))
    length = seq_len or min(64 if small else 1024, (spec.longest or 1025) - 1)
    paths = [spec.cuda_path] if device == "cuda" else spec.paths if small else spec.paths[:1]
    for path in paths:
        for task in tasks:
            case = sized(spec, task=task, seq_len=length, batch=batch, path=path)
            if case.unsupported():
                continue
            yield case
            if task == "train" and path == paths[0]:
                yield from (case.replace(**change) for change in VARIATIONS)
            if device == "cuda":
                yield case.replace(dtype="bfloat16")


def outcome(case: Case, device: Kind) -> Outcome:
    """The three of one case; a witness that cannot see it leaves its reason."""
    from benchbench.counters import count
    from benchbench.counters.storages import follow

    found = Outcome(case, device, count(case, device).fullest, fake=None)
    if not found.counted.exact:
        found = replace(found, reasons=("the count is a first sum, held against nothing",))
    try:
        found = replace(found, fake=follow(case, device))
    except UnsupportedError as error:
        found = replace(found, reasons=(*found.reasons, f"no fake tensors: {error.message}"))
    if device == "cpu" and not runs_for_real(Case.of(case.spec, task="prefill", seq_len=2)):
        return replace(found, reasons=(*found.reasons, "not measured: too large for a quick look"))
    return measured(found)


def measured(one: Outcome) -> Outcome:
    """With what the device's allocator says of the real model."""
    import torch

    from benchbench import followed, memory
    from benchbench.measure import is_out_of_memory
    from benchbench.models import build as build_model
    from benchbench.tasks import prepare
    from benchbench.tasks.prepared import DTYPES

    case, device, threads = one.case, torch.device(one.device), torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as counted: each thread has scratch of its own
        model = build_model(
            case.spec, path=case.path, device=device, dtype=DTYPES[case.dtype], checkpoint=case.checkpoint
        )
        prepared = prepare(model, case)
        prepared.call()
        prepared.release()
        peaks = memory.peaks(prepared.call, prepared.held(), device)
        prepared.release()
        timeline = followed.follow(prepared.call, prepared.held(), device)
    except UnsupportedError as error:
        return replace(one, reasons=(*one.reasons, f"not measured: {error.message}"))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return replace(one, reasons=(*one.reasons, "not measured: out of memory"))
    finally:
        torch.set_num_threads(threads)
    if one.fake is not None and one.device == "cuda":
        timeline = followed.without(timeline, one.fake)
    visible = followed.visible(timeline).peak() if one.fake is not None or one.device == "cpu" else None
    return replace(one, measured=peaks.requested_bytes, visible=visible, reserved=peaks.reserved_bytes)


def cases_table(found: Sequence[Outcome]) -> Table:
    """One row a case."""
    columns: tuple[Column[Outcome], ...] = (
        Column("case", "case", "text", lambda one: one.case.id),
        Column("device", "on", "text", lambda one: one.device),
        Column("counted", "peak", "counted", lambda one: one.counted.requested, units.integer),
        Column("fake", "fake tensors", "traced", lambda one: one.seen, units.integer),
        Column("visible", "tensors", "measured", lambda one: one.visible, units.integer),
        Column("measured", "peak", "measured", lambda one: one.measured, units.integer),
        Column("at", "fullest at", "text", lambda one: one.counted.at or "the start", detail=1),
        Column("verdict", "verdict", "text", lambda one: one.verdict, note=lambda one: "; ".join(one.differences)),
    )
    return build("peak memory in bytes, as requested", (), columns, found)


def categories_table(one: Outcome) -> Table:
    """What the bytes at the peak are for."""
    counted = one.counted.memory.model_dump()
    seen = by_category(one.fake) if one.fake else {}
    columns: tuple[Column[str], ...] = (
        Column("category", "category", "text", lambda name: name),
        Column("counted", "bytes", "counted", lambda name: counted[name], units.integer),
        Column("fake", "fake tensors", "traced", lambda name: seen.get(name), units.integer),
    )
    return build(f"{one.case.id}: at the peak", (), columns, list(counted))


def largest_table(one: Outcome) -> Table:
    """The largest tensors at the peak, by size; the two columns need not agree on names."""
    seen = one.fake.alive(one.fake.fullest)[:LARGEST] if one.fake else ()
    rows = list(zip_longest(one.counted.largest[:LARGEST], seen))

    def size(tensor: "Alive | None") -> int | None:
        return tensor.bytes if tensor else None

    def name(tensor: "Alive | None") -> str:
        times = f"{tensor.count} × " if tensor and tensor.count > 1 else ""
        return f"{times}{tensor.name} {tensor.place}".strip() if tensor else ""

    columns: tuple[Column[tuple[Alive | None, Alive | None]], ...] = (
        Column("counted", "bytes", "counted", lambda row: size(row[0]), units.integer),
        Column("tensor", "tensor", "text", lambda row: name(row[0])),
        Column("fake", "fake tensors", "traced", lambda row: size(row[1]), units.integer),
        Column("made_by", "made by", "text", lambda row: name(row[1])),
    )
    return build(f"{one.case.id}: the largest at the peak", (), columns, rows)


def by_category(timeline: "Timeline") -> dict[str, int]:
    """Bytes of each category at the fullest moment."""
    sizes: dict[str, int] = {}
    for block, number in timeline.blocks(timeline.fullest):
        sizes[block.category] = sizes.get(block.category, 0) + number * block.size
    return sizes


def notes(found: Sequence[Outcome]) -> Iterator[str]:
    agreed = sum(one.verdict == "agrees" for one in found)
    yield f"{agreed} of {len(found)} agree, to {ALLOWED_BYTES:,} bytes."
    if any(one.measured is None for one in found):
        yield (
            "Fake tensors do not see what a kernel takes and gives back: "
            f"where nothing is measured the count may lie {ALLOWED_RATIO:.0%} above them."
        )
    for reason, number in Counter(reason for one in found for reason in one.reasons).items():
        yield f"{units.plural(number, 'case')}: {reason}."


def as_json(one: Outcome) -> dict[str, Any]:
    return {
        "case": one.case.model_dump(mode="json"),
        "device": one.device,
        "verdict": one.verdict.lower(),
        "differences": list(one.differences),
        "reasons": list(one.reasons),
        "counted_bytes": one.counted.requested,
        "fake_bytes": one.seen,
        "visible_bytes": one.visible,
        "measured_bytes": one.measured,
        "reserved_bytes": one.reserved,
        "counted_by_category": one.counted.memory.model_dump(),
        "fake_by_category": by_category(one.fake) if one.fake else None,
        "largest": [tensor._asdict() for tensor in one.counted.largest],
    }
