import itertools

import pytest

from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.launch import Launch
from benchbench.counters.launches import launches
from benchbench.counters.op import Formula, Op, Placed, Work
from benchbench.counters.time import Piece, counted_on, elapsed, predict, roofline
from benchbench.devices import Device, devices
from benchbench.devices.calibration import Calibration, Curve, HostCost, Timing
from benchbench.errors import BenchError
from benchbench.microbench.plan import PLAN
from benchbench.specs import preset, presets

# Curves


def curve(points: dict[tuple[float, ...], float], name: str = "add", axes: tuple[str, ...] = ("n",)) -> Curve:
    return Curve(name, "float32", axes, "", {sizes: Timing(t, t / 2, 2 * t, t / 10) for sizes, t in points.items()})


def test_on_its_grid_a_curve_is_what_was_measured():
    assert curve({(1.0,): 3.0, (4.0,): 5.0}).at(4) == pytest.approx((5.0, 2.5, 10.0, 0.5))


def test_between_two_sizes_it_is_a_power_law():
    # From 1 s at 1 to 8 s at 4: t = n^1.5, so 2^1.5 at 2.
    assert curve({(1.0,): 1.0, (4.0,): 8.0}).at(2).time_s == pytest.approx(2**1.5)


def test_beyond_its_grid_it_goes_on_as_steeply():
    found = curve({(1.0,): 2.0, (2.0,): 2.0, (4.0,): 4.0})
    # The last two points double: so do the next. The first two take as long: so does less.
    assert found.at(16).time_s == pytest.approx(16.0)
    assert found.at(0.1).time_s == pytest.approx(2.0)


def test_fewer_channels_than_were_measured_take_less_where_the_device_is_busy():
    # Of 64 tokens twice the channels take as long, of 4,096 twice as long. Half of the least: as it was, and half, but
    # nothing is faster than the fastest.
    points = {(2.0, 64.0): 1.0, (4.0, 64.0): 1.0, (2.0, 4096.0): 8.0, (4.0, 4096.0): 16.0}
    found = curve(points, axes=("channels", "n"))
    assert found.at(1, 64).time_s == pytest.approx(1.0)
    assert found.at(1, 4096).time_s == pytest.approx(4.0)
    assert found.at(0.01, 4096).time_s == pytest.approx(1.0)


def test_beyond_its_grid_a_time_grows_in_proportion_at_least_and_as_a_square_at_most():
    # 1 s, 8 s at twice the size would be n³: 4 times as far it is 8·2² and no more.
    assert curve({(1.0,): 1.0, (2.0,): 8.0}).at(4).time_s == pytest.approx(32.0)
    assert curve({(1.0,): 3.0, (2.0,): 3.0}).at(8).time_s == pytest.approx(12.0)


def test_beyond_its_grid_a_range_keeps_its_width():
    # At 1 the calls differed by a factor of 100, at 2 by 4: so they do at 64.
    found = Curve("add", "float32", ("n",), "", {(1.0,): Timing(1, 0.1, 10), (2.0,): Timing(2, 1, 4)}).at(64)
    assert found[:3] == pytest.approx((64, 32, 128))


def test_larger_kernels_cost_the_host_no_more_to_launch():
    found = Curve("add", "float32", ("n",), "", {(1.0,): Timing(1, 1, 1, 0.1), (2.0,): Timing(2, 2, 2, 0.1)})
    assert found.at(64).host_s == pytest.approx(0.1)


def test_what_may_run_side_by_side_may_take_as_long_as_less_of_it():
    assert curve({(1.0,): 3.0, (2.0,): 3.0}, axes=("batch",)).at(8).time_s == pytest.approx(3.0)


def test_each_axis_is_followed_with_the_points_it_has():
    found = curve({(1.0, 1.0): 1.0, (1.0, 4.0): 4.0, (4.0, 1.0): 16.0}, axes=("a", "b"))
    # At a = 2, halfway in the logarithm: √(t(1, b) · t(4, b)), where t(4, b) is 16 for any b.
    assert found.at(2, 1).time_s == pytest.approx(4.0)
    assert found.at(2, 4).time_s == pytest.approx(8.0)


def product(rows: float, d_in: float, d_out: float) -> float:
    """A device that does 1e12 FLOP/s and moves 1e10 elements/s, whichever takes longer."""
    moved = rows * (d_in + d_out) + d_in * d_out
    return max(2 * rows * d_in * d_out / 1e12, moved / 1e10)


GRID = {(r, i, o): product(r, i, o) for r in (1.0, 4096.0) for i in (100.0, 10_000.0) for o in (100.0, 10_000.0)}


def test_a_product_keeps_the_kink_between_memory_and_arithmetic():
    found = curve(GRID, "linear", ("rows", "d_in", "d_out"))
    # The grid reaches both ceilings, almost: one row of 10,000 x 10,000 is bound by memory, 4,096 rows by arithmetic.
    assert found.rates == pytest.approx((1e12, 1e10), rel=1e-3)
    # 64 rows are far from both points, and a power law between them would be 4 times too slow.
    assert found.at(64, 5000, 5000).time_s == pytest.approx(product(64, 5000, 5000), rel=0.01)


# The bound


def device(calibration: Calibration | None = None, **peaks: float) -> Device:
    return Device("mine", "Mine", 2**30, 1e9, peaks or {"float32": 1e12}, "a datasheet", calibration=calibration)


def prefill(model: str = "transformer-tiny", **sizes) -> Case:
    return Case.of(preset(model), **{"task": "prefill", "seq_len": 64, **sizes})


def test_the_bound_is_the_longer_of_arithmetic_and_memory_op_by_op():
    cost = count(prefill())
    everything = sum(op.repeat * op.executed_flops for op in cost.ops)
    # With memory a million times faster than needed only arithmetic is left, and the other way round.
    fast = Device("a", "A", None, 1e30, {"float32": 1e6}, "")
    assert roofline(cost, fast) == pytest.approx(everything / 1e6)
    slow = Device("b", "B", None, 1e3, {"float32": 1e30}, "")
    assert roofline(cost, slow) == pytest.approx(cost.counted.bytes_moved / 1e3)


def test_without_a_calibration_the_time_is_a_bound_and_says_so():
    found = predict(count(prefill()), device())
    assert found is not None
    assert found.bound
    assert found.time_s == found.low_s
    assert found.high_s is None
    assert found.basis == "at least, by the peaks of Mine: a datasheet"


def test_counted_sums_carry_the_time_the_device_and_what_it_stands_on():
    cost = count(prefill())
    found = counted_on(cost, device())
    assert (found.device, found.time_s) == ("Mine", roofline(cost, device()))
    assert counted_on(cost, device(bfloat16=1.0)).time_s is None


def test_an_unknown_peak_has_no_time():
    assert predict(count(prefill(dtype="bfloat16")), device(float32=1e12)) is None


def test_autocast_multiplies_at_the_peak_of_its_dtype():
    case = prefill(task="train", autocast="bfloat16")
    assert roofline(count(case), device(float32=1e12)) is None
    assert roofline(count(case), device(bfloat16=1e12)) is not None


# The queue

CPU, GPU = {"device": "cpu"}, {"device": "cuda"}
BARE = Formula("add", "elementwise", Work(1))


def layered(repeat: int, *pieces: Piece) -> list[tuple[Op, Piece]]:
    place = Placed("backbone.layers.*.norm", BARE, repeat)
    return [(place.at("forward"), piece) for piece in pieces]


def measured(environment: dict[str, str], **host: float) -> Calibration:
    return Calibration("Mine", {}, host, environment)


def test_a_device_that_is_slower_than_its_host_hides_the_launches():
    # Four layers: the first launch takes 1 s, then the device is busy for 4 times 3 s.
    queue = elapsed(layered(4, Piece(3.0, 4.0, 2.0, 1.0)), prefill(), measured(GPU))
    assert queue.device_s == pytest.approx(1 + 4 * 3)
    assert queue.high_s == pytest.approx(1 + 4 * 4)


def test_a_host_that_is_slower_than_its_device_decides():
    # Ten launches of 2 s each, and the last one's second on the device.
    queue = elapsed(layered(10, Piece(1.0, 1.0, 1.0, 2.0)), prefill(), measured(GPU))
    assert queue.device_s == pytest.approx(10 * 2 + 1)


def test_the_device_waits_where_launches_outlast_it_and_catches_up_where_they_do_not():
    slow, fast = Piece(1.0, 1.0, 1.0, 5.0), Piece(4.0, 4.0, 4.0, 1.0)
    # Host at 5, 6, 11, 12; the device is done at 6, 10, 12 (launched at 11), 16.
    assert elapsed(layered(2, slow, fast), prefill(), measured(GPU)).device_s == pytest.approx(16)


@pytest.mark.parametrize("pieces", [[(1.0, 5.0), (4.0, 1.0)], [(2.0, 1.0), (0.5, 1.5)], [(3.0, 0.1)]])
def test_many_layers_are_followed_as_if_one_by_one(pieces):
    group = [Piece(d, d, d, h) for d, h in pieces]
    host = busy = 0.0
    for piece in group * 30:
        host += piece.host_s
        busy = max(busy, host) + piece.device_s
    assert elapsed(layered(30, *group), prefill(), measured(GPU)).device_s == pytest.approx(max(host, busy))


def test_a_graph_is_launched_at_once_with_shorter_gaps():
    case = prefill("mamba-tiny", path="graph")
    queue = elapsed(layered(4, Piece(3.0, 3.0, 3.0, 100.0)), case, measured(GPU, graph_launch_s=0.5, graph_gap_s=1.0))
    assert queue.device_s == pytest.approx(0.5 + 4 * 2)


# Predictions


def flat(seconds: float, names: tuple[str, ...] = tuple(spec.name for spec in PLAN), **host: float) -> Calibration:
    """Every operation takes the same time at any size, on a CPU."""
    axes = {spec.name: spec.axes for spec in PLAN}
    timing = Timing(seconds, seconds / 2, 2 * seconds)
    curves = {
        (name, dtype): Curve(name, dtype, axes[name], "", {(1.0,) * len(axes[name]): timing})
        for name in names
        for dtype in ("float32", "bfloat16")
        # A single point of a product would have its own ceilings: see `test_a_product_keeps_the_kink`.
        if name not in ("linear", "weight_gradient")
    }
    return Calibration("Mine", curves, host, CPU)


def test_a_prediction_adds_up_what_its_operations_take():
    # clamp, 2 x; nothing else of this formula's list but the embedding.
    case = prefill("resnet-bk-tiny")
    ops = [op for op in count(case).ops if op.formula.name in ("embedding", "layer_norm", "join")]
    times = [len(launches(op, case) or ()) * op.repeat for op in ops]
    # Embedding 1, a norm in each of 2 layers and the final one, one join a layer.
    assert sum(times) == 1 + 2 + 1 + 2


def test_what_a_calibration_lacks_is_named_and_leaves_the_bound():
    found = predict(count(prefill()), device(flat(1e-6)))
    assert found is not None
    assert found.bound
    assert found.basis == "at least: the calibration of Mine lacks linear in float32"


def test_a_device_without_peaks_and_without_the_curves_has_no_time():
    found = flat(1e-6)
    assert predict(count(prefill()), Device("x", "X", None, None, {}, "", calibration=found)) is None


def launched(device_s: float, host_s: float, **modules: HostCost) -> Calibration:
    """A GPU on which every operation takes `device_s`, and its host `host_s`, at any size."""
    axes = {spec.name: spec.axes for spec in PLAN}
    curves = {}
    for name, dtype in itertools.product(axes, ("float32", "bfloat16")):
        points = {(1.0,) * len(axes[name]): Timing(device_s, device_s, device_s, host_s)}
        curves[name, dtype] = Curve(name, dtype, tuple("batch" for _ in axes[name]), "", points)
    return Calibration("Mine", curves, {}, GPU, modules=modules)


def seconds(case: Case, calibration: Calibration) -> tuple[float, float]:
    found = predict(count(case), device(calibration, bfloat16=1e30))
    assert found is not None
    assert not found.bound, found.basis
    return found.time_s, found.high_s or 0.0


def half(**sizes) -> Case:
    return prefill("resnet-bk-tiny", dtype="bfloat16", **sizes)


def test_where_whole_models_were_measured_the_host_takes_what_they_took():
    entry = {"resnet-bk/prefill/chunked": HostCost(layer_s=3.0, call_s=1.0, spread=2.0)}
    # The device is next to nothing: 1 s, and 3 s for each of 2 layers; at most twice that.
    assert seconds(half(), launched(1e-12, 1e-6, **entry)) == pytest.approx((7.0, 14.0))
    # Five layers, whatever a launch took by itself.
    five = half().replace(spec=preset("resnet-bk-tiny", n_layers=5))
    assert seconds(five, launched(1e-12, 1e-3, **entry))[0] == pytest.approx(16.0)
    # Of another path, task or family it says nothing.
    assert seconds(half(path="eager"), launched(1e-12, 1e-6, **entry))[0] < 1


def test_a_device_that_is_slower_than_a_whole_models_host_hides_it_still():
    entry = {"resnet-bk/prefill/chunked": HostCost(layer_s=1e-9, call_s=1e-9, spread=2.0)}
    bare = seconds(half(), launched(1.0, 0.0))[0]
    assert bare > 1
    assert seconds(half(), launched(1.0, 1e-6, **entry))[0] == pytest.approx(bare)


def test_a_variation_costs_the_host_what_its_own_launches_add():
    entry = {"resnet-bk/train/chunked": HostCost(layer_s=3.0, call_s=1.0)}
    gpu = launched(1e-12, 1e-3, **entry)
    plain = half(task="train")
    assert seconds(plain, gpu)[0] == pytest.approx(7.0)
    bare = launched(1e-12, 1e-3)
    for other in (plain.replace(checkpoint=True), plain.replace(accumulate=3)):
        # As many times longer as its launches alone are.
        share = seconds(other, bare)[0] / seconds(plain, bare)[0]
        assert share > 1.1
        assert seconds(other, gpu)[0] == pytest.approx(7.0 * share, rel=1e-4)


def test_checkpointed_models_that_were_measured_stand_for_themselves():
    plain, again = HostCost(layer_s=3.0, call_s=1.0), HostCost(layer_s=5.0, call_s=2.0)
    gpu = launched(1e-12, 1e-3, **{"resnet-bk/train/chunked": plain, "resnet-bk/train/chunked/checkpoint": again})
    assert seconds(half(task="train"), gpu)[0] == pytest.approx(7.0)
    assert seconds(half(task="train", checkpoint=True), gpu)[0] == pytest.approx(12.0)
    # Other optimizers add or save their launches, as without checkpoints.
    bare, sgd = launched(1e-12, 1e-3), half(task="train", checkpoint=True, optimizer="sgd")
    share = seconds(sgd, bare)[0] / seconds(sgd.replace(optimizer="adamw"), bare)[0]
    assert seconds(sgd, gpu)[0] == pytest.approx(12.0 * share, rel=1e-4)


@pytest.mark.parametrize(
    ("seq_len", "name"),
    [(2048, "fused_scan"), (128, "fused_scan"), (64, "fused_scan:ragged"), (5000, "fused_scan:ragged")],
)
def test_a_scan_over_no_whole_chunks_is_another_kernel(seq_len: int, name: str):
    case = Case.of(preset("mamba-130m"), task="train", seq_len=seq_len, dtype="bfloat16", path="fused", optimizer="sgd")
    scans = [op for op in count(case).ops if op.formula.name == "selective_scan"]
    curves = [part.curve for op in scans for part in launches(op, case) or () if part.curve.startswith("fused")]
    assert curves == [name, f"{name}_backward"]


def test_the_fused_scan_of_a_prompt_is_beside_small_copies():
    """By models/mamba_fused.py: B, C; D, bias; the two states; A's copy in float32, its exp and its sign."""

    def copies(**sizes) -> list[Launch]:
        case = Case.of(preset("mamba-130m"), seq_len=2048, path="fused", **sizes)
        parts = (
            part for op in count(case).ops if op.path.endswith(("mixer", "scan")) for part in launches(op, case) or ()
        )
        return [part for part in parts if part.curve == "copy"]

    narrow, wide = 2048 * 16, 1536 * 16
    half = copies(task="prefill", dtype="bfloat16")
    assert half == [
        Launch("copy", (wide,), 3, "float32"),
        Launch("copy", (narrow,), 2),
        Launch("copy", (1536,), 2, "float32"),
        Launch("copy", (1536 * 4,)),
        Launch("copy", (wide,), 1, "float32"),
    ]
    assert copies(task="train", dtype="float32")[:2] == [Launch("copy", (wide,), 2, "float32"), half[1]]


def test_whole_chunks_stand_for_others_where_only_they_were_measured():
    case = Case.of(preset("mamba-130m"), task="prefill", seq_len=5000, dtype="bfloat16", path="fused")
    both = launched(1.0, 0.0)
    older = Calibration("Mine", {key: curve for key, curve in both.curves.items() if "ragged" not in key[0]}, {}, GPU)
    assert seconds(case, older) == seconds(case, both)


def test_a_captured_graph_does_not_wait_for_a_models_host():
    entry = {"resnet-bk/prefill/triton": HostCost(3.0, 1.0), "resnet-bk/prefill/graph": HostCost(3.0, 1.0)}
    assert seconds(half(path="triton"), launched(1e-12, 1e-6, **entry))[0] == pytest.approx(7.0)
    assert seconds(half(path="graph"), launched(1e-12, 1e-6, **entry))[0] < 1


def test_decoding_turns_queries_and_keys_at_once():
    case = Case.of(preset("transformer-tiny"), task="decode", seq_len=64)
    rotary = next(op for op in count(case).ops if op.formula.name == "rotary")
    # 4 heads of queries and 2 of keys, 16 wide, copied side by side
    assert launches(rotary, case) == (Launch("copy", (96,)), Launch("rotary", (96,)))
    reading = prefill()
    rotary = next(op for op in count(reading).ops if op.formula.name == "rotary")
    assert launches(rotary, reading) == (Launch("rotary", (64 * 96 / 2,), 2),)


def test_half_precisions_stand_for_each_other():
    found = flat(1e-6)
    assert found.timing("add", "float16", (1.0,)) is None
    both = predict(count(prefill(dtype="float16")), device(found, float16=1e12))
    assert both is not None
    assert "add in" not in both.basis  # the curve in bfloat16 was taken


@pytest.mark.parametrize("model", sorted(presets()))
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_every_operation_of_every_path_is_made_of_curves_of_the_plan(model: str, task: str):
    spec = preset(model)
    known = {spec.name: len(spec.axes) for spec in PLAN}
    for path in spec.paths:
        try:
            cost = count(Case.of(spec, task=task, seq_len=64, path=path))
        except BenchError:
            continue
        for op in cost.ops:
            found = launches(op, cost.case)
            assert found is not None, f"no curve for {op.formula.name}"
            for launch in found:
                assert len(launch.sizes) == known[launch.curve], launch
                assert min(launch.sizes) > 0


def test_the_mixture_counts_no_part_twice():
    """The curve of routing holds the mixture 64 wide: at that width its wider parts come to nothing."""
    case = prefill("resnet-bk-tiny")
    narrow = case.replace(spec=case.spec.replace(d_ff=64))
    parts = [op for op in count(narrow).ops if "moe" in op.path and op.formula.name != "top_k_gate"]
    for op in parts:
        totals: dict[tuple[str, tuple[float, ...]], float] = {}
        for launch in launches(op, narrow) or ():
            totals[launch.curve, launch.sizes] = totals.get((launch.curve, launch.sizes), 0) + launch.times
        assert not any(totals.values()), op.path


def test_a_checkpointed_layer_runs_its_forward_again():
    plain = Case.of(preset("transformer-tiny"), task="train", seq_len=64)
    again = plain.replace(checkpoint=True)

    def norms(case: Case) -> int:
        return sum(
            op.repeat * (launches(op, case) or ()).count(Launch("rms_norm", (64, 64)))
            for op in count(case).ops
            if op.formula.name == "rms_norm"
        )

    # Two norms in each of two layers once more; the final norm is outside.
    assert norms(plain) == 5
    assert norms(again) == 5 + 4


def test_the_table_of_devices_bounds_every_preset():
    case = Case.of(preset("mamba-130m"), task="train", seq_len=2048, dtype="bfloat16")
    for known in devices().values():
        found = predict(count(case), known)
        assert (found is None) == (known.peak("bfloat16") is None)
