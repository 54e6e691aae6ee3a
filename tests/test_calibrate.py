"""The stopwatch and the plan; that a device is measured well is for the device to show."""

import pytest
import torch

from benchbench.calibrate import Calibrator, Stopwatch, host_costs
from benchbench.devices.calibration import Timing
from benchbench.microbench.plan import PLAN
from benchbench.microbench.supplies import Make, Spec, Supplies, backward_of
from benchbench.suite import built_in
from benchbench.suite import load as suite

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def supplies() -> Supplies:
    return Supplies(CPU)


def additions(supplies, dtype):
    for n in (16, 64):
        x = supplies.tensor(n, dtype=dtype)
        yield (n,), Make(lambda _, x=x: x + x)


def broken(supplies, dtype):
    yield from additions(supplies, dtype)
    raise ImportError("no module named mamba_ssm\nand more")


def test_a_plan_is_measured_and_what_fails_is_left_out_with_its_reason():
    told = []
    plan = (
        Spec("add", ("n",), "x + x", additions),
        Spec("broken", ("n",), "", broken),
        Spec("gpu_alone", ("n",), "", additions, cpu=()),
    )
    found = Calibrator(CPU, told.append).run(plan)
    assert list(found.curves) == [("add", "float32"), ("broken", "float32")]
    assert list(found.curves["add", "float32"].points) == [(16.0,), (64.0,)]
    # What was measured before the failure is kept.
    assert len(found.curves["broken", "float32"].points) == 2
    assert found.skipped == {"broken/float32": "ImportError: no module named mamba_ssm"}
    assert [line.split(":")[0] for line in told] == ["add/float32", "broken/float32"]
    assert found.environment["device"] == "cpu"


def test_when_the_time_is_over_the_rest_is_skipped():
    found = Calibrator(CPU, budget_s=1e-9).run((Spec("add", ("n",), "", additions),))
    assert not found.curves
    assert found.skipped == {"add/float32": "the time was over after 0 points"}


def test_forwards_run_in_inference_mode_and_steps_of_autograd_do_not():
    seen = []

    def looks(mode):
        return lambda s, d: iter([((1,), Make(lambda _: seen.append(torch.is_inference_mode_enabled()), mode))])

    Calibrator(CPU).run((Spec("a", ("n",), "", looks("inference")),))
    assert set(seen) == {True}
    seen.clear()
    Calibrator(CPU).run((Spec("b", ("n",), "", looks("backward")), Spec("c", ("n",), "", looks("step"))))
    assert set(seen) == {False}


def test_a_timing_is_ordered_and_a_cpu_has_no_queue():
    timing = Stopwatch(CPU)(Make(lambda _: sum(range(1000))))
    assert isinstance(timing, Timing)
    assert 0 < timing.low_s <= timing.time_s <= timing.high_s
    assert timing.host_s == 0


def test_calls_are_numbered_so_that_weights_take_turns():
    seen = []
    Stopwatch(CPU)(Make(seen.append))
    assert seen[:2] == [0, 1]
    assert len(set(seen)) > 2


def test_a_backward_call_gives_the_gradients_again_and_again(supplies):
    x = supplies.tensor(4, grad=True)
    make = backward_of(x * x, [x])
    # d(x²)/dx = 2x, each time
    for number in range(2):
        (gradient,) = make.call(number)
        torch.testing.assert_close(gradient, 2 * x)
    assert make.mode == "backward"


def test_weights_are_different_memory(supplies):
    first, second = supplies.weights(640, 640, dtype="float32")[:2]
    assert first.shape == (640, 640)
    assert first.data_ptr() != second.data_ptr()
    supplies.tidy()


def test_host_costs_are_named(supplies):
    costs = host_costs(supplies, Stopwatch(CPU))
    assert set(costs) == {"view_s", "module_s", "kernel_s", "tape_s", "node_s", "entry_s"}
    assert all(value >= 0 for value in costs.values())


def test_curves_have_names_of_their_own():
    names = [spec.name for spec in PLAN]
    assert len(names) == len(set(names))


def test_no_suite_case_is_on_a_grid():
    """A product's widths are never a model's: the prediction of a case does not stand on a measurement of it."""
    from benchbench.microbench.products import widths

    grid = {pair for cuda in (CPU,) for pair in widths(Supplies(cuda), "float32")}
    models = {case.spec.d_model for name in built_in() for case in suite(name).cases if case.spec.d_model > 64}
    assert models
    assert not models & {size for pair in grid for size in pair}
