# pyright: standard
"""The curves of a calibration, most telling first: where the time is over, those at the end are missing.

No size of a grid is one that a suite's case has.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchbench.microbench import pointwise, products, recurrent
from benchbench.microbench.supplies import VOCABULARY, Points, Spec

HALF, WIDE = ("bfloat16",), ("float32",)
ROWS, ELEMENTS, GRID = ("rows", "d"), ("n",), ("rows", "d_in", "d_out")
CONV = ("channels", "n")
CACHES = ("caches", "d_head", "n")
HEADS, SCAN, STEP = ("heads", "d_head", "n"), ("batch", "channels", "n"), ("channels", "batch")
DUAL = ("batch", "heads", "n")
GRAD = "torch.autograd.grad of it, again and again"


def both_ways(
    name: str, axes: tuple[str, ...], how: str, points: Callable[..., Points], **dtypes: Any
) -> tuple[Spec, Spec]:
    return (
        Spec(name, axes, how, partial(points, backward=False), **dtypes),
        Spec(f"{name}_backward", axes, GRAD, partial(points, backward=True), **dtypes),
    )


def mapped(name: str, function: Callable[[Tensor], Tensor]) -> tuple[Spec, Spec]:
    return (
        Spec(name, ELEMENTS, f"{name} of n elements", partial(pointwise.unary, function)),
        Spec(f"{name}_backward", ELEMENTS, GRAD, partial(pointwise.unary_backward, function)),
    )


def resolvents(form: str, path: str, **dtypes: Any) -> tuple[Spec, Spec]:
    """`bk-compat` has one implementation, whatever the path."""
    name = ":".join(filter(None, ("resolvent", form, path)))
    points = partial(recurrent.resolvent, form, path or "chunked")
    return both_ways(name, ("batch", "n"), "the module, in float32", points, cuda=WIDE, **dtypes)


def fused_scans(name: str, how: str, *, ragged: bool) -> tuple[Spec, Spec]:
    return both_ways(name, SCAN, how, partial(recurrent.fused_scan, ragged=ragged), cpu=())


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


PLAN: tuple[Spec, ...] = (
    Spec("copy", ELEMENTS, "Tensor.copy_ of n elements", pointwise.copy),
    Spec("linear", GRID, "F.linear without bias; weights take turns", products.linear),
    Spec("weight_gradient", GRID, "torch.mm of dy transposed and x", products.weight_gradient),
    *both_ways("flash", HEADS, "causal scaled_dot_product_attention, batch and heads as heads", products.flash),
    Spec("flash_step", CACHES, "scaled_dot_product_attention of one query; caches take turns", products.flash_step),
    *both_ways("rotary", ELEMENTS, "the module, on heads 64 wide", products.rotary),
    Spec("add", ELEMENTS, "x + y of n elements", partial(pointwise.binary, torch.add)),
    Spec("multiply", ELEMENTS, "x * y of n elements", partial(pointwise.binary, torch.mul)),
    Spec("multiply_backward", ELEMENTS, GRAD, pointwise.multiply_backward),
    *both_ways("rms_norm", ROWS, "F.rms_norm", partial(pointwise.normed, pointwise.rms)),
    *both_ways("layer_norm", ROWS, "F.layer_norm", partial(pointwise.normed, pointwise.layer)),
    *mapped("silu", F.silu),
    *mapped("gelu_tanh", gelu),
    *mapped("softplus", F.softplus),
    *mapped("relu", F.relu),
    *mapped("dropout", partial(F.dropout, p=0.1)),
    Spec("fill", ELEMENTS, "torch.zeros_like of n elements", partial(pointwise.unary, torch.zeros_like)),
    Spec("widen", ELEMENTS, "n elements to float32", partial(pointwise.unary, Tensor.float), cuda=HALF, cpu=()),
    Spec("narrow", ELEMENTS, "n elements from float32", partial(pointwise.unary, Tensor.bfloat16), cuda=WIDE, cpu=()),
    Spec("row_sum", ROWS, "rows summed", pointwise.row_sum),
    Spec("embedding", ROWS, f"F.embedding in {VOCABULARY} entries", pointwise.look_up),
    Spec("embedding_backward", ("entries", *ROWS), GRAD, pointwise.look_up_backward),
    *both_ways("cross_entropy", ("vocab_size", "rows"), "F.cross_entropy of float32 copies", pointwise.cross_entropy),
    Spec(
        "adamw",
        ("tensors", "params"),
        "step of torch.optim.AdamW, as tasks make it",
        partial(products.optimizer, "adamw"),
    ),
    *both_ways("routing", ("n_experts", "top_k", "rows"), "a mixture of experts 64 wide", recurrent.routing),
    *both_ways("grouped_linear", ("n_experts", *GRID), "a linear map an expert, rows split evenly", products.grouped),
    *resolvents("bk-causal", "chunked"),
    *resolvents("bk-causal", "triton", cpu=()),
    *both_ways("conv", CONV, "the depthwise causal convolution, 4 taps", partial(recurrent.conv, "chunked")),
    Spec("conv_step", STEP, "one token of the convolution", partial(recurrent.conv_step, "chunked")),
    *fused_scans("fused_scan", "selective_scan_fn of mamba-ssm, 16 states", ragged=False),
    *fused_scans("fused_scan:ragged", "the same, where the tokens are no whole chunks", ragged=True),
    *both_ways("fused_conv", SCAN, "causal_conv1d_fn with SiLU, 4 taps", recurrent.fused_conv, cpu=()),
    *both_ways("add_norm", ROWS, "layer_norm_fn of mamba-ssm with a float32 residual", pointwise.add_norm, cpu=()),
    Spec("fused_scan_step", STEP, "selective_state_update of mamba-ssm, 16 states", recurrent.fused_scan_step, cpu=()),
    Spec("fused_conv_step", STEP, "causal_conv1d_update with SiLU, 4 taps", recurrent.fused_conv_step, cpu=()),
    *both_ways("scan:chunked", SCAN, "the module, 16 states", partial(recurrent.scan, "chunked")),
    Spec("scan_step:chunked", STEP, "one token, 16 states", partial(recurrent.scan_step, "chunked")),
    *both_ways("ssd:chunked", DUAL, "the module, heads of 64, 128 states", partial(recurrent.dual, "chunked")),
    Spec("ssd_step:chunked", ("heads", "batch"), "one token", partial(recurrent.dual_step, "chunked")),
    *resolvents("bk-exact", "triton", cpu=()),
    *resolvents("bk-exact", "chunked"),
    *resolvents("bk-compat", ""),
    *(
        Spec(name, ("tensors", "params"), f"step of torch.optim, {name}", partial(products.optimizer, name))
        for name in ("adam", "sgd", "momentum")
    ),
    Spec("conv_step:triton", STEP, "one token, 4 taps", partial(recurrent.conv_step, "triton"), cpu=()),
    Spec("scan_step:triton", STEP, "one token, 16 states", partial(recurrent.scan_step, "triton"), cpu=()),
    *both_ways("conv:triton", CONV, "the module with its SiLU, 4 taps", partial(recurrent.conv, "triton"), cpu=()),
    # The compiler takes some seconds for each width.
    *both_ways("scan:triton", SCAN, "the module, 16 states", partial(recurrent.scan, "triton"), cpu=()),
    *both_ways("scan:eager", SCAN, "the module, 16 states", partial(recurrent.scan, "eager")),
    *resolvents("bk-causal", "eager"),
    *resolvents("bk-exact", "eager"),
    Spec("scan_step:eager", STEP, "one token, 16 states", partial(recurrent.scan_step, "eager")),
    *both_ways("ssd:eager", DUAL, "the module, heads of 64", partial(recurrent.dual, "eager"), cuda=WIDE),
    Spec("ssd_step:eager", ("heads", "batch"), "one token", partial(recurrent.dual_step, "eager"), cuda=WIDE),
)
