"""One measured unit of work, ready to be called again and again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchbench.case import Case
from benchbench.models import LanguageModel, build

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Pairs = Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]
"""Groups of rows, found and expected: a row is one position's logits, one parameter's gradient, or a loss."""


@dataclass(frozen=True)
class Prepared:
    """`call` does the work once and returns logits or a loss; every call does the same."""

    call: Callable[[], Tensor]
    tokens: int
    """Tokens read or written by a call."""
    held: Callable[[], Iterator[Tensor]]
    """Every tensor alive before, during and after a call."""
    release: Callable[[], None] = lambda: None
    """Frees what a call leaves behind and the next would free first."""


def weights(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def built(case: Case, device: torch.device | str) -> LanguageModel:
    """The model of `case` on its path, from its seed."""
    return build(
        case.spec,
        path=case.path,
        device=device,
        dtype=DTYPES[case.dtype],
        seed=case.seed,
        checkpoint=case.checkpoint,
    )


def autocast(model: nn.Module, case: Case) -> AbstractContextManager[Any]:
    """Where the forward of `case` runs: under torch's autocast, if it asks for it."""
    if case.autocast is None:
        return nullcontext()
    return torch.autocast(device_of(model).type, dtype=DTYPES[case.autocast])


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def positions(logits_BNV: Tensor) -> Sequence[Tensor]:
    """The logits of each position as a row."""
    return logits_BNV.flatten(0, -2).unbind()
