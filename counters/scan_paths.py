"""What each way to compute Mamba's selective scan adds to its formula; mamba-ssm's is in fused_scan.py."""

from typing import NamedTuple

from benchbench.counters.op import Step

SCAN_CHUNK = 16
"""Steps between two states that the chunked scan keeps."""

TRITON_CHUNK = 128
"""Steps between two states that the scan in Triton keeps."""

TRITON_BLOCK = 32
"""Channels that one program of the scan in Triton sums dB and dC over."""

SUM_COLUMNS = 8
"""Columns of the matrix product that sums over channels: one is used for each step, the unit runs all."""


class Path(NamedTuple):
    """What one way to compute the scan adds to its arithmetic, moves and holds."""

    extra_forward: int
    extra_backward: int
    bytes_forward: int
    bytes_backward: int
    saved_bytes: int
    scratch_bytes: int


def eager(step: Step, channels: int, n_state: int) -> Path:
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


def chunked(step: Step, channels: int, n_state: int) -> Path:
    """Keeps the inputs, Δ before its softplus, the gate and one state a chunk.

    Computes the whole forward again in backward: 7 a state and 3 a channel, softplus 3 and the gate's SiLU 4. Its
    Σ ·A for dΔ is a product and a product with ones: 3 a state, not 2.
    """
    s, n = step.width, step.rows * channels
    states, parameters = n * n_state, channels * n_state
    inputs = _inputs(step, channels, n_state)
    kept = 4 * step.batch * parameters * -(-step.new // SCAN_CHUNK)
    moved_on = 8 * step.batch * parameters if step.steps_on else 0
    return Path(
        extra_forward=0,
        extra_backward=8 * states + 10 * n,
        # The gate is read and its gradient written here, too, and of one token the state.
        bytes_forward=inputs + 2 * s * n + 4 * (parameters + channels) + moved_on,
        bytes_backward=2 * inputs + 3 * s * n + 8 * (parameters + channels) + 2 * kept,
        # The projection that reads u too keeps it. The gate's half holds on to the whole output of in_proj.
        saved_bytes=s * (3 * n + 2 * step.rows * n_state) + kept,
        # It runs beside the whole output of in_proj, u, Δ before its softplus, Δ·u, and its own output.
        scratch_bytes=6 * s * n,
    )


def triton(step: Step, channels: int, n_state: int) -> Path:
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


def _inputs(step: Step, channels: int, n_state: int) -> int:
    """Bytes of u and Δ, B and C."""
    return step.width * step.rows * (2 * channels + 2 * n_state)
