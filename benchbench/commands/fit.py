"""`benchbench fit`: what fits in a given memory: the longest context, the largest batch, the smallest device."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from benchbench import fit, units
from benchbench.case import Case
from benchbench.commands.options import FORMATS, SIZES, case_of, echo_tables, given
from benchbench.counters.cost import Kind
from benchbench.devices import Device, device, devices
from benchbench.errors import BenchError
from benchbench.table import Column, Table, build

if TYPE_CHECKING:
    from benchbench.commands.fit_verify import Run

LENGTHS = (2048, 8192, 32768)
"""Contexts whose largest batch is asked for, unless one is given."""

INCLUDED = (
    "Included: weights, gradients, optimizer states, activations, decoding state, workspaces, logits, and on a GPU "
    "what torch's allocator cannot hand out of the segments that it took."
)
APART = (
    "Not included: the CUDA context (some hundred MiB), libraries and other processes on the device: --reserve keeps "
    "bytes for them."
)


@dataclass(frozen=True)
class Place:
    """A memory to fit in."""

    name: str
    memory: int
    kind: Kind


@dataclass(frozen=True)
class Held:
    """What a device of the table can hold of a case."""

    device: Device
    memory: int
    needed: fit.Point
    longest: fit.Answer
    batch: fit.Answer


@click.command()
@SIZES
@click.option("--memory", metavar="SIZE", help="24GiB, 24GB, 24G (as GiB) or bytes. Default: that of --device.")
@click.option("--device", "on", metavar="NAME", help="A GPU of the table, cuda (the default) or cpu. See: list devices")
@click.option("--reserve", default="0", show_default=True, metavar="SIZE", help="Kept for what is not included.")
@click.option("--max", "most", type=click.Choice(["seq-len", "batch"]), help="Only this question; the other is given.")
@click.option("--verify", is_flag=True, help="Run the answers, and one step past them, on this machine's GPU.")
@FORMATS
def command(
    memory: str | None,
    on: str | None,
    reserve: str,
    most: str | None,
    verify: bool,
    output: str,
    **sizes: Any,
) -> None:
    """Say what fits: the longest context, the largest batch, or the smallest device.

    With --memory or --device: the longest context at --batch, and the largest batch at 2k, 8k and 32k, or at --seq-len.
    With neither: the smallest device of the table that holds the case, and what each of them can hold.
    """
    kept = fit.bytes_of(reserve)
    if memory is None and on in (None, "cpu", "cuda"):
        if verify or most or on:
            raise BenchError("no memory is named.", "Pass --memory 24GiB, or a --device of the table.")
        case = case_of(device="cuda", **sizes)
        rows = held(case, kept)
        if output == "json":
            click.echo(json.dumps(table_json(case, rows, kept), indent=2))
        else:
            echo_tables([devices_table(case, rows)], output, [smallest_line(rows), *notes([], kept)])
        return
    where = place(memory, on, kept, verify)
    answers = [fit.largest(one, where.memory) for one in asked(sizes, where.kind, most, given("seq_len"))]
    runs = verified(answers, where.memory) if verify else []
    if output == "json":
        click.echo(json.dumps(answers_json(where, answers, runs, kept), indent=2))
    else:
        title = f"{answers[0].case.model}, {setting(answers[0].case)}: what fits in {where.name}"
        tables = [answers_table(title, answers), *([runs_table(runs)] if runs else [])]
        echo_tables(tables, output, notes(answers, kept))
    if any(run.agrees is False for run in runs):
        raise SystemExit(1)


def place(memory: str | None, on: str | None, kept: int, verify: bool) -> Place:
    """The memory that is meant, less what is kept of it: a GPU's, unless `on` says 'cpu'."""
    found = device(on) if on not in (None, "cpu", "cuda") else None
    if verify and on == "cpu":
        raise BenchError("--verify runs on a GPU, not on the CPU.", "Leave --device out, or name a GPU.")
    kind: Kind = "cpu" if on == "cpu" else "cuda"
    whole = found.memory_bytes if memory is None and found else fit.bytes_of(memory or "")
    if whole is None:
        raise BenchError(f"the memory of '{on}' is not known.", "Pass --memory, as in --memory 24GiB.")
    if not whole:
        raise BenchError(f"--memory {memory}: that is nothing.", "Pass --memory, as in --memory 24GiB.")
    if kept >= whole:
        raise BenchError(f"--reserve leaves nothing of {units.size(whole)}.", "Give a smaller one.")
    name = f"{units.size(whole)} of {found.name if found else 'the CPU' if kind == 'cpu' else 'a GPU'}"
    return Place(f"{name}, less {units.size(kept)}" if kept else name, whole - kept, kind)


def asked(sizes: dict[str, Any], kind: Kind, most: str | None, given: bool) -> list[fit.Sizes]:
    """The questions: each a case, and which of its sizes is to be the largest."""
    if most:
        field: fit.Field = "batch" if most == "batch" else "seq_len"
        return [fit.Sizes(least_case(sizes, field, kind), field, kind)]
    lengths = [sizes["seq_len"]] if given else LENGTHS
    questions = [fit.Sizes(least_case(sizes, "seq_len", kind), "seq_len", kind)]
    for n in lengths:
        shortest = {**sizes, "seq_len": n if given else 2}
        case = least_case(shortest, "batch", kind).model_copy(update={"seq_len": n})
        if not case.unsupported():
            questions.append(fit.Sizes(case, "batch", kind))
    return questions


def least_case(sizes: dict[str, Any], field: fit.Field, kind: Kind) -> Case:
    """The case with its least size in place of the one that is asked for."""
    least: dict[str, Any] = {**sizes, field: 2 if field == "seq_len" else 1}
    return case_of(device=kind, **least)


def held(case: Case, kept: int) -> list[Held]:
    """What each device of the table can hold, those of the least memory first."""
    lengths, batches = fit.Sizes(case, "seq_len", "cuda"), fit.Sizes(case, "batch", "cuda")
    known: dict[int, tuple[fit.Point, fit.Answer, fit.Answer]] = {}
    rows: list[Held] = []
    for one in devices().values():
        if one.memory_bytes is None:
            continue
        memory = max(0, one.memory_bytes - kept)
        if memory not in known:
            needed = batches.point(case.batch, memory)
            known[memory] = needed, fit.largest(lengths, memory), fit.largest(batches, memory)
        rows.append(Held(one, memory, *known[memory]))
    return sorted(rows, key=lambda row: row.memory)


def verified(answers: Sequence[fit.Answer], memory: int) -> "list[Run]":
    from benchbench.commands.fit_verify import run

    return run(answers, memory)


def setting(case: Case) -> str:
    return ", ".join([case.task, case.dtype, case.path, *case.variations])


def question(answer: fit.Answer) -> str:
    if answer.field == "seq_len":
        return f"longest context at batch {answer.case.batch:,}"
    return f"largest batch at {answer.case.seq_len:,} tokens"


def said(answer: fit.Answer) -> str:
    return "none" if answer.at is None else "any" if answer.any else units.integer(answer.at)


def answers_table(title: str, answers: Sequence[fit.Answer]) -> Table:
    """Two rows a question: the answer, and one step past it."""
    rows = [(answer, point) for answer in answers for point in answer.points]
    columns: tuple[Column[tuple[fit.Answer, fit.Point]], ...] = (
        Column("question", "question", "text", lambda row: question(row[0])),
        Column("answer", "answer", "text", lambda row: said(row[0])),
        Column("n", "at", "text", lambda row: row[1].n, units.integer),
        Column("fits", "fits", "text", lambda row: "yes" if row[1].fits else "no"),
        Column("peak_bytes", "peak", "counted", lambda row: row[1].allocated, units.integer),
        Column("needed_bytes", "needed", "counted", lambda row: row[1].taken, units.integer),
        Column("left_bytes", "left", "counted", lambda row: row[0].memory - row[1].taken, units.integer),
    )
    return build(title, (), columns, rows)


def devices_table(case: Case, rows: Sequence[Held]) -> Table:
    """One row a device, those of the least memory first."""
    columns: tuple[Column[Held], ...] = (
        Column("device", "device", "text", lambda row: row.device.key),
        Column("memory_bytes", "memory", "text", lambda row: row.memory, units.size),
        Column("fits", "holds it", "text", lambda row: "yes" if row.needed.fits else "no"),
        Column("needed_bytes", "needed", "counted", lambda row: row.needed.taken, units.size),
        Column("longest", f"longest at batch {case.batch:,}", "counted", lambda row: said(row.longest)),
        Column("batch", f"largest batch at {case.seq_len:,}", "counted", lambda row: said(row.batch)),
    )
    return build(case.id, (("case", case.id),), columns, rows)


def smallest_line(rows: Sequence[Held]) -> str:
    first = next((row for row in rows if row.needed.fits), None)
    if first is None:
        return "No device of the table holds it."
    return f"{first.device.name} is the smallest device of the table that holds it."


VERDICTS = {True: "agrees", False: "DIFFERS", None: "not run"}


def runs_table(runs: "Sequence[Run]") -> Table:
    """What the GPU said of each."""
    columns: tuple[Column[Run], ...] = (
        Column("case", "case", "text", lambda run: run.case.id),
        Column("expected", "expected", "text", lambda run: run.expected),
        Column("status", "ran", "measured", lambda run: run.status, note=lambda run: run.reason or ""),
        Column("counted_bytes", "peak", "counted", lambda run: run.point.allocated, units.integer),
        Column("measured_bytes", "peak", "measured", lambda run: run.peak_bytes, units.integer),
        Column("reserved_bytes", "reserved", "measured", lambda run: run.reserved_bytes, units.integer),
        Column("verdict", "verdict", "text", lambda run: VERDICTS[run.agrees]),
    )
    return build("run with no more memory than that", (), columns, runs)


def notes(answers: Sequence[fit.Answer], kept: int) -> list[str]:
    """What ends an answer, what qualifies it, and what is in the numbers."""
    lines = [line for answer in answers for line in qualifications(answer)]
    return [*lines, INCLUDED, f"{APART} Now {units.size(kept)}."]


def qualifications(answer: fit.Answer) -> Iterator[str]:
    about = question(answer)
    if answer.at is None:
        yield f"The {about}: not even {answer.points[0].n:,} fits."
    if answer.end:
        yield f"The {about}: memory is left, {answer.end}."
    if answer.again:
        shown = units.listing([f"{no:,} does not fit but {yes:,} does" for no, yes in answer.again[-3:]])
        yield f"The {about}: more does not always need more; of what was looked at, {shown}."
    if answer.at is not None and answer.bound is not None and answer.bound > answer.at:
        yield (
            f"The {about}: the blocks of up to {answer.bound:,} would fit, but torch's allocator cannot lay them out "
            f"in its segments; of those past {answer.at:,} some were looked at, and none fits."
        )
    if not answer.exact:
        yield f"The {about}: this model's memory is bounded by a sum, not followed."
    if not all(point.simulated for point in answer.points):
        yield f"The {about}: too many allocations to simulate the allocator; the least that any must hand out is shown."


def answers_json(where: Place, answers: Sequence[fit.Answer], runs: "Sequence[Run]", kept: int) -> dict[str, Any]:
    found = [answer_json(answer) for answer in answers]
    verified = [run.as_json() for run in runs]
    return {
        "memory_bytes": where.memory,
        "reserve_bytes": kept,
        "device": where.kind,
        "answers": found,
        **({"verified": verified} if verified else {}),
        "notes": [INCLUDED, APART],
    }


def answer_json(answer: fit.Answer) -> dict[str, Any]:
    """`answer` is null where nothing fits; `any` where nothing that grows ends it."""
    return {
        "question": answer.field,
        "case": answer.case.model_dump(mode="json", exclude={answer.field}),
        "answer": answer.at,
        "any": answer.any,
        "bound": answer.bound,
        "end": answer.end,
        "fits_again": [{"does_not": no, "does_again": yes} for no, yes in answer.again],
        "exact": answer.exact,
        "counted": [
            {
                "n": point.n,
                "fits": point.fits,
                "peak_bytes": point.allocated,
                "needed_bytes": point.taken,
                "simulated": point.simulated,
            }
            for point in answer.points
        ],
    }


def table_json(case: Case, rows: Sequence[Held], kept: int) -> dict[str, Any]:
    smallest = next((row.device.key for row in rows if row.needed.fits), None)
    return {
        "case": case.model_dump(mode="json"),
        "reserve_bytes": kept,
        "smallest": smallest,
        "devices": [
            {
                "device": row.device.key,
                "memory_bytes": row.memory,
                "fits": row.needed.fits,
                "needed_bytes": row.needed.taken,
                "longest": answer_json(row.longest),
                "largest_batch": answer_json(row.batch),
            }
            for row in rows
        ],
        "notes": [INCLUDED, APART],
    }
