"""Prefill: a prompt read into a fresh state, and the logits of its last position.

Shape suffixes: B batch, N tokens, V vocab_size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchbench.case import Case
from benchbench.models import LanguageModel
from benchbench.synthetic import tokens
from benchbench.tasks.prepared import Pairs, Prepared, device_of, positions, weights


def prepare(model: LanguageModel, case: Case) -> Prepared:
    """A call makes the state, reads B·N tokens into it, and returns logits (B, V); all of it is timed."""
    model.eval()
    tokens_BN = tokens(case.spec.vocab_size, case.batch, case.seq_len, case.seed, device_of(model))

    @torch.inference_mode()
    def call() -> Tensor:
        return model.prefill(tokens_BN, model.new_state(case.batch, case.seq_len))

    def held() -> Iterator[Tensor]:
        yield from weights(model)
        yield tokens_BN

    return Prepared(call, tokens=case.batch * case.seq_len, held=held)


@torch.inference_mode()
def compare(timed: LanguageModel, reference: LanguageModel, case: Case) -> Pairs:
    """Logits of every position, and those that prefill gives of the last."""
    tokens_BN = tokens(case.spec.vocab_size, case.batch, case.seq_len, case.seed, device_of(timed))
    expected_BNV = reference(tokens_BN)
    yield positions(timed(tokens_BN)), positions(expected_BNV)
    last_BV = timed.prefill(tokens_BN, timed.new_state(case.batch, case.seq_len))
    yield last_BV.unbind(), expected_BNV[:, -1].unbind()
