import math

import pytest
import torch

from benchbench import gate
from benchbench.case import Case
from benchbench.models.transformer import FlashCore
from benchbench.specs import preset

CPU = torch.device("cpu")
FAMILIES = ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny")


def case(name: str, task: str, **sizes: object) -> Case:
    return Case.of(preset(name), task=task, **{"seq_len": 100, "batch": 2, **sizes})


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    torch.set_num_threads(1)
    gate._gate.cache_clear()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_the_fast_paths_are_right(name: str, task: str):
    verdict = gate.gate(case(name, task), CPU)

    assert verdict.passed
    assert verdict.tolerance == 1e-4
    assert 0 < verdict.error < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_the_fast_paths_are_right_in_bfloat16(name: str, task: str):
    verdict = gate.gate(case(name, task, dtype="bfloat16"), CPU)

    assert verdict.passed
    assert verdict.tolerance == 5e-2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way", [{"autocast": "bfloat16"}, {"checkpoint": True}, {"accumulate": 2}], ids=str)
def test_ways_to_train_are_right(name: str, way: dict):
    verdict = gate.gate(case(name, "train", **way), CPU)

    assert verdict.passed
    assert verdict.tolerance == (5e-2 if "autocast" in way else 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_path_is_compared_too(name: str):
    # Prefill and decode carry a state, which one forward over all tokens does not: not the same computation.
    assert gate.gate(case(name, "decode", path="eager"), CPU).error > 0


def test_gradients_that_are_zero_by_nature_do_not_fail_it():
    # A constant added to all scores of a query leaves the softmax as it is: key biases have no gradient.
    small = preset("gpt2", d_model=64, n_heads=4, n_kv_heads=4, d_ff=128, vocab_size=256)

    assert gate.gate(Case.of(small, task="train", seq_len=64), CPU).passed


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_a_path_that_is_off_by_a_percent_fails(task: str, monkeypatch: pytest.MonkeyPatch):
    right = FlashCore.forward
    monkeypatch.setattr(FlashCore, "forward", lambda self, *inputs: right(self, *inputs) * 1.01)
    verdict = gate.gate(case("transformer-tiny", task), CPU)

    assert not verdict.passed
    assert verdict.error > 5e-4


def test_a_wrong_path_fails_in_bfloat16_by_its_float32_comparison(monkeypatch: pytest.MonkeyPatch):
    right = FlashCore.forward
    monkeypatch.setattr(FlashCore, "forward", lambda self, *inputs: right(self, *inputs) * 1.01)
    verdict = gate.gate(case("transformer-tiny", "prefill", dtype="bfloat16"), CPU)

    assert not verdict.passed
    assert verdict.tolerance == 1e-4


def test_stands_for_the_case_at_a_small_size_and_is_done_once(monkeypatch: pytest.MonkeyPatch):
    seen: list[Case] = []

    def compare(case: Case, device: str) -> gate.Verdict:
        seen.append(case)
        return gate.Verdict(0.0, 1.0)

    monkeypatch.setattr(gate, "compare", compare)
    spec = preset("mamba-130m")
    gate.gate(Case.of(spec, task="prefill", seq_len=4096, batch=8), CPU)
    gate.gate(Case.of(spec, task="prefill", seq_len=2**20, batch=2, seed=5), CPU)
    gate.gate(Case.of(spec, task="prefill", seq_len=16, batch=1), CPU)

    assert [(small.spec.n_layers, small.seq_len, small.batch) for small in seen] == [(2, 77, 2), (2, 16, 1)]


def test_difference_is_the_worst_rows_norm_over_the_rows():
    # Rows (3, 4) against (3, 4): 0; (0, 5) against (0, 4): 1/4.
    found = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])]
    expected = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])]

    assert gate.difference(found, expected) == 0.25


def test_a_tiny_row_is_measured_against_its_group():
    # The group's norm is 1 to within 1e-12, so the floor is 1e-3: 1e-6 beside 0 is 1e-6 / 1e-3.
    found = [torch.tensor([1.0]), torch.tensor([1e-6])]
    expected = [torch.tensor([1.0]), torch.tensor([0.0])]

    assert gate.difference(found, expected) == pytest.approx(1e-3, rel=1e-6)


def test_a_share_of_the_worst_rows_is_spared():
    expected = [torch.ones(1)] * 10
    found = [torch.ones(1)] * 9 + [torch.full((1,), 2.0)]

    assert gate.difference(found, expected) == 1.0
    assert gate.difference(found, expected, spared=0.1) == 0.0


def test_not_a_number_is_infinitely_wrong():
    assert gate.difference([torch.tensor([math.nan])], [torch.ones(1)]) == math.inf


def test_zero_for_zero_is_right():
    assert gate.difference([torch.zeros(3)], [torch.zeros(3)]) == 0.0


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fast_paths_are_right_on_a_gpu(name: str, task: str, dtype: str):
    assert gate.gate(case(name, task, dtype=dtype), torch.device("cuda")).passed
