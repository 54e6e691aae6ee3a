"""Formulas of Mamba's selective scan."""

from typing import NamedTuple

from benchbench.counters.op import Formula, Step, Work

SCAN_CHUNK = 16
"""Steps between two states that the chunked scan keeps."""

TRITON_CHUNK = 128
"""Steps between two states that the scan in Triton keeps."""

TRITON_BLOCK = 32
"""Channels that one program of the scan in Triton sums dB and dC over."""

SUM_COLUMNS = 8
"""Columns of the matrix product that sums over channels: one is used for each step, the unit runs all."""

FUSED_CHUNK = 2048
"""Steps between two states that mamba-ssm's scan keeps, above 1024 of them: 128 threads with 16 each."""


class Path(NamedTuple):
    """What one way to compute the scan adds to its arithmetic, moves and holds."""

    extra_forward: int
    extra_backward: int
    bytes_forward: int
    bytes_backward: int
    saved_bytes: int
    scratch_bytes: int


def selective_scan(step: Step, channels: int, n_state: int, *, state_bytes: int = 0) -> Formula:
    """h = exp(Δ·A)·h + Δ·u·B; y = C·h + D·u, for every channel, with n_state states each (2312.00752, eq. 2).

    Forward, a state: Δ·A, exp, (Δ·u)·B, decay times h, their sum, and a multiply-add of C: 7. A channel: Δ·u, and a
    multiply-add of D: 3.

    Backward, a state: dh = C·dy + decay·dh 3; dC = Σ dy·h 2; d(decay) = dh·h 1, times the decay 1;
    dΔ = Σ ·A 2; dA = Σ ·Δ 2; d(Δ·u) = Σ dh·B 2; dB = Σ dh·(Δ·u) 2: 15. A channel: dΔ += d(Δ·u)·u 2,
    du = d(Δ·u)·Δ + D·dy 3, dD = Σ dy·u 2: 7.

    The softplus of Δ and the gate are operations of their own; where a kernel computes them too, what it does beyond
    their arithmetic is here.
    """
    n = step.rows * channels
    states = n * n_state
    path = PATHS.get(step.path, _chunked)(step, channels, n_state)
    return Formula(
        "selective_scan",
        "scan",
        forward=Work(7 * states + 3 * n, states, extra_flops=path.extra_forward, bytes_moved=path.bytes_forward),
        backward=Work(15 * states + 7 * n, extra_flops=path.extra_backward, bytes_moved=path.bytes_backward),
        params=channels,
        saved_bytes=path.saved_bytes,
        state_bytes=state_bytes,
        scratch_bytes=path.scratch_bytes,
        sizes={
            "rows": step.rows,
            "batch": step.batch,
            "new": step.new,
            "channels": channels,
            "n_state": n_state,
            "single": int(step.new == 1),
        },
    )


def _eager(step: Step, channels: int, n_state: int) -> Path:
    """Keeps the decay and, twice, the state of every step.

    Its C·dy is a product of a column and a row, 2 a state; the last step has no decay·dh to add: 2 a state of a
    sequence less.
    """
    s, n = step.width, step.rows * channels
    states, parameters = n * n_state, channels * n_state
    inputs = _inputs(step, channels, n_state)
    return Path(
        extra_forward=0,
        extra_backward=states - 2 * step.batch * parameters,
        bytes_forward=inputs + s * n + 4 * (parameters + channels) + 16 * states,
        bytes_backward=2 * inputs + s * n + 8 * (parameters + channels) + 24 * states,
        saved_bytes=s * (2 * n + 2 * step.rows * n_state) + 12 * states,
        scratch_bytes=s * n + 12 * states,
    )


def _chunked(step: Step, channels: int, n_state: int) -> Path:
    """Keeps the inputs, Δ before its softplus, the gate and one state a chunk.

    Computes the whole forward again in backward: 7 a state and 3 a channel, softplus 3 and the gate's SiLU 4. Its
    Σ ·A for dΔ is a product and a product with ones: 3 a state, not 2.
    """
    s, n = step.width, step.rows * channels
    states, parameters = n * n_state, channels * n_state
    inputs = _inputs(step, channels, n_state)
    kept = 4 * step.batch * parameters * -(-step.new // SCAN_CHUNK)
    return Path(
        extra_forward=0,
        extra_backward=8 * states + 10 * n,
        # The gate is read and its gradient written here, too.
        bytes_forward=inputs + 2 * s * n + 4 * (parameters + channels),
        bytes_backward=2 * inputs + 3 * s * n + 8 * (parameters + channels) + 2 * kept,
        # The projection that reads u too keeps it. The gate's half holds on to the whole output of in_proj.
        saved_bytes=s * (3 * n + 2 * step.rows * n_state) + kept,
        # It runs beside the whole output of in_proj, u, Δ before its softplus, Δ·u, and its own output.
        scratch_bytes=6 * s * n,
    )


def _triton(step: Step, channels: int, n_state: int) -> Path:
    """Our kernels, split over the sequence; a channel's softplus is 20 (scale, exp, a polynomial of degree 8, a
    multiply-add), its sigmoid 4 (scale, exp, add, divide).

    Forward, first kernel, a state: Δ·A, exp, (Δ·u)·B, multiply-add: 5; a channel: softplus, Δ·u, the sum of Δ: 22.
    Between chunks, a state: A·ΣΔ, exp, multiply-add: 4. Last kernel: the 7 a state and 3 a channel; softplus 20 for
    3, the gate's sigmoid and two products 6 for 5. A to base 2: 1 a parameter. In all 5 a state and 40 a channel more.
    One token without gradients is one kernel: the 18 a channel of its softplus and gate, and 1 a state for base 2.

    Backward, first walk, a state: Δ·A, exp, decay·h, + (Δ·u)·B 2; slope decay·p + Δ·decay·h 3; decay since the start
    1; C·dy 1; handed down 2; dA 2; C·h 1, its sum 1, its sum times A 2; h·dy 1: 19. A channel: softplus 20, Δ·u 1,
    sigmoid 4, dy 2, dD 2, ΣΔ 1, times dy 1, dz 8: 39. Second walk, a state: C·dy + g 2; g·B 1, its sum 1, its sum
    times A 2; g·Δu 1; Δ·A, exp, decay·g 3: 10. A channel: softplus 20, two sigmoids 8, dy 2, Δ·u 1, dΔ's exponent 3,
    du 3, draw 4: 41. Each walk sums over channels by a matrix product of 8 columns, 16 a state; in float32 by two, and
    2 to split. That is 61 a state and 80 a channel, of which the formulas of the scan, the softplus and the gate have
    15 and 7 + 5 + 9 + 2. Below 16 states the sums are sums, 1 each. A chunk's state: 4 between chunks, 5 to begin with
    w and dA, and 1 to sum dA; each block's dB and dC: 1.
    """
    s, rows, n = step.width, step.rows, step.rows * channels
    states, parameters = n * n_state, channels * n_state
    chunks = step.batch * -(-step.new // TRITON_CHUNK)
    between, wide = 4 * chunks * parameters, 4 * rows * n_state
    narrow = rows * n_state * (s + 4)
    blocks = -(-channels // TRITON_BLOCK)
    summed = 1 if n_state < 16 else (2 * SUM_COLUMNS if s < 4 else 4 * SUM_COLUMNS + 2)
    kept = between + 4 * step.batch * parameters
    inputs = _inputs(step, channels, n_state)
    if step.new == 1 and not step.training:
        moved = inputs + 2 * s * n + 4 * (parameters + channels) + 8 * step.batch * parameters
        return Path(states + 18 * n, 0, moved, 0, 0, 5 * s * n)
    return Path(
        extra_forward=5 * states + 40 * n + 4 * chunks * parameters + parameters,
        extra_backward=(29 + 2 * summed - 15) * states
        + (80 - 23) * n
        + 10 * chunks * parameters
        + parameters
        + 2 * blocks * rows * n_state,
        # B and C to float32; two passes over the inputs, the second with z, C and y; the states four times.
        bytes_forward=2 * narrow + (2 * s * n + wide) + (4 * s * n + 2 * wide) + 8 * parameters + 4 * between,
        # Two walks over u, Δ, z, dy; the first writes dz and a float32 a channel, the second reads that, writes du and
        # dΔ. The shares of dB and dC are written, read and summed. Of chunks: states 2, carries 4, slopes 2, dA 4.
        bytes_backward=2 * narrow
        + (9 * s + 4) * n
        + (6 * s + 4) * n
        + 4 * wide
        + 2 * (2 * blocks + 1) * wide
        + 16 * parameters
        + 12 * between,
        saved_bytes=s * (3 * n + 2 * rows * n_state) + kept,
        # Beside the whole output of in_proj, u, Δ before its softplus and its own output: B and C, the states.
        scratch_bytes=5 * s * n + 2 * wide + (0 if step.training else kept),
    )


class Threads(NamedTuple):
    """How mamba-ssm cuts a channel's steps: a block of warps reads a chunk of them, each thread some in a row."""

    items: int
    warps: int
    odd_forward: int = 0
    """Products of a block and a state that the compiler makes beyond one for each multiply-add of `_combined`."""
    odd_backward: int = 0
    """And of `_raked`."""

    @property
    def lanes(self) -> int:
        return 32 * self.warps

    @property
    def steps(self) -> int:
        """Of a chunk. The last one runs whole, however few are left."""
        return self.items * self.lanes


FUSED_THREADS = {
    128: Threads(4, 1, odd_backward=-2 * 31),
    256: Threads(8, 1, odd_backward=-2 * 31),
    512: Threads(16, 1, odd_backward=98),
    1024: Threads(16, 2, odd_forward=-31, odd_backward=320),
}
"""By the longest sequence that is cut so. What is odd is what an H200 counted at 100, 200, 400 and 800 steps."""
LONG = Threads(16, 4)

WARP_SCAN = 31 + 30 + 28 + 24 + 16
"""Lanes that take the 5 steps of a scan within a warp."""


def fused_threads(new: int) -> Threads:
    """Symbols are long."""
    if not isinstance(new, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        return LONG
    return next((threads for most, threads in FUSED_THREADS.items() if new <= most), LONG)


def _fused(step: Step, channels: int, n_state: int) -> Path:
    """mamba-ssm 2.3.2: selective_scan_fwd, and selective_scan_bwd as mamba_inner_fn calls it with checkpoint_lvl 1.

    By its machine code. Forward, a thread with I steps and a state: A to base 2; Δ·A, (Δ·u)·B, h and y I each, the last
    two multiply-adds; folding the (decay, h) pairs into one, I - 1 products and multiply-adds: 9 I - 2. Of both, too:
    `_combined`. Of multiply-adds one with the chunks before, in all threads but the first. And I exps.
    A channel: Δ and its bias 1; softplus 2 sums, 3 products and 11 multiply-adds, of log1p's polynomial; Δ·u, D·u; the
    gate 1 sum and 3 products: 34; and three transcendentals: 37, of which the formulas have 3 + 3 + 5.
    At B = 1, D = 1536, N = 16, L = 4096 and without a gate, that is 421,527,552 multiply-adds, 383,827,968 products and
    18,874,368 sums: what an H200 counted.

    Backward, a thread and a state: 12 I products, 8 I - 3 multiply-adds, I + 1 sums, I exps, and 2 I atomic additions
    to dB and dC: 32 I - 5. One warp runs both scans over threads, with a product for a multiply-add: `_raked`. Summing
    dA over W warps takes 129 W + W - 1 sums a chunk, and from the second chunk on one more. A channel: 8 sums, 13
    products, 13 multiply-adds, of softplus, D, gate and the gated output again for out_proj's gradient, and 5
    transcendentals: 52, of which the formulas have 7 + 5 + 9 + 2; to sum dD and the bias's gradient, as for dA, twice a
    sequence.

    The convolution, its SiLU and Δ's projection are computed again, too: they are operations of their own.
    """
    if step.new == 1 and not step.training:
        return _state_update(step, channels, n_state)
    s, rows, n = step.width, step.rows, step.rows * channels
    states, parameters = n * n_state, channels * n_state
    threads = fused_threads(step.new)
    chunks = -(-step.new // threads.steps)
    whole, each = step.batch * channels * chunks, step.batch * parameters * chunks
    over_block = threads.warps * (WARP_SCAN + 1) - 1
    forward = 10 * threads.steps - 2 * threads.lanes + 3 * _combined(threads) + 2 * (threads.lanes - 1)
    backward = (32 * threads.items - 5) * threads.lanes + 3 * _raked(threads) + over_block
    forward, backward = forward + threads.odd_forward, backward + threads.odd_backward
    pairs, narrow = 8 * step.batch * parameters * -(-step.new // FUSED_CHUNK), s * rows * n_state
    return Path(
        extra_forward=forward * each + 37 * threads.steps * whole - 7 * states - 11 * n,
        extra_backward=backward * each
        + (chunks - 1) * step.batch * parameters
        + 52 * threads.steps * whole
        + 2 * over_block * step.batch * channels
        - 15 * states
        - 23 * n,
        # u, Δ, z; out and the gated out; B and C made contiguous; pairs of decay and state.
        bytes_forward=5 * s * n + 6 * narrow + 4 * (parameters + channels) + pairs,
        # u, Δ, z, out, dout; du, dΔ, dz and the gated out; dB and dC in float32, and to the inputs' dtype.
        bytes_backward=9 * s * n + 4 * narrow + 16 * rows * n_state + 8 * (parameters + channels) + pairs,
        # The whole output of in_proj, out, x_proj's B and C and their contiguous copies; u and Δ are computed again.
        saved_bytes=s * 3 * n + 4 * narrow + pairs,
        # The whole output of in_proj, u, Δ, out and the gated out.
        scratch_bytes=6 * s * n + 2 * narrow + pairs,
    )


def fused_apart(size: dict[str, int], phase: str) -> int:
    """Of what the fused scan, its softplus and its gate execute, what no float32 instruction does.

    Special functions: an exp a state, and of a channel 3 forward and 5 backward, which has 2 atomic additions a state.
    """
    threads, n_state = fused_threads(size["new"]), size["n_state"]
    whole = size["batch"] * size["channels"] * -(-size["new"] // threads.steps) * threads.steps
    return whole * (3 * n_state + 5 if phase == "backward" else n_state + 3)


def _combined(threads: Threads) -> int:
    """How often two (decay, h) pairs are made one in a block, beside those of a thread's own steps.

    In every warp the 5 steps of its scan; in every thread one for each warp but the first; in one warp 32, and with the
    warps before 31 in each of the others.
    """
    return WARP_SCAN * threads.warps + threads.lanes * (threads.warps - 1) + 32 + 31 * (threads.warps - 1)


def _raked(threads: Threads) -> int:
    """The same for both scans over a block's threads, by a warp whose lanes take W threads each.

    W - 1 to fold a lane's threads into one and W - 1 to go through them again, of either scan; one more; 5 steps within
    the warp and one in 31 lanes, of either.
    """
    return 32 * (4 * (threads.warps - 1) + 1) + 2 * (WARP_SCAN + 31)


def _state_update(step: Step, channels: int, n_state: int) -> Path:
    """mamba-ssm's selective_state_update: one token, by its source. Its state is in the weights' dtype.

    A state: Δ·A, to base 2, exp; Δ·B, times u; decay times h, their sum, C 2: 9. Δ·u is never made, and three more
    exps and logs of a channel go to base 2.
    """
    s, n, kept = step.width, step.rows * channels, step.batch * channels * n_state
    parameters, narrow = channels * n_state, s * step.rows * n_state
    moved = 4 * s * n + 2 * narrow + 4 * (parameters + 2 * channels) + 2 * s * kept
    return Path(2 * kept + 2 * n, 0, moved, 0, 0, 6 * s * n + 2 * narrow + 8 * kept)


def _inputs(step: Step, channels: int, n_state: int) -> int:
    """Bytes of u and Δ, B and C."""
    return step.width * step.rows * (2 * channels + 2 * n_state)


PATHS = {"eager": _eager, "chunked": _chunked, "triton": _triton, "fused": _fused}


def decay_rates(channels: int, n_state: int) -> Formula:
    """A = -exp(A_log): 2 a parameter. Backward dA·A: 1; autograd takes the sign back on its own: 1."""
    parameters = channels * n_state
    return Formula(
        "decay_rates",
        "scan",
        forward=Work(2 * parameters, parameters),
        backward=Work(parameters, extra_flops=parameters),
        params=parameters,
        sizes={"channels": channels, "n_state": n_state},
    )
