# pyright: standard
"""Core: the token mixer of one layer alone, as the scan figure of Mamba's paper times it (2312.00752, appendix E.5).

Attention of queries, keys and values that are already projected; the selective scan with its softplus, skip and gate;
Mamba-2's dual form; the resolvent. No projection and no convolution; no state is kept, and no gradient.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchbench.case import Case
from benchbench.models import LanguageModel
from benchbench.models.core import Core
from benchbench.tasks.prepared import Pairs, Prepared, positions, weights


def prepare(model: LanguageModel | Core, case: Case) -> Prepared:
    """A call mixes B·N tokens, whose random inputs are drawn here, and returns what the mixer gives of them."""
    core, given = _drawn(model, case)

    @torch.inference_mode()
    def call() -> Tensor:
        return core(*given)

    def held() -> Iterator[Tensor]:
        yield from weights(core)
        yield from given

    return Prepared(call, tokens=case.batch * case.seq_len, held=held)


@torch.inference_mode()
def compare(timed: LanguageModel | Core, reference: LanguageModel | Core, case: Case) -> Pairs:
    """What both give of inputs from one seed: a row for each token, and of what has heads, for each head of it."""
    found, expected = (core(*given) for core, given in (_drawn(timed, case), _drawn(reference, case)))
    yield positions(found), positions(expected)


def _drawn(model: LanguageModel | Core, case: Case) -> tuple[Core, tuple[Tensor, ...]]:
    assert isinstance(model, Core)
    torch.manual_seed(case.seed)
    return model.eval(), model.inputs(case.batch, case.seq_len)
