"""The selective scan in Triton, split over the sequence: kernels of the forward pass.

The recurrence is linear in the state, so that a chunk of tokens adds to what it would leave behind from zero the state
before it, times exp(A · sum of dt). Three kernels: every chunk's last state from zero, and its sum of dt; the states
between chunks, one after the other; every chunk again from its true first state, with the outputs.

A program walks one chunk of one sequence, token by token, with the states of BLOCK channels in registers. Channels lie
across lanes, so that one token's row is one coalesced load; all N states of a channel lie in one thread, so that a sum
over states needs no exchange. B and C, which all channels share, are read as float32 through the caches. The next
tokens' rows are loaded before the present ones are used.

What bounds it: to go over the sequence twice takes every decay twice. By the machine code for Hopper a state and step
takes 2.25 operations of the special-function unit, of which an SM does 16 a clock, and 14.4 instructions, of which it
begins 128: on an H200 (132 SMs, 1.98 GHz), L = 131072, D = 1536, N = 16, bfloat16, 1.73 and 1.39 ms, where moving the
bytes takes 0.38. Measured are 0.96 and 1.29 ms for the two walks and 0.07 between them. Nsight Compute saw the unit
busy in 81 % and 67 % of the cycles when they took 1.03 and 1.59, warps waiting for its queue in the first and for loads
in the second. mamba-ssm's one pass takes 4.5 ms there, at 24 % of the unit and half of all instructions.

Arrays: u, raw, z, y (B, L, D), channels contiguous; B, C (B, L, N); A (N, D), times log2 e, so that decays are powers
of two; D (D). States (B, K + 1, N, D): [k] is the one before chunk k. Everything is computed in float32.
"""

# The compiler reads this language, not Python's types: shapes are constants, and tuples grow.
# pyright: basic, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportMissingImports=false
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(w), w = exp(-|x|) in (0, 1]; log1p(w) / w by a polynomial, within 3e-8."""
    w = tl.exp2(tl.abs(x) * -1.4426950408889634)
    p = 0.00523262935 * w - 0.0295049869
    p = p * w + 0.0782255577
    p = p * w - 0.13663214
    p = p * w + 0.191059928
    p = p * w - 0.24842979
    p = p * w + 0.333190965
    p = p * w - 0.499994931
    p = p * w + 0.99999997
    return tl.maximum(x, 0.0) + w * p


COMPILED = isinstance(softplus, triton.JITFunction)
"""False where Triton interprets kernels in Python, on any device."""


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def inside(index, size, token, left):
    """Where index < size, if token < left; else nowhere."""
    return index < tl.where(token < left, size, 0)


@triton.jit
def row(pointer, keep, other, MASKED: tl.constexpr):
    """One load in float32; `other` where `keep` is false. Without MASKED everything is kept."""
    if MASKED:
        return tl.load(pointer, mask=keep, other=other)
    return tl.load(pointer)


@triton.jit
def rows(
    pointer, stride, first, left, channel, D: tl.constexpr, other, MASKED: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    """The tokens first, first + 1, ... of one array, still in its dtype; `other` from token `left` on."""
    found = ()
    for j in tl.static_range(UNROLL):
        found = found + (row(pointer + (first + j) * stride, inside(channel, D, first + j, left), other, MASKED),)
    return found


@triton.jit
def tile(pointer, channel, n, D: tl.constexpr, WIDTH: tl.constexpr):
    """(N, BLOCK) of an (N, D) array, zero beyond D, in the layout that all tiles share.

    Loaded as (BLOCK, N) with WIDTH, the channels a thread is to hold, as a hint, and turned: N then lies in registers.
    """
    pointers = tl.max_contiguous(pointer + n[None, :] * D + channel[:, None], [WIDTH, 1])
    return tl.trans(tl.load(pointers, mask=(channel[:, None] < D) & (n[None, :] >= 0), other=0.0))


@triton.jit
def put(pointer, x, channel, n, D: tl.constexpr, WIDTH: tl.constexpr):
    """Writes what `tile` reads."""
    pointers = tl.max_contiguous(pointer + n[None, :] * D + channel[:, None], [WIDTH, 1])
    tl.store(pointers, tl.trans(x), mask=(channel[:, None] < D) & (n[None, :] >= 0))


@triton.jit
def selective_scan_states(
    u_ptr,
    raw_ptr,
    b_ptr,
    a_ptr,
    states_ptr,
    sums_ptr,
    L,
    u_batch,
    u_token,
    raw_batch,
    raw_token,
    D: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Into states [k + 1] what chunk k leaves behind from zero; into sums (B, K, D) the sum of its dt."""
    channel, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    k, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks, here = tl.num_programs(1), channel < D
    start = k.to(tl.int64) * CHUNK
    left = L - k * CHUNK
    u_ptr += batch * u_batch + start * u_token + channel
    raw_ptr += batch * raw_batch + start * raw_token + channel
    b_ptr += (batch * L + start) * N + n
    A = tile(a_ptr, channel, n, D, WIDTH)
    h = tl.zeros_like(A)
    total = tl.zeros([BLOCK], tl.float32)
    raws = rows(raw_ptr, raw_token, 0, left, channel, D, float("-inf"), MASKED, UNROLL)
    us = rows(u_ptr, u_token, 0, left, channel, D, 0.0, MASKED, UNROLL)
    for t in range(0, CHUNK, UNROLL):
        raws_now, us_now = raws, us
        later = tl.minimum(t + UNROLL, CHUNK - UNROLL)
        raws = rows(raw_ptr, raw_token, later, left, channel, D, float("-inf"), MASKED, UNROLL)
        us = rows(u_ptr, u_token, later, left, channel, D, 0.0, MASKED, UNROLL)
        for j in tl.static_range(UNROLL):
            b = row(b_ptr + (t + j) * N, inside(n, N, t + j, left), 0.0, MASKED)
            dt = softplus(raws_now[j].to(tl.float32))
            total += dt
            added = (dt * us_now[j].to(tl.float32))[None, :] * b[:, None]
            h = tl.exp2(dt[None, :] * A) * h + added
    put(states_ptr + (batch * (chunks + 1) + k + 1) * (N * D), h, channel, n, D, WIDTH)
    tl.store(sums_ptr + (batch * chunks + k) * D + channel, total, mask=here)


@triton.jit
def selective_scan_carry(
    states_ptr,
    sums_ptr,
    a_ptr,
    chunks,
    D: tl.constexpr,
    N: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """In place on the states: [k + 1] += decay_k [k] with k rising, or [k] += decay_k [k + 1] with k falling."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = i < N * D
    batch = tl.program_id(1).to(tl.int64)
    step = -1 if REVERSE else 1
    states_ptr += (batch * (chunks + 1) + (chunks if REVERSE else 0)) * (N * D) + i
    sums_ptr += (batch * chunks + (chunks - 1 if REVERSE else 0)) * D + i % D
    A = tl.load(a_ptr + i, mask=here, other=0.0)
    h = tl.load(states_ptr, mask=here, other=0.0)
    for done in range(0, chunks, UNROLL):
        sums, own = (), ()
        for j in tl.static_range(UNROLL):
            keep = inside(i, N * D, done + j, chunks)
            sums = sums + (tl.load(sums_ptr + j * step * D, mask=keep, other=0.0),)
            own = own + (tl.load(states_ptr + (j + 1) * step * (N * D), mask=keep, other=0.0),)
        for j in tl.static_range(UNROLL):
            h = tl.exp2(A * sums[j]) * h + own[j]
            tl.store(states_ptr + (j + 1) * step * (N * D), h, mask=inside(i, N * D, done + j, chunks))
        sums_ptr += UNROLL * step * D
        states_ptr += UNROLL * step * (N * D)


@triton.jit
def selective_scan_outputs(
    u_ptr,
    raw_ptr,
    z_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    d_ptr,
    states_ptr,
    y_ptr,
    L,
    u_batch,
    u_token,
    raw_batch,
    raw_token,
    z_batch,
    z_token,
    D: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """y = (C h + D u) silu(z) of chunk k, from states [k]."""
    channel, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    k, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks, here = tl.num_programs(1), channel < D
    start = k.to(tl.int64) * CHUNK
    left = L - k * CHUNK
    u_ptr += batch * u_batch + start * u_token + channel
    raw_ptr += batch * raw_batch + start * raw_token + channel
    z_ptr += batch * z_batch + start * z_token + channel
    y_ptr += (batch * L + start) * D + channel
    b_ptr += (batch * L + start) * N + n
    c_ptr += (batch * L + start) * N + n
    A = tile(a_ptr, channel, n, D, WIDTH)
    h = tile(states_ptr + (batch * (chunks + 1) + k) * (N * D), channel, n, D, WIDTH)
    skip = tl.load(d_ptr + channel, mask=here, other=0.0)
    raws = rows(raw_ptr, raw_token, 0, left, channel, D, float("-inf"), MASKED, UNROLL)
    us = rows(u_ptr, u_token, 0, left, channel, D, 0.0, MASKED, UNROLL)
    zs = rows(z_ptr, z_token, 0, left, channel, D, 0.0, MASKED, UNROLL)
    for t in range(0, CHUNK, UNROLL):
        raws_now, us_now, zs_now = raws, us, zs
        later = tl.minimum(t + UNROLL, CHUNK - UNROLL)
        raws = rows(raw_ptr, raw_token, later, left, channel, D, float("-inf"), MASKED, UNROLL)
        us = rows(u_ptr, u_token, later, left, channel, D, 0.0, MASKED, UNROLL)
        zs = rows(z_ptr, z_token, later, left, channel, D, 0.0, MASKED, UNROLL)
        ys = ()
        for j in tl.static_range(UNROLL):
            b = row(b_ptr + (t + j) * N, inside(n, N, t + j, left), 0.0, MASKED)
            c = row(c_ptr + (t + j) * N, inside(n, N, t + j, left), 0.0, MASKED)
            dt, u, z = softplus(raws_now[j].to(tl.float32)), us_now[j].to(tl.float32), zs_now[j].to(tl.float32)
            h = tl.exp2(dt[None, :] * A) * h + (dt * u)[None, :] * b[:, None]
            ys = ys + ((tl.sum(h * c[:, None], 0) + skip * u) * z * sigmoid(z),)
        for j in tl.static_range(UNROLL):
            tl.store(y_ptr + (t + j) * D, ys[j].to(y_ptr.dtype.element_ty), mask=inside(channel, D, t + j, left))


@triton.jit
def selective_scan_token(
    u_ptr,
    raw_ptr,
    z_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    d_ptr,
    h_ptr,
    y_ptr,
    u_batch,
    raw_batch,
    z_batch,
    b_batch,
    c_batch,
    D: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token of each sequence: y (B, D), and the state h (B, D, N) moved on in place. A is (D, N), as it is."""
    channel, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    batch, here = tl.program_id(1).to(tl.int64), channel < D
    inside = here[:, None] & (n[None, :] >= 0)
    places = channel[:, None] * N + n[None, :]
    u = tl.load(u_ptr + batch * u_batch + channel, mask=here, other=0.0).to(tl.float32)
    raw = tl.load(raw_ptr + batch * raw_batch + channel, mask=here, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + batch * z_batch + channel, mask=here, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + batch * b_batch + n).to(tl.float32)
    c = tl.load(c_ptr + batch * c_batch + n).to(tl.float32)
    A = tl.load(a_ptr + places, mask=inside, other=0.0)
    h = tl.load(h_ptr + batch * D * N + places, mask=inside, other=0.0)
    dt = softplus(raw)
    h = tl.exp2(dt[:, None] * A * 1.4426950408889634) * h + (dt * u)[:, None] * b[None, :]
    tl.store(h_ptr + batch * D * N + places, h, mask=inside)
    y = tl.sum(h * c[None, :], 1) + tl.load(d_ptr + channel, mask=here, other=0.0).to(tl.float32) * u
    tl.store(y_ptr + batch * D + channel, (y * z * sigmoid(z)).to(y_ptr.dtype.element_ty), mask=here)
