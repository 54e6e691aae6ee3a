# pyright: standard
"""Convolutions, scans, resolvents and routing, each as the module that models run.

Shape suffixes: B batch, N tokens, D channels, S states.
"""

from functools import partial
from itertools import product
from typing import Any

from torch import Tensor

from benchbench.microbench.supplies import Make, Points, Supplies, backward_of
from benchbench.models import resnet_bk
from benchbench.models.mamba import CausalConv1d
from benchbench.models.moe import MoE
from benchbench.models.scan_inputs import Inputs
from benchbench.models.selective_scan import SelectiveScan
from benchbench.specs import preset
from benchbench.specs.resnet_bk import ResNetBKSpec
from benchbench.tasks.prepared import DTYPES

D_STATE, D_CONV = 16, 4
HEAD, DUAL_STATE = 64, 128


def conv(path: str, s: Supplies, dtype: str, *, backward: bool) -> Points:
    """In Triton with its SiLU, which is an operation of its own on other paths."""
    for d, n in product((1280, 5120), s.grid((64, 1024, 8192, 65536), (64, 1024, 4096))):
        if not s.fits(2 * n * d):
            continue
        module = CausalConv1d(d, D_CONV, path).to(s.device, DTYPES[dtype])
        both = s.tensor(1, n, 2 * d, dtype=dtype, grad=backward)
        x = both.chunk(2, dim=-1)[0]
        call = module if path == "triton" else module.convolved
        if backward:
            yield (d, n), backward_of(call(x), [x, *module.parameters()])
        else:
            yield (d, n), Make(lambda _, call=call, x=x: call(x))


def conv_step(path: str, s: Supplies, dtype: str) -> Points:
    """One token beside the last ones."""
    for d, batch in product((1280, 5120), (1, 16, 128)):
        module = CausalConv1d(d, D_CONV, path).to(s.device, DTYPES[dtype])
        x, past = s.tensor(batch, 1, d, dtype=dtype), s.tensor(batch, d, D_CONV)
        call = module if path == "triton" else module.convolved
        yield (d, batch), Make(lambda _, call=call, x=x, past=past: call(x, past))


def scan_inputs(s: Supplies, batch: int, n: int, d: int, dtype: str, *, grad: bool) -> Inputs:
    def part(width: int) -> Tensor:
        return s.tensor(batch, n, width, dtype=dtype, grad=grad)

    rates = (-1.0 - s.tensor(d, D_STATE).abs()).detach().requires_grad_(grad)
    raw = (part(d).detach() - 4).requires_grad_(grad)
    return Inputs(part(d), raw, part(d), part(D_STATE), part(D_STATE), rates, s.tensor(d, dtype=dtype, grad=grad))


def scan(path: str, s: Supplies, dtype: str, *, backward: bool) -> Points:
    """16 states a channel. The loops in Python are timed at short lengths: they cost the same at every token."""
    loops = path in ("chunked", "eager")
    lengths = s.grid((64, 512) if loops else (128, 1024, 8192, 65536), (64, 512))
    batches = s.grid((1, 8), (1,))
    for batch, d, n in product(batches, s.grid((1280, 5120), (320, 1280)), lengths):
        if not s.fits(batch * n * d):
            continue
        module = SelectiveScan(path).to(s.device)
        inputs = scan_inputs(s, batch, n, d, dtype, grad=backward)
        if backward:
            y = module(inputs)[0]
            yield (batch, d, n), backward_of(y, list(inputs))
        else:
            yield (batch, d, n), Make(lambda _, m=module, inputs=inputs: m(inputs))


def scan_step(path: str, s: Supplies, dtype: str) -> Points:
    for d, batch in product((1280, 5120), (1, 16, 128)):
        inputs, state = scan_inputs(s, batch, 1, d, dtype, grad=False), s.tensor(batch, d, D_STATE)
        module = SelectiveScan(path).to(s.device)
        yield (d, batch), Make(lambda _, m=module, inputs=inputs, h=state: m(inputs, h))


def dual(path: str, s: Supplies, dtype: str, *, backward: bool) -> Points:
    """Mamba-2's layer at its own head size and states. The loop over tokens is timed at short lengths."""
    lengths = s.grid((64, 384) if path == "eager" else (64, 1500, 12_000, 100_000), (48, 192))
    for batch, heads, n in product(s.grid((1, 8), (1,)), s.grid((20, 80), (10, 20)), lengths):
        if s.fits(batch * n * heads * HEAD):
            module, inputs = dual_inputs(path, s, batch, heads, n, dtype, grad=backward)
            if backward:
                yield (batch, heads, n), backward_of(module(inputs)[0], list(inputs))
            else:
                yield (batch, heads, n), Make(lambda _, m=module, inputs=inputs: m(inputs))


def dual_step(path: str, s: Supplies, dtype: str) -> Points:
    for heads, batch in product((20, 80), (1, 16, 128)):
        module, inputs = dual_inputs(path, s, batch, heads, 1, dtype, grad=False)
        state = s.tensor(batch, heads, HEAD, DUAL_STATE)
        yield (heads, batch), Make(lambda _, m=module, inputs=inputs, h=state: m(inputs, h))


def dual_inputs(path: str, s: Supplies, batch: int, heads: int, n: int, dtype: str, *, grad: bool) -> tuple[Any, Any]:
    from benchbench.models import ssd

    def positive(*shape: int) -> Tensor:
        return (0.1 * s.tensor(*shape).abs() + 0.01).detach()

    x = s.tensor(batch, n, heads, HEAD, dtype=dtype, grad=grad)
    dt, rates = positive(batch, n, heads).requires_grad_(grad), (-positive(heads)).requires_grad_(grad)
    B, C = (s.tensor(batch, n, 1, DUAL_STATE, dtype=dtype, grad=grad) for _ in range(2))
    return ssd.SSD(path).to(s.device), ssd.Inputs(x, dt, B, C, rates, s.tensor(heads, grad=grad))


def fused_scan(s: Supplies, dtype: str, *, ragged: bool, backward: bool) -> Points:
    """The kernel of mamba-ssm, which takes its channels before its tokens.

    Where they are no whole chunks of it, a variant runs whose loads take longer, in bfloat16 by half.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    lengths = (100, 1000, 10_000, 100_000) if ragged else (128, 1024, 8192, 65536, 196_608)
    for batch, d, n in product((1, 8), (320, 1280, 5120), lengths):
        if not s.fits(batch * n * d):
            continue
        u, delta, z = (s.tensor(batch, d, n, dtype=dtype, grad=backward) for _ in range(3))
        B, C = (s.tensor(batch, D_STATE, n, dtype=dtype, grad=backward) for _ in range(2))
        A = (-1.0 - s.tensor(d, D_STATE).abs()).detach().requires_grad_(backward)
        skip, shift = s.tensor(d, grad=backward), s.tensor(d, grad=backward)
        args = (u, delta, A, B, C, skip)
        call = partial(selective_scan_fn, *args, z=z, delta_bias=shift, delta_softplus=True)
        if backward:
            yield (batch, d, n), backward_of(call(), [*args, z, shift])
        else:
            yield (batch, d, n), Make(lambda _, call=call: call())


def fused_conv(s: Supplies, dtype: str, *, backward: bool) -> Points:
    """The kernel of causal-conv1d with its SiLU."""
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportMissingImports]

    for batch, d, n in product((1, 8), (320, 1280, 5120), (64, 1024, 8192, 65536)):
        if not s.fits(batch * n * d):
            continue
        x = s.tensor(batch, d, n, dtype=dtype, grad=backward)
        w, b = s.tensor(d, D_CONV, dtype=dtype, grad=backward), s.tensor(d, dtype=dtype, grad=backward)
        call = partial(causal_conv1d_fn, x, w, b, activation="silu")
        yield (batch, d, n), backward_of(call(), [x, w, b]) if backward else Make(lambda _, call=call: call())


def fused_scan_step(s: Supplies, dtype: str) -> Points:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update  # pyright: ignore[reportMissingImports]

    for d, batch in product((1280, 5120), (1, 16, 128)):
        h, x, dt, z = s.tensor(batch, d, D_STATE), *(s.tensor(batch, d, dtype=dtype) for _ in range(3))
        A, skip, shift = -s.tensor(d, D_STATE).abs(), s.tensor(d), s.tensor(d)
        B, C = (s.tensor(batch, D_STATE, dtype=dtype) for _ in range(2))
        call = partial(selective_state_update, h, x, dt, A, B, C, skip, z=z, dt_bias=shift, dt_softplus=True)
        yield (d, batch), Make(lambda _, call=call: call())


def fused_conv_step(s: Supplies, dtype: str) -> Points:
    from causal_conv1d import causal_conv1d_update  # pyright: ignore[reportMissingImports]

    for d, batch in product((1280, 5120), (1, 16, 128)):
        x, past = s.tensor(batch, d, dtype=dtype), s.tensor(batch, d, D_CONV, dtype=dtype)
        w, b = s.tensor(d, D_CONV, dtype=dtype), s.tensor(d, dtype=dtype)
        call = partial(causal_conv1d_update, x, past, w, b, "silu")
        yield (d, batch), Make(lambda _, call=call: call())


def resolvent(form: Any, path: str, s: Supplies, dtype: str, *, backward: bool) -> Points:
    spec = preset("resnet-bk-tiny", form=form)
    assert isinstance(spec, ResNetBKSpec)
    sequential = path == "eager" or form == "bk-compat"
    lengths = s.grid(
        (48, 384) if sequential else (1, 48, 384, 6000, 100_000), (48, 384) if sequential else (1, 48, 384, 6000)
    )
    for batch, n in product((1, 8), lengths):
        v = s.tensor(batch, n, grad=backward)
        module = resnet_bk.resolvent(spec, path).to(s.device)
        if backward:
            yield (batch, n), backward_of(module(v), [v])
        else:
            yield (batch, n), Make(lambda _, m=module, v=v: m(v))


def routing(s: Supplies, dtype: str, *, backward: bool) -> Points:
    """A mixture of experts whose experts are next to nothing: 64 wide."""
    rows = s.grid((1, 2, 64, 1024, 16384, 262144), (1, 64, 1024, 8192))
    for experts, k, n in product(s.grid((4, 16), (4,)), (1, 2), rows):
        module = MoE(64, 64, experts, k, 0.0).to(s.device, DTYPES[dtype])
        x = s.tensor(1, n, 64, dtype=dtype, grad=backward)
        if backward:
            yield (experts, k, n), backward_of(module(x), [x, *module.parameters()])
        else:
            yield (experts, k, n), Make(lambda _, m=module, x=x: m(x))
