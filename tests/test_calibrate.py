"""The stopwatch and the plan; that a device is measured well is for the device to show."""

import pytest
import torch
from click.testing import CliRunner

from benchbench.calibrate import Calibrator, Stopwatch, host_costs
from benchbench.clock import Lap
from benchbench.commands.calibrate import command
from benchbench.devices.calibration import Timing, load
from benchbench.errors import BenchError, UnsupportedError
from benchbench.microbench import modules, recurrent
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


def interrupted(supplies, dtype):
    yield from additions(supplies, dtype)
    raise KeyboardInterrupt


def test_an_interruption_keeps_what_was_measured(tmp_path, monkeypatch):
    plan = (Spec("add", ("n",), "", additions), Spec("late", ("n",), "", interrupted))
    measure = Calibrator._measure
    monkeypatch.setattr(Calibrator, "_measure", lambda self, _, deadline: measure(self, plan, deadline))
    whole = tmp_path / "cpu.toml"
    whole.write_text("whole", "utf-8")
    done = CliRunner().invoke(command, ["--device", "cpu", "--out", str(whole)])
    assert done.exit_code == 1  # the program's own handler says 130
    assert whole.read_text("utf-8") == "whole"
    found = load(tmp_path / "cpu.partial.toml")
    assert ("add", "float32") in found.curves
    assert found.skipped["the rest"] == "interrupted"


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(Calibrator, "run", lambda _: 1 / 0)
    (tmp_path / "file").touch()
    for out, said in ((tmp_path / "file" / "a.toml", "cannot write to"), (tmp_path, "is a folder")):
        with pytest.raises(BenchError, match=said):
            CliRunner().invoke(command, ["--device", "cpu", "--out", str(out)], catch_exceptions=False)


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


def test_a_resolvent_is_timed_on_the_path_that_its_curve_names(supplies):
    _, make = next(recurrent.resolvent("bk-causal", "triton", supplies, "float32", backward=False))
    with pytest.raises(UnsupportedError, match="'triton' needs"):
        make.call(0)
    _, make = next(recurrent.resolvent("bk-causal", "chunked", supplies, "float32", backward=False))
    assert isinstance(make.call(0), torch.Tensor)


def test_whole_models_are_those_of_no_suite_and_named_by_what_they_are():
    found = dict(modules.cases())
    # Three families, one of them on two paths, three tasks, and training with checkpointing
    assert len(found) == 16
    assert {"transformer/prefill/flash", "mamba/decode/fused", "mamba/train/triton/checkpoint"} <= set(found)
    assert {pair[0].checkpoint for name, pair in found.items() if "checkpoint" in name} == {True}
    assert all([case.spec.n_layers for case in pair] == [2, 8] for pair in found.values())
    sizes = {(case.family, case.spec.d_model) for name in built_in() for case in suite(name).cases}
    assert not sizes & {(case.family, case.spec.d_model) for pair in found.values() for case in pair}


def test_a_layer_costs_what_the_deeper_model_takes_longer(monkeypatch):
    pair = dict(modules.cases())["transformer/decode/flash"]
    # 2 layers take 5 s and 8 take 17 s: 2 s a layer and 1 s for all else. The host's clock itself is not asked.
    models = {}
    monkeypatch.setattr(modules, "timer_for", lambda device: lambda call: (call(), Lap(models[call]))[1])
    plain = modules.prepare

    def prepared(model, case):
        found = plain(model, case)
        models[found.call] = 1.0 + 2.0 * case.spec.n_layers
        return found

    monkeypatch.setattr(modules, "prepare", prepared)
    assert modules.host_cost(pair, CPU) == pytest.approx((2.0, 1.0, 1.0))


def test_a_family_that_cannot_run_here_does_not_lose_the_others():
    calibrator = Calibrator(CPU)
    pairs = dict(modules.cases())
    for name in ("mamba/decode/fused", "transformer/decode/flash"):
        calibrator._module(name, pairs[name], deadline=float("inf"))
    calibrator._module("late", pairs["transformer/decode/flash"], deadline=0.0)
    assert list(calibrator.modules) == ["transformer/decode/flash"]
    assert calibrator.skipped["mamba/decode/fused"].startswith("UnsupportedError")
    assert calibrator.skipped["late"] == "the time was over"


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
