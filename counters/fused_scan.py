"""What mamba-ssm's kernels of the selective scan add to its formula, by their machine code."""

from typing import NamedTuple

from benchbench.counters.op import Step
from benchbench.counters.scan_paths import Path


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

    def chunks(self, new: int) -> int:
        """Of a sequence of `new` steps; between two of them a state is kept."""
        return -(-new // self.steps)


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
    """How a sequence of `new` steps is cut. Symbols are long."""
    if not isinstance(new, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        return LONG
    return next((threads for most, threads in FUSED_THREADS.items() if new <= most), LONG)


def fused(step: Step, channels: int, n_state: int) -> Path:
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
    chunks = threads.chunks(step.new)
    whole, each = step.batch * channels * chunks, step.batch * parameters * chunks
    over_block = threads.warps * (WARP_SCAN + 1) - 1
    forward = 10 * threads.steps - 2 * threads.lanes + 3 * _combined(threads) + 2 * (threads.lanes - 1)
    backward = (32 * threads.items - 5) * threads.lanes + 3 * _raked(threads) + over_block
    forward, backward = forward + threads.odd_forward, backward + threads.odd_backward
    pairs, narrow = 8 * each, s * rows * n_state
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
    whole = size["batch"] * size["channels"] * threads.chunks(size["new"]) * threads.steps
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
