"""The diagonal of a tridiagonal resolvent, and its causal half, in O(N).

H has the diagonal a_i = v_i - 2, off-diagonals 1 and open ends; z = i. With L = 0 and R = 0 beyond the ends,

    left   L_i = 1 / (a_i - i - L_{i-1})                last diagonal entry of the inverse of H - zI cut off after i
    right  R_i = 1 / (a_i - i - R_{i+1})                the same from the other end
    both   G_i = 1 / (a_i - i - L_{i-1} - R_{i+1})      i-th diagonal entry of the inverse of H - zI

in real arithmetic: 1 / (d - i·s) = (d + i·s) / (d² + s²). Since s >= 1, nothing overflows, every modulus is at most 1
and every imaginary part positive. An error in L_i reaches L_{i+k} shrunk to at most 2 · 0.382^k of it (0.382 is the
golden ratio to the power -2; any real v), so a lane that starts HALO positions early, from 0, arrives exact to
rounding: the sequence is cut into chunks that run side by side.

Shape suffixes: B batch, N positions, 2 real and imaginary part, C positions of a chunk, M chunks, X = M·B lanes,
K numbers a position.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from benchbench.specs.resnet_bk import Form

CHUNK = 16
HALO = {torch.float32: 24, torch.float64: 48}
"""2 · 0.382^24 = 2e-10 and 2 · 0.382^48 = 2e-20: below the rounding of the dtype."""


class Lanes(NamedTuple):
    """How (B, N) is cut: `count` chunks a row, each read from `halo` positions before its first one.

    Chunks in front of the sequence are padding. A short sequence is one chunk without a halo.
    """

    batch: int
    length: int
    chunk: int
    halo: int
    count: int

    @classmethod
    def of(cls, x_BNK: Tensor) -> Self:
        B, N = x_BNK.shape[:2]
        halo = HALO[x_BNK.dtype]
        short = N <= CHUNK + halo  # noqa: SIM300
        return cls(B, N, N, 0, count=1) if short else cls(B, N, CHUNK, halo, count=-(-N // CHUNK))

    def spread(self, x_BNK: Tensor, padding: float) -> Tensor:
        """(B, N, K) to (C, K, (padded + M)·B), so that all lanes read neighbours of one row at a time."""
        front, back = -(-self.halo // self.chunk) * self.chunk, self.count * self.chunk - self.length
        x_BMCK = F.pad(x_BNK, (0, 0, front, back), value=padding).unflatten(1, (-1, self.chunk))
        return x_BMCK.permute(2, 3, 1, 0).flatten(2)

    def steps(self, x_CKX: Tensor) -> list[Tensor]:
        """What all lanes read at each of the halo + C steps, (K, M·B): the rows, from windows one chunk apart."""
        width = self.count * self.batch
        windows = [x_CKX[..., i : i + width] for i in range(0, x_CKX.shape[-1] - width + 1, self.batch)]
        return [row for window in windows for row in window.unbind()][-self.halo - self.chunk :]

    def collect(self, y_CKX: Tensor) -> Tensor:
        """(C, K, M·B) back to (B, N, K), contiguous."""
        y_BMCK = y_CKX.unflatten(-1, (self.count, self.batch)).permute(3, 2, 0, 1)
        return y_BMCK.flatten(1, 2)[:, : self.length].contiguous()


def left_fraction(v_BN: Tensor, initial_B2: Tensor) -> Tensor:
    """L of every position, (B, N, 2), after L = `initial_B2` at position -1; chunk by chunk, all at once.

    With its real part negated at every other position, L is y = w / |w|², w = x + (y before), x = (±a, 1). To continue
    from L is to add it to the first x. Padding, so large that its square is infinite, gives y = 0 exactly.
    """
    x_BN2 = v_BN.new_ones(*v_BN.shape, 2)
    torch.sub(v_BN[:, ::2], 2, out=x_BN2[:, ::2, 0])
    torch.sub(2, v_BN[:, 1::2], out=x_BN2[:, 1::2, 0])
    x_BN2[:, 0, 0] -= initial_B2[:, 0]
    x_BN2[:, 0, 1] += initial_B2[:, 1]
    lanes = Lanes.of(x_BN2)
    x_C2X = lanes.spread(x_BN2, padding=torch.finfo(v_BN.dtype).max)
    y_C2X = v_BN.new_zeros(lanes.chunk, 2, lanes.count * lanes.batch)
    w_2X, squares_2X = torch.empty_like(y_C2X[0]), torch.empty_like(y_C2X[0])
    (re_X, im_X), norm_X = squares_2X, torch.empty_like(squares_2X[0])
    # One buffer of C rows serves the halo too: the last C steps are the chunk's own and overwrite it.
    rows = y_C2X.unbind()
    y_2X = rows[-1]
    for step, row_2X in enumerate(lanes.steps(x_C2X), start=-lanes.halo):
        torch.add(row_2X, y_2X, out=w_2X)
        torch.mul(w_2X, w_2X, out=squares_2X)
        torch.add(re_X, im_X, out=norm_X)
        y_2X = torch.div(w_2X, norm_X, out=rows[step % lanes.chunk])
    left_BN2 = lanes.collect(y_C2X)
    left_BN2[:, 1::2, 0] *= -1
    return left_BN2


def linear_sweep(m_BN2: Tensor, w_BN2: Tensor) -> Tensor:
    """t_j = m_j · (w_j + t_{j-1}) of complex numbers, (B, N, 2), from t = 0; `m` are squares of L, which contract."""
    lanes = Lanes.of(m_BN2)
    x_C4X = lanes.spread(torch.cat((multiplied(m_BN2, w_BN2), m_BN2), dim=-1), padding=0.0)
    t_C2X = m_BN2.new_zeros(lanes.chunk, 2, lanes.count * lanes.batch)
    rows = list(zip(t_C2X.unbind(), t_C2X[:, 0].unbind(), t_C2X[:, 1].unbind(), strict=True))
    t_2X = torch.zeros_like(t_C2X[0])  # not rows[-1]: a chunk of one position would read what it writes
    re_X, im_X = t_2X
    reads = zip(lanes.steps(x_C4X[:, :2]), lanes.steps(x_C4X[:, 2]), lanes.steps(x_C4X[:, 3]), strict=True)
    for step, (product_2X, m_re_X, m_im_X) in enumerate(reads, start=-lanes.halo):
        into_2X, into_re_X, into_im_X = rows[step % lanes.chunk]
        torch.addcmul(product_2X, m_re_X, t_2X, out=into_2X)
        into_re_X.addcmul_(m_im_X, im_X, value=-1)
        into_im_X.addcmul_(m_im_X, re_X)
        t_2X, re_X, im_X = into_2X, into_re_X, into_im_X
    return lanes.collect(t_C2X)


class LeftResolvent(Function):
    """L with its exact gradient: t_j = L_j² (conj g_j + t_{j+1}), dl/dv_j = -Re t_j. `initial` is a constant."""

    @staticmethod
    def forward(ctx: Any, v_BN: Tensor, initial_B2: Tensor) -> Tensor:
        left_BN2 = v_BN.new_empty(*v_BN.shape, 2) if v_BN.is_meta else left_fraction(v_BN, initial_B2)
        ctx.save_for_backward(left_BN2)
        return left_BN2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BN2: Tensor) -> tuple[Tensor, None]:
        (left_BN2,) = ctx.saved_tensors
        if g_BN2.is_meta:
            return g_BN2.new_empty(g_BN2.shape[:2]), None
        m_BN2 = multiplied(left_BN2, left_BN2)
        t_BN2 = linear_sweep(m_BN2.flip(1), conjugate(g_BN2).flip(1))
        return -t_BN2[..., 0].flip(1), None


class TwoSidedResolvent(Function):
    """G with its exact gradient, which reaches every position: dG_i/dv_j = -G_ij².

    For i < j, G_ij = ± L_i … L_{j-1} G_jj. With w = conj g, the sums over i < j and over i > j are linear recursions,
    s_j = L_{j-1}² (w_{j-1} + s_{j-1}) and r_j = R_{j+1}² (w_{j+1} + r_{j+1}); dl/dv_j = -Re[G_j² (w_j + s_j + r_j)].
    """

    @staticmethod
    def forward(ctx: Any, v_BN: Tensor) -> Tensor:
        if v_BN.is_meta:
            left_BN2, right_BN2, diagonal_BN2 = (v_BN.new_empty(*v_BN.shape, 2) for _ in range(3))
        else:
            both_2BN = torch.cat((v_BN, v_BN.flip(1)))
            left_BN2, right_BN2 = left_fraction(both_2BN, both_2BN.new_zeros(len(both_2BN), 2)).chunk(2)
            right_BN2 = right_BN2.flip(1)
            diagonal_BN2 = meet(v_BN, left_BN2, right_BN2)
        ctx.save_for_backward(left_BN2, right_BN2, diagonal_BN2)
        return diagonal_BN2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BN2: Tensor) -> Tensor:
        left_BN2, right_BN2, diagonal_BN2 = ctx.saved_tensors
        if g_BN2.is_meta:
            return g_BN2.new_empty(g_BN2.shape[:2])
        w_BN2 = conjugate(g_BN2)
        both_2BN2 = torch.cat((left_BN2, right_BN2.flip(1)))
        w_2BN2 = torch.cat((w_BN2, w_BN2.flip(1)))
        s_BN2, r_BN2 = linear_sweep(multiplied(both_2BN2, both_2BN2), w_2BN2).chunk(2)
        total_BN2 = w_BN2 + delayed(s_BN2) + delayed(r_BN2).flip(1)
        return -multiplied(multiplied(diagonal_BN2, diagonal_BN2), total_BN2)[..., 0]


class PublishedResolvent(Function):
    """The published two-sided form: unscaled determinants in complex128, and a gradient that is not the derivative.

    theta_i = x_i theta_{i-1} - theta_{i-2}, phi the same from the other end, G_i = theta_{i-1} phi_i / theta_N. The
    determinants grow at least as 1.618^N: past 446 to 1,475 positions, as v has it, they overflow and every G is 0.
    The gradient mixes -Re(g G²) and -Re(g / G²) by `blend`, with neither conjugate nor off-diagonal terms.
    """

    @staticmethod
    def forward(ctx: Any, v_BN: Tensor, blend: float) -> Tensor:
        ctx.blend = blend
        if v_BN.is_meta:
            diagonal_BN = v_BN.new_empty(v_BN.shape, dtype=torch.complex64)
        else:
            x_BN = v_BN.to(torch.complex128) - (2 + 1j)
            theta_BM, phi_BM = determinants(torch.cat((x_BN, x_BN.flip(1)))).chunk(2)
            diagonal_BN = theta_BM[:, :-1] * phi_BM[:, :-1].flip(1) / (theta_BM[:, -1:] + 1e-18)
            diagonal_BN = torch.where(diagonal_BN.isfinite(), diagonal_BN, 0)
            modulus_BN = diagonal_BN.abs()
            diagonal_BN = torch.where(modulus_BN > 50, diagonal_BN * (50 / (modulus_BN + 1e-9)), diagonal_BN)
            diagonal_BN = diagonal_BN.to(torch.complex64)
        ctx.save_for_backward(diagonal_BN)
        return torch.view_as_real(diagonal_BN).to(v_BN.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BN2: Tensor) -> tuple[Tensor, None]:
        (diagonal_BN,) = ctx.saved_tensors
        g_BN = torch.view_as_complex(g_BN2.contiguous())
        square_BN = diagonal_BN * diagonal_BN
        modulus_BN = square_BN.abs()
        floored_BN = torch.where(modulus_BN >= 1e-3, square_BN, square_BN * (1e-3 / (modulus_BN + 1e-9)))
        product_BN, quotient_BN = (g_BN * square_BN).real, (g_BN / (floored_BN + 1e-6)).real
        grad_BN = (-(1 - ctx.blend) * product_BN - ctx.blend * quotient_BN).clamp(-1000, 1000)
        return torch.where(grad_BN.isfinite(), grad_BN, 0).to(g_BN2.dtype), None


def determinants(x_BN: Tensor) -> Tensor:
    """y_k = x_k y_{k-1} - y_{k-2} for k = 0..N, (B, N+1), y_0 = 1: the leading minors of H - zI."""
    before, last = torch.zeros_like(x_BN[:, 0]), torch.ones_like(x_BN[:, 0])
    minors = [last]
    for x_B in x_BN.unbind(1):
        before, last = last, x_B * last - before
        minors.append(last)
    return torch.stack(minors, dim=1)


def plain_left(v_BN: Tensor, initial_B2: Tensor) -> Tensor:
    """`left_fraction` position by position, differentiated by autograd: the reference. On meta, its shape alone."""
    if v_BN.is_meta:
        return torch.stack((v_BN, v_BN), dim=-1)
    p_B, q_B = initial_B2.unbind(-1)
    rows = []
    for a_B in (v_BN - 2).unbind(1):
        d_B, s_B = a_B - p_B, 1 + q_B
        norm_B = d_B * d_B + s_B * s_B
        p_B, q_B = d_B / norm_B, s_B / norm_B
        rows.append(torch.stack((p_B, q_B), dim=-1))
    return torch.stack(rows, dim=1)


def plain_two_sided(v_BN: Tensor) -> Tensor:
    """G position by position, differentiated by autograd: the reference. On meta, its shape alone."""
    zero_B2 = v_BN.new_zeros(len(v_BN), 2)
    return meet(v_BN, plain_left(v_BN, zero_B2), plain_left(v_BN.flip(1), zero_B2).flip(1))


def meet(v_BN: Tensor, left_BN2: Tensor, right_BN2: Tensor) -> Tensor:
    """G_i = 1 / (a_i - i - L_{i-1} - R_{i+1}), (B, N, 2)."""
    p_BN, q_BN = (delayed(left_BN2) + delayed(right_BN2.flip(1)).flip(1)).unbind(-1)
    d_BN, s_BN = v_BN - 2 - p_BN, 1 + q_BN
    return torch.stack((d_BN, s_BN), dim=-1) / (d_BN * d_BN + s_BN * s_BN)[..., None]


def delayed(x_BN2: Tensor) -> Tensor:
    """x_{i-1} at position i, 0 at the first."""
    return F.pad(x_BN2, (0, 0, 1, 0))[:, :-1]


def multiplied(x_BN2: Tensor, y_BN2: Tensor) -> Tensor:
    (a_BN, b_BN), (c_BN, d_BN) = x_BN2.unbind(-1), y_BN2.unbind(-1)
    return torch.stack((a_BN * c_BN - b_BN * d_BN, a_BN * d_BN + b_BN * c_BN), dim=-1)


def conjugate(x_BN2: Tensor) -> Tensor:
    return torch.stack((x_BN2[..., 0], -x_BN2[..., 1]), dim=-1)


class Resolvent(nn.Module):
    """v (B, N) to the real and imaginary part of its resolvent, (B, N, 2), in float32 (float64 stays float64).

    `path` picks the chunked or the plain recursion. `bk-compat` has one implementation, the published sequential one.
    """

    def __init__(self, form: Form, path: str, grad_blend: float) -> None:
        super().__init__()
        self.form = form
        self.plain = path == "eager"
        self.grad_blend = grad_blend

    def forward(self, v_BN: Tensor, state_B2: Tensor | None = None) -> Tensor:
        """With `state_B2`, L at position -1 (`bk-causal` alone), continues from it and writes the last L into it."""
        v_BN = v_BN.to(torch.promote_types(v_BN.dtype, torch.float32))
        if self.form == "bk-compat":
            return PublishedResolvent.apply(v_BN, self.grad_blend)
        if self.form == "bk-exact":
            return plain_two_sided(v_BN) if self.plain else TwoSidedResolvent.apply(v_BN)
        initial_B2 = v_BN.new_zeros(len(v_BN), 2) if state_B2 is None else state_B2.to(v_BN.dtype, copy=True)
        left_BN2 = plain_left(v_BN, initial_B2) if self.plain else LeftResolvent.apply(v_BN, initial_B2)
        if state_B2 is not None:
            state_B2.copy_(left_BN2[:, -1].detach())
        return left_BN2
