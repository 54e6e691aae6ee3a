"""The resolvent's recursions as Triton kernels: float32, real arithmetic, one pass over v, one launch each.

A lane is one thread with a chunk of one row. It starts HALO positions before the chunk (and, where the other end
counts, behind it) from 0; resolvent.py says why that is exact. Neighbouring lanes have neighbouring chunks, so that a
step of theirs reads 4 bytes here and 4 there. What they read and write is therefore moved READ positions of every lane
at a time, in whole sectors of 32 bytes or more, and handed from thread to thread: `columns` takes a tile apart into one
number a lane for each position, `tile` puts such numbers together.

Which products are fused into sums is said here, by `less` and `tl.fma`; the launch lets the compiler fuse no others. So
how many operations a lane runs is the source's, whatever the compiler's version and the numbers' type, and
counters/resolvent.py counts it. A fraction is kept as d, s and r, of which it is (d + i·s)·r: the next one's sums take
both products in.

Shape suffixes: X lanes of a program, T positions of a tile, C of a chunk, W of either. A number of every lane has the
suffix X and stays in a register; so do tuples of them, one for each position.
"""

# The compiler reads this language, not Python's types: shapes are constants, and tuples grow.
# pyright: basic, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAssignmentType=false, reportMissingImports=false
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

BEYOND = tl.constexpr(1e18)
"""v beyond the ends: so large that its fraction is 0, to 1e-18."""


@triton.jit
def lanes(rows, N, CHUNK: tl.constexpr, LANES: tl.constexpr):
    """For each lane its row, its chunk's first position, and whether there is such a chunk.

    The first two lanes of a row have its last and its first chunk and are of one program: one reads the state before
    the other writes it. To keep them together a row has an even number of lanes, or one.
    """
    count = tl.cdiv(N, CHUNK)
    width = tl.where(count == 1, 1, (count + 1) // 2 * 2)
    lane_X = tl.program_id(0) * LANES + tl.arange(0, LANES)
    row_X, turn_X = lane_X // width, lane_X % width
    chunk_X = tl.where(turn_X == 0, count - 1, turn_X - 1)
    return row_X, chunk_X * CHUNK, (row_X < rows) & (turn_X < count)


@triton.jit
def read(x, row_X, start_X, real_X, ahead, size, other, WIDTH: tl.constexpr):
    """WIDTH numbers of each lane's row of `size`, from `ahead` of its start, (X, W); `other` beyond the row's ends."""
    at_XW = start_X[:, None] + (ahead + tl.arange(0, WIDTH))[None, :]
    inside_XW = real_X[:, None] & (at_XW >= 0) & (at_XW < size)
    x_XW = tl.load(x + row_X.to(tl.int64)[:, None] * size + at_XW, inside_XW, other=0.0)
    return tl.where(inside_XW, x_XW.to(tl.float32), other)


@triton.jit
def read_pairs(x, row_X, start_X, real_X, ahead, N, WIDTH: tl.constexpr):
    """Real and imaginary parts, (X, W) each; 0 beyond the row's ends."""
    x_X2W = read(x, row_X, 2 * start_X, real_X, 2 * ahead, 2 * N, 0.0, 2 * WIDTH)
    return x_X2W.reshape(x_X2W.shape[0], WIDTH, 2).split()


@triton.jit
def write(y, y_XW, row_X, start_X, real_X, ahead, size):
    at_XW = start_X[:, None] + (ahead + tl.arange(0, y_XW.shape[1]))[None, :]
    inside_XW = real_X[:, None] & (at_XW < size)
    tl.store(y + row_X.to(tl.int64)[:, None] * size + at_XW, y_XW.to(y.dtype.element_ty), inside_XW)


@triton.jit
def write_pairs(y, re_XW, im_XW, row_X, start_X, real_X, ahead, N):
    y_X2W = tl.join(re_XW, im_XW).reshape(re_XW.shape[0], 2 * re_XW.shape[1])
    write(y, y_X2W, row_X, 2 * start_X, real_X, 2 * ahead, 2 * N)


@triton.jit
def columns(x_XW):
    """W numbers of every lane, (X,), of W = 1 to 32 positions: even and odd ones are parted until each is alone."""
    X: tl.constexpr = x_XW.shape[0]
    W: tl.constexpr = x_XW.shape[1]
    parts = (x_XW,)
    for level in tl.static_range(5):
        if 2**level < W:
            even, odd = (), ()
            for i in tl.static_range(2**level):
                even_XH, odd_XH = parts[i].reshape(X, W // 2 ** (level + 1), 2).split()
                even, odd = even + (even_XH,), odd + (odd_XH,)
            parts = even + odd  # parts[i]: positions i, i + 2^(level + 1), ...
    found = ()
    for i in tl.static_range(W):
        found = found + (parts[i].reshape(X),)
    return found


@triton.jit
def tile(numbers):
    """Numbers of each position, (X,), to (X, W): `columns` backwards."""
    X: tl.constexpr = numbers[0].shape[0]
    W: tl.constexpr = len(numbers)
    parts = ()
    for i in tl.static_range(W):
        parts = parts + (numbers[i].reshape(X, 1),)
    for level in tl.static_range(5):
        if 2**level < W:
            joined = ()
            for i in tl.static_range(W // 2 ** (level + 1)):
                both_XH2 = tl.join(parts[i], parts[i + W // 2 ** (level + 1)])
                joined = joined + (both_XH2.reshape(X, 2 ** (level + 1)),)
            parts = joined
    return parts[0]


@triton.jit
def less(z_X, x_X, y_X):
    """z - x·y in one instruction: the factor -1 becomes an operand's sign, where -x may become a subtraction."""
    return tl.fma(-1.0 * x_X, y_X, z_X)


@triton.jit
def without(d_X, s_X, fraction):
    """d - i·s less a fraction: the d and s that are left."""
    e_X, t_X, r_X = fraction
    return less(d_X, e_X, r_X), tl.fma(t_X, r_X, s_X)


@triton.jit
def inverse(d_X, s_X):
    """The fraction 1 / (d - i·s) = (d + i·s) / (d² + s²)."""
    return d_X, s_X, 1.0 / tl.fma(d_X, d_X, s_X * s_X)


@triton.jit
def after(v_X, fraction):
    """The next fraction, 1 / (v - 2 - i - fraction)."""
    d_X, s_X = without(v_X - 2.0, 1.0, fraction)
    return inverse(d_X, s_X)


@triton.jit
def parts(fraction):
    """p and q of the fraction p + iq."""
    d_X, s_X, r_X = fraction
    return d_X * r_X, s_X * r_X


@triton.jit
def nothing(LANES: tl.constexpr):
    """The fraction 0 as (0 - 0i)·1: x - 0, x + (-0) and x·1 are x, so where the compiler sees it, nothing is run."""
    zero_X = tl.zeros([LANES], tl.float32)
    return zero_X, -1.0 * zero_X, zero_X + 1.0


@triton.jit
def squared(p_X, q_X):
    """(p + iq)², real and imaginary."""
    return less(p_X * p_X, q_X, q_X), 2.0 * p_X * q_X


@triton.jit
def squared_times(p_X, q_X, re_X, im_X):
    """(p + iq)² · (re + i·im)."""
    m_X, n_X = squared(p_X, q_X)
    return less(m_X * re_X, n_X, im_X), tl.fma(m_X, im_X, n_X * re_X)


@triton.jit
def arrive(v_XT, fraction, BACK: tl.constexpr):
    """The fraction after a tile, from the left or, BACK, from the right."""
    T: tl.constexpr = v_XT.shape[1]
    v = columns(v_XT)
    for i in tl.static_range(T):
        fraction = after(v[T - 1 - i if BACK else i], fraction)
    return fraction


@triton.jit
def arrive_with_sum(v_XT, re_XT, im_XT, fraction, x_X, y_X, BACK: tl.constexpr):
    """The fraction, the same as p + iq, and, of the cotangents re + i·im, the gradient's sum x + iy after a tile."""
    T: tl.constexpr = v_XT.shape[1]
    v, re, im = columns(v_XT), columns(re_XT), columns(im_XT)
    for i in tl.static_range(T):
        fraction = after(v[T - 1 - i if BACK else i], fraction)
        re_X, im_X = re[T - 1 - i if BACK else i], im[T - 1 - i if BACK else i]
        p_X, q_X = parts(fraction)
        x_X, y_X = squared_times(p_X, q_X, re_X + x_X, y_X - im_X)
    return fraction, p_X, q_X, x_X, y_X


@triton.jit(do_not_specialize=["rows"])
def left_fraction_forward(
    v, out, state, rows, N, CHUNK: tl.constexpr, HALO: tl.constexpr, READ: tl.constexpr, LANES: tl.constexpr
):
    """L_i = 1 / (a_i - i - L_{i-1}): v (B, N) to (B, N, 2), after the L of `state` (B, 2), into which the last goes.

    Needs HALO <= CHUNK, so that the first chunk's lane alone begins before the row, and starts from the state.
    """
    WRITE: tl.constexpr = min(READ, 8)
    row_X, start_X, real_X = lanes(rows, N, CHUNK, LANES)
    left = nothing(LANES)
    for ahead in range(-HALO, 0, READ):
        left = arrive(read(v, row_X, start_X, real_X, ahead, N, BEYOND, READ), left, False)
    if state is not None:
        first_X = real_X & (start_X == 0)
        d_X, s_X, r_X = left
        d_X = tl.where(first_X, tl.load(state + 2 * row_X, first_X, other=0.0), d_X)
        s_X = tl.where(first_X, tl.load(state + 2 * row_X + 1, first_X, other=0.0), s_X)
        left = (d_X, s_X, tl.where(first_X, 1.0, r_X))
        tl.debug_barrier()
    for ahead in range(0, CHUNK, READ):
        vs = columns(read(v, row_X, start_X, real_X, ahead, N, BEYOND, READ))
        for first in tl.static_range(0, READ, WRITE):
            re, im = (), ()
            for i in tl.static_range(WRITE):
                left = after(vs[first + i], left)
                p_X, q_X = parts(left)
                re, im = re + (p_X,), im + (q_X,)
                if state is not None:
                    last_X = real_X & (start_X + ahead + first + i == N - 1)
                    tl.store(state + 2 * row_X, p_X, last_X)
                    tl.store(state + 2 * row_X + 1, q_X, last_X)
            write_pairs(out, tile(re), tile(im), row_X, start_X, real_X, ahead + first, N)


@triton.jit(do_not_specialize=["rows"])
def left_fraction_backward(
    left, g, grad, rows, N, CHUNK: tl.constexpr, HALO: tl.constexpr, READ: tl.constexpr, LANES: tl.constexpr
):
    """t_j = L_j² (conj g_j + t_{j+1}), dl/dv_j = -Re t_j: L and g (B, N, 2) to (B, N)."""
    row_X, start_X, real_X = lanes(rows, N, CHUNK, LANES)
    x_X = tl.zeros([LANES], tl.float32)
    y_X = x_X
    for done in range(0, HALO + CHUNK, READ):
        ahead = HALO + CHUNK - READ - done
        p_XT, q_XT = read_pairs(left, row_X, start_X, real_X, ahead, N, READ)
        re_XT, im_XT = read_pairs(g, row_X, start_X, real_X, ahead, N, READ)
        p, q, re, im = columns(p_XT), columns(q_XT), columns(re_XT), columns(im_XT)
        grads = ()
        for i in tl.static_range(READ - 1, -1, -1):
            x_X, y_X = squared_times(p[i], q[i], re[i] + x_X, y_X - im[i])
            grads = (0.0 - x_X,) + grads  # a subtraction, whatever the compiler makes of -x
        own_X = real_X & (start_X + ahead < start_X + CHUNK)
        write(grad, tile(grads), row_X, start_X, own_X, ahead, N)


@triton.jit(do_not_specialize=["rows", "HALO"])
def two_sided_forward(v, out, rows, N, HALO, CHUNK: tl.constexpr, READ: tl.constexpr, LANES: tl.constexpr):
    """G_i = 1 / (a_i - i - L_{i-1} - R_{i+1}): v (B, N) to (B, N, 2). R of the chunk waits in registers for L.

    HALO is no constant, so that what follows it is one machine code, whether there is a halo or none.
    """
    row_X, start_X, real_X = lanes(rows, N, CHUNK, LANES)
    left, right = nothing(LANES), nothing(LANES)
    vs = columns(read(v, row_X, start_X, real_X, 0, N, BEYOND, CHUNK))
    rounds = HALO // READ
    for done in range(rounds):
        v_XT = read(v, row_X, start_X, real_X, (done - rounds) * READ, N, BEYOND, READ)
        u_XT = read(v, row_X, start_X, real_X, CHUNK + (rounds - 1 - done) * READ, N, BEYOND, READ)
        left = arrive(v_XT, left, False)
        right = arrive(u_XT, right, True)
    rights = ()
    for i in tl.static_range(CHUNK - 1, -1, -1):
        rights = (parts(right),) + rights
        right = after(vs[i], right)
    re, im = (), ()
    for i in tl.static_range(CHUNK):
        d_X, s_X = without(vs[i] - 2.0, 1.0, left)
        p_X, q_X = parts(inverse(d_X - rights[i][0], s_X + rights[i][1]))
        re, im = re + (p_X,), im + (q_X,)
        left = inverse(d_X, s_X)
    write_pairs(out, tile(re), tile(im), row_X, start_X, real_X, 0, N)


@triton.jit(do_not_specialize=["rows", "HALO"])
def two_sided_backward(v, g, grad, rows, N, HALO, CHUNK: tl.constexpr, READ: tl.constexpr, LANES: tl.constexpr):
    """dl/dv_j = -Re[G_j² (conj g_j + s_j + r_j)]: v (B, N) and g (B, N, 2) to (B, N).

    L, R and G are computed again, beside s_{j+1} = L_j² (conj g_j + s_j) and its mirror image r: to keep them would
    take 24 bytes a position and move 36, not 16. One halo serves both, for what L is still off by at some distance
    from the chunk, the squares from there to the chunk shrink.
    """
    row_X, start_X, real_X = lanes(rows, N, CHUNK, LANES)
    left, right = nothing(LANES), nothing(LANES)
    rp_X = tl.zeros([LANES], tl.float32)
    rq_X, rx_X, ry_X, sx_X, sy_X = rp_X, rp_X, rp_X, rp_X, rp_X
    vs = columns(read(v, row_X, start_X, real_X, 0, N, BEYOND, CHUNK))
    re_XC, im_XC = read_pairs(g, row_X, start_X, real_X, 0, N, CHUNK)
    rounds = HALO // READ
    for done in range(rounds):
        v_XT = read(v, row_X, start_X, real_X, (done - rounds) * READ, N, BEYOND, READ)
        re_XT, im_XT = read_pairs(g, row_X, start_X, real_X, (done - rounds) * READ, N, READ)
        left, _, _, sx_X, sy_X = arrive_with_sum(v_XT, re_XT, im_XT, left, sx_X, sy_X, False)
        u_XT = read(v, row_X, start_X, real_X, CHUNK + (rounds - 1 - done) * READ, N, BEYOND, READ)
        re_XT, im_XT = read_pairs(g, row_X, start_X, real_X, CHUNK + (rounds - 1 - done) * READ, N, READ)
        right, rp_X, rq_X, rx_X, ry_X = arrive_with_sum(u_XT, re_XT, im_XT, right, rx_X, ry_X, True)
    rights = ()
    re, im = columns(re_XC), columns(im_XC)
    for i in tl.static_range(CHUNK - 1, -1, -1):
        x_X, y_X = re[i] + rx_X, ry_X - im[i]
        rights = ((rp_X, rq_X, x_X, y_X),) + rights
        right = after(vs[i], right)
        rp_X, rq_X = parts(right)
        rx_X, ry_X = squared_times(rp_X, rq_X, x_X, y_X)
    grads = ()
    for i in tl.static_range(CHUNK):
        d_X, s_X = without(vs[i] - 2.0, 1.0, left)
        p_X, q_X = parts(inverse(d_X - rights[i][0], s_X + rights[i][1]))
        m_X, n_X = squared(p_X, q_X)
        grads = grads + (less(n_X * (rights[i][3] + sy_X), m_X, rights[i][2] + sx_X),)
        left = inverse(d_X, s_X)
        p_X, q_X = parts(left)
        sx_X, sy_X = squared_times(p_X, q_X, re[i] + sx_X, sy_X - im[i])
    write(grad, tile(grads), row_X, start_X, real_X, 0, N)


COMPILED = isinstance(left_fraction_forward, triton.JITFunction)
"""Whether kernels are compiled, for a GPU, and not interpreted."""
