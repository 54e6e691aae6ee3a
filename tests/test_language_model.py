"""What models/base.py promises, held by every family."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchbench import case
from benchbench.errors import BenchError
from benchbench.models import IGNORE, LanguageModel, build
from benchbench.specs import preset, presets

TINY = [name for name in presets() if name.endswith("-tiny")]
EVERY_PATH = [(name, path) for name in TINY for path in preset(name).paths]

every_family = pytest.mark.parametrize("name", TINY)
every_path = pytest.mark.parametrize(("name", "path"), EVERY_PATH)


def random_tokens(model: LanguageModel, *shape: int) -> Tensor:
    return torch.randint(0, model.spec.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def gradients_of(loss: Tensor, model: LanguageModel) -> dict[str, Tensor]:
    """Copies: the model is used again."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_as_close_as_float32(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each gradient to 1e-5 of its largest element: sums of the same terms in another order."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (actual[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name


@every_path
def test_chunked_loss_is_the_full_loss(name, path, monkeypatch):
    model = build(preset(name), path=path)
    tokens, targets = random_tokens(model, 3, 21), random_tokens(model, 3, 22)[:, 1:].clone()
    targets[1, 4:9] = IGNORE
    logits = model(tokens)
    full = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    expected = gradients_of(full, model)

    # 63 rows, 20 x vocabulary elements: chunks of 16 rows (the power of two below 20), the last of 15.
    monkeypatch.setattr(case, "LOSS_CHUNK_ELEMENTS", 20 * model.spec.vocab_size)
    assert case.loss_chunk_rows(63, model.spec.vocab_size) == 16
    chunked = model.loss(tokens, targets)
    torch.testing.assert_close(chunked, full, rtol=1e-6, atol=0)
    assert_as_close_as_float32(gradients_of(chunked, model), expected)

    monkeypatch.undo()
    assert case.loss_chunk_rows(63, model.spec.vocab_size) == 63
    whole = model.loss(tokens, targets)
    torch.testing.assert_close(whole, full, rtol=1e-6, atol=0)
    assert_as_close_as_float32(gradients_of(whole, model), expected)


@every_family
def test_chunks_project_no_more_rows_than_they_may(name, monkeypatch):
    model = build(preset(name))
    monkeypatch.setattr(case, "LOSS_CHUNK_ELEMENTS", 8 * model.spec.vocab_size)
    rows = []
    model.lm_head.register_forward_hook(lambda head, given, out: rows.append(out.shape[0]))
    loss = model.loss(random_tokens(model, 2, 13), random_tokens(model, 2, 13))
    assert rows == [8, 8, 8, 2]
    loss.backward()
    assert sorted(rows[4:]) == [2, 8, 8, 8]  # each is projected again, and none is kept


@every_family
def test_ignored_targets_count_neither_above_nor_below(name):
    model = build(preset(name))
    tokens, targets = random_tokens(model, 1, 12), random_tokens(model, 1, 13)[:, 1:].clone()
    terms = F.cross_entropy(model(tokens)[0], targets[0], reduction="none")
    targets[0, [0, 5, 11]] = IGNORE
    kept = [1, 2, 3, 4, 6, 7, 8, 9, 10]
    torch.testing.assert_close(model.loss(tokens, targets), terms[kept].sum() / 9, rtol=1e-6, atol=0)


@every_family
def test_a_tied_head_is_the_embedding(name):
    tied = build(preset(name, tied_head=True), dtype=torch.bfloat16)
    assert tied.lm_head.weight is tied.backbone.embedding.weight
    free = build(preset(name, tied_head=False), dtype=torch.bfloat16)
    assert free.lm_head.weight is not free.backbone.embedding.weight
    n_tied, n_free = (sum(parameter.numel() for parameter in model.parameters()) for model in (tied, free))
    assert n_free - n_tied == free.lm_head.weight.numel()


@every_family
def test_a_head_bias_is_one_number_a_word(name):
    bare, biased = (build(preset(name, head_bias=bias), device="meta") for bias in (False, True))
    extra = {key: value.shape for key, value in biased.state_dict().items() if key not in bare.state_dict()}
    assert extra == {"lm_head.bias": (biased.spec.vocab_size,)}


@every_path
def test_the_seed_decides_the_weights(name, path):
    spec = preset(name)
    first, again, other = (build(spec, path=path, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_family
def test_paths_have_the_same_weights(name):
    first, *others = (build(preset(name), path=path).state_dict() for path in preset(name).paths)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[key], other[key]) for key in first)


@every_family
def test_paths_agree_in_loss_and_gradients(name):
    losses, gradients = [], []
    for path in preset(name).paths:
        model = build(preset(name), path=path)
        tokens = random_tokens(model, 2, 40)
        losses.append(model.loss(tokens[:, :-1], tokens[:, 1:]))
        gradients.append(gradients_of(losses[-1], model))
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=0)
        assert gradient.keys() == gradients[0].keys()
        for key, tensor in gradients[0].items():
            assert (gradient[key] - tensor).abs().max() <= 1e-3 * tensor.abs().max(), key


@every_path
@torch.no_grad()
def test_prefill_and_decode_are_the_forward_of_all_tokens(name, path):
    model = build(preset(name), path=path)
    tokens = random_tokens(model, 2, 12)
    expected = model(tokens)
    state = model.new_state(batch=2, capacity=12)
    assert state.length == 0
    held = state.nbytes
    steps = [model.prefill(tokens[:, :9], state)]
    assert state.length == 9
    steps += [model.decode(tokens[:, i], state) for i in range(9, 12)]
    assert state.length == 12
    assert state.nbytes == held
    torch.testing.assert_close(torch.stack(steps, dim=1), expected[:, 8:], rtol=1e-4, atol=1e-5)


@every_path
@torch.no_grad()
def test_a_random_state_stands_for_a_prefix(name, path):
    model = build(preset(name), path=path, dtype=torch.bfloat16)
    state = model.new_state(batch=2, capacity=8)
    state.fill_random(5)
    assert state.length == 5
    assert all(tensor.any() for tensor in state.tensors())
    logits = model.decode(random_tokens(model, 2), state)
    assert logits.shape == (2, model.spec.vocab_size)
    assert logits.isfinite().all()
    assert state.length == 6


@every_family
def test_an_unknown_path_names_the_nearest(name):
    path = preset(name).paths[0]
    with pytest.raises(BenchError, match=f"Did you mean '{path}'"):
        build(preset(name), path=f"{path}x")


def test_a_two_sided_model_refuses_next_token_loss():
    model = build(preset("resnet-bk-tiny", form="bk-exact"))
    tokens = random_tokens(model, 1, 8)
    with pytest.raises(ValueError, match="sees later tokens: next-token loss would be meaningless"):
        model.loss(tokens, tokens)
