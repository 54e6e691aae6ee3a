"""Formulas of Mamba's selective scan."""

from benchbench.counters.fused_scan import fused
from benchbench.counters.op import Formula, Step, Work
from benchbench.counters.scan_paths import chunked, eager, triton

PATHS = {"eager": eager, "chunked": chunked, "triton": triton, "fused": fused}


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
    path = PATHS.get(step.path, chunked)(step, channels, n_state)
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
