"""Formulas of ResNet-BK's tridiagonal resolvent."""

from typing import NamedTuple

from benchbench.counters.op import Formula, Step, Work

RESOLVENT_CHUNK = 16
RESOLVENT_HALO = 24
"""Float32 positions that a chunk of the resolvent runs ahead of its own: 0.382^24 is below float32's rounding."""


class Cut(NamedTuple):
    """The positions of a lane's chunk, and those that it runs ahead of it, of each end that counts."""

    chunk: int
    halo: int


TRITON_CUTS = {"bk-causal": (Cut(32, 32), Cut(32, 24)), "bk-exact": (Cut(16, 24), Cut(8, 24))}
"""Forward and backward, in the Triton kernels."""

WARP = 32
"""Lanes that run together, those without a chunk too."""


def resolvent(step: Step, form: str, *, state_bytes: int = 0) -> Formula:
    """The resolvent of the tridiagonal H = diag(v - 2) + shifts at z = i: one real number in, one complex out, a token.

    Left continued fraction L = 1/(a - i - L₋), L = p + iq, in real arithmetic: a = v - 2 1; d = a - p₋ and s = 1 + q₋
    2; r = 1/(d² + s²) 4; p = d·r and q = s·r 2: 9, one of them a division.

    `bk-causal` is that alone. Backward t = L²·(w + t₊), dv = -Re t: square 5, sum 2, product 6, sign 1: 14.

    `bk-exact` runs it from both ends (the diagonal once: 9 + 8) and joins them, G = 1/(a - i - L₋ - R₊): d 2, s 2, r 4,
    two products: 10; 27 in all. Backward: both linear recursions 13 each, and -Re G²(w + s + r) 4 + 5 + 3 + 1: 39.

    `bk-compat` runs the unscaled recursions θ and φ in complex128, 8 each, their product 6, the division by θ_N 8,
    the magnitude 4, the diagonal 1: 35. Backward, from G alone: G² 5, its magnitude 4, its rescaling 5,
    Re(g/G²) 7, Re(g·G²) 3, the blend 4: 28.

    `chunked` starts each chunk of 16 tokens 24 early from zero: every recursion runs 1.5 further times a token.

    `eager` divides d and s by d² + s², where one reciprocal and two products are 3: 8 a token, not 9. Autograd's
    backward takes 22 a token: a quotient's two gradients 1 + 4 for p and for q, their sum 1, the squares' 2 + 2, the
    sums at d and s 2 + 2, the sign of p₋ 1, the sums at p and q 2. At the first token the sign, and s, which is a
    constant there (1 + 2 + 2), are missing, and at the last the two sums: 8 a sequence less.
    `bk-compat`, one implementation, computes in complex numbers throughout: the diagonal 2, the division 11, the
    modulus's bound 1 + 2 and its product 6: 13 a token more, and θ_N's offset 2 a sequence. Backward: square 6,
    modulus 4, its bound 1 + 2, the product with it 6, g·G² 6, offset 2, g/G² 11, blend 3: 41.

    `triton`: see `fused`.
    """
    if step.path == "triton":
        return fused(step, form, state_bytes)
    tokens = step.rows
    forward, divisions, backward, recursion, back_recursion = {
        "bk-causal": (9, 1, 14, 8, 13),
        "bk-exact": (27, 3, 39, 16, 26),
        "bk-compat": (35, 2, 28, 0, 0),
    }[form]
    chunks = step.batch * -(-step.new // RESOLVENT_CHUNK)
    overlap = chunks * RESOLVENT_HALO if step.path == "chunked" else 0
    extra, back_extra = overlap * recursion, overlap * back_recursion
    moved_on = 2 * state_bytes if step.steps_on else 0
    if form == "bk-compat":
        extra, back_extra = 13 * tokens + 2 * step.batch, 13 * tokens
    elif step.path == "eager":
        extra, back_extra = -tokens, 8 * (tokens - step.batch)
    saved = {"bk-causal": 8, "bk-exact": 24, "bk-compat": 8}[form] * tokens
    return Formula(
        "resolvent",
        "resolvent",
        forward=Work(forward * tokens, divisions * tokens, extra, bytes_moved=12 * tokens + moved_on),
        backward=Work(
            backward * tokens,
            2 * tokens if form == "bk-compat" else 0,
            back_extra,
            bytes_moved=12 * tokens + saved,
        ),
        saved_bytes=saved,
        state_bytes=state_bytes,
        scratch_bytes=8 * tokens + 8 * overlap,
        sizes={"tokens": tokens, "batch": step.batch, "new": step.new},
    )


def fused(step: Step, form: str, state_bytes: int) -> Formula:
    """The resolvent in one kernel, forward and backward. A lane runs its whole chunk of C positions, and H around it.

    The kernels say which products are fused into sums, so that their source tells what a lane runs: see `_left`,
    `_left_backward`, `_two_sided` and `_two_sided_backward`, where the reciprocal is the product that its instructions
    end with. Of `bk-causal` the clamp that follows keeps L. `bk-exact` keeps v alone: its backward computes L, R and G
    again.
    """
    tokens, s = step.rows, step.width
    moved_on = 2 * state_bytes if step.steps_on else 0
    ahead, back = (_fit(step, cut) for cut in TRITON_CUTS[form])
    if form == "bk-causal":
        forward, backward, divisions = 9 * tokens, 14 * tokens, tokens
        runs, back_runs = _left(step, ahead, begun=state_bytes > 0), _lanes(step, back) * _left_backward(back)
        saved, moved_back = 0, (16 + s) * tokens
    else:
        forward, backward, divisions = 27 * tokens, 39 * tokens, 3 * tokens
        runs, back_runs = _lanes(step, ahead) * _two_sided(ahead), _lanes(step, back) * _two_sided_backward(back)
        saved, moved_back = s * tokens, (8 + 2 * s) * tokens
    return Formula(
        "resolvent",
        "resolvent",
        forward=Work(forward, divisions, runs - forward, bytes_moved=(8 + s) * tokens + moved_on),
        backward=Work(backward, 0, back_runs - backward, bytes_moved=moved_back),
        saved_bytes=saved,
        state_bytes=state_bytes,
        scratch_bytes=8 * tokens,
        sizes={"tokens": tokens, "batch": step.batch, "new": step.new},
    )


def _left(step: Step, cut: Cut, *, begun: bool) -> int:
    """What the left fraction's kernel runs.

    A position is v - 2 1, d² + s² 3, the reciprocal 1, and the next position's d and s as multiply-adds 4: 9. The last
    has no next: -4. Where p and q are written they are two products: 2. Behind a state, the first d and s are sums: 2.
    Without one they are v - 2 and 1, so that s² is no product and the next s no multiply-add but a sum: -2; nor is its
    own q a product, if it is written: -1. One position has no next, and of a warp that is not full of rows, lanes
    without one have left before its p.
    """
    lanes = _lanes(step, cut)
    runs = 9 * (cut.chunk + cut.halo) - 4 + 2 * cut.chunk
    if begun and not cut.halo:
        return lanes * (runs + 2)
    if cut.chunk == 1:
        return lanes * (runs - 3) + step.batch
    return lanes * (runs - (2 if cut.halo else 3))


def _left_backward(cut: Cut) -> int:
    """What a lane of its gradient runs: square 5, sum 2, product 6, sign 1. Of one position no imaginary part: -3."""
    return 14 * (cut.chunk + cut.halo) - (3 if cut.chunk == 1 else 0)


def _two_sided(cut: Cut) -> int:
    """What a lane of G's kernel runs.

    A position around the chunk is that of a left fraction, 9, on either side. One in the chunk is v - 2 1; d and s of L
    and R, as multiply-adds, 8; those of G, which are L's less p and q of R, 2 + 2; three times d² + s² 3 and the
    reciprocal 1; G's two products: 27. Nothing reads L of the last position, 4, nor R of the first, 8. With nothing
    around the chunk, s of the first L is 1 and not made: 2.
    """
    return 18 * cut.halo + 27 * cut.chunk - (12 if cut.halo else 14)


def _two_sided_backward(cut: Cut) -> int:
    """What a lane of its gradient runs.

    A position around the chunk is a fraction's 9, its p and q 2, the sum with the cotangent 2, the square 5 and the
    product 6: 24, on either side. One in the chunk is v - 2 1; L and R 4 + 4 each, and G 2 + 4 behind them; p and q of
    the three 6; their sums 6, squares 15, two products 12 and of G's the negative real part alone 3: 65. Nothing reads
    what the last position leaves to its right, 4 + 2 + 2 + 5 + 6, nor R of the first, 8 + 2 + 5 + 6. With nothing
    around the chunk, s of the first L and of the last R are 1: 2 each; of one position, that of L and, a sum, of G.
    """
    return 48 * cut.halo + 65 * cut.chunk - 40 - (0 if cut.halo else 3 if cut.chunk == 1 else 4)


def _lanes(step: Step, cut: Cut) -> int:
    """All lanes of the warps that run: a row has an even number of lanes, or one."""
    a_row = 2 * -(-step.new // (2 * cut.chunk)) if cut.halo else 1
    return WARP * -(-step.batch * a_row // WARP)


def _fit(step: Step, cut: Cut) -> Cut:
    """A row of one position is cut to it, and one that is a single chunk has nothing around it."""
    if step.new > cut.chunk:
        return cut
    return Cut(1 if step.new == 1 else cut.chunk, 0)
