"""No output knows a later token: bit by bit, and by what a model that knew could do."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchbench.models import LanguageModel, build
from benchbench.specs import preset, presets

TINY = [name for name in presets() if name.endswith("-tiny")]
EVERY_PATH = [(name, path) for name in TINY for path in preset(name).paths]
LEAKING = preset("resnet-bk-tiny", form="bk-exact")

N_TOKENS = 150
VOCAB = 8


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from a second thread, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def outputs_before_and_after_a_change(model: LanguageModel, at: int) -> tuple[Tensor, Tensor]:
    """Logits of the same tokens, (N, V), before and after token `at` becomes another."""
    tokens = torch.randint(0, model.spec.vocab_size, (1, N_TOKENS), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, at] = (changed[0, at] + 1) % model.spec.vocab_size
    with torch.no_grad():
        return model(tokens)[0], model(changed)[0]


def gradient_by_position(model: LanguageModel, of: int) -> Tensor:
    """How much the outputs before `of` depend on each token's embedding, (N,)."""
    embedded = []
    model.backbone.embedding.register_forward_hook(lambda module, given, out: embedded.append(out))
    tokens = torch.randint(0, model.spec.vocab_size, (1, N_TOKENS), generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(model(tokens)[:, :of].logsumexp(-1).sum(), embedded)
    return gradient[0].abs().sum(-1)


@pytest.mark.parametrize("at", [1, 70, N_TOKENS - 1])
@pytest.mark.parametrize(("name", "path"), EVERY_PATH)
def test_a_token_changes_no_bit_before_it(name, path, at):
    before, after = outputs_before_and_after_a_change(build(preset(name), path=path), at)
    assert torch.equal(before[:at], after[:at])
    assert not torch.equal(before[at], after[at])


@pytest.mark.parametrize(("name", "path"), EVERY_PATH)
def test_no_gradient_flows_from_an_output_to_a_later_token(name, path):
    gradient_N = gradient_by_position(build(preset(name), path=path), of=70)
    assert not gradient_N[70:].any()
    assert gradient_N[:70].all()


def test_both_see_a_model_that_looks_ahead():
    model = build(LEAKING)
    before, after = outputs_before_and_after_a_change(model, at=70)
    assert not torch.equal(before[:70], after[:70])
    assert gradient_by_position(model, of=70)[70:].any()


def cross_entropy(model: LanguageModel, tokens_BN: Tensor) -> Tensor:
    """Next-token loss of each position in nats, past `LanguageModel.loss` and its refusal."""
    return F.cross_entropy(model(tokens_BN[:, :-1]).flatten(0, 1), tokens_BN[:, 1:].flatten(), reduction="none")


def excess_over_chance(model: LanguageModel, steps: int, lr: float) -> float:
    """Loss on fresh uniform tokens less ln V, in standard errors, after training on others of the same kind.

    Nothing in a uniform token's past tells it, so ln V is the least a causal model can reach.
    """
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        loss = cross_entropy(model, torch.randint(0, VOCAB, (16, 33), generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss_T = cross_entropy(model.eval(), torch.randint(0, VOCAB, (256, 33), generator=generator))
    return ((loss_T.mean() - math.log(VOCAB)) / (loss_T.std() / math.sqrt(len(loss_T)))).item()


@pytest.mark.parametrize("name", TINY)
def test_training_cannot_foresee_random_tokens(name):
    assert excess_over_chance(build(preset(name, vocab_size=VOCAB)), steps=150, lr=3e-3) > -3


def test_training_does_foresee_them_where_the_model_looks_ahead():
    assert excess_over_chance(build(LEAKING.replace(vocab_size=VOCAB)), steps=150, lr=3e-3) < -10
