import math

import pytest
import torch

from benchbench import memory
from benchbench.case import Case
from benchbench.models import build
from benchbench.specs import preset
from benchbench.synthetic import tokens, training_batch
from benchbench.tasks import Prepared, prepare
from benchbench.tasks.train import OPTIMIZERS

FAMILIES = ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def prepared(name: str, task: str, device: str = "cpu", **sizes: object) -> Prepared:
    case = Case.of(preset(name), task=task, **{"seq_len": 12, "batch": 3, **sizes})
    return prepare(build(case.spec, path=case.path, device=device), case)


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_gives_the_last_positions_logits_every_time(name: str):
    unit = prepared(name, "prefill")
    model = build(preset(name)).eval()
    with torch.inference_mode():
        expected = model(tokens(256, 3, 12, seed=0))[:, -1]

    first = unit.call()
    assert first.shape == (3, 256)
    assert torch.equal(first, unit.call())
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    assert unit.tokens == 36


@pytest.mark.parametrize("name", FAMILIES)
def test_decode_writes_one_token_a_sequence_at_the_same_length_every_time(name: str):
    unit = prepared(name, "decode", seq_len=5)

    assert unit.call().shape == (3, 256)
    for _ in range(20):
        assert torch.isfinite(unit.call()).all()
    assert unit.tokens == 3


def test_decode_reads_the_state_it_was_given():
    # A transformer's call overwrites the same slot of its cache each time, so it repeats itself exactly.
    unit = prepared("transformer-tiny", "decode", seq_len=5)

    assert torch.equal(unit.call(), unit.call())


@pytest.mark.parametrize("name", FAMILIES)
def test_training_lowers_the_loss_on_its_one_batch(name: str):
    # Before any step the loss is near ln 256 = 5.5.
    unit = prepared(name, "train")
    first = float(unit.call())
    for _ in range(8):
        last = float(unit.call())

    assert first == pytest.approx(math.log(256), rel=0.2)
    assert last < first
    assert unit.tokens == 36


def test_the_first_loss_is_that_of_the_untrained_model():
    case = Case.of(preset("transformer-tiny"), task="train", seq_len=12, batch=3, seed=2)
    untrained = build(case.spec, seed=2)
    expected = untrained.loss(*training_batch(256, 3, 12, seed=2))

    assert float(prepare(build(case.spec, seed=2), case).call()) == float(expected.detach())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_the_weights(optimizer: str):
    case = Case.of(preset("transformer-tiny"), task="train", seq_len=12, optimizer=optimizer)
    model = build(case.spec)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    prepare(model, case).call()

    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


# Bytes of a parameter's states, in parameters: none, one momentum, two moments. Adam's also keep a step count, a
# float32 number a tensor.
@pytest.mark.parametrize(("optimizer", "states", "steps"), [("sgd", 0, 0), ("momentum", 1, 0), ("adamw", 2, 1)])
def test_training_holds_weights_states_and_batch_after_a_step(optimizer: str, states: int, steps: int):
    case = Case.of(preset("transformer-tiny"), task="train", seq_len=12, batch=3, optimizer=optimizer)
    model = build(case.spec)
    unit = prepare(model, case)
    unit.call()
    unit.release()
    params = sum(parameter.nbytes for parameter in model.parameters())
    count = len(list(model.parameters()))

    assert memory.held_bytes(unit.held()) == params * (1 + states) + 4 * count * steps + 2 * 3 * 12 * 8
    assert all(parameter.grad is None for parameter in model.parameters())


def test_prefill_holds_weights_and_tokens_and_decode_the_state_too():
    # transformer-tiny: 102,720 parameters of 4 bytes. Its cache: 2 layers x keys and values x batch 3 x 2 heads x
    # 13 tokens x 16 numbers x 4 bytes.
    weights = 102_720 * 4

    assert memory.held_bytes(prepared("transformer-tiny", "prefill").held()) == weights + 3 * 12 * 8
    decode = prepared("transformer-tiny", "decode")
    assert memory.held_bytes(decode.held()) == weights + 2 * 2 * 3 * 2 * 13 * 16 * 4 + 3 * 8


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_a_call_leaves_nothing_behind_but_what_release_frees(name: str, task: str):
    # All that a call allocates on the CPU is given back, gradients apart: so the next call starts where it did.
    unit = prepared(name, task)
    unit.call()
    unit.release()
    changes = memory.allocations(lambda: (unit.call(), unit.release())[1])

    assert sum(changes) == 0
    assert memory.highest_sum(changes) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_works_on_a_gpu(name: str, task: str):
    unit = prepared(name, task, device="cuda")
    unit.call()
    unit.release()
    held = memory.held_bytes(unit.held())
    peaks = memory.peaks(unit.call, unit.held(), torch.device("cuda"))

    assert torch.isfinite(unit.call()).all()
    assert peaks.requested_bytes > held
