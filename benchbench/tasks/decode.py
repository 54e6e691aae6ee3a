"""Decode: one token written behind a context.

Shape suffixes: B batch, N context, M context and what follows, V vocab_size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchbench.case import Case
from benchbench.models import LanguageModel
from benchbench.synthetic import tokens
from benchbench.tasks.prepared import Pairs, Prepared, autocast, device_of, positions, weights


def prepare(model: LanguageModel, case: Case) -> Prepared:
    """A call adds one token a sequence behind `seq_len` others and returns its logits (B, V).

    The state stands for the context without having read it, and each call begins at the same length.
    """
    model.eval()
    token_B = tokens(case.spec.vocab_size, case.batch, 1, case.seed, device_of(model))[:, 0]
    with torch.inference_mode():
        state = model.new_state(case.batch, case.seq_len + 1)
        state.fill_random(case.seq_len)

    @torch.inference_mode()
    def call() -> Tensor:
        state.length = case.seq_len
        with autocast(model, case):
            return model.decode(token_B, state)

    def held() -> Iterator[Tensor]:
        yield from weights(model)
        yield from state.tensors()
        yield token_B

    return Prepared(call, tokens=case.batch, held=held)


@torch.inference_mode()
def compare(timed: LanguageModel, reference: LanguageModel, case: Case) -> Pairs:
    """Logits decoded token by token behind half the context, and those of one forward over all of it."""
    tokens_BM = tokens(case.spec.vocab_size, case.batch, case.seq_len + 1, case.seed, device_of(timed))
    state = timed.new_state(case.batch, case.seq_len + 1)
    half = tokens_BM.shape[1] // 2
    with autocast(timed, case):
        expected_BMV = reference(tokens_BM)
        found = [timed.prefill(tokens_BM[:, :half], state)]
        found += [timed.decode(token_B, state) for token_B in tokens_BM[:, half:].unbind(1)]
    yield positions(torch.stack(found, dim=1)), positions(expected_BMV[:, half - 1 :])
