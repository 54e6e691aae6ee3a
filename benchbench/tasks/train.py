# pyright: standard
"""Train: gradients cleared, loss, backward, optimizer step.

Shape suffixes: A passes, B batch, N tokens, V vocab_size.
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
from benchbench.tasks.prepared import Pairs, Prepared, autocast, device_of, positions, weights

LEARNING_RATE = 1e-4
"""Small, so that repeating a step on one batch stays finite; what a step costs does not depend on it."""

OPTIMIZERS = {
    "sgd": partial(SGD, lr=LEARNING_RATE),
    "momentum": partial(SGD, lr=LEARNING_RATE, momentum=0.9),
    "adam": partial(Adam, lr=LEARNING_RATE),
    "adamw": partial(AdamW, lr=LEARNING_RATE),
}


def prepare(model: LanguageModel, case: Case) -> Prepared:
    """A call is one step on A·B·N tokens and returns the last pass's loss; the weights move on from call to call."""
    assert case.optimizer is not None
    model.train()
    sequences = case.accumulate * case.batch
    tokens_BN, targets_BN = training_batch(case.spec.vocab_size, sequences, case.seq_len, case.seed, device_of(model))
    passes = list(zip(tokens_BN.split(case.batch), targets_BN.split(case.batch), strict=True))
    optimizer = OPTIMIZERS[case.optimizer](model.parameters())

    def call() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = backward_passes(model, case, passes)
        optimizer.step()
        return loss

    def held() -> Iterator[Tensor]:
        yield from weights(model)
        yield from states(optimizer)
        yield tokens_BN
        yield targets_BN

    return Prepared(call, tokens=tokens_BN.numel(), held=held, release=optimizer.zero_grad)


def backward_passes(model: LanguageModel, case: Case, passes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Forward and backward of each pass, whose gradients add up to those of the mean loss; returns the last loss."""
    loss = torch.empty(())
    for tokens_BN, targets_BN in passes:
        with autocast(model, case):
            loss = model.loss(tokens_BN, targets_BN)
        (loss if len(passes) == 1 else loss / len(passes)).backward()
    return loss.detach()


def states(optimizer: Optimizer) -> Iterator[Tensor]:
    """Every tensor that an optimizer keeps from step to step; none before the first."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def compare(timed: LanguageModel, reference: LanguageModel, case: Case) -> Pairs:
    """Logits, the loss beside the cross-entropy of the reference's logits, and the gradients of both."""
    tokens_BN, targets_BN = training_batch(case.spec.vocab_size, case.batch, case.seq_len, case.seed, device_of(timed))
    with autocast(timed, case):
        expected_BNV = reference(tokens_BN)
        expected_loss = F.cross_entropy(expected_BNV.float().flatten(0, 1), targets_BN.flatten())
        loss = timed.loss(tokens_BN, targets_BN)
    # Apart: autocast would keep weights cast here, without a gradient, for what comes after.
    with torch.no_grad(), autocast(timed, case):
        found_BNV = timed(tokens_BN)
    yield positions(found_BNV), positions(expected_BNV.detach())
    yield [loss.detach()], [expected_loss.detach()]
    loss.backward()
    expected_loss.backward()
    yield gradients(timed), gradients(reference)


def gradients(model: LanguageModel) -> Sequence[Tensor]:
    """Of each parameter, in order; zeros where nothing reached it."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
