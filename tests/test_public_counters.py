"""The comparison of public counters: a tiny run, its rules, and the committed page."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from benchbench.case import Case
from benchbench.specs import preset

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests/bench"))
public_counters = importlib.import_module("public_counters")
page = importlib.import_module("public_counters_page")

INSTALLED = [counter for counter in public_counters.COUNTERS if counter.package in ("torch", "fvcore")]


def tiny(model: str, task: str, path: str) -> Case:
    return Case.of(preset(model), task=task, seq_len=40, batch=2, path=path)


@pytest.fixture(scope="module")
def data() -> dict:
    cases = [
        tiny("transformer-tiny", "prefill", "flash"),
        tiny("mamba-tiny", "prefill", "eager"),
        tiny("transformer-tiny", "train", "flash"),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = json.loads(json.dumps(public_counters.measured(cases, INSTALLED, rounds=1)))
    torch.set_num_threads(threads)
    return found


def test_the_truth_is_the_count_to_the_last_flop(data):
    for case in data["cases"]:
        assert case["dispatch_flops"] == case["expected_flops"] > 0


def test_what_has_rules_is_explained_to_the_last_flop(data):
    """Where it is, what the rules add to the truth and take from it is all of the difference."""
    seen = 0
    for case in data["cases"]:
        for one in case["counters"]:
            if one["predicted"] is not None:
                assert one["predicted"] == one["reported"]
                assert case["dispatch_flops"] + sum(one["differences"].values()) == one["flops"]
                seen += 1
    # Three counters on two prefills; of a training step torch's counter has rules, the profiler has none.
    assert seen == 7


def test_a_training_step_is_asked_of_those_that_count_backward(data):
    assert [one["name"] for one in data["cases"][2]["counters"]] == [
        "torch FlopCounterMode",
        "torch.profiler, with_flops",
    ]


def test_memory_is_that_of_the_second_step(data):
    (row,) = data["memory"]
    # Weights, gradients and two states of 4 bytes each are there when the optimizer steps, beside what else is.
    assert row["allocator_bytes"] > 4 * 4 * public_counters.count(tiny("transformer-tiny", "train", "flash")).params
    assert abs(row["tracker_bytes"] / row["allocator_bytes"] - 1) < 0.01


def test_the_page_says_all_of_it(data):
    text = page.as_markdown(data)
    assert text.count("to the last FLOP |") == 7
    assert "fused attention on the CPU counts 0" in text
    assert "- mamba-tiny: mamba, n_layers 2, d_model 64" in text


def test_an_absent_counter_says_how_to_install_it():
    absent = public_counters.Counter("none", "no-such-counter", lambda *_: 0, "MAC", "torch", None, ("its-needs",))
    found = public_counters.measured([], [absent], rounds=1)
    assert "absent: `pip install --no-deps --target DIR no-such-counter its-needs`" in page.as_markdown(found)


def test_a_counter_that_fails_is_an_answer_and_leaves_torch_as_it_was():
    def fails(module, tokens):
        torch.matmul = None
        raise KeyError("what")

    before = torch.matmul
    counter = public_counters.Counter("fails", "torch", fails, "FLOP", "torch")
    case = tiny("transformer-tiny", "prefill", "eager")
    (found,) = public_counters.measured([case], [counter], rounds=1)["cases"][0]["counters"]
    assert (found["error"], found["reported"], found["time_s"]) == ("KeyError: 'what'", None, [])
    assert torch.matmul is before


@pytest.mark.parametrize(
    ("name", "op", "reported"),
    [
        # An MLP's up projection: 80 rows of 64·160 multiply-adds; torchinfo multiplies the weights by the batch alone.
        ("thop", "mlp.up_proj", 80 * 64 * 160),
        ("torchinfo", "mlp.up_proj", 2 * 64 * 160),
        ("calflops", "mlp.up_proj", 2 * 80 * 64 * 160),
        # SiLU once an element of 80·160.
        ("ptflops, pytorch", "mlp.act", 80 * 160),
        ("ptflops, aten", "mlp.act", 0),
        # Two products of 2·16 on the square of 40·40 pairs, 2·4 heads.
        ("DeepSpeed", "attn.core", 2 * 4 * 40 * 40 * 4 * 16),
        ("calflops", "attn.core", 0),
        ("ptflops, aten", "attn.core", 0),
    ],
)
def test_rules_by_hand(name, op, reported):
    case = tiny("transformer-tiny", "prefill", "flash")
    (counter,) = [one for one in public_counters.COUNTERS if one.name == name]
    (found,) = [one for one in public_counters.count(case).ops if one.path.endswith(op)]
    assert counter.rule(found, case).flops == reported


def test_shapes_lined_up_from_the_left_by_hand():
    # dt (R, 1, D) times A (N, D): chunks of 16, 16 and 8 tokens, two sequences: R = 32, 32, 16, D = 128 and N = 8.
    case = tiny("mamba-tiny", "prefill", "chunked")
    (scan,) = [one for one in public_counters.count(case).ops if one.formula.name == "selective_scan"]
    assert public_counters.rules.broadcast_from_left(scan) == (32 + 32 + 16) * 128 * 128


def test_the_committed_page_is_what_its_json_gives():
    """Made anew by: python tests/bench/public_counters.py --out results/counters.md."""
    data = json.loads((ROOT / "results/counters.json").read_text("utf-8"))
    assert page.as_markdown(data) == (ROOT / "results/counters.md").read_text("utf-8")
    assert all(case["dispatch_flops"] == case["expected_flops"] for case in data["cases"])
