# pyright: standard
"""What whole models cost the host that launches them: Python, autograd, the optimizer, and not their kernels alone.

Models of two depths, so narrow and short that the GPU waits for the host, are called from an idle GPU. What the deeper
one takes longer is its layers' time; the rest is that of a call.
"""

from collections.abc import Iterator
from itertools import product
from statistics import median, quantiles

import torch

from benchbench.case import Case
from benchbench.clock import timer_for
from benchbench.devices.calibration import HostCost
from benchbench.specs import ModelSpec, preset
from benchbench.tasks import built, prepare

TASKS = ("decode", "prefill", "train")
TOKENS, DTYPE = 64, "bfloat16"
DEPTHS = (2, 8)
WARM_UP, CALLS = 8, 20


def specs() -> Iterator[tuple[ModelSpec, str]]:
    """One a family and each of its paths that launches as many kernels whatever the length; of no suite's width."""
    mamba = preset("mamba-tiny", d_model=128, d_state=16)
    for spec in (
        preset("transformer-tiny", d_model=128, n_heads=2, n_kv_heads=2),
        preset("resnet-bk-tiny", d_model=128, top_k=1),
        mamba,
    ):
        yield spec, spec.cuda_path
    yield mamba, "triton"


def cases() -> Iterator[tuple[str, tuple[Case, Case]]]:
    """The name of an entry, `family/task/path`, and its case at both depths; `/checkpoint` with checkpointing."""
    for (spec, path), (task, checkpoint) in product(specs(), (*((task, False) for task in TASKS), ("train", True))):
        sizes = {"task": task, "seq_len": TOKENS, "dtype": DTYPE, "path": path, "checkpoint": checkpoint}
        two, more = (Case.of(spec.replace(n_layers=n), **sizes) for n in DEPTHS)
        yield f"{two.family}/{task}/{path}{'/checkpoint' if checkpoint else ''}", (two, more)


def host_cost(pair: tuple[Case, Case], device: torch.device) -> HostCost:
    """Calls of both depths take turns, so that a host that slows down meanwhile slows both."""
    calls = [prepare(built(case, device), case).call for case in pair]
    timer = timer_for(device)
    for call in calls * WARM_UP:
        timer(call)
    fewer_s, more_s = zip(*([timer(call).seconds for call in calls] for _ in range(CALLS)), strict=True)
    layers, shallow_s, deep_s = pair[0].spec.n_layers, median(fewer_s), median(more_s)
    layer_s = max(0.0, (deep_s - shallow_s) / (pair[1].spec.n_layers - layers))
    nine_of_ten_s = quantiles(more_s, n=10)[-1]
    return HostCost(layer_s, max(0.0, shallow_s - layers * layer_s), max(1.0, nine_of_ten_s / deep_s))
