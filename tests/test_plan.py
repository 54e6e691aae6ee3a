"""The planner: predictions by hand, corrections from what was measured, and what fits."""

import pytest
from test_store import record

from benchbench.case import Case
from benchbench.counters import count
from benchbench.job import Job, held_against_count, plan, to_do
from benchbench.launch import Outcome
from benchbench.plan import Forecast, Planner, Rates, calls_s, uncorrected_s
from benchbench.progress import complaint
from benchbench.record import Checked, Measured, Protocol
from benchbench.specs import preset
from benchbench.suite import Suite

RATES = Rates(flops_per_s=1e9, bytes_per_s=1e9)
PROTOCOL = Protocol(warmup_calls=2, max_samples=10, case_budget_s=5)


def cost(n=64, model="mamba-tiny", task="prefill", **sizes):
    return count(Case.of(preset(model), task=task, seq_len=n, **sizes))


def learned(planner, one, ratio, overhead_s=0.0, **steps_s):
    """Tells the planner of a case whose calls took `ratio` times what the rates alone say."""
    call_s = ratio * uncorrected_s(one, planner.rates)
    # First call and one sample; one more call where memory was measured.
    planner.learn(
        one,
        Measured(time_s=(call_s,), first_call_s=call_s),
        wall_s=2 * call_s + overhead_s + sum(steps_s.values()),
        steps_s=steps_s,
    )


def jobs(*costs):
    suite = Suite(name="s", version=1, about="?", protocol=PROTOCOL, cases=tuple(c.case for c in costs))
    return [Job(suite, c.case, c.case.id, c) for c in costs]


def test_each_operation_is_bound_by_arithmetic_or_by_memory():
    one = cost()
    compute = uncorrected_s(one, Rates(flops_per_s=1, bytes_per_s=float("inf")))
    memory = uncorrected_s(one, Rates(flops_per_s=float("inf"), bytes_per_s=1))
    assert compute == one.counted.executed_flops
    assert memory == one.counted.bytes_moved
    both = uncorrected_s(one, Rates(flops_per_s=1, bytes_per_s=1))
    assert max(compute, memory) < both < compute + memory


def test_nothing_measured_means_no_correction():
    forecast = Planner(RATES).forecast(cost(), PROTOCOL)
    assert forecast.call_s == uncorrected_s(cost(), RATES)
    assert forecast.basis.startswith("counted work at 1.00 GFLOP/s and 954 MiB/s, not corrected")
    assert forecast.peak_bytes == cost().counted.peak_bytes


def test_the_nearest_smaller_case_of_the_same_model_and_task_corrects():
    planner = Planner(RATES)
    for n, ratio in ((64, 2.0), (256, 3.0), (2048, 9.0)):
        learned(planner, cost(n), ratio)
    learned(planner, cost(512, task="decode"), 50.0)
    learned(planner, cost(512, model="transformer-tiny"), 70.0)
    learned(planner, cost(512, path="eager"), 90.0)
    forecast = planner.forecast(cost(1024), PROTOCOL)
    assert forecast.call_s == pytest.approx(3.0 * uncorrected_s(cost(1024), RATES))
    assert forecast.basis.endswith("times 3.00 as measured at N=256")


def test_another_models_cases_of_the_task_correct_by_their_geometric_mean():
    planner = Planner(RATES)
    learned(planner, cost(model="transformer-tiny"), 2.0)
    learned(planner, cost(model="resnet-bk-tiny"), 8.0)
    forecast = planner.forecast(cost(), PROTOCOL)
    assert forecast.call_s == pytest.approx(4.0 * uncorrected_s(cost(), RATES))
    assert forecast.basis.endswith("times 4.00, the mean of 2 finished prefill cases")


def test_the_least_that_came_on_top_of_the_calls_is_expected_again():
    planner = Planner(RATES)
    learned(planner, cost(64), 1.0, overhead_s=7.0)
    learned(planner, cost(64, task="decode"), 1.0, overhead_s=5.0)
    learned(planner, cost(64, task="train"), 1.0, overhead_s=1.0)
    learned(planner, cost(64, model="transformer-tiny"), 1.0, overhead_s=2.0)
    forecast = planner.forecast(cost(128), PROTOCOL)
    assert forecast.wall_s == pytest.approx(5.0 + calls_s(forecast.call_s, PROTOCOL))


def overhead_s(planner, one):
    forecast = planner.forecast(one, PROTOCOL)
    return pytest.approx(forecast.wall_s - calls_s(forecast.call_s, PROTOCOL))


def test_a_gate_is_charged_where_its_verdict_is_not_known():
    planner = Planner(RATES)
    learned(planner, cost(64), 1.0, gate=4.0)
    learned(planner, cost(128), 1.0, gate=0.001)  # the verdict is known
    learned(planner, cost(64, task="train"), 1.0, gate=9.0)
    assert overhead_s(planner, cost(256)) == 0.0
    assert overhead_s(planner, cost(256, task="train")) == 0.0
    assert overhead_s(planner, cost(256, path="eager")) == 4.0  # as that of the task's other path
    assert overhead_s(planner, cost(256, task="decode")) == 6.5  # no gate of the task: the mean of 4 and 9


def test_the_second_case_that_trains_is_charged_the_build_but_not_the_gate():
    planner = Planner(RATES)
    learned(planner, cost(64), 1.0, gate=5.0, build=1.5)
    learned(planner, cost(128), 1.0, gate=0.0, build=0.0)
    learned(planner, cost(64, task="train"), 1.0, overhead_s=0.25, gate=8.0, build=1.25)
    assert overhead_s(planner, cost(256, task="train")) == 1.5
    assert overhead_s(planner, cost(256)) == 0.0


def test_a_trace_beside_the_measurement_is_not_charged():
    planner = Planner(RATES)
    call_s = uncorrected_s(cost(64), RATES)
    measured = Measured(time_s=(call_s,), first_call_s=call_s)
    planner.learn(cost(64), measured, wall_s=2 * call_s + 2.0, steps_s={"build": 1.0, "trace": 70.0})
    assert overhead_s(planner, cost(128)) == 2.0


@pytest.mark.parametrize(
    ("call_s", "expected"),
    [
        (0.1, 1.4),  # first + 2 warm-up + 10 samples + memory
        (1.0, 7.0),  # the budget of 5 s, a call begun at its end, memory
        (9.0, 18.0),  # longer than the budget: first and one sample
    ],
)
def test_the_calls_of_a_case(call_s, expected):
    assert calls_s(call_s, PROTOCOL) == pytest.approx(expected)


def test_shortest_first_until_the_budget_is_gone():
    planner = Planner(RATES)
    asked = jobs(cost(256), cost(64), cost(128))
    walls = {n: planner.forecast(cost(n), PROTOCOL).wall_s for n in (64, 128, 256)}
    found = plan(asked, planner, walls[64] + walls[128] + 1e-9, 2**40)
    assert [job.case.seq_len for job, _ in found.measure] == [64, 128]
    assert [skip.job.case.seq_len for skip in found.skip] == [256]
    assert found.skip[0].reason.endswith("to measure; 0 s of the budget are left")
    assert found.wall_s == pytest.approx(walls[64] + walls[128])
    assert len(plan(asked, planner, None, 2**40).measure) == 3


def test_series_take_turns_by_the_time_they_have_used():
    """Forecasts of 2 s for each decode and 5 s for each prefill: 2, 4, (5), 6, 8, (10)."""

    class Fixed(Planner):
        def forecast(self, cost, protocol):
            wall_s = 2.0 if cost.case.task == "decode" else 5.0
            return Forecast(call_s=1.0, wall_s=wall_s + cost.case.seq_len / 1e6, peak_bytes=0, basis="fixed")

    asked = jobs(
        *(
            cost(n, task=task)
            for task in ("prefill", "decode")
            for n in (64, 128, 256, 512)[: 2 if task == "prefill" else 4]
        )
    )
    order = [(job.case.task, job.case.seq_len) for job, _ in plan(asked, Fixed(RATES), None, 2**40).measure]
    assert order == [
        ("decode", 64),
        ("decode", 128),
        ("prefill", 64),
        ("decode", 256),
        ("decode", 512),
        ("prefill", 128),
    ]
    spent = Fixed(RATES)
    learned(spent, cost(task="decode", n=32), 1.0, overhead_s=100.0)
    order = [job.case.task for job, _ in plan(asked, spent, None, 2**40).measure]
    assert order == ["prefill", "prefill", "decode", "decode", "decode", "decode"]


def test_a_round_keeps_to_one_model_at_a_time():
    """Each case takes 2 s: a series' first and second end within the first 5 s, its third within the next."""

    class Fixed(Planner):
        def forecast(self, cost, protocol):
            return Forecast(call_s=1.0, wall_s=2.0 + cost.case.seq_len / 1e6, peak_bytes=0, basis="fixed")

    models = ("mamba-tiny", "transformer-tiny")
    asked = jobs(*(cost(n, m, task) for n in (64, 128, 256) for m in models for task in ("train", "prefill")))

    def order(planner):
        return [(job.case.model, job.case.task) for job, _ in plan(asked, planner, None, 2**40).measure]

    first = [(model, task) for model in models for task in ("prefill", "prefill", "train", "train")]
    assert order(Fixed(RATES)) == first + [(model, task) for model in models for task in ("prefill", "train")]
    # The worker holds the transformer of a decode: its series come first in each round.
    holding = Fixed(RATES)
    learned(holding, cost(64, "transformer-tiny", "decode"), 1.0)
    mamba, transformer = models
    expected = [transformer] * 4 + [mamba] * 4 + [transformer] * 2 + [mamba] * 2
    assert [model for model, _ in order(holding)] == expected


def test_what_does_not_fit_in_memory_is_skipped_with_both_numbers():
    one = cost(model="transformer-130m", n=1_048_576, task="decode")
    found = plan(jobs(one), Planner(RATES), None, 2**30)
    assert found.measure == []
    # Keys and values: 12 layers x 2 x 768 x 4 bytes x 1,048,577 tokens = 72 GiB, beside 0.5 GiB of weights.
    assert found.skip[0].reason == "needs 72.5 GiB by the count, 1.00 GiB are available"


def against_count(ratio, **fields):
    """An outcome whose peak is `ratio` times the counted one, held against it with 1 MiB available."""
    one = cost()
    peak = round(ratio * one.counted.peak_requested_bytes)
    measured = Measured(time_s=(1.0,), peak_requested_bytes=peak) if ratio else None
    return held_against_count(
        jobs(one)[0], Outcome(**{"status": "ok", "wall_s": 1.0, "measured": measured, **fields}), 2**20
    )


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, "agrees"), (1.009, "agrees"), (1.011, "differs"), (0.98, "differs")]
)
def test_a_peak_is_held_against_the_count(ratio, verdict):
    found = against_count(ratio, checked=Checked(gate="passed"), reason="slow")
    assert (found.checked.memory, found.checked.gate) == (verdict, "passed")
    assert bool(complaint(found.checked)) == (verdict == "differs")
    if verdict == "agrees":
        assert found.reason == "slow"


def test_the_numbers_that_differ_are_the_reason():
    counted = cost().counted.peak_requested_bytes
    expected = f"peak memory {2 * counted:,} B, {counted:,} B by the count (+100%)"
    assert against_count(2.0).reason == expected
    assert against_count(2.0, reason="slow").reason == f"slow; {expected}"


def test_running_out_of_memory_contradicts_a_count_that_had_room():
    found = against_count(0, status="oom", reason="out of memory: asked for 3 MiB")
    assert found.checked.memory == "differs"
    assert found.reason.startswith("out of memory: asked for 3 MiB; ")
    assert found.reason.endswith(" by the count, 1.00 MiB were available")


@pytest.mark.parametrize("status", ["ok", "lost", "unsupported"])
def test_without_a_peak_nothing_is_held_against_the_count(status):
    found = against_count(0, status=status)
    assert (found.checked, found.reason) == (None, None)


@pytest.mark.parametrize(
    ("status", "retry", "more_budget", "open_again"),
    [
        ("ok", True, True, False),
        ("oom", True, True, False),
        ("unsupported", True, True, False),
        ("skipped", False, False, False),
        ("skipped", False, True, True),
        ("error", False, True, False),
        ("error", True, False, True),
        ("timeout", True, False, True),
        ("lost", True, False, True),
    ],
)
def test_what_is_done_again(status, retry, more_budget, open_again):
    asked = jobs(cost())
    records = {asked[0].key: record(asked[0].key, status=status)}
    assert bool(to_do(asked, records, retry=retry, more_budget=more_budget)) == open_again
    assert to_do(asked, {}, retry=False, more_budget=False) == asked
