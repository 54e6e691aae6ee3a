"""Results counted again: what was measured stays, and what is counted comes from the present formulas.

A formula that is mended moves the counts beside measured numbers, which then need not be measured again.
"""

from typing import Any

from benchbench.lead import Environment
from benchbench.record import Record
from benchbench.report import Results
from benchbench.store import environment_id


def recounted(results: Results, source: dict[str, Any] | None) -> Results:
    """Every count anew, with the verdicts on measured memory; traces and what they are explained by stay.

    `source` is the checkout that counts, which each environment names beside the one that measured.
    """
    environments = {name: _counted_by(env, source) for name, env in results.environments.items()}
    names = {name: environment_id(env) for name, env in environments.items()}
    records = (_recounted(r, environments[r.env]["device"]).replace(env=names[r.env]) for r in results.records)
    return Results({names[name]: env for name, env in environments.items()}, tuple(records))


def _counted_by(env: Environment, source: dict[str, Any] | None) -> Environment:
    if source is None or env.get("git") is None:
        return env
    return {**env, "git": {**env["git"], "counted_by": {name: source[name] for name in ("sha", "dirty")}}}


def _recounted(record: Record, device: str) -> Record:
    from benchbench.counters import count

    if record.counted is None:
        return record
    counted = count(record.case, "cuda" if device == "cuda" else "cpu").counted
    peak = record.measured.peak_requested_bytes if record.measured else None
    if peak is None or record.checked is None or record.checked.memory is None:
        return record.replace(counted=counted)
    before, now = record.counted.contradicted_by(peak), counted.contradicted_by(peak)
    said = [part for part in (record.reason or "").split("; ") if part and part != before]
    return record.replace(
        counted=counted,
        checked=record.checked.replace(memory="differs" if now else "agrees"),
        reason="; ".join([*said, *([now] if now else [])]) or None,
    )
