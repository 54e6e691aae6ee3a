"""Results counted again: by hand-made records whose counts are those of an older formula."""

from records import ENVIRONMENT, record

from benchbench.counters import count
from benchbench.lead import commits
from benchbench.record import Checked, Measured, Record
from benchbench.recount import recounted
from benchbench.report import Results

NOW = {"sha": "a" * 40, "branch": "main", "dirty": False}
GPU = {**ENVIRONMENT, "device": "cuda"}


def measured(peak: int, off: float, **fields: object) -> Record:
    """A record of a GPU whose count was `off` times the present one, judged by that."""
    plain = record(times=(0.1, 0.2))
    counted = count(plain.case, "cuda").counted
    old = counted.replace(peak_requested_bytes=round(off * counted.peak_requested_bytes))
    said = old.contradicted_by(peak)
    parts = [part for part in (fields.pop("reason", None), said) if part]
    return plain.replace(
        measured=Measured(time_s=(0.1, 0.2), first_call_s=0.2, peak_requested_bytes=peak),
        counted=old,
        checked=Checked(memory="differs" if said else "agrees", traced_flops=5, explained_flops=5),
        reason="; ".join(map(str, parts)) or None,
    )


def again(*records: Record) -> Results:
    return recounted(Results({"e1": GPU}, records), NOW)


def test_a_mended_formula_takes_its_contradiction_back():
    peak = count(record().case, "cuda").counted.peak_requested_bytes
    old = measured(peak, 0.5, reason="clocks were lowered")
    assert old.reason == f"clocks were lowered; {old.counted.contradicted_by(peak)}"
    (new,) = again(old).records
    assert new.counted == count(old.case, "cuda").counted
    assert (new.reason, new.checked.memory) == ("clocks were lowered", "agrees")
    assert (new.measured, new.checked.traced_flops) == (old.measured, 5)


def test_a_broken_one_contradicts_what_agreed():
    peak = 2 * count(record().case, "cuda").counted.peak_requested_bytes
    old = measured(peak, 2.0)
    assert old.reason is None
    (new,) = again(old).records
    assert new.checked.memory == "differs"
    assert new.reason is not None
    assert "(+100%)" in new.reason


def test_what_has_no_count_or_no_verdict_keeps_what_it_says():
    bare = record(status="unsupported", reason="no positions")
    timed = record(times=(0.1, 0.2), cost=count(record().case).counted)
    found = again(bare, timed).records
    assert [(one.status, one.reason, one.checked) for one in found] == [
        ("unsupported", "no positions", None),
        ("ok", None, None),
    ]


def test_the_environment_names_both_commits():
    results = again(record())
    (name,) = results.environments
    assert results.records[0].env == name
    assert commits(results.environments.values()) == "4be1c02, counted by aaaaaaa"
