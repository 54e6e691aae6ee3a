import numpy as np
import pytest
from records import counted, record, steady

pytest.importorskip("matplotlib")

from benchbench.plot import PALETTE, draw, figure, fill, looks, short
from benchbench.record import Measured


def records():
    return [
        record(model, n, steady(n / 1e3) if n < 2048 else (), cost=counted(n * k))
        for k, model in enumerate(("mamba-tiny", "transformer-tiny"), start=1)
        for n in (512, 1024, 2048)
    ]


def drawn(line):
    """The x and the y of its points."""
    return tuple(np.asarray(values).tolist() for values in line.get_data())


def test_the_same_records_are_drawn_to_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in draw(records(), tmp_path / "a")]
    second = [path.read_bytes() for path in draw(records(), tmp_path / "b")]
    assert first == second
    assert first[0].startswith(b"<?xml")
    assert first[1].startswith(b"\x89PNG")


def test_counted_and_measured_never_share_a_panel():
    panels = {axes.get_title(loc="left").splitlines()[1]: axes for axes in figure(records()).axes}
    assert list(panels) == [
        "TFLOP (counted)",
        "seconds a call (measured)",
        "peak memory, GiB (counted)",
        "peak memory, GiB (measured)",
    ]
    for title, axes in panels.items():
        measured = "measured" in title
        assert len(axes.containers) == (2 if measured else 0)  # error bars, one a model
        assert all(line.get_marker() in ("None", "") for line in axes.lines) != measured
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_points_lie_where_the_records_say():
    flops, time, _, memory = figure(records()).axes
    assert [drawn(line)[0] for line in flops.lines] == [[512, 1024, 2048]] * 2
    assert drawn(flops.lines[1])[1][0] == pytest.approx(1024e-12)  # 512 x 2 FLOPs, in TFLOP
    dots, caps, _ = time.containers[0]
    assert drawn(dots)[1] == [0.512, 1.024]  # 2,048 was not measured
    assert drawn(caps[0])[1] == pytest.approx([0.99 * 0.512, 0.99 * 1.024])
    assert drawn(memory.containers[0][0]) == ([512, 1024], [2**20 / 2**30] * 2)


def test_a_line_of_one_point_is_seen():
    flops, *_ = figure([record("mamba-tiny", 512, steady(1.0), cost=counted(10**12))]).axes
    assert [line.get_marker() for line in flops.lines] == ["_"]


def test_long_titles_go_on_below():
    assert fill(["train", "float32", "N=2,048", "adamw", "autocast"], 26) == [
        "train · float32 · N=2,048",
        "adamw · autocast",
    ]
    assert fill(["a" * 9, "b"], 5) == ["a" * 9, "b"]


def test_one_length_is_drawn_over_the_batch():
    found = [record(n=512, times=steady(1.0), cost=counted(batch), case={"batch": batch}) for batch in (1, 2, 4)]
    flops, *_ = figure(found).axes
    assert (flops.get_xlabel(), drawn(flops.lines[0])[0]) == ("B (sequences)", [1, 2, 4])


def test_counted_and_measured_memory_have_one_scale():
    """Counted peaks of 1 GiB beside measured ones of 1 MiB, which is 0.00098 GiB: four decades."""
    found = [record(n=n, times=steady(1.0), cost=counted(peak_bytes=2**30)) for n in (512, 1024)]
    *_, counts, measures = figure(found).axes
    assert counts.get_ylim() == measures.get_ylim() == (1e-4, 10)


def test_a_cpu_s_peak_is_what_was_requested():
    found = record(times=steady(1.0), measured=Measured(time_s=steady(1.0), peak_requested_bytes=3 * 2**30))
    *_, memory = figure([found]).axes
    assert drawn(memory.containers[0][0])[1] == [3]


def test_one_colour_a_family_and_another_dash_for_its_second_model():
    found = looks([[record("gpt2"), record("transformer-tiny"), record("mamba-tiny")]])
    assert found["gpt2"].color == found["transformer-tiny"].color == PALETTE[1]  # mamba comes first
    assert found["gpt2"].dashes != found["transformer-tiny"].dashes
    assert found["mamba-tiny"].color == PALETTE[0]


def test_a_suite_without_a_measurement_says_so():
    _, time, _, memory = figure([record(cost=counted())]).axes
    for axes in (time, memory):
        assert [text.get_text() for text in axes.texts] == ["nothing was measured"]


def test_lengths_on_an_axis():
    assert [short(n) for n in (512, 1000, 1024, 131_072, 1_048_576)] == ["512", "1000", "1k", "128k", "1M"]
