"""Modules of Triton kernels, imported where they are launched: what has none can do without Triton."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchbench.errors import UnsupportedError
from benchbench.extras import refusal
from benchbench.models.base import has_numbers

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def require_narrow(tensor: Tensor) -> None:
    """Raises `UnsupportedError` where a tensor is wider than the float32 that kernels compute in."""
    if tensor.dtype not in DTYPES:
        hint = "Take the path 'chunked', which computes in it."
        raise UnsupportedError(f"the path 'triton' computes in float32, not in {tensor.dtype}", hint)


def as_rows(tensor: Tensor) -> Tensor:
    """With the last dimension contiguous; the others may be strided."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class Unlaunched:
    """In the place of a module: each of its kernels, on any grid and of any arguments, does nothing."""

    def __getattr__(self, name: str) -> "Unlaunched":
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> "Unlaunched":
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        pass


def loaded(tensor: Tensor, *names: str) -> tuple[Any, ...]:
    """The modules called `names`, whose kernels can run on the tensor's device, or do nothing if it has no numbers.

    Raises:
        UnsupportedError: Triton is not installed, or compiles and the device is no GPU.
    """
    if not has_numbers(tensor):
        return tuple(Unlaunched() for _ in names)
    try:
        found = tuple(import_module(f"benchbench.models.{name}") for name in names)
    except ModuleNotFoundError as error:
        raise refusal("triton", error) from None
    if found[0].COMPILED and not tensor.is_cuda:
        raise UnsupportedError(
            f"the path 'triton' needs an NVIDIA GPU, not the device '{tensor.device.type}'",
            "Take the path 'chunked', which computes the same.",
        )
    return found
