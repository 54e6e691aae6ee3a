"""Fake tensors beside the CPU's allocator, block by block, and beside an H200."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from benchbench import followed
from benchbench.case import Case
from benchbench.counters.storages import Storages, follow, is_dense
from benchbench.errors import UnsupportedError
from benchbench.models import build
from benchbench.specs import preset
from benchbench.specs.mamba import MambaSpec
from benchbench.specs.transformer import TransformerSpec
from benchbench.tasks import prepare
from benchbench.tasks.prepared import DTYPES

LLAMA = preset("transformer-tiny")
GPT = LLAMA.replace(name="gpt-tiny", positions="learned", max_seq_len=99, norm="layer", activation="gelu", bias=True)
MAMBA, BK = preset("mamba-tiny"), preset("resnet-bk-tiny")
CASE = Case.of(LLAMA, task="prefill", seq_len=8)


def changes(events: Any) -> list[int]:
    return [sign * block.size for block, sign in events]


def measured(case: Case) -> list[int]:
    """What the CPU's allocator does for the tensors of a case's steady state."""
    model = build(case.spec, path=case.path, dtype=DTYPES[case.dtype], checkpoint=case.checkpoint)
    prepared = prepare(model, case)
    prepared.call()
    prepared.release()
    found = followed.follow(prepared.call, prepared.held(), torch.device("cpu"))
    prepared.release()
    return changes(followed.visible(found).events())


def highest(sizes: list[int]) -> int:
    most = now = 0
    for size in sizes:
        now += size
        most = max(most, now)
    return most


def met_in_place(x: Tensor, layer: nn.Module) -> Tensor:
    return x.exp() + x.sin() + x.cos()


def met_while_shared(x: Tensor, layer: nn.Module) -> Tensor:
    y = x.exp()
    return y + (y + y.sin()).cos()


def met_expanded(x: Tensor, layer: nn.Module) -> Tensor:
    return x.sum() + x.exp()


def rows_taken(x: Tensor, layer: nn.Module) -> Tensor:
    return x.index_select(0, torch.zeros(5, dtype=torch.int64)).exp()


def strided_rows(x: Tensor, layer: nn.Module) -> Tensor:
    return F.silu(layer(x.view(4, 2, 8).transpose(0, 1)))


@pytest.mark.parametrize("program", [met_in_place, met_while_shared, met_expanded, rows_taken, strided_rows])
def test_torch_adds_in_place_as_it_does_unwatched(program: Callable[[Tensor, nn.Module], Tensor]):
    def real() -> list[int]:
        x, layer = torch.zeros(8, 8, requires_grad=True), nn.Linear(8, 16)
        found = followed.follow(lambda: program(x, layer).sum().backward(), [], torch.device("cpu"))
        return changes(followed.visible(found).events())

    def fake() -> list[int]:
        x, layer = torch.zeros(8, 8, requires_grad=True), nn.Linear(8, 16)
        storages = Storages(nn.Sequential(layer), CASE, "cpu")
        storages.hold([x, *layer.parameters()], "params", "weight")
        with storages.paths, storages:
            program(x, layer).sum().backward()
        return changes(storages.timeline().events())

    expected = real()
    with FakeTensorMode():
        found = fake()

    assert found == expected
    assert len(found) > 4


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        *((spec, {"task": task}) for spec in (LLAMA, MAMBA) for task in ("prefill", "decode", "train")),
        *((LLAMA, {"task": task, "autocast": "bfloat16"}) for task in ("prefill", "decode", "train")),
        (LLAMA, {"task": "train", "path": "eager"}),
        (GPT, {"task": "train", "dtype": "bfloat16"}),
        (MAMBA, {"task": "core"}),
    ],
    ids=str,
)
def test_every_block_is_that_of_the_allocator(spec: Any, sizes: dict[str, Any]):
    case = Case.of(spec, seq_len=24, batch=2, **sizes)

    found, expected = changes(follow(case).events()), measured(case)

    assert sorted(found) == sorted(expected)
    assert highest(found) == highest(expected)


@pytest.mark.parametrize("change", [{"checkpoint": True}, {"accumulate": 2, "optimizer": "sgd"}], ids=str)
@pytest.mark.parametrize("spec", [LLAMA, MAMBA], ids=lambda spec: spec.name)
def test_every_way_of_training_has_the_allocators_peak(spec: Any, change: dict[str, Any]):
    case = Case.of(spec, task="train", seq_len=24, batch=2, **change)

    assert highest(changes(follow(case).events())) == highest(measured(case))


@pytest.mark.parametrize("task", ["prefill", "train"])
def test_routed_rows_are_split_evenly_which_leaves_the_peak(task: str):
    # Fake tokens have no experts to go to. What the experts make is put together in one tensor, whatever the split.
    case = Case.of(BK, task=task, seq_len=24, batch=2)

    assert highest(changes(follow(case).events())) == highest(measured(case))


def test_categories_sum_to_the_peak():
    found = follow(Case.of(LLAMA, task="train", seq_len=64, batch=2))
    sizes = dict.fromkeys(("params", "optimizer", "activations", "logits", "grads", "workspace", "state"), 0)
    for block, number in found.blocks(found.fullest):
        sizes[block.category] += number * block.size
    params = 4 * sum(p.numel() for p in build(LLAMA, device="meta").parameters())

    assert sum(sizes.values()) == found.peak()
    assert sizes["params"] == params
    # AdamW: two states and a step of 4 bytes for each of the 20 parameters: the embedding, a last norm, and for each of
    # two layers two norms, four projections of attention and three of the MLP.
    assert sizes["optimizer"] == 2 * params + 4 * 20
    # The fullest moment is the softmax's backward: log-probabilities and two gradients of 128 rows of 256 numbers.
    assert sizes["logits"] == 3 * 128 * 256 * 4
    assert sizes["state"] == sizes["grads"] == 0


def test_a_block_says_what_made_it():
    found = follow(Case.of(LLAMA, task="prefill", seq_len=64, batch=2))
    made = {(block.name, block.place) for block, _ in found.events()}

    assert ("mm", "backbone.layers.*.mlp.up_proj forward") in made
    # Keys and values of 2 heads of 16 numbers, for 2 sequences of 64 tokens, in each of 2 layers.
    states = {id(block): block.size for block, _ in found.events() if block.category == "state"}
    assert list(states.values()) == [2 * 64 * 2 * 16 * 4] * 4


def test_a_million_tokens_are_followed_without_a_loop():
    few, more, many = (follow(Case.of(MAMBA, task="train", seq_len=2**n)).peak() for n in (14, 15, 20))

    # Past a chunk and a piece of the loss, memory grows by the same bytes with every token.
    assert many == few + (more - few) * (2**20 - 2**14) // 2**14


def test_what_cannot_be_followed_says_why():
    with pytest.raises(UnsupportedError, match="graph"):
        follow(Case.of(LLAMA, task="decode", seq_len=8, path="graph"), "cuda")


@pytest.mark.parametrize(
    ("shape", "stride", "dense"),
    [((2, 3), (3, 1), True), ((2, 3), (1, 2), True), ((2, 3), (0, 0), False), ((2, 3), (4, 1), False), ((), (), True)],
)
def test_is_dense(shape: tuple[int, ...], stride: tuple[int, ...], dense: bool):
    assert is_dense(torch.zeros(16).as_strided(shape, stride)) is dense


# Peaks above what was held before the call, as the allocator of an H200 had them with torch 2.11: the output of
# tests/bench/dump_cuda_memory.py for these two models, with 2 sequences of 2048 tokens, or 1 where checkpointed.
TF = TransformerSpec(name="tf", d_model=256, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=640, vocab_size=4096)
SSM = MambaSpec(name="ssm", d_model=256, n_layers=4, vocab_size=4096)


@pytest.mark.parametrize(
    ("spec", "sizes", "expected"),
    [
        (TF, {"task": "train"}, 546_193_416),
        (TF, {"task": "train", "dtype": "bfloat16"}, 391_004_264),
        (TF, {"task": "train", "batch": 1, "checkpoint": True}, 147_333_128),
        (TF, {"task": "prefill"}, 94_912_512),
        (TF, {"task": "decode"}, 33_589_248),
        (SSM, {"task": "prefill"}, 121_307_136),
        (SSM, {"task": "prefill", "dtype": "bfloat16"}, 127_729_664),
        (SSM, {"task": "decode"}, 33_743_232),
        (SSM, {"task": "train"}, 548_798_472),
    ],
)
def test_a_gpus_memory_is_foreseen_without_one(spec: Any, sizes: dict[str, Any], expected: int):
    case = Case.of(spec, seq_len=2048, path=spec.paths[0], **{"batch": 2, **sizes})
    assert highest(changes(follow(case, "cuda").events())) == expected
