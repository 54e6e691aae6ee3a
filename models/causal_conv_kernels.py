"""The causal depthwise convolution of Mamba with its SiLU, in Triton.

    s_t = b + sum over k of w_k x_{t-K+1+k},  u_t = silu(s_t)

A program walks TOKENS tokens of BLOCK channels with the last K of x in registers. Channels lie across lanes, so that a
token's row is one coalesced load; the next UNROLL rows are loaded before the present ones are used. Backward keeps
nothing but x: it finds s again and walks on for K - 1 tokens more than are its own, whose g = dL/ds it needs.

Arrays: x (B, L, D), channels contiguous; du, u, dx (B, L, D), contiguous; w (D, K); b (D); the past (B, D, K), float32,
whose last column is the token before the first. Everything is computed in float32.
"""

# The compiler reads this language, not Python's types: tuples grow, plain numbers are constants.
# pyright: basic, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportMissingImports=false, reportArgumentType=false
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

from benchbench.models.selective_scan_kernels import COMPILED as COMPILED
from benchbench.models.selective_scan_kernels import inside, rows, sigmoid


@triton.jit
def before(x_ptr, past_ptr, first, channel, x_token, D: tl.constexpr, K: tl.constexpr, PAST: tl.constexpr):
    """x of the K tokens before token `first`, at which `x_ptr` points; before token 0 they are the past's, or zero."""
    found = ()
    for k in tl.static_range(K):
        there = inside(channel, D, K - 1 - k, first)
        x = tl.load(x_ptr - (K - k) * x_token, mask=there, other=0.0).to(tl.float32)
        if PAST:
            x += tl.load(past_ptr + channel * K + first + k, mask=inside(channel, D, first, K - k), other=0.0)
        found = found + (x,)
    return found


@triton.jit
def taps(w_ptr, channel, D: tl.constexpr, K: tl.constexpr):
    found = ()
    for k in tl.static_range(K):
        found = found + (tl.load(w_ptr + channel * K + k, mask=channel < D, other=0.0).to(tl.float32),)
    return found


@triton.jit
def moved(window, x, K: tl.constexpr):
    """The last K of a window and x."""
    found = ()
    for k in tl.static_range(1, K):
        found = found + (window[k],)
    return found + (x,)


@triton.jit
def summed(window, w, b, K: tl.constexpr):
    s = b
    for k in tl.static_range(K):
        s += w[k] * window[k]
    return s


@triton.jit
def causal_conv(
    x_ptr,
    past_ptr,
    w_ptr,
    b_ptr,
    u_ptr,
    length,
    x_batch,
    x_token,
    D: tl.constexpr,
    K: tl.constexpr,
    PAST: tl.constexpr,
    MASKED: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """u = silu(s)."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, batch = tl.program_id(1).to(tl.int64) * TOKENS, tl.program_id(2).to(tl.int64)
    left = length - tl.program_id(1) * TOKENS
    x_ptr += batch * x_batch + first * x_token + channel
    u_ptr += (batch * length + first) * D + channel
    w = taps(w_ptr, channel, D, K)
    b = tl.load(b_ptr + channel, mask=channel < D, other=0.0).to(tl.float32)
    window = before(x_ptr, past_ptr + batch * (D * K), first, channel, x_token, D, K, PAST)
    xs = rows(x_ptr, x_token, 0, left, channel, D, 0.0, MASKED, UNROLL)
    for t in range(0, TOKENS, UNROLL):
        xs_now, later = xs, tl.minimum(t + UNROLL, TOKENS - UNROLL)
        xs = rows(x_ptr, x_token, later, left, channel, D, 0.0, MASKED, UNROLL)
        for j in tl.static_range(UNROLL):
            window = moved(window, xs_now[j].to(tl.float32), K)
            s = summed(window, w, b, K)
            u = (s * sigmoid(s)).to(u_ptr.dtype.element_ty)
            tl.store(u_ptr + (t + j) * D, u, mask=inside(channel, D, t + j, left))


@triton.jit
def causal_conv_backward(
    x_ptr,
    past_ptr,
    w_ptr,
    b_ptr,
    du_ptr,
    dx_ptr,
    dw_ptr,
    db_ptr,
    length,
    x_batch,
    x_token,
    D: tl.constexpr,
    K: tl.constexpr,
    PAST: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """g = du silu'(s); dx_t = sum over k of w_k g_{t+K-1-k}; of dw_k = sum over t of g_t x_{t-K+1+k} and of db = sum
    over t of g_t, each program's shares, (B, programs, D, K) and (B, programs, D).
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, batch = tl.program_id(1).to(tl.int64) * TOKENS, tl.program_id(2).to(tl.int64)
    left = length - tl.program_id(1) * TOKENS
    own = tl.minimum(left, TOKENS)
    x_ptr += batch * x_batch + first * x_token + channel
    du_ptr += (batch * length + first) * D + channel
    dx_ptr += (batch * length + first) * D + channel
    w = taps(w_ptr, channel, D, K)
    b = tl.load(b_ptr + channel, mask=channel < D, other=0.0).to(tl.float32)
    window = before(x_ptr, past_ptr + batch * (D * K), first, channel, x_token, D, K, PAST)
    db, gs, dw = tl.zeros_like(b), (), ()
    for _ in tl.static_range(K):
        gs, dw = gs + (tl.zeros_like(b),), dw + (tl.zeros_like(b),)
    STEPS: tl.constexpr = (TOKENS + K - 1 + UNROLL - 1) // UNROLL * UNROLL
    xs = rows(x_ptr, x_token, 0, left, channel, D, 0.0, True, UNROLL)
    dus = rows(du_ptr, D, 0, left, channel, D, 0.0, True, UNROLL)
    for t in range(0, STEPS, UNROLL):
        xs_now, dus_now, later = xs, dus, tl.minimum(t + UNROLL, STEPS - UNROLL)
        xs = rows(x_ptr, x_token, later, left, channel, D, 0.0, True, UNROLL)
        dus = rows(du_ptr, D, later, left, channel, D, 0.0, True, UNROLL)
        for j in tl.static_range(UNROLL):
            window = moved(window, xs_now[j].to(tl.float32), K)
            s = summed(window, w, b, K)
            share = sigmoid(s)
            g = dus_now[j].to(tl.float32) * share * (1.0 + s * (1.0 - share))
            gs = moved(gs, g, K)
            mine = tl.where(t + j < TOKENS, g, 0.0)
            db += mine
            sums, dx = (), tl.zeros_like(b)
            for k in tl.static_range(K):
                sums = sums + (dw[k] + mine * window[k],)
                dx += w[k] * gs[K - 1 - k]
            dw = sums
            back = t + j - (K - 1)
            keep = inside(channel, tl.where(back >= 0, D, 0), back, own)
            tl.store(dx_ptr + back * D, dx.to(dx_ptr.dtype.element_ty), mask=keep)
    share = (batch * tl.num_programs(1) + tl.program_id(1)) * D + channel
    tl.store(db_ptr + share, db, mask=channel < D)
    for k in tl.static_range(K):
        tl.store(dw_ptr + share * K + k, dw[k], mask=channel < D)


@triton.jit
def causal_conv_token(
    x_ptr, past_ptr, w_ptr, b_ptr, out_ptr, x_batch, D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """silu(s) of one token of each sequence; the past moves on by it in place."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch, here = tl.program_id(1).to(tl.int64), channel < D
    past_ptr += (batch * D + channel) * K
    s = tl.load(b_ptr + channel, mask=here, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        if k < K - 1:
            x = tl.load(past_ptr + k + 1, mask=here, other=0.0)
        else:
            x = tl.load(x_ptr + batch * x_batch + channel, mask=here, other=0.0).to(tl.float32)
        s += tl.load(w_ptr + channel * K + k, mask=here, other=0.0).to(tl.float32) * x
        tl.store(past_ptr + k, x, mask=here)
    tl.store(out_ptr + batch * D + channel, (s * sigmoid(s)).to(out_ptr.dtype.element_ty), mask=here)
