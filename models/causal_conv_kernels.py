"""The causal depthwise convolution of Mamba with its SiLU, in Triton.

    s_t = b + sum over k of w_k x_{t-K+1+k},  u_t = silu(s_t)

A program has TOKENS tokens of BLOCK channels as one tile; channels lie across lanes, so that a token's row is one
coalesced load, and the K tiles that its sum reads overlap in the caches. Backward keeps nothing but x: one kernel finds
s again and writes g = dL/ds, a second one convolves g the other way round and sums each tile's share of dw and db.

Arrays: x (B, L, D), channels contiguous; dout, g, u, dx (B, L, D), contiguous; w (D, K); b (D); the past (B, D, K),
float32, whose last column is the token before the first. Everything is computed in float32.
"""

# The compiler reads this language, not Python's types.
# pyright: basic, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportMissingImports=false
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from benchbench.models.selective_scan_kernels import COMPILED as COMPILED
from benchbench.models.selective_scan_kernels import sigmoid


@triton.jit
def seen(
    x_ptr, past_ptr, token, channel, length, x_token, D: tl.constexpr, K: tl.constexpr, PAST: tl.constexpr
):  # fmt: skip
    """(TOKENS, BLOCK) of x in float32; before the first token, of the past or zero."""
    there = (token >= 0) & (token < length)
    inside = channel[None, :] < D
    x = tl.load(x_ptr + token[:, None] * x_token + channel[None, :], mask=there[:, None] & inside, other=0.0)
    x = x.to(tl.float32)
    if PAST:
        earlier = (token < 0)[:, None] & inside
        x += tl.load(past_ptr + channel[None, :] * K + (K + token)[:, None], mask=earlier, other=0.0)
    return x


@triton.jit
def causal_conv(
    x_ptr,
    past_ptr,
    w_ptr,
    b_ptr,
    dout_ptr,
    out_ptr,
    length,
    x_batch,
    x_token,
    D: tl.constexpr,
    K: tl.constexpr,
    PAST: tl.constexpr,
    GRADIENT: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """silu(s), or with GRADIENT dout silu'(s)."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    batch, here = tl.program_id(2).to(tl.int64), channel < D
    x_ptr += batch * x_batch
    past_ptr += batch * (D * K)
    s = tl.zeros((TOKENS, BLOCK), tl.float32) + tl.load(b_ptr + channel, mask=here, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(K):
        w = tl.load(w_ptr + channel * K + k, mask=here, other=0.0).to(tl.float32)
        s += w[None, :] * seen(x_ptr, past_ptr, token + (k - K + 1), channel, length, x_token, D, K, PAST)
    places = (batch * length + token)[:, None] * D + channel[None, :]
    keep = (token < length)[:, None] & here[None, :]
    out = s * sigmoid(s)
    if GRADIENT:
        out = (
            tl.load(dout_ptr + places, mask=keep, other=0.0).to(tl.float32)
            * sigmoid(s)
            * (1.0 + s * (1.0 - sigmoid(s)))
        )
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def causal_conv_backward(
    x_ptr,
    past_ptr,
    w_ptr,
    g_ptr,
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
):
    """dx_t = sum over k of w_k g_{t+K-1-k}; of dw_k = sum over t of g_t x_{t-K+1+k} and of db = sum over t of g_t, each
    tile's shares, (B, tiles, D, K) and (B, tiles, D).
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tile, batch, here = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64), channel < D
    token = tile * TOKENS + tl.arange(0, TOKENS)
    x_ptr += batch * x_batch
    past_ptr += batch * (D * K)
    g_ptr += batch * length * D
    share = (batch * tl.num_programs(1) + tile) * D + channel
    keep = (token < length)[:, None] & here[None, :]
    g = tl.load(g_ptr + token[:, None] * D + channel[None, :], mask=keep, other=0.0).to(tl.float32)
    tl.store(db_ptr + share, tl.sum(g, 0), mask=here)
    dx = tl.zeros((TOKENS, BLOCK), tl.float32)
    for k in tl.static_range(K):
        w = tl.load(w_ptr + channel * K + k, mask=here, other=0.0).to(tl.float32)
        later = token + (K - 1 - k)
        inside = (later < length)[:, None] & here[None, :]
        dx += w[None, :] * tl.load(g_ptr + later[:, None] * D + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        x = seen(x_ptr, past_ptr, token + (k - K + 1), channel, length, x_token, D, K, PAST)
        tl.store(dw_ptr + share * K + k, tl.sum(g * x, 0), mask=here)
    tl.store(
        dx_ptr + (batch * length + token)[:, None] * D + channel[None, :], dx.to(dx_ptr.dtype.element_ty), mask=keep
    )


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
