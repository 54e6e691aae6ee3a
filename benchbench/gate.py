# pyright: standard
"""The correctness gate: the path that will be timed against the family's reference path, on the same weights.

The error is the norm of a row's difference over the norm of the row, largest over all rows; a row is one position's
logits, one parameter's gradient, or the loss. First everything is compared in float32, which shows that the path
computes the right thing at every position; then, where the case is in half precision, again in its own dtype, which
may run other kernels. There the worst tenth of each group is left out: a router, where there is one, can send a
token whose two best experts are nearly level to either, and such a row differs altogether.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from benchbench.case import Case
from benchbench.tasks import built, graph, task_module

REFERENCE = "eager"

TOKENS = 77
"""Enough for several chunks of every chunked path and, being a multiple of none, for a ragged last one."""

LAYERS = 2
BATCH = 2

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
"""Between right paths two layers were seen to differ by up to 2e-6 in float32, 2e-2 in bfloat16 and 9e-3 in float16,
whose small gradients underflow. A path whose attention is off by a percent differs by 5e-4 or more in float32."""

SPARED = {"float32": 0.0, "bfloat16": 0.1, "float16": 0.1}
"""The share of rows that may differ more."""

FLOOR = 1e-3
"""A row smaller than this share of its whole group is measured against that: keys' biases, for one, have a gradient
of exactly zero, and what is found is rounding."""


@dataclass(frozen=True)
class Verdict:
    """How far the timed path is from the reference, in the dtype that was compared last."""

    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def gate(case: Case, device: torch.device) -> Verdict:
    """Compares the paths on a small case that stands for `case`: at most 77 tokens, 2 sequences, 2 of the layers."""
    return _gate(standing_for(case), str(device))


def standing_for(case: Case) -> Case:
    """The case that a verdict is of: no update is compared, nor are passes added up."""
    return case.replace(
        spec=case.spec.replace(n_layers=min(case.spec.n_layers, LAYERS)),
        seq_len=min(case.seq_len, TOKENS),
        batch=min(case.batch, BATCH),
        optimizer=case.optimizer and "sgd",
        accumulate=1,
        seed=0,
    )


@lru_cache(maxsize=64)
def _gate(case: Case, device: str) -> Verdict:
    full = case.replace(dtype="float32", autocast=None)
    verdict = compare(full, device)
    if case == full or not verdict.passed:
        return verdict
    return compare(case, device)


def compare(case: Case, device: str) -> Verdict:
    """The error of `case.path`, both models in evaluation mode, so that dropout does not tell them apart."""
    timed = built(case, device).eval()
    reference = built(case.replace(path=REFERENCE, checkpoint=False), device).eval()
    reference.load_state_dict(timed.state_dict())
    groups = task_module(case).compare(timed, reference, case)
    if case.path == "graph":
        groups = chain(groups, graph.compare(timed, case, task_module(case).prepare))
    dtype = case.autocast or case.dtype
    return Verdict(max(difference(found, expected, SPARED[dtype]) for found, expected in groups), TOLERANCE[dtype])


def difference(found: Sequence[Tensor], expected: Sequence[Tensor], spared: float = 0.0) -> float:
    """The largest relative difference of a row, but for the share `spared` of the worst; infinite if not a number."""
    off = torch.stack([_norm(f.double() - e.double()) for f, e in zip(found, expected, strict=True)])
    size = torch.stack([_norm(e.double()) for e in expected])
    smallest = FLOOR * _norm(size)
    ratios = torch.where(off == 0, 0, off / size.clamp(min=smallest)).nan_to_num(torch.inf, torch.inf)
    kept = ratios.sort().values[: len(ratios) - int(spared * len(ratios))]
    return float(kept[-1])


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x)
