# pyright: standard
"""Fake CUDA tensors on a machine without CUDA, where torch would refuse their backward.

torch's C++ asks a fake tensor for its device through the dispatch mode. It is told `cpu`, which needs no driver, while
Python code reads `cuda` off the tensor. What C++ then chooses by the device is chosen here, as on a GPU: the attention
kernel, the fused norm. Autocast and the optimizers, which look for a GPU, are told that there is one.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import _scoped_library
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

WITH_KERNELS = ("silu_backward", "_fused_rms_norm")
"""Operators that torch takes apart, except on devices that have a kernel for them, as CUDA has."""
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """While open, fake tensors on `cuda` do what they do on a GPU, also where there is none."""
    optimizer: Any = import_module("torch.optim.optimizer")  # `torch.optim` hides it
    with ExitStack() as stack:
        types = [*optimizer._foreach_supported_types, FakeTensor]
        stack.enter_context(patch.object(optimizer, "_foreach_supported_types", types))
        if not torch.cuda.is_available():
            stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
            stack.enter_context(patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
            library = stack.enter_context(_scoped_library("aten", "IMPL"))
            for name in WITH_KERNELS:
                library.impl(name, _never, "CUDA")
            stack.enter_context(_Deviceless())
            stack.enter_context(patch.object(FakeTensor, "is_cuda", property(_is_cuda), create=True))
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention))
            stack.enter_context(patch.object(F, "rms_norm", _norm))
        yield


def _never(*_: Any) -> None:
    raise AssertionError("a fake tensor runs no kernel")


class _Deviceless(TorchDispatchMode):
    """Tells C++ that every tensor is on the CPU, and puts what it then makes there on the GPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return CPU
        kwargs = kwargs or {}
        if kwargs.get("device") == CPU and torch._C._current_autograd_node() is not None:
            kwargs = {**kwargs, "device": CUDA}
        found = func(*args, **kwargs)
        if func is torch.ops.aten.convolution.default:
            return _laid_out_as(args[0], found)
        if func is torch.ops.aten.convolution_backward.default:
            return _laid_out_as(args[1], found[0]), *found[1:]
        return found


def _laid_out_as(x: Tensor, y: Tensor | None) -> Tensor | None:
    """A convolution answers with the channels innermost if they came so; a torch without cuDNN does not foresee it."""
    if y is None or y.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return y
    return torch.empty_like(y, memory_format=torch.channels_last)


def _is_cuda(tensor: FakeTensor) -> bool:
    return tensor.device.type == "cuda"


def _norm(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """The fused norm, which keeps one number a row."""
    return torch.ops.aten._fused_rms_norm(x, list(normalized_shape), weight, eps)[0]


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention in half precision, the memory-efficient kernel in float32."""
    assert attn_mask is None
    if q.dtype == torch.float32:
        saves = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, saves, dropout_p, is_causal)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]
