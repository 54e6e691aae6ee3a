from records import counted, record, steady

from benchbench.findings import absences, agreements, findings, sizes, warnings
from benchbench.record import Checked, Measured
from benchbench.scaling import series


def texts(found):
    return [finding.text for finding in found]


def checked(traced, explained, *rules, **fields):
    return Checked(traced_flops=traced, explained_flops=explained, rules=rules, **fields)


def test_the_first_length_without_a_measurement_is_named_with_its_reason():
    records = [
        record("mamba-tiny", 512, steady(1.0)),
        record("mamba-tiny", 2048, status="skipped", reason="predicted 9 s,\n2 s left."),
        record("mamba-tiny", 1024, status="skipped", reason="predicted 4 s, 2 s left."),
        record("mamba-tiny", 4096, status="oom", reason="asked 24.0 GiB, 11.2 free"),
        record("transformer-tiny", 512, status="lost"),
    ]
    assert texts(absences(series(records))) == [
        "Not measured: mamba-tiny is skipped at 2 of 4 lengths, first at N=1,024: predicted 4 s, 2 s left.",
        "Not measured: mamba-tiny is oom at 1 of 4 lengths, first at N=4,096: asked 24.0 GiB, 11.2 free.",
        "Not measured: transformer-tiny is lost at 1 of 1 lengths, first at N=512: no reason was recorded.",
    ]


def test_traces_are_equal_or_explained_by_named_rules():
    records = [
        record("mamba-tiny", 1, cost=counted(100), checked=checked(100, 100)),
        record("mamba-tiny", 2, cost=counted(100), checked=checked(90, 90, "elementwise is not traced")),
        record("mamba-tiny", 4, cost=counted(100), checked=checked(120, 120, "the full square")),
        record("mamba-tiny", 8, cost=counted(100), checked=Checked(reason="no such kernel on the meta device")),
    ]
    found = agreements(records)
    assert found[0].text == (
        "Traced FLOPs: equal to the counted in 1 of 3 traced cases; in 2 the difference is explained to the last FLOP "
        'by "elementwise is not traced" and "the full square"; unexplained differences: none.'
    )
    assert not any(finding.alarm for finding in found)


def test_what_no_rule_explains_is_an_alarm():
    records = [
        record("mamba-tiny", 1, cost=counted(100), checked=checked(120, 110, "a rule")),
        record("mamba-tiny", 2, cost=counted(100), checked=checked(120, None, params=7)),
        record("mamba-tiny", 4, cost=counted(100), checked=checked(100, 100, gate="failed", gate_error=0.25)),
    ]
    found = agreements(records)
    assert "unexplained differences: 2" in found[0].text
    assert texts([finding for finding in found if finding.alarm]) == [
        "UNEXPLAINED: mamba-tiny/prefill/N1/B1/float32/chunked: traced 120 FLOPs, the rules explain 110, counted 100.",
        "UNEXPLAINED: mamba-tiny/prefill/N2/B1/float32/chunked: traced 120 FLOPs, the rules explain nothing, "
        "counted 100.",
        "UNEXPLAINED: mamba-tiny/prefill/N2/B1/float32/chunked: the built module has 7 parameters, counted 1,000.",
        "GATE FAILED: mamba-tiny/prefill/N4/B1/float32/chunked: differs from the reference path by 0.250.",
    ]


def test_counted_peaks_are_compared_with_what_was_measured_alike():
    def peak(n, ours, **measured):
        return record(
            "mamba-tiny", n, cost=counted(peak_bytes=ours, peak_requested_bytes=2 * ours), measured=Measured(**measured)
        )

    # 100/100, 103/100, 99/100: the median is 1.000
    allocated = [
        peak(1, 100, peak_allocated_bytes=100),
        peak(2, 103, peak_allocated_bytes=100),
        peak(4, 99, peak_allocated_bytes=100),
    ]
    assert texts(agreements(allocated))[-1] == (
        "Counted over measured peak memory (bytes allocated): median 1.000, from 0.990 to 1.030, over 3 cases."
    )
    # Where only the bytes asked for were measured, the counted bytes asked for stand beside them: 200/160.
    assert texts(agreements([peak(1, 100, peak_requested_bytes=160)]))[-1] == (
        "Counted over measured peak memory (bytes requested): median 1.250, from 1.250 to 1.250, over 1 case."
    )
    assert texts(agreements([record()])) == [
        "Traced FLOPs: no case was traced.",
        "Counted over measured peak memory: no peak was measured.",
    ]


def test_warnings_are_told_once_a_model():
    records = [record("resnet-bk-baseline", n) for n in (64, 128)] + [record("mamba-tiny")]
    (warning,) = warnings(records)
    assert warning.alarm
    assert warning.text.startswith("resnet-bk-baseline: bk-compat sees later tokens")


def test_how_far_the_sizes_lie_apart():
    def said(*params):
        found = sizes(
            [record(model, cost=counted(params=n)) for model, n in zip(("gpt2", "mamba-tiny"), params, strict=False)]
        )
        return found and found.text

    assert said(1000, 1025) == "Counted parameters: mamba-tiny has 2.5% more than gpt2."
    assert said(1000, 1000) == "Counted parameters: 1.00k in every model."
    assert said(1000) is None


def test_every_sentence_says_counted_measured_or_traced():
    records = [record(m, n, steady(n / 1e3), cost=counted(n)) for m in ("mamba-tiny", "gpt2") for n in (512, 1024)]
    for sentence in texts(findings(records)):
        assert any(word in sentence.lower() for word in ("counted", "measured", "traced")), sentence


def test_cases_that_were_launched_from_a_slowed_core_are_told():
    def said(*slowdowns):
        measured = [Measured(time_s=(1.0,) * 3, host_slowdown=one) for one in slowdowns]
        records = [record("mamba-tiny", 2**n, measured=one) for n, one in enumerate(measured, 9)]
        return [text for text in texts(agreements(records)) if text.startswith("Host")]

    assert said((), ()) == []
    assert said((1.0, 1.0, 1.9), (1.1, 1.2, 1.0)) == [
        "Host: nothing else slowed the launching core in most samples of any case."
    ]
    assert said((1.0, 1.8, 1.9), (1.1, 1.2, 1.0), ()) == [
        "Host: something else slowed the launching core in most samples of 1 of 2 cases, up to 1.8 times: "
        "calls that wait for their launches took longer there."
    ]
