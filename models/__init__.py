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
    checkpoint: bool = False,
) -> LanguageModel:
    """The module of `spec`, initialised from `seed`, running `path` (the family's default if None).

    With `checkpoint`, training keeps the inputs of the layers alone and runs them again in backward. Where `spec` means
    the token mixer alone, it is the family's `core` instead, of `benchbench.models.core`.

    Raises:
        BenchError: The family has no such path.
    """
    path = path or spec.paths[0]
    if path not in spec.every_path():
        raise unknown(f"{spec.family} path", path, spec.every_path())
    module = import_module(f"{__name__}.{spec.family.replace('-', '_')}")
    torch.manual_seed(seed)
    implementation = spec.cuda_path if path == "graph" else path
    with torch.device(device):
        if spec.mixer_alone:
            return module.core(spec, implementation).to(dtype)
        model: LanguageModel = module.build(spec, implementation)
    model.backbone.checkpoint = checkpoint
    return _settled(model.to(dtype))


def _settled(model: LanguageModel) -> LanguageModel:
    """On a GPU, the weights moved out and in again: they lie as those of a loaded checkpoint do.

    Converted in place, they would lie in the holes that their float32 originals left, in segments twice as large as
    they are, which the allocator could not give back.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        model.cpu()
        torch.cuda.empty_cache()
        model.to(device)
    return model


__all__ = ["IGNORE", "LanguageModel", "State", "build"]
