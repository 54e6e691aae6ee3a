"""Formulas of what is done to each element or row: norms, activations, gates, dropout. `s` is bytes an element."""

from benchbench.counters.op import Formula, Work, half


def layer_norm(rows: int, d: int, s: int, *, stream: int, shift: bool = True) -> Formula:
    """y = γ·(x - μ)/√(σ² + ε) + β (1607.06450); without β unless `shift`. x has `stream` bytes an element.

    Forward, an element: sum for μ 1, subtract 1, square and sum 2, normalise 1, scale 1, shift 1: 7. A row: two
    divisions by d, + ε, rsqrt: 4, three of them transcendental.
    Backward with x̂ the normalised input, an element: dβ 1; dγ = Σ dy·x̂ 2; dx̂ = dy·γ 1; Σ dx̂ 1; Σ dx̂·x̂ 2;
    dx = r·(dx̂ - mean - x̂·mean) 4: 11, and two divisions a row. x̂ is rebuilt from the saved x: 2 an element.
    """
    n, beta = rows * d, int(shift)
    params = d + beta * d
    return Formula(
        "layer_norm",
        "norm",
        forward=Work((6 + beta) * n + 4 * rows, 3 * rows, bytes_moved=(stream + s) * n + s * params),
        backward=Work(
            (10 + beta) * n + 2 * rows,
            2 * rows,
            extra_flops=2 * n,
            bytes_moved=(2 * stream + s) * n + 2 * s * params,
        ),
        params=params,
        saved_bytes=stream * n + 8 * rows,
        scratch_bytes=s * n,
        sizes={"rows": rows, "d": d},
    )


def rms_norm(rows: int, d: int, s: int, *, stream: int, groups: int = 1) -> Formula:
    """y = γ·x/√(mean x² + ε) (1910.07467). x has `stream` bytes an element; each of `groups` has a mean of its own.

    Forward, an element: square and sum 2, normalise 1, scale 1: 4. A row: division by d, + ε, rsqrt: 3, two of them
    transcendental. Backward, an element: dγ = Σ dy·x̂ 2; dx̂ = dy·γ 1; Σ dx̂·x̂ 2; dx = r·(dx̂ - x̂·mean) 3: 8, and a
    division a row. x̂ is rebuilt from the saved x: 1 an element.
    """
    n, means = rows * d, rows * groups
    return Formula(
        "rms_norm",
        "norm",
        forward=Work(4 * n + 3 * means, 2 * means, bytes_moved=(stream + s) * n + s * d),
        backward=Work(8 * n + means, means, extra_flops=n, bytes_moved=(2 * stream + s) * n + 2 * s * d),
        params=d,
        saved_bytes=stream * n + 4 * means,
        scratch_bytes=s * n,
        sizes={"rows": means, "d": d // groups},
    )


def _map(
    name: str, n: int, s: int, forward: tuple[int, int], backward: tuple[int, int], *, saves: bool = True
) -> Formula:
    """An activation: (operations, transcendental among them) an element, forward and backward, from x.

    x is kept, unless the operation that it is fused with keeps it already.
    """
    return Formula(
        name,
        "elementwise",
        forward=Work(forward[0] * n, forward[1] * n, bytes_moved=2 * s * n),
        backward=Work(backward[0] * n, backward[1] * n, bytes_moved=3 * s * n),
        saved_bytes=s * n if saves else 0,
        scratch_bytes=s * n,
        sizes={"n": n},
    )


def silu(n: int, s: int, *, saves: bool = True) -> Formula:
    """x/(1 + e⁻ˣ): negate, exp, add, divide. Backward dy·σ·(1 + x·(1 - σ)): σ 4, then 5."""
    return _map("silu", n, s, (4, 2), (9, 2), saves=saves)


def softplus(n: int, s: int, *, saves: bool = True) -> Formula:
    """log(1 + eˣ): exp, add, log. Backward dy·σ(x): 4 for σ, 1."""
    return _map("softplus", n, s, (3, 2), (5, 2), saves=saves)


def relu(n: int, s: int) -> Formula:
    """max(x, 0): comparisons and selections, no arithmetic."""
    return _map("relu", n, s, (0, 0), (0, 0))


def gelu_tanh(n: int, s: int) -> Formula:
    """x/2·(1 + tanh u), u = c·(x + k·x³) (1606.08415): cube 2, ·k, + x, ·c, tanh, + 1, ·x, ·½: 9.

    Backward dy·(½(1 + t) + ½x·(1 - t²)·c(1 + 3k·x²)): u and its tanh from x as c·x·(1 + k·x²) 6; the slope of u
    reuses x²: 3; 1 - t² 2; their product with x/2: 3; ½(1 + t) 2; sum 1; ·dy 1: 18.
    """
    return _map("gelu_tanh", n, s, (9, 1), (18, 1))


def add(n: int, s: int, *, stream: int) -> Formula:
    """x + f(x): one addition. Backward the gradients of the two branches meet: one addition.

    Added positions cost the same: their gradient sums the batch, one addition an element. x has `stream` bytes an
    element, f(x) has s.
    """
    return Formula(
        "add",
        "elementwise",
        forward=Work(n, bytes_moved=(2 * stream + s) * n),
        backward=Work(n, bytes_moved=(2 * stream + s) * n),
        scratch_bytes=stream * n,
        sizes={"n": n},
    )


def join(n: int, s: int) -> Formula:
    """f + g, two branches joined: one addition. Backward both take dy as it is."""
    return Formula(
        "join",
        "elementwise",
        forward=Work(n, bytes_moved=3 * s * n),
        scratch_bytes=s * n,
        sizes={"n": n},
    )


def fan_out(n: int, uses: int, s: int) -> Formula:
    """A tensor read by several operations: free forward; backward sums their gradients, one addition a further use."""
    extra = (uses - 1) * n
    return Formula(
        "fan_out",
        "elementwise",
        forward=Work(),
        backward=Work(extra, bytes_moved=3 * s * extra),
        sizes={"n": n, "uses": uses},
    )


def multiply(n: int, s: int, *, saves: int = 2) -> Formula:
    """a·b: one product. Backward da = dy·b and db = dy·a: two. `saves` of the two factors are kept here."""
    return Formula(
        "multiply",
        "elementwise",
        forward=Work(n, bytes_moved=3 * s * n),
        backward=Work(2 * n, bytes_moved=5 * s * n),
        saved_bytes=saves * s * n,
        scratch_bytes=s * n,
        sizes={"n": n},
    )


def learned_scale(n: int, s: int) -> Formula:
    """c·x with one learned c: one product. Backward dx = c·dy 1, dc = Σ dy·x 2."""
    return Formula(
        "learned_scale",
        "elementwise",
        forward=Work(n, bytes_moved=2 * s * n),
        backward=Work(3 * n, bytes_moved=3 * s * n),
        params=1,
        saved_bytes=s * n,
        scratch_bytes=s * n,
        sizes={"n": n},
    )


def clamp(n: int, s: int) -> Formula:
    """A value held within bounds: comparisons, no arithmetic; the bounded input is kept for backward."""
    return _map("clamp", n, s, (0, 0), (0, 0))


def dropout(n: int, s: int, *, masked: int = 0) -> Formula:
    """x·mask/(1 - p): two products with a mask of bytes; backward the same two on dy. Nothing outside training.

    `masked` further elements, which nothing sees, are computed too.
    """
    return Formula(
        "dropout",
        "elementwise",
        forward=Work(2 * n, extra_flops=2 * masked, bytes_moved=(2 * s + 1) * n),
        backward=Work(2 * n, extra_flops=2 * masked, bytes_moved=(2 * s + 1) * n),
        saved_bytes=n,
        scratch_bytes=s * n,
        flops_until_kept=n + masked,
        sizes={"n": n, "masked": masked},
    )


def rotary_table(tokens: int, d_head: int) -> Formula:
    """cos and sin of position·frequency for d_head/2 frequencies, in float32: a product and two functions each.

    The frequencies θ^(-2e/d_head) are computed anew in each pass: a division, a sign and a power each.
    """
    frequencies = d_head // 2
    n = tokens * frequencies
    return Formula(
        "rotary_table",
        "elementwise",
        forward=Work(3 * n, 2 * n, extra_flops=3 * frequencies, bytes_moved=8 * n),
        saved_bytes=8 * n,
        scratch_bytes=8 * n,
        sizes={"tokens": tokens, "d_head": d_head},
    )


def rotary(n: int, s: int) -> Formula:
    """Pairs turned by their angle (2104.09864): 4 products and 2 sums a pair, 3 an element; backward turns back.

    Autograd turns a difference back by a product, a sign and a sum, where a difference would do: one sign a pair.
    """
    return Formula(
        "rotary",
        "elementwise",
        forward=Work(3 * n, bytes_moved=2 * s * n),
        backward=Work(3 * n, extra_flops=half(n), bytes_moved=2 * s * n),
        scratch_bytes=s * n,
        sizes={"n": n},
    )
