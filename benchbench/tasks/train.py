# pyright: standard
"""Train: gradients cleared, loss, backward, optimizer step.

Shape suffixes: B batch, N tokens, V vocab_size.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from benchbench.case import Case
from benchbench.models import LanguageModel
from benchbench.synthetic import training_batch
from benchbench.tasks.prepared import Pairs, Prepared, device_of, positions, weights

LEARNING_RATE = 1e-4
"""Small, so that repeating a step on one batch stays finite; what a step costs does not depend on it."""

OPTIMIZERS = {
    "sgd": partial(SGD, lr=LEARNING_RATE),
    "momentum": partial(SGD, lr=LEARNING_RATE, momentum=0.9),
    "adam": partial(Adam, lr=LEARNING_RATE),
    "adamw": partial(AdamW, lr=LEARNING_RATE),
}


def prepare(model: LanguageModel, case: Case) -> Prepared:
    """A call is one step on a batch of B·N tokens and returns its loss; the weights move on from call to call."""
    assert case.optimizer is not None
    model.train()
    tokens_BN, targets_BN = training_batch(case.spec.vocab_size, case.batch, case.seq_len, case.seed, device_of(model))
    optimizer = OPTIMIZERS[case.optimizer](model.parameters())

    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(tokens_BN, targets_BN)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def held() -> Iterator[Tensor]:
        yield from weights(model)
        yield from states(optimizer)
        yield tokens_BN
        yield targets_BN

    return Prepared(call, tokens=tokens_BN.numel(), held=held, release=optimizer.zero_grad)


def states(optimizer: Optimizer) -> Iterator[Tensor]:
    """Every tensor that an optimizer keeps from step to step; none before the first."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def compare(timed: LanguageModel, reference: LanguageModel, case: Case) -> Pairs:
    """Logits, the loss beside the cross-entropy of the reference's logits, and the gradients of both."""
    tokens_BN, targets_BN = training_batch(case.spec.vocab_size, case.batch, case.seq_len, case.seed, device_of(timed))
    expected_BNV = reference(tokens_BN)
    with torch.no_grad():
        yield positions(timed(tokens_BN)), positions(expected_BNV.detach())
    expected_loss = F.cross_entropy(expected_BNV.float().flatten(0, 1), targets_BN.flatten())
    loss = timed.loss(tokens_BN, targets_BN)
    yield [loss.detach()], [expected_loss.detach()]
    loss.backward()
    expected_loss.backward()
    yield gradients(timed), gradients(reference)


def gradients(model: LanguageModel) -> Sequence[Tensor]:
    """Of each parameter, in order; zeros where nothing reached it."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
