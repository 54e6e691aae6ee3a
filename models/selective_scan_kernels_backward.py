"""The selective scan in Triton, split over the sequence: kernels of the backward pass.

With dy = dout silu(z) and g_t = dL/dh_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}, every gradient is a sum over h or over g:

    dC_t = <h_t, dy_t>,  dB_t = <g_t, dt_t u_t>,  d(dt_t u_t) = <g_t, B_t>

but that of the exponent, w_t = dL/d(dt_t A) = g_t exp(dt_t A) h_{t-1}, which needs both. From the two recurrences,
g_t h_t = w_t + g_t B_t dt_t u_t and g_t h_t = C_t dy_t h_t + w_{t+1}, so that

    w_t = w_{t+1} + C_t dy_t h_t - g_t B_t dt_t u_t

is a running difference of quantities of one walk each: h and g are never needed at the same token. A first walk goes up
through a chunk from the state that forward kept. It gives everything of h, and what the chunk alone hands to the one
before it: the sum of C_t dy_t exp(A S_t), where S_t sums dt from the chunk's start to t. `selective_scan_carry` adds
these up, from the last chunk to the first. A second walk goes down and gives everything of g. The difference restarts
at every chunk, exactly, from w after its last token: the carry times the state there. <w_t, A> is dL/d dt_t.

dA = sum of dt_t w_t would lose to rounding what fast decays leave of w. It is computed forward instead: the slope
p_t = dh_t/dA = exp(dt_t A) (p_{t-1} + dt_t h_{t-1}) goes up with h, from zero at each chunk, and dA is the sum of
C_t dy_t p_t and of the chunks' last slopes times the carries that come to them.

Sums over channels (dB, dC) are taken in a program by a matrix product with a unit column, and over programs afterwards,
so that their order is fixed. Arrays as in the forward kernels.
"""

# The compiler reads this language, not Python's types: shapes are constants, and tuples grow.
# pyright: basic, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportMissingImports=false, reportArgumentType=false
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

from benchbench.models.selective_scan_kernels import inside, put, row, rows, sigmoid, softplus, tile


@triton.jit
def into_column(sums, x, j, EXACT: tl.constexpr, DOT: tl.constexpr):
    """Adds the sum of x (N, BLOCK) over channels to column j of sums (N, columns).

    The matrix unit keeps 11 bits of a float32; with EXACT the rest is added by a second product.
    """
    column = tl.arange(0, sums.shape[1])
    if DOT:
        unit = tl.where(tl.arange(0, x.shape[1])[:, None] >= 0, (column == j)[None, :], False).to(tl.float32)
        if EXACT:
            high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            sums = tl.dot(x - high, unit, sums, input_precision="tf32")
            x = high
        return tl.dot(x, unit, sums, input_precision="tf32")
    return sums + tl.where((column == j)[None, :], tl.sum(x, 1)[:, None], 0.0)


@triton.jit
def put_columns(pointer, sums, first, left, N: tl.constexpr, UNROLL: tl.constexpr):
    """Writes columns 0 .. UNROLL of sums (N, columns) as rows `first` and on of an (L, N) array, before row `left`."""
    column, n = tl.arange(0, sums.shape[1])[None, :], tl.arange(0, N)[:, None]
    keep = (column < UNROLL) & (first + column < left) & (n >= 0)
    tl.store(pointer + (first + column) * N + n, sums, mask=keep)


@triton.jit
def selective_scan_up(
    u_ptr,
    raw_ptr,
    z_ptr,
    dout_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    d_ptr,
    states_ptr,
    carries_ptr,
    sums_ptr,
    dz_ptr,
    alpha_ptr,
    dc_ptr,
    slope_ptr,
    da_ptr,
    dd_ptr,
    L,
    u_batch,
    u_token,
    raw_batch,
    raw_token,
    z_batch,
    z_token,
    dout_batch,
    dout_token,
    D: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    EXACT: tl.constexpr,
    DOT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Everything of h. Writes dz, <C dy h, A> into alpha (B, L, D), float32, and of chunk k: what it hands down, into
    carries [k]; the sum of its dt (B, K, D); its last slope and its share of dA (B, K, N, D); its shares of dD
    (B, K, D) and, for each block of channels, of dC (blocks, B, L, N).
    """
    block, k, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    chunks, here = tl.num_programs(1), channel < D
    start = k.to(tl.int64) * CHUNK
    left = L - k * CHUNK
    u_ptr += batch * u_batch + start * u_token + channel
    raw_ptr += batch * raw_batch + start * raw_token + channel
    z_ptr += batch * z_batch + start * z_token + channel
    dout_ptr += batch * dout_batch + start * dout_token + channel
    dz_ptr += (batch * L + start) * D + channel
    alpha_ptr += (batch * L + start) * D + channel
    b_ptr += (batch * L + start) * N + n
    c_ptr += (batch * L + start) * N + n
    dc_ptr += ((block.to(tl.int64) * tl.num_programs(2) + batch) * L + start) * N
    A = tile(a_ptr, channel, n, D, WIDTH)
    h = tile(states_ptr + (batch * (chunks + 1) + k) * (N * D), channel, n, D, WIDTH)
    skip = tl.load(d_ptr + channel, mask=here, other=0.0)
    since = tl.zeros_like(A) + 1.0
    handed = tl.zeros_like(A)
    slope = tl.zeros_like(A)
    dA = tl.zeros_like(A)
    S = tl.zeros([BLOCK], tl.float32)
    dD = tl.zeros([BLOCK], tl.float32)
    raws = rows(raw_ptr, raw_token, 0, left, channel, D, float("-inf"), MASKED, UNROLL)
    us = rows(u_ptr, u_token, 0, left, channel, D, 0.0, MASKED, UNROLL)
    zs = rows(z_ptr, z_token, 0, left, channel, D, 0.0, MASKED, UNROLL)
    douts = rows(dout_ptr, dout_token, 0, left, channel, D, 0.0, MASKED, UNROLL)
    for t in range(0, CHUNK, UNROLL):
        raws_now, us_now, zs_now, douts_now = raws, us, zs, douts
        later = tl.minimum(t + UNROLL, CHUNK - UNROLL)
        raws = rows(raw_ptr, raw_token, later, left, channel, D, float("-inf"), MASKED, UNROLL)
        us = rows(u_ptr, u_token, later, left, channel, D, 0.0, MASKED, UNROLL)
        zs = rows(z_ptr, z_token, later, left, channel, D, 0.0, MASKED, UNROLL)
        douts = rows(dout_ptr, dout_token, later, left, channel, D, 0.0, MASKED, UNROLL)
        dzs, alphas = (), ()
        dC = tl.zeros([N, COLUMNS], tl.float32)
        for j in tl.static_range(UNROLL):
            b = row(b_ptr + (t + j) * N, inside(n, N, t + j, left), 0.0, MASKED)
            c = row(c_ptr + (t + j) * N, inside(n, N, t + j, left), 0.0, MASKED)
            dt, u = softplus(raws_now[j].to(tl.float32)), us_now[j].to(tl.float32)
            z, dout = zs_now[j].to(tl.float32), douts_now[j].to(tl.float32)
            gate = sigmoid(z)
            dy = dout * z * gate
            decay = tl.exp2(dt[None, :] * A)
            rest = decay * h
            h = rest + (dt * u)[None, :] * b[:, None]
            slope = decay * slope + dt[None, :] * rest
            since = since * decay
            asked = c[:, None] * dy[None, :]
            handed += since * asked
            dA += slope * asked
            dD += dy * u
            S += dt
            read = h * c[:, None]
            dC = into_column(dC, h * dy[None, :], j, EXACT, DOT)
            alphas = alphas + (dy * tl.sum(A * read, 0),)
            dzs = dzs + (dout * (tl.sum(read, 0) + skip * u) * gate * (1.0 + z * (1.0 - gate)),)
        for j in tl.static_range(UNROLL):
            keep = inside(channel, D, t + j, left)
            tl.store(dz_ptr + (t + j) * D, dzs[j].to(dz_ptr.dtype.element_ty), mask=keep)
            tl.store(alpha_ptr + (t + j) * D, alphas[j], mask=keep)
        put_columns(dc_ptr, dC, t, left, N, UNROLL)
    put(carries_ptr + (batch * (chunks + 1) + k) * (N * D), handed, channel, n, D, WIDTH)
    put(slope_ptr + (batch * chunks + k) * (N * D), slope, channel, n, D, WIDTH)
    put(da_ptr + (batch * chunks + k) * (N * D), dA, channel, n, D, WIDTH)
    tl.store(sums_ptr + (batch * chunks + k) * D + channel, S, mask=here)
    tl.store(dd_ptr + (batch * chunks + k) * D + channel, dD, mask=here)


@triton.jit
def selective_scan_down(
    u_ptr,
    raw_ptr,
    z_ptr,
    dout_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    d_ptr,
    states_ptr,
    carries_ptr,
    alpha_ptr,
    du_ptr,
    draw_ptr,
    db_ptr,
    slope_ptr,
    da_ptr,
    L,
    u_batch,
    u_token,
    raw_batch,
    raw_token,
    z_batch,
    z_token,
    dout_batch,
    dout_token,
    D: tl.constexpr,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    EXACT: tl.constexpr,
    DOT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Everything of g, from carries [k + 1]: du, draw, dB (blocks, B, L, N), and the rest of chunk k's share of dA."""
    block, k, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    chunks, here = tl.num_programs(1), channel < D
    start = k.to(tl.int64) * CHUNK
    left = L - k * CHUNK
    u_ptr += batch * u_batch + start * u_token + channel
    raw_ptr += batch * raw_batch + start * raw_token + channel
    z_ptr += batch * z_batch + start * z_token + channel
    dout_ptr += batch * dout_batch + start * dout_token + channel
    du_ptr += (batch * L + start) * D + channel
    draw_ptr += (batch * L + start) * D + channel
    alpha_ptr += (batch * L + start) * D + channel
    b_ptr += (batch * L + start) * N + n
    c_ptr += (batch * L + start) * N + n
    db_ptr += ((block.to(tl.int64) * tl.num_programs(2) + batch) * L + start) * N
    A = tile(a_ptr, channel, n, D, WIDTH)
    later = (batch * (chunks + 1) + k + 1) * (N * D)
    g = tile(carries_ptr + later, channel, n, D, WIDTH)
    v = tl.sum(A * g * tile(states_ptr + later, channel, n, D, WIDTH), 0)
    own = (batch * chunks + k) * (N * D)
    dA = tile(da_ptr + own, channel, n, D, WIDTH) + g * tile(slope_ptr + own, channel, n, D, WIDTH)
    put(da_ptr + own, dA, channel, n, D, WIDTH)
    skip = tl.load(d_ptr + channel, mask=here, other=0.0)
    last = CHUNK - UNROLL
    raws = rows(raw_ptr, raw_token, last, left, channel, D, float("-inf"), MASKED, UNROLL)
    us = rows(u_ptr, u_token, last, left, channel, D, 0.0, MASKED, UNROLL)
    zs = rows(z_ptr, z_token, last, left, channel, D, 0.0, MASKED, UNROLL)
    douts = rows(dout_ptr, dout_token, last, left, channel, D, 0.0, MASKED, UNROLL)
    alphas = rows(alpha_ptr, D, last, left, channel, D, 0.0, MASKED, UNROLL)
    for back in range(0, CHUNK, UNROLL):
        t = last - back
        raws_now, us_now, zs_now, douts_now, alphas_now = raws, us, zs, douts, alphas
        earlier = tl.maximum(t - UNROLL, 0)
        raws = rows(raw_ptr, raw_token, earlier, left, channel, D, float("-inf"), MASKED, UNROLL)
        us = rows(u_ptr, u_token, earlier, left, channel, D, 0.0, MASKED, UNROLL)
        zs = rows(z_ptr, z_token, earlier, left, channel, D, 0.0, MASKED, UNROLL)
        douts = rows(dout_ptr, dout_token, earlier, left, channel, D, 0.0, MASKED, UNROLL)
        alphas = rows(alpha_ptr, D, earlier, left, channel, D, 0.0, MASKED, UNROLL)
        dus, draws = (), ()
        dB = tl.zeros([N, COLUMNS], tl.float32)
        for j in tl.static_range(UNROLL - 1, -1, -1):
            b = row(b_ptr + (t + j) * N, inside(n, N, t + j, left), 0.0, MASKED)
            c = row(c_ptr + (t + j) * N, inside(n, N, t + j, left), 0.0, MASKED)
            raw, u = raws_now[j].to(tl.float32), us_now[j].to(tl.float32)
            z, dout = zs_now[j].to(tl.float32), douts_now[j].to(tl.float32)
            dt = softplus(raw)
            dtu = dt * u
            dy = dout * z * sigmoid(z)
            g += c[:, None] * dy[None, :]
            written = g * b[:, None]
            ddtu = tl.sum(written, 0)
            v += alphas_now[j] - dtu * tl.sum(A * written, 0)
            dB = into_column(dB, g * dtu[None, :], j, EXACT, DOT)
            g = tl.exp2(dt[None, :] * A) * g
            dus = dus + (ddtu * dt + skip * dy,)
            draws = draws + ((v * 0.6931471805599453 + ddtu * u) * sigmoid(raw),)
        for i in tl.static_range(UNROLL):
            token = t + UNROLL - 1 - i
            keep = inside(channel, D, token, left)
            tl.store(du_ptr + token * D, dus[i].to(du_ptr.dtype.element_ty), mask=keep)
            tl.store(draw_ptr + token * D, draws[i].to(draw_ptr.dtype.element_ty), mask=keep)
        put_columns(db_ptr, dB, t, left, N, UNROLL)
