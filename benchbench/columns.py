"""Which columns a record fills, and which records share a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchbench import units
from benchbench.axis import BATCH, LENGTH, Axis
from benchbench.case import TASKS, Case
from benchbench.devices import Device, reported
from benchbench.record import Counted, Measured, Record
from benchbench.stats import Summary
from benchbench.table import Column, Plain, Table, build

RecordColumn = Column[Record]
Environments = Mapping[str, Mapping[str, Any]]
"""What the worker said of its machine and software, by the id that records name."""


def time_of(record: Record) -> Summary | None:
    """The summary of one call's time, if the case was timed."""
    return record.summary.get("time_s")


def counted_peak(basis: str) -> Callable[[Counted], int]:
    """The counted peak that corresponds to what was measured: the allocator's blocks, or the bytes asked for."""
    return lambda counted: counted.peak_bytes if basis == "allocated" else counted.peak_requested_bytes


def measured_peak(basis: str) -> Callable[[Measured], int | None]:
    return lambda m: m.peak_allocated_bytes if basis == "allocated" else m.peak_requested_bytes


def peak_basis(records: Iterable[Record]) -> str:
    """`requested` where only the bytes asked for were measured, else `allocated`."""
    seen = [record.measured for record in records if record.measured]
    allocated = any(m.peak_allocated_bytes is not None for m in seen)
    return "requested" if not allocated and any(m.peak_requested_bytes is not None for m in seen) else "allocated"


def agreement(record: Record) -> Literal["equal", "explained", "unexplained"] | None:
    """What the trace says of the count; None where nothing was traced."""
    checked, counted = record.checked, record.counted
    if not checked or checked.traced_flops is None or not counted:
        return None
    if checked.traced_flops == counted.flops:
        return "equal"
    return "explained" if checked.traced_flops == checked.explained_flops else "unexplained"


def agreement_text(record: Record) -> str | None:
    """A check mark where the trace is accounted for to the last FLOP, and the difference that rules explain."""
    verdict = agreement(record)
    if verdict is None or not record.checked or not record.counted or record.checked.traced_flops is None:
        return None
    if verdict == "equal" or not record.counted.flops:
        return "✓" if verdict == "equal" else "✗"
    difference = units.percent(record.checked.traced_flops / record.counted.flops - 1, signed=True)
    return f"{'✓' if verdict == 'explained' else '✗'} {difference}"


def reason(record: Record) -> str:
    """Why the status is what it is, and why a cell of the row is an em dash."""
    time = time_of(record)
    notes = [record.reason or ""]
    if time and time.half_ratio is None:
        notes.append(f"{time.n} {'sample' if time.n == 1 else 'samples'}, six are needed for an interval")
    if record.status == "ok":
        checked = record.checked
        absent = {
            "not timed": time is None,
            "first call not timed": not record.measured or record.measured.first_call_s is None,
            "peak memory not measured": not record.measured
            or (record.measured.peak_allocated_bytes is None and record.measured.peak_requested_bytes is None),
            "not counted": record.counted is None,
        }
        notes.extend(what for what, missing in absent.items() if missing)
        if not checked or checked.traced_flops is None:
            notes.append(f"not traced: {checked.reason}" if checked and checked.reason else "not traced")
    return "; ".join(" ".join(note.split()) for note in notes if note)


def model_columns() -> tuple[RecordColumn, ...]:
    """Parameters, once a model."""
    return (
        RecordColumn("model", "model", "text", lambda r: r.case.model + " (core)" * r.case.spec.mixer_alone),
        RecordColumn("family", "family", "text", lambda r: r.case.family),
        RecordColumn(
            "counted_params", "parameters", "counted", lambda r: r.counted and r.counted.params, units.integer
        ),
        RecordColumn(
            "counted_params_inside",
            "outside embedding and head",
            "counted",
            lambda r: r.counted and r.counted.params - outer_params(r),
            units.integer,
        ),
        RecordColumn("built_params", "in the built module", "traced", built_params, units.integer),
    )


def outer_params(record: Record) -> int:
    """Parameters of the token embedding and of the head, a tied one counted once; a mixer alone has neither."""
    spec = record.case.spec
    if spec.mixer_alone:
        return 0
    matrices = 1 if spec.tied_head else 2
    return matrices * spec.vocab_size * spec.d_model + (spec.vocab_size if spec.head_bias else 0)


def built_params(record: Record) -> int | None:
    return record.checked.params if record.checked else None


def device_of(record: Record, environments: Environments) -> Device | None:
    """The GPU that a record was measured on, if its peaks are known."""
    gpu = environments.get(record.env, {}).get("gpu")
    return reported(gpu["name"]) if gpu else None


def peak_flops_per_s(record: Record, environments: Environments) -> float | None:
    """The dense peak of what the case multiplies in: of TF32 where torch may round float32 to it."""
    device, dtype = device_of(record, environments), record.case.autocast or record.case.dtype
    if device is None:
        return None
    rounded = environments[record.env].get("flags", {}).get("matmul_tf32")
    return device.peak("tf32" if dtype == "float32" and rounded else dtype)


def utilisation(
    work: Callable[[Counted], int], ceiling: Callable[[Record], float | None]
) -> Callable[[Record], float | None]:
    """Counted work over measured time, as a share of the device's ceiling; None where one of the three is missing."""

    def share(record: Record) -> float | None:
        time, most = time_of(record), ceiling(record)
        if time is None or most is None or record.counted is None:
            return None
        return work(record.counted) / time.median / most

    return share


def utilisation_columns(records: Sequence[Record], environments: Environments) -> tuple[RecordColumn, ...]:
    """MFU and HFU, or while decoding the memory's; none where no record was timed on a device of known peaks.

    MFU divides the model's arithmetic, HFU what the path runs, by the dense peak of the dtype.
    """

    def flops(record: Record) -> float | None:
        return peak_flops_per_s(record, environments)

    def bandwidth(record: Record) -> float | None:
        device = device_of(record, environments)
        return device and device.memory_bytes_per_s

    def column(name: str, title: str, share: Callable[[Record], float | None], detail: int) -> RecordColumn:
        return RecordColumn(name, title, "measured", share, units.percent, detail=detail)

    moved = utilisation(lambda c: c.bytes_moved, bandwidth)
    columns = (
        (column("bandwidth_utilisation", "bandwidth", moved, 0),)
        if records[0].case.task == "decode"
        else (
            column("mfu", "MFU", utilisation(lambda c: c.flops, flops), 0),
            column("hfu", "HFU", utilisation(lambda c: c.executed_flops, flops), 4),
        )
    )
    return columns if any(column.read(record) is not None for column in columns for record in records) else ()


def case_columns(records: Sequence[Record], environments: Environments | None = None) -> tuple[RecordColumn, ...]:
    """The columns of one task's table: identity, counted, traced, measured, how it ran and why not."""
    counted = [record.counted for record in records if record.counted]
    basis = peak_basis(records)
    peak, seen_peak = counted_peak(basis), measured_peak(basis)
    flop, flop_name = units.common_unit((c.flops for c in counted), units.FLOPS)
    byte, byte_name = units.common_unit(map(peak, counted), units.BYTES)

    def per(factor: float) -> Callable[[float], str]:
        return lambda value: units.digits(value / factor)

    decode = records[0].case.task == "decode"
    sized = len({record.case.batch for record in records}) > 1
    ways = {(record.case.model, record.case.path) for record in records}
    several = len(ways) > len({model for model, _ in ways})
    columns: list[RecordColumn] = [
        RecordColumn("n", "N", "text", lambda r: r.case.seq_len, units.integer),
        *([RecordColumn("batch", "B", "text", lambda r: r.case.batch)] if sized else []),
        RecordColumn("model", "model", "text", lambda r: r.case.model),
        RecordColumn("counted_flops", flop_name, "counted", lambda r: r.counted and r.counted.flops, per(flop)),
        RecordColumn(
            "counted_peak_bytes", f"peak {byte_name}", "counted", lambda r: r.counted and peak(r.counted), per(byte)
        ),
    ]
    if decode:
        columns += [
            RecordColumn(
                "counted_state_bytes",
                "state MiB",
                "counted",
                lambda r: r.counted and r.counted.state_bytes,
                per(2**20),
            )
        ]
    columns += [
        RecordColumn("traced_agreement", "traced = counted", "traced", agreement_text, detail=2),
        RecordColumn(
            "measured_time_s",
            "ms/token" if decode else "time",
            "measured",
            lambda r: (time := time_of(r)) and time.median,
            per(1e-3) if decode else units.seconds,
        ),
        RecordColumn(
            "measured_half_ratio", "±", "measured", lambda r: (t := time_of(r)) and t.half_ratio, units.percent
        ),
        RecordColumn("measured_tokens_per_s", "tok/s", "measured", lambda r: r.tokens_per_s, units.count),
        *utilisation_columns(records, environments or {}),
        RecordColumn(
            "measured_peak_bytes",
            f"peak {byte_name}",
            "measured",
            lambda r: r.measured and seen_peak(r.measured),
            per(byte),
        ),
        RecordColumn(
            "measured_first_call_s",
            "first call",
            "measured",
            lambda r: r.measured and r.measured.first_call_s,
            units.seconds,
            detail=3,
        ),
        RecordColumn("path", "path", "text", lambda r: r.path, detail=0 if several else 1),
        RecordColumn("status", "status", "text", lambda r: r.status, note=reason),
    ]
    return tuple(columns)


# Which records share a table, and in what order


@dataclass(frozen=True)
class Group:
    """One table's cases, which differ in N. `batch` is None where it shrinks as N grows, so that a call always reads
    `tokens`, and where the cases differ in it, and all have `seq_len`.
    """

    task: str
    dtype: str
    optimizer: str | None
    batch: int | None
    tokens: int | None = None
    seq_len: int | None = None
    ways: tuple[str, ...] = ()
    """How else its cases depart from plain ones."""

    @property
    def title(self) -> str:
        size = f"{units.integer(self.tokens)} tokens a call" if self.tokens else f"batch {self.batch}"
        size = f"N={units.integer(self.seq_len)}" if self.seq_len else size
        return " · ".join(filter(None, (self.task, self.dtype, size, self.optimizer, *self.ways)))

    @property
    def axis(self) -> Axis:
        return BATCH if self.seq_len else LENGTH


def ways_of(case: Case) -> tuple[str, ...]:
    """What tells a case's table from that of plain cases: a capture, and how it trains."""
    graph = ("CUDA graph",) if case.path == "graph" else ()
    return (*graph, *(way for way in case.variations if way != case.optimizer))


def ordered(records: Iterable[Record]) -> list[Record]:
    """By suite, task, dtype, N, model, path and seed; of one case, the earlier outcome first."""

    def place(record: Record) -> tuple[Any, ...]:
        case = record.case
        ways = (case.optimizer or "", ways_of(case))
        kind = (record.suite, record.suite_version, TASKS.index(case.task), case.dtype, *ways)
        return (*kind, case.seq_len, case.model, case.batch, case.path, case.seed, record.started_at, record.key)

    return sorted(records, key=place)


def current(records: Iterable[Record]) -> list[Record]:
    """The last outcome of each case, in table order."""
    return list({(record.suite, record.case): record for record in ordered(records)}.values())


def grouped(records: Iterable[Record]) -> dict[Group, list[Record]]:
    """The current records of one suite and machine, by table: task, dtype, optimizer, ways, then batch, or N."""
    alike: dict[Group, list[Record]] = {}
    for record in current(records):
        case = record.case
        group = Group(case.task, case.dtype, case.optimizer, None, ways=ways_of(case))
        alike.setdefault(group, []).append(record)
    groups: dict[Group, list[Record]] = {}
    for shared, members in alike.items():
        sizes = {(record.case.seq_len, record.case.batch) for record in members}
        tokens = {n * batch for n, batch in sizes}
        if len(sizes) > 1 and len(tokens) == 1:
            groups[replace(shared, tokens=tokens.pop())] = members
            continue
        lengths = {n for n, _ in sizes}
        if len(sizes) > 1 and len(lengths) == 1:
            groups[replace(shared, seq_len=lengths.pop())] = members
            continue
        for batch in sorted({batch for _, batch in sizes}):
            groups[replace(shared, batch=batch)] = [record for record in members if record.case.batch == batch]
    return groups


def case_table(
    group: Group,
    records: Sequence[Record],
    labels: Iterable[tuple[str, Plain]] = (),
    environments: Environments | None = None,
) -> Table:
    """One group's table; `labels` stand before its own. Utilisations need the records' `environments`."""
    own = (
        ("task", group.task),
        ("dtype", group.dtype),
        ("batch", group.batch),
        ("optimizer", group.optimizer),
        ("ways", " ".join(group.ways) or None),
    )
    return build(group.title, (*labels, *own), case_columns(records, environments), records)


def model_table(records: Iterable[Record]) -> Table:
    """One row for each architecture, from its first record that was counted and the first that was built.

    Its mixer alone has a row of its own.
    """
    chosen: dict[tuple[str, bool, str], Record] = {}
    for record in records:
        spec = record.case.spec
        name = (spec.name, spec.mixer_alone, spec.model_dump_json())
        if name not in chosen or (built_params(chosen[name]) is None and built_params(record) is not None):
            chosen[name] = record
    return build("parameters", (), model_columns(), [chosen[name] for name in sorted(chosen)])
