"""Formulas of Mamba's selective scan."""

from benchbench.counters.op import Formula, Step, Work

SCAN_CHUNK = 16
"""Steps between two states that the chunked scan keeps."""


def selective_scan(step: Step, channels: int, n_state: int, *, state_bytes: int = 0) -> Formula:
    """h = exp(Δ·A)·h + Δ·u·B; y = C·h + D·u, for every channel, with n_state states each (2312.00752, eq. 2).

    Forward, a state: Δ·A, exp, (Δ·u)·B, decay times h, their sum, and a multiply-add of C: 7. A channel: Δ·u, and a
    multiply-add of D: 3.

    Backward, a state: dh = C·dy + decay·dh 3; dC = Σ dy·h 2; d(decay) = dh·h 1, times the decay 1;
    dΔ = Σ ·A 2; dA = Σ ·Δ 2; d(Δ·u) = Σ dh·B 2; dB = Σ dh·(Δ·u) 2: 15. A channel: dΔ += d(Δ·u)·u 2,
    du = d(Δ·u)·Δ + D·dy 3, dD = Σ dy·u 2: 7.

    `eager` keeps the decay and, twice, the state of every step. Its C·dy is a product of a column and a row, 2 a state;
    the last step has no decay·dh to add: 2 a state of a sequence less. `chunked` keeps the inputs, Δ before its
    softplus, the gate and one state a chunk, and computes the whole forward again in backward: 7 a state and 3 a
    channel, softplus 3 and the gate's SiLU 4; its Σ ·A for dΔ is a product and a product with ones: 3 a state, not 2.
    """
    s, n = step.width, step.rows * channels
    states, parameters = n * n_state, channels * n_state
    last = step.batch * parameters
    inputs = s * (2 * n + 2 * step.rows * n_state)
    eager = step.path == "eager"
    chunks = -(-step.new // SCAN_CHUNK)
    kept = 4 * step.batch * channels * n_state * chunks
    return Formula(
        "selective_scan",
        "scan",
        forward=Work(
            7 * states + 3 * n,
            states,
            bytes_moved=inputs + s * n + 4 * (parameters + channels) + (16 * states if eager else 0),
        ),
        backward=Work(
            15 * states + 7 * n,
            extra_flops=states - 2 * last if eager else 8 * states + 10 * n,
            bytes_moved=2 * inputs + s * n + 8 * (parameters + channels) + (24 * states if eager else 2 * kept),
        ),
        params=channels,
        # The projection that reads u too keeps it. The gate's half holds on to the whole output of in_proj.
        saved_bytes=s * ((2 if eager else 3) * n + 2 * step.rows * n_state) + (12 * states if eager else kept),
        state_bytes=state_bytes,
        # The chunked scan runs beside the whole output of in_proj, u, Δ before its softplus, Δ·u, and its own output.
        scratch_bytes=s * n + 12 * states if eager else 6 * s * n,
        sizes={
            "rows": step.rows,
            "batch": step.batch,
            "new": step.new,
            "channels": channels,
            "n_state": n_state,
            "single": int(step.new == 1),
        },
    )


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
