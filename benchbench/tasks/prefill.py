"""Prefill: a prompt read into a fresh state, and the logits of its last position.

Shape suffixes: B batch, N tokens, V vocab_size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchbench.case import Case
from benchbench.models import LanguageModel
from benchbench.synthetic import tokens
from benchbench.tasks.prepared import Pairs, Prepared, autocast, device_of, positions, weights


def prepare(model: LanguageModel, case: Case) -> Prepared:
    """A call makes the state, reads B·N tokens into it, and returns logits (B, V); all of it is timed."""
    model.eval()
    tokens_BN = tokens(case.spec.vocab_size, case.batch, case.seq_len, case.seed, device_of(model))

    @torch.inference_mode()
    def call() -> Tensor:
        with autocast(model, case):
            return model.prefill(tokens_BN, model.new_state(case.batch, case.seq_len))

    def held() -> Iterator[Tensor]:
        yield from weights(model)
        yield tokens_BN

    return Prepared(call, tokens=case.batch * case.seq_len, held=held)


@torch.inference_mode()
def compare(timed: LanguageModel, reference: LanguageModel, case: Case) -> Pairs:
    """Logits of every position, and those that prefill gives of the last."""
    tokens_BN = tokens(case.spec.vocab_size, case.batch, case.seq_len, case.seed, device_of(timed))
    with autocast(timed, case):
        expected_BNV, found_BNV = reference(tokens_BN), timed(tokens_BN)
        last_BV = timed.prefill(tokens_BN, timed.new_state(case.batch, case.seq_len))
    yield positions(found_BNV), positions(expected_BNV)
    yield last_BV.unbind(), expected_BNV[:, -1].unbind()
