"""Formulas of the dense operations: linear maps, embeddings, convolution and attention. `s` is bytes an element."""

from benchbench.counters.op import Formula, Step, Work


def linear(rows: int, d_in: int, d_out: int, s: int, *, saves_input: bool = True, copies: int = 1) -> Formula:
    """y = x Wᵀ: every output is a dot product of d_in multiply-adds.

    Forward 2·rows·d_in·d_out. Backward: dx = dy W and dW = dyᵀ x have the same three extents, so twice the forward.
    Saved: x, unless another operation keeps it already. `copies` experts hold a weight each and share the rows.
    """
    flops = 2 * rows * d_in * d_out
    weights = copies * d_in * d_out
    x, y = s * rows * d_in, s * rows * d_out
    return Formula(
        "linear",
        "matmul",
        forward=Work(flops, bytes_moved=x + y + s * weights),
        backward=Work(2 * flops, bytes_moved=2 * (x + y + s * weights)),
        params=weights,
        saved_bytes=x if saves_input else 0,
        scratch_bytes=y,
        sizes={"rows": rows, "d_in": d_in, "d_out": d_out, "weights": weights},
    )


def cast(weights: int, wide: int, narrow: int) -> Formula:
    """Weights of `wide` bytes brought to `narrow` ones for a pass, and their gradients back: copies."""
    return Formula(
        "cast",
        "elementwise",
        forward=Work(bytes_moved=(wide + narrow) * weights),
        backward=Work(bytes_moved=(wide + narrow) * weights),
        sizes={"weights_cast": weights},
    )


def head(rows: int, d: int, vocab_size: int, s: int, *, tied: bool, chunks: int = 1) -> Formula:
    """The projection to the vocabulary: a linear map whose weight, where `tied`, is the embedding's.

    The loss projects its rows in `chunks` pieces. More than one: the weight is read for each, the logits are computed
    again in backward, and the pieces' weight gradients are added up.
    """
    flops, weights = 2 * rows * d * vocab_size, d * vocab_size
    again = flops + (chunks - 1) * weights if chunks > 1 else 0
    moved = s * (rows * (d + vocab_size) + weights * chunks)
    return Formula(
        "head",
        "matmul",
        forward=Work(flops, bytes_moved=moved),
        backward=Work(2 * flops, extra_flops=again, bytes_moved=(3 if chunks > 1 else 2) * moved),
        params=0 if tied else weights,
        saved_bytes=s * rows * d,
        scratch_bytes=s * -(-rows // chunks) * vocab_size,
        sizes={"rows": rows, "d_in": d, "d_out": vocab_size, "chunks": chunks, "weights": weights},
    )


def shared_weight(params: int, s: int) -> Formula:
    """A weight that two modules use: backward adds their two gradients, one addition a parameter."""
    return Formula(
        "shared_weight",
        "elementwise",
        forward=Work(),
        backward=Work(params, bytes_moved=3 * s * params),
        sizes={"params": params},
    )


def bias(rows: int, d: int, s: int, *, copies: int = 1, chunks: int = 1) -> Formula:
    """y + b: one addition an element. Backward: db sums the rows, one addition an element; dy passes unchanged.

    Fused with the product it follows, so it moves b alone. In a head's chunks it is added again in backward, and the
    chunks' db are added up.
    """
    n = rows * d
    again = n + (chunks - 1) * d if chunks > 1 else 0
    return Formula(
        "bias",
        "elementwise",
        forward=Work(n, bytes_moved=s * d * chunks),
        backward=Work(n, extra_flops=again, bytes_moved=s * (n + d * chunks * (2 if chunks > 1 else 1))),
        params=copies * d,
        sizes={"rows": rows, "d": d},
    )


def embedding(rows: int, d: int, entries: int, s: int) -> Formula:
    """A look-up: bytes, no arithmetic. Backward adds each row's gradient into its entry: rows·d additions."""
    moved = 2 * s * rows * d + 8 * rows
    return Formula(
        "embedding",
        "embedding",
        forward=Work(bytes_moved=moved),
        backward=Work(rows * d, bytes_moved=moved + s * rows * d),
        params=entries * d,
        saved_bytes=0,
        scratch_bytes=s * rows * d,
        sizes={"rows": rows, "d": d, "entries": entries},
    )


def depthwise_conv(rows: int, channels: int, taps: int, s: int, *, state_bytes: int = 0) -> Formula:
    """y_t = Σ_k w_k x_{t-k}, a channel at a time: `taps` multiply-adds an element, zeros before the start included.

    Backward: dx is the same convolution transposed and dw correlates x with dy: the forward's work each.
    """
    n = rows * channels
    flops = 2 * taps * n
    return Formula(
        "depthwise_conv",
        "conv",
        forward=Work(flops, bytes_moved=2 * s * n + s * channels * taps),
        backward=Work(2 * flops, bytes_moved=3 * s * n + 2 * s * channels * taps),
        params=channels * taps,
        saved_bytes=s * n,
        state_bytes=state_bytes,
        scratch_bytes=s * n,
        sizes={"rows": rows, "channels": channels, "taps": taps, "weights": channels * taps},
    )


def conv(
    rows: int,
    d_in: int,
    d_out: int,
    taps: int,
    s: int,
    *,
    groups: int = 1,
    dropped: int = 0,
    saves_input: bool = True,
    state_bytes: int = 0,
) -> Formula:
    """y_t = Σ_k W_k x_{t-k}: d_in to d_out channels, each output reading the d_in/groups channels of its group.

    Every output is `taps`·d_in/groups multiply-adds, zeros before the start included. Backward: dx is the same
    convolution transposed and dW correlates x with dy: the forward's work each. `dropped` further rows are computed
    and thrown away: torch pads both ends, so that K taps take (K - 1) rows a sequence too many. groups = d_in = d_out
    is `depthwise_conv`; one tap is `linear`.
    """
    weights = taps * (d_in // groups) * d_out
    x, y = s * rows * d_in, s * rows * d_out
    return Formula(
        "conv",
        "conv",
        forward=Work(2 * rows * weights, extra_flops=2 * dropped * weights, bytes_moved=x + y + s * weights),
        backward=Work(4 * rows * weights, extra_flops=4 * dropped * weights, bytes_moved=2 * x + y + 2 * s * weights),
        params=weights,
        saved_bytes=x if saves_input else 0,
        state_bytes=state_bytes,
        scratch_bytes=y,
        sizes={"rows": rows, "d_in": d_in, "d_out": d_out, "taps": taps, "groups": groups, "weights": weights},
    )


def attention(step: Step, n_heads: int, n_kv_heads: int, d_head: int, *, state_bytes: int = 0) -> Formula:
    """softmax(q kᵀ / √d) v over the visible pairs, P of them a head and a sequence.

    Forward, a pair: score 2·d_head, scale 1, softmax 4 (subtract the maximum, exp, sum, divide), value 2·d_head.
    Backward, a pair: dv = pᵀ do, dp = do vᵀ, dq = ds k, dk = dsᵀ q are 2·d_head each; ds = p ∘ (dp - Σ p ∘ dp) takes a
    multiply and an addition for the sum, a subtraction, a multiplication, and the scale: 5.

    `eager` computes the whole rectangle, forward and backward, keeps the probabilities, and scales the d_head numbers
    of each query, not its scores. `flash` (2205.14135) computes the visible pairs, keeps the output and one log-sum-exp
    a query, and in backward computes the scores again: 2·d_head, scale, subtract, exp a pair.
    """
    flash = step.path == "flash"
    heads = step.batch * n_heads
    pairs, square = heads * step.pairs, heads * step.square_pairs
    hidden = square - pairs
    forward, backward = 4 * d_head + 5, 8 * d_head + 5
    again = 2 * d_head + 3
    scaled = step.rows * n_heads * d_head - square
    q = step.width * step.rows * n_heads * d_head
    kv = 2 * step.width * step.batch * (step.context + step.new) * n_kv_heads * d_head
    scores = step.width * heads * step.square_pairs
    lse = 4 * heads * step.new
    spilled = 0 if flash else 4 * scores
    return Formula(
        "attention",
        "attention",
        forward=Work(
            pairs * forward,
            transcendental=2 * pairs,
            extra_flops=0 if flash else hidden * forward + scaled,
            square_flops=hidden * forward,
            bytes_moved=2 * q + kv + spilled,
        ),
        backward=Work(
            pairs * backward,
            extra_flops=pairs * again if flash else hidden * backward + scaled,
            square_flops=hidden * backward,
            bytes_moved=4 * q + 2 * kv + spilled,
        ),
        # q, k and v after rotation, and the output; eager keeps the probabilities where flash keeps a row statistic.
        saved_bytes=2 * q + kv + (lse if flash else scores),
        state_bytes=state_bytes,
        scratch_bytes=q if flash else q + 2 * scores,
        sizes={
            "batch": step.batch,
            "new": step.new,
            "keys": step.context + step.new,
            "n_heads": n_heads,
            "d_head": d_head,
        },
    )
