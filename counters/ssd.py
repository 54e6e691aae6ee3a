"""Formulas of Mamba-2's state-space dual layer, and what each witness sees of it."""

from typing import NamedTuple

from benchbench.counters.op import Formula, Op, Step, Work

SSD_CHUNK = 64
"""Tokens a chunk of the chunked path, at most."""

SSD_SPAN = 8
"""Chunks between two states that it keeps."""

PRODUCTS = "of the dual form only matrix products are counted: on the path chunked those of whole chunks and squares"
UNPASSED = "without numbers the dual form passes no state on from chunk to chunk"

Found = tuple[int, tuple[str, ...]]
"""FLOPs a witness must report, and the rules that say why."""


class _Sizes(NamedTuple):
    """What one pass over all sequences works on."""

    rows: int
    batch: int
    new: int
    heads: int
    channels: int
    shared: int
    """Numbers in a token's B, and in its C: those of all groups."""
    n_state: int
    chunk: int

    @property
    def chunks(self) -> int:
        return self.batch * -(-self.new // self.chunk)

    @property
    def tokens(self) -> int:
        """Tokens of whole chunks, those that fill up the last ones included."""
        return self.chunks * self.chunk

    @property
    def states(self) -> int:
        """Numbers in the state of a sequence."""
        return self.channels * self.n_state


def ssd(
    step: Step, heads: int, headdim: int, groups: int, n_state: int, chunk: int, *, state_bytes: int = 0
) -> Formula:
    """h = exp(Δ·A)·h + Δ·x·Bᵀ; y = h·C + D·x (2405.21060); a head has headdim·n_state states, and one Δ, A and D.

    Forward, a state: decay times h, (Δ·x)·B, their sum, and a multiply-add of C: 5. A channel: Δ·x, and a multiply-add
    of D: 3. A head: Δ·A, exp: 2.

    Backward, a state: dh = C·dy + decay·dh 3; dC = Σ dy·h 2; d(decay) = Σ dh·h 2; d(Δ·x) = Σ dh·B 2;
    dB = Σ dh·(Δ·x) 2: 11. A channel: dΔ = Σ d(Δ·x)·x 2, dx = d(Δ·x)·Δ + D·dy 3, dD = Σ dy·x 2: 7. A head: d(decay)
    times the decay 1, ·A and + dΔ 2, dA = Σ ·Δ 2: 5.

    `eager` keeps decays, Δ·x, and the state of every step twice. Its C·dy is a product of a column and a row, 2 a
    state; the first step has no gradient of h to compute, and the last no decay·dh to add: 2 a state of a sequence
    less. `chunked` keeps its inputs and a state every 8 chunks, and executes what is derived below. A single token is a
    step of the recurrence on every path.
    """
    rows, channels, width = step.rows, heads * headdim, step.width
    size = _Sizes(rows, step.batch, step.new, heads, channels, groups * n_state, n_state, min(chunk, step.new))
    n, h, states, shared = rows * channels, rows * heads, rows * size.states, rows * size.shared
    forward, backward = 5 * states + 3 * n + 2 * h, 11 * states + 7 * n + 5 * h
    extra, back_extra, kept, spread, moved_on = 0, 0, 0, 0, 0
    eager = step.path == "eager"
    if eager:
        back_extra = states - 2 * step.batch * size.states
        kept, spread = 4 * (h + n + 2 * states), 12 * states
    elif step.new != 1:
        extra, back_extra = _chunked_forward(size) - forward, _chunked_backward(size) - backward
        kept = 4 * step.batch * size.states * -(-step.new // (SSD_SPAN * size.chunk))
        spread = _spread(size)
    elif not step.training:
        moved_on = 8 * step.batch * size.states
    inputs = width * (n + 2 * shared) + 4 * h
    return Formula(
        "ssd",
        "scan",
        forward=Work(
            forward,
            h,
            extra_flops=extra,
            bytes_moved=inputs + width * n + 8 * heads + (16 * states if eager else moved_on),
        ),
        backward=Work(
            backward,
            extra_flops=back_extra,
            bytes_moved=2 * inputs + width * n + 16 * heads + (24 * states if eager else 2 * kept),
        ),
        params=heads,
        # The loop keeps x, B and C in float32.
        saved_bytes=(4 if eager else width) * (n + 2 * shared) + 4 * h + kept,
        state_bytes=state_bytes,
        scratch_bytes=width * n + spread,
        sizes={**size._asdict(), "single": int(step.new == 1)},
    )


def _chunked_forward(size: _Sizes) -> int:
    """Everything the chunked path runs forward; a is the sum of Δ·A from a chunk's first token.

    Products as below. A channel: Δ·x; Δ·exp(a_Q - a)·x; exp(a) times what the state gives; what tokens give, added;
    D·x, added: 6. A head: Δ·A, its sum, a_Q - a, exp, times Δ, exp(a): 6, and for each token of the chunk a - a, exp,
    times C·B: 3. A chunk: exp(a_Q) times the state, added: 2 a state; exp(a_Q) 1 a head.
    """
    a_token = 6 * size.channels + (6 + 3 * size.chunk) * size.heads
    a_chunk = 2 * size.states + size.heads
    return _chunked_products(size) + size.tokens * a_token + size.chunks * a_chunk


def _chunked_backward(size: _Sizes) -> int:
    """Everything the chunked path runs backward: W is exp(a - a)·(C·B), e is B times the gradient of the next state.

    A channel, again: Δ·x, Δ·exp(a_Q - a)·x 2. exp(a)·dy 1; times C·h, Σ 2; Σ e·x 2; e·Δ·exp(a_Q - a) 1; d(Δ·x) within
    the chunk: Σ ·x 2, ·Δ and added 2; D·dy, added 2; dD = Σ dy·x 2: 16. A shared state: dB and dC have two terms: 2.
    A head, again: 6, and for each token of the chunk 3. For each token of the chunk dW·exp(a - a), Σ over heads, dW·W,
    Σ by row, Σ by column: 5. da: the difference of these two, added 2; Σ e·x times Δ·exp(a_Q - a), taken off, Σ 3;
    dΔ = Σ e·x times exp(a_Q - a), added 2; da summed from the chunk's end 1: 8.
    A chunk: the states again 2, their gradients passed back 2, Σ dh·h 2 a state; exp(a_Q), times Σ dh·h, two sums: 4 a
    head. At the end, a head of each real token: dΔ += ·A 2, dA = Σ ·Δ 2, Σ dD 1: 5.
    """
    a_token = 16 * size.channels + 2 * size.shared + (14 + 8 * size.chunk) * size.heads
    a_chunk = 6 * size.states + 4 * size.heads
    at_end = 5 * size.rows * size.heads
    return _chunked_products(size, backward=True) + size.tokens * a_token + size.chunks * a_chunk + at_end


def _chunked_products(size: _Sizes, *, backward: bool = False) -> int:
    """Matrix products of the chunked path, 2 a multiply-add.

    Forward: B with what enters a state, C with a state; C with B; W with Δ·x. Backward: the first three again; with
    states and their gradients dC, dh, dB, e; with C and with B the gradient of C·B; dy with Δ·x, W with dy.
    """
    with_states, scores, within = (12, 6, 4) if backward else (4, 2, 2)
    return size.tokens * (with_states * size.states + size.chunk * (scores * size.shared + within * size.channels))


def _spread(size: _Sizes) -> int:
    """Bytes of a span's temporaries: four of its size, the decays of its chunks, its states."""
    tokens = min(size.tokens, size.batch * SSD_SPAN * size.chunk)
    return 4 * (tokens * (4 * size.channels + size.chunk * size.heads) + tokens // size.chunk * size.states)


def by_torch(op: Op, path: str) -> Found:
    """Matrix products alone. Of the recurrence: the read-out, and backward its two gradients."""
    size, backward = _size(op), op.phase == "backward"
    if _in_chunks(op, path):
        return _chunked_products(size, backward=backward), (PRODUCTS,)
    return (4 if backward else 2) * size.rows * size.states, (PRODUCTS,)


def by_fvcore(op: Op, path: str) -> Found:
    """The same, a multiply-add as one."""
    flops, rules = by_torch(op, path)
    return flops // 2, rules


def by_dispatch(op: Op, path: str, device: str) -> Found:
    """All that the path executes, but for the loop over chunks where there are no numbers: it adds 2 a state each way.

    Backward runs it both ways.
    """
    flops, size = op.work.flops + op.work.extra_flops, _size(op)
    if device != "meta" or not _in_chunks(op, path):
        return flops, ()
    ways = 2 if op.phase == "backward" else 1
    return flops - 2 * ways * size.chunks * size.states, (UNPASSED,)


def _size(op: Op) -> _Sizes:
    return _Sizes(**{name: op.formula.sizes[name] for name in _Sizes._fields})


def _in_chunks(op: Op, path: str) -> bool:
    return path == "chunked" and not op.formula.sizes["single"]
