import pytest
from records import counted, record, steady

from benchbench.axis import BATCH
from benchbench.scaling import METRICS, Point, compared, crossovers, exponents, first_place, growth, points, series

BY_NAME = {metric.name: metric for metric in METRICS}
FLOPS, TIME = BY_NAME["counted FLOPs"], BY_NAME["measured time"]


def exactly(values):
    return {n: Point(n, value, value, value) for n, value in values.items()}


def lines(**by_model):
    """Series of records: `mamba={512: cost or times}`."""
    records = []
    for name, values in by_model.items():
        for n, value in values.items():
            is_cost = isinstance(value, int)
            times = () if is_cost else value
            records.append(record(f"{name}-tiny", n, times, cost=counted(value) if is_cost else None))
    return series(records)


def said(metric, *args, **known):
    finding = crossovers(metric, *args, **known)
    return finding and finding.text


def grown(metric, *args):
    finding = exponents(metric, *args)
    return finding and finding.text


def fitted(values):
    found = growth(exactly(values))
    assert found
    return found


def test_the_exponent_of_a_power_law_is_found_on_the_upper_half():
    # 3 N^2 at the three longest of six lengths; the three shorter ones are flat and must not count.
    found = fitted({1: 50, 2: 50, 4: 50, 8: 3 * 64, 16: 3 * 256, 32: 3 * 1024})
    assert found.exponent == pytest.approx(2)
    assert found[1:] == (8, 32, 3)


def test_two_lengths_are_enough_for_an_exponent_and_one_is_not():
    # log(80/10) / log(4/1) = log 8 / log 4 = 1.5
    assert fitted({1: 10, 4: 80}).exponent == pytest.approx(1.5)
    assert growth(exactly({4: 80})) is None
    assert growth({}) is None
    assert growth(exactly({1: 0, 2: 0})) is None  # no logarithm


def test_the_slope_is_the_least_squares_one():
    # log2, the mean of x subtracted: x = -1, 0, 1; y = 0, 2, 2. slope = sum(x y) / sum(x^2) = (0 + 0 + 2) / 2 = 1
    assert fitted({1: 9, 2: 1, 4: 4, 8: 4}).exponent == pytest.approx(0)  # the upper half is 4 and 8
    assert fitted({1: 9, 2: 9, 4: 1, 8: 4, 16: 4}).exponent == pytest.approx(1)


def test_exponents_are_named_by_model_and_their_absence_is_explained():
    found = lines(mamba={512: 100, 1024: 200}, transformer={512: 100, 1024: 400}, **{"resnet-bk": {512: 7}})
    assert grown(FLOPS, found) == (
        "Growth of counted FLOPs: N^1.00 (mamba-tiny) and N^2.00 (transformer-tiny) over N=512 to 1,024, 2 lengths; "
        "no exponent for resnet-bk-tiny: one length is counted, two are needed."
    )
    assert grown(TIME, lines(mamba={512: 100})) == (
        "Growth of measured time: no exponent for mamba-tiny: no length is measured, two are needed."
    )


def test_intervals_that_overlap_decide_nothing():
    first = {1: Point(1, 1.0, 1.1, 1.2), 2: Point(2, 1.0, 1.1, 1.2), 4: Point(4, 3.0, 3.1, 3.2), 8: Point(8, 1, 1, 1)}
    second = {1: Point(1, 1.3, 1.4, 1.5), 2: Point(2, 1.2, 1.4, 1.5), 4: Point(4, 1.3, 1.4, 1.5)}
    assert compared(first, second) == {1: -1, 2: 0, 4: 1}  # touching is not apart; 8 is not shared


def test_without_an_interval_the_range_of_the_samples_decides():
    slow, fast = record("mamba-tiny", 512, (1.0, 3.0)), record("transformer-tiny", 512, (0.5, 1.5))
    assert points(TIME, [slow]) == {512: Point(512, 1.0, 2.0, 3.0, few=True)}
    assert compared(points(TIME, [slow]), points(TIME, [fast])) == {512: 0}


def test_a_comparison_that_stands_on_few_samples_says_so():
    assert said(TIME, lines(mamba={512: (1.0,)}, transformer={512: steady(2.0)})) == (
        "Measured time: faster at N=512, the only length both have: mamba-tiny than transformer-tiny; "
        "fewer than six samples, so that their range stands for the interval, at N=512."
    )


def test_equal_exponents_are_said_once():
    found = lines(mamba={1: 10, 2: 20}, transformer={1: 30, 2: 60})
    assert grown(FLOPS, found) == (
        "Growth of counted FLOPs: N^1.00 (mamba-tiny, transformer-tiny) over N=1 to 2, 2 lengths."
    )


def test_always_cheaper():
    found = lines(mamba={512: 10, 1024: 20}, transformer={512: 30, 1024: 90}, **{"resnet-bk": {512: 5, 1024: 6}})
    assert said(FLOPS, found) == (
        "Counted FLOPs: resnet-bk-tiny < mamba-tiny < transformer-tiny at both lengths from 512 to 1,024."
    )
    # Without one of its lengths no order of the three is known everywhere: pair by pair, then.
    found = lines(mamba={512: 10, 1024: 20}, transformer={512: 30, 1024: 90}, **{"resnet-bk": {512: 5}})
    assert said(FLOPS, found) == (
        "Counted FLOPs: cheaper at N=512, the only length both have: resnet-bk-tiny than mamba-tiny and "
        "transformer-tiny; cheaper at both lengths from 512 to 1,024: mamba-tiny than transformer-tiny."
    )


def test_a_measured_crossing_lies_between_two_lengths():
    found = lines(
        mamba={1024: steady(1.0), 2048: steady(2.0), 4096: steady(4.0)},
        transformer={1024: steady(0.5), 2048: steady(1.5), 4096: steady(6.0)},
    )
    assert said(TIME, found) == "Measured time: mamba-tiny overtakes transformer-tiny between N=2,048 and N=4,096."


def test_lengths_that_decide_nothing_widen_the_bracket():
    found = lines(
        mamba={1024: steady(1.0), 2048: steady(2.0), 4096: steady(4.0)},
        transformer={1024: steady(0.5), 2048: steady(2.0), 4096: steady(6.0)},
    )
    assert said(TIME, found) == (
        "Measured time: mamba-tiny overtakes transformer-tiny between N=1,024 and N=4,096, not told apart at N=2,048."
    )


def test_every_crossing_is_stated():
    found = lines(mamba={1: 1, 2: 5, 4: 1}, transformer={1: 3, 2: 3, 4: 3})
    assert said(FLOPS, found) == (
        "Counted FLOPs: transformer-tiny overtakes mamba-tiny between N=1 and N=2; "
        "mamba-tiny overtakes transformer-tiny between N=2 and N=4."
    )


def cost_at(case):
    """Mamba at 100 N against a transformer at N^2: equal at 100, so mamba is cheaper from 101 on."""
    n = case.seq_len * case.batch
    return counted(100 * n if case.family == "mamba" else n * n)


def test_a_counted_crossing_is_found_to_the_token():
    found = lines(mamba={64: 6400, 128: 12800}, transformer={64: 64**2, 128: 128**2})
    assert said(FLOPS, found, cost_at) == (
        "Counted FLOPs: mamba-tiny overtakes transformer-tiny at N=101, counted to the token."
    )


def test_a_cost_model_that_disagrees_with_the_records_does_not_place_their_crossing():
    found = lines(mamba={16: 6400, 32: 12800}, transformer={16: 64**2, 32: 128**2})
    assert said(FLOPS, found, cost_at) == (
        "Counted FLOPs: mamba-tiny overtakes transformer-tiny between N=16 and N=32."
    )


def test_over_the_batch_places_are_batches():
    costs = {"mamba": {1: 10, 4: 1600, 16: 6400}, "transformer": {1: 20, 4: 1024, 16: 16384}}
    records = [
        record(f"{name}-tiny", 16, cost=counted(cost), case={"batch": batch})
        for name, found in costs.items()
        for batch, cost in found.items()
    ]
    found = series(records)
    # 1600 B against (16 B)^2: equal at 6.25.
    assert said(FLOPS, found, cost_at, BATCH) == (
        "Counted FLOPs: transformer-tiny overtakes mamba-tiny between B=1 and B=4; "
        "mamba-tiny overtakes transformer-tiny at B=7, counted to the sequence."
    )
    assert grown(FLOPS, found, BATCH) == (
        "Growth of counted FLOPs: B^1.00 (mamba-tiny) and B^2.00 (transformer-tiny) over B=4 to 16, 2 batches."
    )


@pytest.mark.parametrize("crossing", [2, 3, 57, 100])
def test_bisection_finds_the_first_place_with_the_new_sign(crossing):
    assert first_place(lambda n: 1 if n >= crossing else -1, 1, 100) == crossing


def test_equal_undecided_single_and_unshared_lengths_are_said():
    assert said(FLOPS, lines(mamba={1: 5, 2: 6}, transformer={1: 5, 2: 6})) == (
        "Counted FLOPs: mamba-tiny and transformer-tiny are equal at both lengths from 1 to 2."
    )
    assert said(FLOPS, lines(mamba={1: 5, 2: 6}, transformer={1: 5, 2: 7})) == (
        "Counted FLOPs: cheaper at 1 of 2 lengths from 1 to 2 (equal at N=1): mamba-tiny than transformer-tiny."
    )
    assert said(FLOPS, lines(mamba={1: 5}, transformer={1: 6})) == (
        "Counted FLOPs: cheaper at N=1, the only length both have: mamba-tiny than transformer-tiny."
    )
    assert said(FLOPS, lines(mamba={1: 5}, transformer={2: 6})) == (
        "Counted FLOPs: mamba-tiny and transformer-tiny have no length in common."
    )
    assert said(TIME, lines(mamba={1: steady(1.0)}, transformer={1: steady(1.0)})) == (
        "Measured time: mamba-tiny and transformer-tiny cannot be told apart at N=1, the only length both have."
    )


def test_nothing_measured_is_said_and_a_cost_of_zero_is_not_compared():
    found = lines(mamba={1: 5}, transformer={1: 6})
    assert said(TIME, found) == "Measured time: nothing was measured."
    assert said(BY_NAME["counted state"], found) is None
    assert said(FLOPS, lines(mamba={1: 5})) is None  # one model has nobody to be compared with


def test_series_are_told_apart_by_path_only_where_a_model_ran_several():
    records = [record("mamba-tiny", n, case={"path": path}) for n in (2, 1) for path in ("chunked", "eager")]
    found = series([*records, record("transformer-tiny", 1)])
    assert list(found) == ["mamba-tiny (chunked)", "mamba-tiny (eager)", "transformer-tiny"]
    assert [r.case.seq_len for r in found["mamba-tiny (eager)"]] == [1, 2]
