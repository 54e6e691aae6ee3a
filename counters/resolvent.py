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

TWO_SIDED = (
    {Cut(1, 0): 5, Cut(16, 0): 411, Cut(16, 24): 6 * 72 + 422},
    {Cut(1, 0): 15, Cut(8, 0): 484, Cut(8, 24): 6 * 188 + 517},
)
"""What a lane of the two-sided kernels runs, forward and backward, by their machine code for Hopper: sums, products,
and 2 a multiply-add. A halo is 6 rounds of 4 positions on either side.

By its structure a position of the forward's chunk is v - 2, three fractions of d² + s² 3 and the reciprocal's
correction 1, their d and s as multiply-adds 12, and G's two products: 27 C. Nothing reads what the last position leaves
of either side, 12, and six of the d and s follow no product: 414 for 16, and four multiply-adds are made twice. Around
it the 9 of a left fraction on either side: 72 a round. The compiler folds products into the sums that read them, more
of them than one backward, and how many has no rule; no GPU's counters have been read of these kernels.
"""


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
    if form == "bk-compat":
        extra, back_extra = 13 * tokens + 2 * step.batch, 13 * tokens
    elif step.path == "eager":
        extra, back_extra = -tokens, 8 * (tokens - step.batch)
    saved = {"bk-causal": 8, "bk-exact": 24, "bk-compat": 8}[form] * tokens
    return Formula(
        "resolvent",
        "resolvent",
        forward=Work(forward * tokens, divisions * tokens, extra, bytes_moved=12 * tokens),
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

    `bk-causal`: see `_left`; backward the square 5, the sum 2, the product 6 and the sign 1. The clamp that follows
    keeps L.

    `bk-exact`: the table of its machine code, `TWO_SIDED`. Its backward keeps v alone, and computes L, R and G again.
    """
    tokens, s = step.rows, step.width
    ahead, back = (_fit(step, cut) for cut in TRITON_CUTS[form])
    lanes, back_lanes = (step.batch * -(-step.new // cut.chunk) for cut in (ahead, back))
    if form == "bk-causal":
        forward, backward = 9 * tokens, 14 * tokens
        runs, back_runs = _left(ahead, begun=state_bytes > 0), 14 * (back.chunk + back.halo)
        saved, moved_back = 0, (16 + s) * tokens
    else:
        forward, backward = 27 * tokens, 39 * tokens
        runs, back_runs = TWO_SIDED[0][ahead], TWO_SIDED[1][back]
        saved, moved_back = s * tokens, (8 + 2 * s) * tokens
    return Formula(
        "resolvent",
        "resolvent",
        forward=Work(
            forward,
            (1 if form == "bk-causal" else 3) * tokens,
            lanes * runs - forward,
            bytes_moved=(8 + s) * tokens,
        ),
        backward=Work(backward, 0, back_lanes * back_runs - backward, bytes_moved=moved_back),
        saved_bytes=saved,
        state_bytes=state_bytes,
        scratch_bytes=8 * tokens,
        sizes={"tokens": tokens, "batch": step.batch, "new": step.new},
    )


def _left(cut: Cut, *, begun: bool) -> int:
    """What a lane of the left fraction's kernel runs, by its machine code.

    A position is v - 2, d² + s² in a product and a multiply-add, the reciprocal, counted as the correction that it is
    multiplied with, and the two products with it, as multiply-adds of the next position's d and s: 9. Where they are
    written, both are products once more: 2. The last position has no next: -2. The first follows zeros, so that its
    d and s are v - 2 and 1, 1² is no product, nor is s times the reciprocal: -4; unless a row has `begun` with a state.
    """
    return 9 * (cut.chunk + cut.halo) + 2 * cut.chunk - (2 if begun and not cut.halo else 6)


def _fit(step: Step, cut: Cut) -> Cut:
    """A row of one position is cut to it, and one that is a single chunk has nothing around it. Symbols are long."""
    if not isinstance(step.new, int) or step.new > cut.chunk:  # pyright: ignore[reportUnnecessaryIsInstance]
        return cut
    return Cut(1 if step.new == 1 else cut.chunk, 0)
