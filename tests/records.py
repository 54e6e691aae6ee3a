"""Small records, made by hand: every number in them is chosen by the test that reads it."""

from typing import Any

from benchbench.case import Case
from benchbench.record import Checked, Counted, Measured, Memory, Protocol, Record, Status
from benchbench.specs import preset
from benchbench.stats import summarize

ENVIRONMENT: dict[str, Any] = {
    "benchbench": "0.1.0",
    "git": {"sha": "4be1c02" + "0" * 33, "branch": "main", "dirty": False},
    "python": "3.11.9",
    "packages": {"torch": "2.13.0", "triton": None, "mamba-ssm": None, "fvcore": "0.1.5", "numpy": "2.4.6"},
    "cuda": None,
    "device": "cpu",
    "gpu": None,
    "cpu": {
        "model": "Intel(R) Xeon(R) Processor @ 2.60GHz",
        "cores": 1,
        "logical_cores": 2,
        "usable_cores": 2,
        "capability": "AVX512",
        "threads": 2,
        "memory_bytes": 8 * 2**30,
    },
}


def counted(flops: int = 1000, **fields: Any) -> Counted:
    """A cost that is consistent where a reader looks: sums by kind and phase are `flops`."""
    zero = Memory(params=0, grads=0, optimizer=0, activations=0, state=0, workspace=0, logits=0)
    plain = {
        "params": 1000,
        "executed_flops": flops,
        "full_square_flops": flops,
        "transcendental": 0,
        "flops_by_kind": {"matmul": flops},
        "flops_by_phase": {"forward": flops, "backward": 0, "optimizer": 0},
        "bytes_moved": 4 * flops,
        "peak_bytes": 2**20,
        "peak_requested_bytes": 2**20,
        "state_bytes": 0,
        "memory": zero,
    }
    return Counted(flops=flops, **{**plain, **fields})


def record(
    model: str = "mamba-tiny",
    n: int = 512,
    times: tuple[float, ...] = (),
    *,
    task: str = "prefill",
    status: Status = "ok",
    reason: str | None = None,
    cost: Counted | None = None,
    checked: Checked | None = None,
    spec: dict[str, Any] | None = None,
    case: dict[str, Any] | None = None,
    **fields: Any,
) -> Record:
    """One case's outcome; `times` are its samples in seconds."""
    chosen = Case.of(preset(model, **(spec or {})), task=task, seq_len=n, **(case or {}))
    measured = Measured(time_s=times, first_call_s=2 * times[0], peak_allocated_bytes=2**20) if times else None
    plain: dict[str, Any] = {
        "key": f"{model}-{task}-{n}-{chosen.path}",
        "suite": "tiny",
        "suite_version": 1,
        "path": chosen.path if times else None,
        "measured": measured,
        "summary": {"time_s": summarize(times)} if times else {},
        "tokens_per_s": n / summarize(times).median if times else None,
        "protocol": Protocol.model_validate({}),
        "env": "e1",
        "started_at": "2026-11-22T04:31:09Z",
        "wall_s": 1.0,
        "host": "here",
    }
    return Record(case=chosen, status=status, reason=reason, counted=cost, checked=checked, **{**plain, **fields})


def steady(seconds: float) -> tuple[float, ...]:
    """Six samples within 1 % of their median: the least that give a 95 % interval, which is then all of them."""
    return tuple(seconds * factor for factor in (0.99, 0.995, 1.0, 1.0, 1.005, 1.01))
