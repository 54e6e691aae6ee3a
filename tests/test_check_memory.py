import json

import pytest

from benchbench.case import Case
from benchbench.commands.check_memory import Outcome, cases, command
from benchbench.counters.memory import Fullest
from benchbench.counters.timeline import Block, Timeline
from benchbench.specs import preset

TINY = preset("transformer-tiny")
PREFILL = Case.of(TINY, task="prefill", seq_len=16)


def holding(size: int) -> Timeline:
    return Timeline((Block(size, "weight", "params"),), [])


def outcome(
    counted: int, seen: int | None, measured: int | None, visible: int | None, *, exact: bool = True
) -> Outcome:
    length = {"length": ()} if "length" in Fullest.__dataclass_fields__ else {}
    fullest = Fullest(holding(counted), exact=exact, **length)
    return Outcome(PREFILL, "cpu", fullest, None if seen is None else holding(seen), measured, visible)


@pytest.mark.parametrize(
    ("counted", "seen", "measured", "visible", "differences"),
    [
        (10_000, 10_000, 10_000, 10_000, 0),
        (11_024, 10_000, 10_000, 10_000, 0),
        (11_025, 10_000, 10_000, 10_000, 1),
        # A kernel's own 5,000 bytes are counted and measured, and fake tensors need not have them.
        (15_000, 10_000, 15_000, 10_000, 0),
        (15_000, 10_000, 15_000, 15_000, 1),
        (15_000, 10_000, 10_000, 10_000, 1),
        (15_000, None, 15_000, 15_000, 0),
        # Nothing measured: the count may lie 1,024 bytes and 1 % above fake tensors, and 1,024 bytes below.
        (1_011_024, 1_000_000, None, None, 0),
        (1_011_025, 1_000_000, None, None, 1),
        (998_976, 1_000_000, None, None, 0),
        (998_975, 1_000_000, None, None, 1),
    ],
)
def test_rules(counted: int, seen: int | None, measured: int | None, visible: int | None, differences: int):
    assert len(outcome(counted, seen, measured, visible).differences) == differences


def test_a_first_sum_is_held_against_nothing():
    assert outcome(1, 10_000, 10_000, 10_000, exact=False).verdict == "agrees"
    assert outcome(1, 10_000, 90_000, 90_000, exact=False).verdict == "DIFFERS"


def test_small_models_are_checked_on_every_path_and_trained_in_every_way():
    found = [case.id for case in cases(TINY, ["prefill", "train"], None, 2, "cpu")]

    assert found == [
        "transformer-tiny/prefill/N64/B2/float32/flash",
        "transformer-tiny/train/N64/B2/float32/flash",
        "transformer-tiny/train/N64/B2/float32/flash/sgd",
        "transformer-tiny/train/N64/B2/float32/flash/checkpoint",
        "transformer-tiny/train/N64/B2/float32/flash/accumulate2",
        "transformer-tiny/prefill/N64/B2/float32/eager",
        "transformer-tiny/train/N64/B2/float32/eager",
    ]


def test_the_three_agree_and_are_printed(capsys: pytest.CaptureFixture[str]):
    command((), (), None, 1, True, "json", [PREFILL])
    (found,) = json.loads(capsys.readouterr().out)

    assert found["verdict"] == "agrees"
    assert found["counted_bytes"] == sum(found["counted_by_category"].values())
    assert found["fake_bytes"] == sum(found["fake_by_category"].values())
    assert abs(found["counted_bytes"] - found["measured_bytes"]) <= 1024

    command((), (), None, 1, True, "md", [PREFILL])
    printed = capsys.readouterr().out
    assert "1 of 1 agree, to 1,024 bytes." in printed
    assert "the largest at the peak" in printed
    assert "| params" in printed


def test_a_difference_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("benchbench.commands.check_memory.outcome", lambda *_: outcome(50_000, 1, 1, 1))

    with pytest.raises(SystemExit) as stopped:
        command((), (), None, 1, False, "md", [PREFILL])

    assert stopped.value.code == 1
    assert "counted +49,999 bytes from what is measured" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", ["transformer-tiny", "mamba-tiny", "resnet-bk-tiny"])
def test_a_gpus_three_agree(name: str, task: str, dtype: str, capsys: pytest.CaptureFixture[str]):
    spec = preset(name)
    path = "chunked" if name == "mamba-tiny" else spec.cuda_path
    command((), (), None, 1, False, "json", [Case.of(spec, task=task, seq_len=256, batch=2, path=path, dtype=dtype)])

    (found,) = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "agrees"
