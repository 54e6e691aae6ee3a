"""Timelines by hand, and those of whole cases against what allocators report."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchbench import memory, tasks
from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.allocations.ops import add, function, linear
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.task import timeline
from benchbench.counters.allocations.tensors import Gradient, Tensor
from benchbench.counters.allocator import simulated
from benchbench.counters.cost import step_of
from benchbench.counters.limited import played
from benchbench.counters.memory import Fullest
from benchbench.counters.timeline import Alive, Block, Repeat, Timeline
from benchbench.specs import preset, presets
from benchbench.specs.transformer import TransformerSpec

MEASURED = json.loads((Path(__file__).parent / "data/memory_h200.json").read_text("utf-8"))


def sizes(found: Timeline) -> list[int]:
    """Bytes allocated, and freed as negative."""
    return [sign * block.size for block, sign in found.events()]


def loop() -> tuple[Timeline, dict[str, Block]]:
    """Weights of 100. Three rounds keep 10 each, and have 30 meanwhile; then 5 comes, and the three go at once."""
    blocks = {
        name: Block(size, name, "workspace") for name, size in {"w": 100, "kept": 10, "aside": 30, "y": 5}.items()
    }
    rounds = Repeat(3)
    rounds.items = [(blocks["aside"], 1), (blocks["kept"], 1), (blocks["aside"], -1)]
    return Timeline((blocks["w"],), [rounds, (blocks["y"], 1), (blocks["kept"], -3)]), blocks


def test_a_loop_is_fullest_in_its_last_round() -> None:
    """100 + 2·10 + 30 + 10 = 160, when the third 10 is there and the 30 is not gone."""
    found, blocks = loop()
    assert found.peak() == 160
    assert found.at(found.fullest) is blocks["kept"]
    assert found.alive(found.fullest) == (
        Alive("w", "", "workspace", 100, 1),
        Alive("aside", "", "workspace", 30, 1),
        Alive("kept", "", "workspace", 10, 3),
    )


def test_a_peak_in_blocks_of_512() -> None:
    """All six are 512: the weights, three kept, and at the third the aside."""
    found, _ = loop()
    assert found.peak(lambda size: -(-size // 512) * 512) == 5 * 512


def test_before_the_first_event_only_what_is_held_is_alive() -> None:
    found = Timeline((Block(7, "w", "params"),), [])
    assert (found.peak(), found.fullest, found.at(found.fullest)) == (7, (), None)
    assert Fullest(found, 1).memory.model_dump() == {
        "params": 7,
        **dict.fromkeys(("grads", "optimizer", "activations", "state", "workspace", "logits"), 0),
    }


def test_backward_frees_as_autograd_does() -> None:
    """silu((v + v) Wᵀ), W (5, 3), v (2, 3), float32: x = v + v 24, W 60, y 40, s 40, which nothing saves.

    Backward: dy 40 from ds; ds goes, then y; dW 60 and dx 24; dy goes, then x, which was saved; dx comes twice, so that
    the sum, 24, is another, and dx goes.
    """
    t = Tape("cpu", training=True)
    weight, given = t.parameter(5, 3, 4, "W"), t.parameter(2, 3, 4, "x")
    x = add(t, given, given)
    s = function(t, linear(t, x, weight), "silu")
    del x
    assert s.source is not None
    node = s.source[0]
    del s
    t.backward(node, Gradient(t.new(40, "ds")))
    assert sizes(t.timeline()) == [24, 40, 40, -40, 40, 40, -40, -40, 60, 24, -40, -24, 24, -24]
    assert [block.size for block in t.held] == [60, 24]


def test_gradients_that_meet_are_added_in_place_but_for_a_shared_one() -> None:
    """x + x hands dy out twice, and the sum is another 24; what two kernels make is added to the first, 24 each."""

    def events(shared: bool) -> list[int]:
        t = Tape("cpu", training=True)
        x = t.parameter(2, 3, 4, "x")
        one: Tensor = x if shared else function(t, x, "silu")
        two: Tensor = x if shared else function(t, x, "silu")
        made = add(t, one, two)
        del one, two
        assert made.source is not None
        node = made.source[0]
        del made
        before = len(t.items)
        t.backward(node, Gradient(t.new(24, "dy")))
        return sizes(t.timeline())[before:]

    assert events(shared=True) == [24, 24, -24]
    assert events(shared=False) == [24, 24, 24, -24, -24]


def test_categories_sum_to_the_peak_and_the_largest_come_first() -> None:
    for device in ("cpu", "cuda"):
        found = count(Case.of(preset("mamba-130m"), task="train", seq_len=2048), device).fullest
        assert sum(found.memory.model_dump().values()) == found.requested == found.timeline.peak()
        assert [one.bytes for one in found.largest] == sorted((one.bytes for one in found.largest), reverse=True)
        assert found.at is not None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["transformer-tiny", "gpt2", "mamba-tiny", "resnet-bk-tiny", "resnet-bk-baseline"])
def test_layers_in_bulk_are_layers_one_by_one(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To any allocator: the caching one hands out and takes as much, too, whether its limit is met or not."""
    spec = preset(name).replace(n_layers=7)
    listed = cases(spec)
    listed.append(next(case for case in listed if case.task == "train").replace(autocast="bfloat16", accumulate=5))
    bulk = [timeline(case, step_of(case), device) for case in listed]
    monkeypatch.setattr(Tape, "rounds", every_round)
    whole = [timeline(case, step_of(case), device) for case in listed]
    assert not any(isinstance(item, Repeat) for one in whole for item in one.items)
    for case, one, other in zip(listed, bulk, whole, strict=True):
        assert simulated(one) == simulated(other), case.id
        limit = simulated(one).allocated
        assert played(one, limit).taken == played(other, limit).taken, case.id


def every_round(self: Tape, times: int, last: int = 1, first: int = 1) -> Iterator[int]:
    """As `Tape.rounds`, with none that stands for many."""
    return (number if number + last < times else number - times for number in range(times))


def cases(spec: Any, seq_len: int = 40, batch: int = 2) -> list[Case]:
    """Every task on every path, and training's variations on the first."""
    plain = [
        Case.of(spec, task=task, seq_len=seq_len, batch=batch, path=path)
        for path in spec.paths
        for task in ("prefill", "decode", "train")
    ]
    train = plain[2]
    more = [
        train.replace(checkpoint=True),
        train.replace(accumulate=2, optimizer="sgd"),
        train.replace(accumulate=3, checkpoint=True, optimizer="momentum"),
    ]
    return [case for case in (*plain, *more) if not case.unsupported()]


GPT2 = TransformerSpec(
    name="tiny-gpt2",
    n_layers=3,
    d_model=32,
    vocab_size=301,
    n_heads=4,
    n_kv_heads=4,
    d_ff=96,
    positions="learned",
    max_seq_len=64,
    norm="layer",
    activation="gelu",
    bias=True,
)
SMALL = (
    preset("transformer-tiny").replace(n_layers=3),
    GPT2,
    preset("mamba-tiny").replace(n_layers=3),
    preset("resnet-bk-tiny").replace(n_layers=3),
    preset("resnet-bk-tiny").replace(n_layers=2, form="bk-compat", top_k=1, dropout=0.1),
)


def handed_out(case: Case) -> tuple[int, int]:
    """Bytes held around a step, and at its fullest, as the CPU's allocator reports them."""
    torch.manual_seed(0)
    prepared = tasks.prepare(tasks.built(case, "cpu"), case)
    prepared.call()
    prepared.release()
    held = memory.held_bytes(prepared.held())
    return held, held + memory.highest_sum(memory.allocations(prepared.call))


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_the_cpu_hands_out_what_is_counted(spec: Any) -> None:
    """To 128 bytes: the numbers that a loss consists of."""
    torch.set_num_threads(1)
    for case in cases(spec):
        found = timeline(case, step_of(case))
        held, fullest = handed_out(case)
        assert held == sum(block.count * block.size for block in found.held), case.id
        assert abs(found.peak() - fullest) <= 128, case.id


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with AVX-512's bfloat16")
@pytest.mark.parametrize("seq_len", [40, 700])
@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec.name)
def test_the_cpu_hands_out_what_is_counted_in_half_precision(spec: Any, seq_len: int) -> None:
    """The longer ones on the default path alone: others keep every state, or every score, of 700 tokens."""
    torch.set_num_threads(1)
    longest = spec.longest or seq_len
    train = Case.of(spec, task="train", seq_len=min(seq_len, longest), batch=2)
    for changes in ({"dtype": "bfloat16"}, {"autocast": "bfloat16"}, {"autocast": "bfloat16", "accumulate": 2}):
        case = train.replace(**changes)
        assert abs(timeline(case, step_of(case)).peak() - handed_out(case)[1]) <= 128, case.id


def test_a_chunked_loss_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 8 of 40 rows: 2600 logits of 301 are 8.6 rows."""
    torch.set_num_threads(1)
    monkeypatch.setattr("benchbench.case.LOSS_CHUNK_ELEMENTS", 2600)
    case = Case.of(GPT2, task="train", seq_len=40)
    assert step_of(case).head_chunks == 5
    assert abs(timeline(case, step_of(case)).peak() - handed_out(case)[1]) <= 128


def recorded(row: dict[str, Any]) -> Case:
    sizes = {key: value for key, value in row.items() if key not in ("model", "held", "requested", "allocated")}
    return Case.model_validate({**sizes, "spec": MEASURED["specs"][row["model"]]})


@pytest.mark.parametrize("model", MEASURED["specs"])
def test_a_gpu_was_asked_for_what_is_counted(model: str) -> None:
    """Peaks above what a call finds, of an H200's allocator: to 0.1 %, of all cases that were recorded there."""
    for row in MEASURED["cases"]:
        if row["model"] == model:
            case = recorded(row)
            found = timeline(case, step_of(case), "cuda")
            held = sum(block.count * block.size for block in found.held)
            assert held == row["held"], case.id
            assert abs(found.peak() - held - row["requested"]) <= row["requested"] / 1000, case.id


def test_a_gpu_handed_out_what_is_simulated() -> None:
    """To 1 % of the peak, of every case over 256 MiB."""
    large = [row for row in MEASURED["cases"] if row["held"] + row["requested"] > 2**28]
    assert len(large) >= 50
    for row in large:
        case = recorded(row)
        found = count(case, "cuda").fullest
        held = sum(block.count * (-(-block.size // 512) * 512) for block in found.timeline.held)
        peak = held + row["allocated"]
        assert abs(found.peaks.allocated - peak) <= peak / 100, case.id


def test_a_checkpointed_mixture_runs_again_to_the_rows_it_gives_back() -> None:
    """As an H200's allocator saw it: one tensor, 201,326,592 B, would be missing if the rows' index were kept first."""
    sizes = {"seq_len": 131_072, "dtype": "bfloat16", "path": "triton", "checkpoint": True}
    found = count(Case.of(preset("resnet-bk-130m"), task="train", **sizes), "cuda").fullest
    assert abs(found.requested - 5_479_275_032) <= 36


def test_a_prediction_walks_few_layers_of_many() -> None:
    """64 layers take no more events than 8."""
    events = {
        layers: len(timeline(case, step_of(case)).items)
        for layers in (8, 64)
        for case in [Case.of(preset("mamba-130m").replace(n_layers=layers), task="train", seq_len=512)]
    }
    assert events[8] == events[64]


def test_every_preset_has_a_timeline_in_every_task() -> None:
    for name, spec in presets().items():
        for task in ("prefill", "decode", "train"):
            case = Case.of(spec, task=task, seq_len=min(512, (spec.longest or 513) - 1))
            if not case.unsupported() and case.family != "mamba2":
                assert count(case).fullest.exact, name
