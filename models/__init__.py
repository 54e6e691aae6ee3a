"""Torch modules of every family. A family's file is found by its name: `resnet-bk` lives in resnet_bk.py."""

from importlib import import_module

import torch

from benchbench.errors import unknown
from benchbench.models.base import IGNORE, LanguageModel, State
from benchbench.specs import ModelSpec


def build(
    spec: ModelSpec,
    *,
    path: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LanguageModel:
    """The module of `spec`, initialised from `seed`, running `path` (the family's default if None).

    Raises:
        BenchError: The family has no such path.
    """
    path = path or spec.paths[0]
    if path not in spec.paths:
        raise unknown(f"{spec.family} path", path, spec.paths)
    module = import_module(f"{__name__}.{spec.family.replace('-', '_')}")
    torch.manual_seed(seed)
    with torch.device(device):
        model: LanguageModel = module.build(spec, path)
    return model.to(dtype)


__all__ = ["IGNORE", "LanguageModel", "State", "build"]
