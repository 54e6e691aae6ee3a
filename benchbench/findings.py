"""Sentences computed from records: who is cheaper where, how costs grow, what could not be measured, what disagrees.

Every sentence says whether it speaks of counted or of measured numbers, and none of both at once but to compare them.
"""

from collections.abc import Iterable, Sequence
from statistics import median

from benchbench.axis import LENGTH, Axis
from benchbench.columns import agreement, counted_peak, measured_peak, peak_basis, time_of
from benchbench.cores import SLOW
from benchbench.record import Record
from benchbench.scaling import METRICS, CountAt, Finding, crossovers, exponents, series
from benchbench.units import count, digits, integer, listing


def findings(records: Sequence[Record], count_at: CountAt | None = None, axis: Axis = LENGTH) -> tuple[Finding, ...]:
    """What one table's records say together. With `count_at`, counted crossings are located exactly."""
    lines = series(records)
    return (
        *(crossover for metric in METRICS if (crossover := crossovers(metric, lines, count_at, axis))),
        *(growth for metric in METRICS if (growth := exponents(metric, lines, axis))),
        *absences(lines, axis),
        *agreements(records),
    )


def absences(lines: dict[str, list[Record]], axis: Axis = LENGTH) -> list[Finding]:
    """The first place of each model that has another status than ok, by status, with its reason."""
    sentences: list[Finding] = []
    for label, records in lines.items():
        by_status: dict[str, list[Record]] = {}
        for record in records:
            by_status.setdefault(record.status, []).append(record)
        for status, group in by_status.items():
            if status != "ok":
                first = group[0]
                why = " ".join((first.reason or "no reason was recorded").split()).rstrip(".")
                share = f"{len(group)} of {len(records)} {axis.many}"
                place = f"{axis.symbol}={integer(axis.of(first.case))}"
                text = f"Not measured: {label} is {status} at {share}, first at {place}: {why}."
                sentences.append(Finding(text))
    return sentences


def agreements(records: Sequence[Record]) -> list[Finding]:
    """Traced against counted FLOPs, built against counted parameters, measured against counted, gates and the host."""
    return [*_traces(records), *_alarms(records), *_ratios(records), *_hosts(records)]


def _traces(records: Sequence[Record]) -> Iterable[Finding]:
    verdicts = [agreement(record) for record in records]
    traced = len(verdicts) - verdicts.count(None)
    if not traced:
        yield Finding("Traced FLOPs: no case was traced.")
        return
    parts = [f"equal to the counted in {verdicts.count('equal')} of {traced} traced cases"]
    if explained := verdicts.count("explained"):
        rules = sorted({rule for r in records if r.checked and agreement(r) == "explained" for rule in r.checked.rules})
        quoted = [f'"{rule}"' for rule in rules]
        parts.append(f"in {explained} the difference is explained to the last FLOP by {listing(quoted)}")
    unexplained = verdicts.count("unexplained")
    parts.append(f"unexplained differences: {unexplained or 'none'}")
    yield Finding(f"Traced FLOPs: {'; '.join(parts)}.", detail=not unexplained)


def _alarms(records: Sequence[Record]) -> Iterable[Finding]:
    for record in records:
        checked, counted, name = record.checked, record.counted, record.case.id
        if not checked:
            continue
        if agreement(record) == "unexplained" and counted:
            explained = "nothing" if checked.explained_flops is None else integer(checked.explained_flops)
            yield Finding(
                f"UNEXPLAINED: {name}: traced {integer(checked.traced_flops or 0)} FLOPs, "
                f"the rules explain {explained}, counted {integer(counted.flops)}.",
                alarm=True,
            )
        if counted and checked.params is not None and checked.params != counted.params:
            yield Finding(
                f"UNEXPLAINED: {name}: the built module has {integer(checked.params)} parameters, "
                f"counted {integer(counted.params)}.",
                alarm=True,
            )
        if checked.gate == "failed":
            error = "" if checked.gate_error is None else f" by {digits(checked.gate_error)}"
            yield Finding(f"GATE FAILED: {name}: differs from the reference path{error}.", alarm=True)
        if checked.memory == "differs":
            yield Finding(f"UNEXPLAINED: {name}: {record.reason}.", alarm=True)


def _ratios(records: Sequence[Record]) -> Iterable[Finding]:
    basis = peak_basis(records)
    counted, measured = counted_peak(basis), measured_peak(basis)
    peaks = [(counted(r.counted), seen) for r in records if r.counted and r.measured and (seen := measured(r.measured))]
    if peaks:
        yield Finding(f"Counted over measured peak memory (bytes {basis}): {_spread(peaks)}.")
    else:
        yield Finding("Counted over measured peak memory: no peak was measured.")
    times = [(r.counted.time_s, t.median) for r in records if r.counted and r.counted.time_s and (t := time_of(r))]
    if times:
        yield Finding(f"Counted over measured time: {_spread(times)}.")


def _hosts(records: Sequence[Record]) -> Iterable[Finding]:
    """Where kernels were launched from a core that something else slowed."""
    middles = [median(r.measured.host_slowdown) for r in records if r.measured and r.measured.host_slowdown]
    slowed = [middle for middle in middles if middle > SLOW]
    if slowed:
        yield Finding(
            f"Host: something else slowed the launching core in most samples of {len(slowed)} of {len(middles)} cases, "
            f"up to {max(slowed):.2g} times: calls that wait for their launches took longer there."
        )
    elif middles:
        yield Finding("Host: nothing else slowed the launching core in most samples of any case.", detail=True)


def _spread(pairs: Sequence[tuple[float, float]]) -> str:
    ratios = [ours / theirs for ours, theirs in pairs]
    middle, low, high = (f"{ratio:.3f}" for ratio in (median(ratios), min(ratios), max(ratios)))
    return f"median {middle}, from {low} to {high}, over {len(ratios)} {'case' if len(ratios) == 1 else 'cases'}"


def warnings(records: Iterable[Record]) -> list[Finding]:
    """What every reader of a model's numbers must know, once a model."""
    told = {record.case.model: warning for record in records if (warning := record.case.spec.warning)}
    return [Finding(f"{model}: {told[model]}.", alarm=True) for model in sorted(told)]


def sizes(records: Iterable[Record]) -> Finding | None:
    """How far the counted parameters of whole models lie apart: a comparison at equal size must be one."""
    whole = [record for record in records if not record.case.spec.mixer_alone]
    params = {record.case.model: record.counted.params for record in whole if record.counted}
    if len(params) < 2:
        return None
    least, most = min(params, key=lambda m: params[m]), max(params, key=lambda m: params[m])
    if params[least] == params[most]:
        return Finding(f"Counted parameters: {count(params[most])} in every model.")
    apart = digits(100 * (params[most] / params[least] - 1), 2)
    return Finding(f"Counted parameters: {most} has {apart}% more than {least}.")
