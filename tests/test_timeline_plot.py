import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchbench.__main__ import main
from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.timeline import CATEGORIES, Block, Repeat, Timeline
from benchbench.errors import BenchError
from benchbench.specs import preset
from benchbench.timeline_plot import BINS, draw, figure, moments

NAME = "mamba-tiny/train/N64/B2/float32/chunked"


def cost(task="train", model="mamba-tiny", device=None):
    return count(Case.of(preset(model), task=task, seq_len=64, batch=2), device)


def test_each_event_adds_to_its_category():
    """Held 100; twice 10 more that stay and 5 that go: 100, 110, 115, 110, 120, 125, 120."""
    stays, goes = Block(10, "a", "activations"), Block(5, "b", "workspace")
    twice = Repeat(2)
    twice.items = [(stays, 1), (goes, 1), (goes, -1)]
    found = moments(Timeline((Block(100, "w", "params"),), [twice]))
    assert [one.total for one in found] == [100, 110, 115, 110, 120, 125, 120]
    last = dict(zip(CATEGORIES, found[-1].bytes, strict=True))
    assert (last["params"], last["activations"], last["workspace"]) == (100, 20, 0)


def test_no_peak_is_lost_among_many_events():
    spike = Block(7, "spike", "workspace")
    many = Repeat(10 * BINS)
    many.items = [(Block(1, "a", "state"), 1), (Block(1, "a", "state"), -1)]
    after = Repeat(3 * BINS)
    after.items = many.items
    found = moments(Timeline((), [many, (spike, 1), (spike, -1), after]))
    assert len(found) <= BINS + 1
    assert [one.total for one in found if one.total > 1] == [7]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("task", ["train", "prefill", "decode"])
def test_the_picture_s_peak_is_the_count_s(task, device):
    one = cost(task, device=device)
    (axes,) = figure(one).axes
    outline, marker = axes.lines
    factor = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}[axes.get_title(loc="left").split(", ")[1].split()[0]]
    highest = float(np.max(np.asarray(outline.get_ydata())))
    assert round(highest * factor) == one.counted.peak_requested_bytes
    assert marker.get_ydata()[0] == highest
    (note,) = axes.texts
    assert note.get_text().splitlines()[1] == one.counted.peak_at


def test_the_same_case_is_drawn_to_the_same_bytes(tmp_path):
    for name, start in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        draw(cost(), tmp_path / name)
        first = (tmp_path / name).read_bytes()
        draw(cost(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
        assert first.startswith(start)


def test_show_draws_it(tmp_path, capsys):
    assert main(["show", NAME, "--timeline", str(tmp_path / "x.svg")]) == 0
    assert NAME in (tmp_path / "x.svg").read_text()
    assert main(["show", NAME, "--timeline", str(tmp_path / "x.jpg")]) == 2
    assert "a picture is a .png or .svg" in capsys.readouterr().err


def test_what_is_not_followed_has_no_timeline():
    with pytest.raises(BenchError, match="bounded by a sum"):
        figure(cost("core", "transformer-tiny"))
