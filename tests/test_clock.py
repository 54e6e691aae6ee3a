from collections.abc import Callable, Sequence
from itertools import chain, repeat

import pytest
import torch

from benchbench.clock import MAX_WARMUP_CALLS, Lap, Timing, agree, cuda_timer, enough, host_timer, sample
from benchbench.record import Protocol

LONG = 1e9


def scripted(seconds: Sequence[float], then: float | None = None) -> tuple[Callable[[object], Lap], list[float]]:
    """A timer that makes no call: it says the next of `seconds`, then `then` for ever; and what it has said."""
    rest = chain(seconds, repeat(then)) if then is not None else iter(seconds)
    said: list[float] = []

    def timer(call: object) -> Lap:
        said.append(next(rest))
        return Lap(said[-1])

    return timer, said


def run(seconds: Sequence[float], then: float | None = None, **protocol: float) -> tuple[Timing, list[tuple]]:
    timer, said = scripted(seconds, then)
    phases: list[tuple] = []
    timing = sample(
        lambda: None,
        Protocol(**{"case_budget_s": LONG, **protocol}),
        timer,
        lambda *phase: phases.append(phase),
    )
    assert [timing.first_call_s, *timing.warmup_s, *timing.time_s] == said, "every call is kept, in order"
    return timing, phases


def test_first_call_apart_then_two_warm_up_calls_then_the_least_samples():
    # Calls of 9, 1, 1 s: the last two agree, so the warm-up ends at its least, 2. Six equal samples have an interval of
    # no width, so the sixth is the last.
    timing, _ = run([9.0], then=1.0, warmup_calls=2, min_samples=6)

    assert timing == Timing(9.0, [1.0] * 2, [1.0] * 6)


def test_warm_up_goes_on_until_two_calls_agree_within_a_tenth():
    # 5 -> 3 -> 2 differ by more than a tenth; 2 and 1.9 differ by 0.1 of 2.
    timing, _ = run([8.0, 5.0, 3.0, 2.0, 1.9], then=1.0, warmup_calls=1)

    assert timing.warmup_s == [5.0, 3.0, 2.0, 1.9]


def test_the_first_call_counts_as_one_of_the_two():
    timing, _ = run([1.0, 1.05], then=1.0, warmup_calls=0)

    assert timing.warmup_s == [1.05]


def test_warm_up_is_bounded_where_no_two_calls_agree():
    timing, _ = run([2.0**i for i in range(MAX_WARMUP_CALLS + 1)], then=1.0)

    assert len(timing.warmup_s) == MAX_WARMUP_CALLS


@pytest.mark.parametrize(("a", "b", "same"), [(1.0, 0.9, True), (0.9, 1.0, True), (1.0, 0.89, False), (0.0, 0.0, True)])
def test_agree(a: float, b: float, same: bool):
    assert agree(a, b) is same


def test_sampling_stops_when_the_median_is_known_well_enough():
    # With n = 6 the interval is the whole range, half of it 0.05 of the median 1; with n = 9 it runs from the second
    # smallest to the second largest (2·(1+9)/2^9 = 0.039 missed), which are 1 and 1.
    samples = [0.95, 1.05, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    timing, _ = run([1.0, 1.0, 1.0, *samples], target_ratio=0.02, min_samples=6, warmup_calls=2)

    assert timing.time_s == samples


def test_a_loose_target_is_met_by_the_least_samples():
    samples = [0.95, 1.05, 1.0, 1.0, 1.0, 1.0]
    timing, _ = run([1.0, 1.0, 1.0, *samples], target_ratio=0.051, min_samples=6, warmup_calls=2)

    assert timing.time_s == samples


def test_fewer_than_six_samples_are_never_enough_by_themselves():
    # Five samples have no 95 % interval: 2 / 2^5 = 0.0625.
    assert not enough([1.0] * 5, Protocol(min_samples=1))
    assert enough([1.0] * 6, Protocol(min_samples=1))


def test_no_more_than_max_samples_and_none_is_dropped():
    samples = [1.0, 3.0] * 5
    timing, _ = run([1.0, 1.0, 1.0, *samples], max_samples=10)

    assert timing.time_s == samples


def test_the_budget_ends_sampling_before_the_least_is_reached():
    # First 1, warm-up 2 x 1, then samples of 1: spent 3, 4, 5 at the start of each; at 5.5 no more is begun after 6.
    timing, _ = run([], then=1.0, case_budget_s=5.5)

    assert timing == Timing(1.0, [1.0, 1.0], [1.0, 1.0, 1.0])


def test_a_call_longer_than_the_budget_is_made_twice():
    timing, _ = run([30.0, 29.0], case_budget_s=20)

    assert timing == Timing(30.0, [], [29.0])


def test_a_warm_up_that_spends_the_budget_leaves_one_sample():
    timing, _ = run([8.0, 7.0, 7.0, 6.0], case_budget_s=20)

    assert timing == Timing(8.0, [7.0, 7.0], [6.0])


def test_tells_the_phase_the_samples_and_the_interval():
    _, phases = run([], then=1.0, min_samples=6)

    assert phases[:3] == [("warm-up", 0, None), ("sampling", 0, None), ("sampling", 1, None)]
    assert phases[-1] == ("sampling", 6, 0.0)
    assert len(phases) == 8


def test_each_sample_is_kept_with_what_slowed_its_core():
    laps = iter([Lap(9.0, 1.0), Lap(1.0, 1.8), Lap(1.0, 1.0), Lap(2.0, 1.9), Lap(1.0, 1.1)])

    timing = sample(lambda: None, Protocol(max_samples=2, case_budget_s=LONG), lambda _: next(laps), lambda *_: None)

    assert timing == Timing(9.0, [1.0, 1.0], [2.0, 1.0], [1.9, 1.1])


def test_the_host_timer_makes_one_call():
    calls: list[int] = []

    lap = host_timer(lambda: calls.append(1))
    assert lap.seconds > 0
    assert lap.host_slowdown is None
    assert calls == [1]


@pytest.mark.gpu
def test_cuda_events_wait_for_the_kernels():
    # 4096³ · 2 FLOPs in float32 cannot be done in 0.1 ms, at 1.4e15 FLOP/s; launching alone takes about 0.01 ms.
    device = torch.device("cuda")
    a = torch.rand(4096, 4096, device=device)
    timer = cuda_timer(device)
    timer(lambda: a @ a)

    lap = timer(lambda: a @ a)
    assert lap.seconds > 1e-4
    assert lap.host_slowdown is not None
    assert lap.host_slowdown >= 1
