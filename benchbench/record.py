"""What is kept of one case: every sample, what was counted, what was checked, and why anything is absent."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from benchbench import units
from benchbench.case import Case
from benchbench.gpu import GpuUse
from benchbench.stats import Summary
from benchbench.value import Value

SCHEMA = 1
"""Raised when a reader of older records would misread newer ones."""

Status = Literal["ok", "oom", "unsupported", "skipped", "timeout", "error", "lost", "diverged"]
MEMORY_RATIO = 0.01
"""How far the peak of requested bytes on a GPU may be from the counted one: a share of that."""
FINAL: frozenset[str] = frozenset({"ok", "oom", "unsupported", "skipped", "diverged"})
"""Statuses that answer the question; the others are tried again with `--retry`."""


class Memory(Value, frozen=True):
    """Bytes of each category at the fullest moment."""

    params: int
    grads: int
    optimizer: int
    activations: int
    state: int
    workspace: int
    logits: int


class Counted(Value, frozen=True):
    """What the cost model says a case costs: no tensor was made to find out."""

    params: int
    flops: int
    executed_flops: int
    full_square_flops: int
    """`flops` with every query-key pair counted, as tracers and many papers do, instead of the visible ones."""
    transcendental: int
    """How many of `flops` are an exp, log, tanh, rsqrt, sqrt or division."""
    flops_by_kind: dict[str, int]
    flops_by_phase: dict[str, int]
    bytes_moved: int
    peak_bytes: int
    """What the allocator hands out at most."""
    peak_requested_bytes: int
    """What it is asked for at most; `memory` sums to it."""
    peak_reserved_bytes: int | None = None
    """What it takes from the driver: on a GPU."""
    peak_at: str | None = None
    """The operation at the peak, and what it allocates."""
    state_bytes: int
    memory: Memory
    time_s: float | None = None
    """Of one call on `device`: predicted where it was calibrated, else a bound, as `time_basis` says."""
    time_low_s: float | None = None
    time_high_s: float | None = None
    time_basis: str | None = None
    device: str | None = None

    def contradicted_by(self, peak: int) -> str | None:
        """What is wrong if a GPU's allocator was asked for `peak` bytes at most; None where that is as counted."""
        if abs(peak - self.peak_requested_bytes) <= MEMORY_RATIO * self.peak_requested_bytes:
            return None
        share = units.percent(peak / self.peak_requested_bytes - 1, signed=True)
        return f"peak memory {peak:,} B, {self.peak_requested_bytes:,} B by the count ({share})"


class Measured(Value, frozen=True):
    """Raw numbers read off a clock or an allocator. `time_s` holds every sample of one call, in order."""

    time_s: tuple[float, ...] = ()
    first_call_s: float | None = None
    warmup_s: tuple[float, ...] = ()
    host_slowdown: tuple[float, ...] = ()
    """On a GPU, of each sample: how many times as long as on the fastest core of the host everything took on the core
    that launched it, which something else may share."""
    peak_requested_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    host_rss_bytes: int | None = None
    gpu: GpuUse | None = None
    """The GPU before the first and after the last timed call."""


class Checked(Value, frozen=True):
    """What stands behind the numbers: the gate that ran before any timing, and the trace beside the count."""

    gate: Literal["passed", "failed"] | None = None
    gate_error: float | None = None
    """Largest relative difference of the timed path from the reference path: `benchbench/gate.py` defines it."""
    gate_tolerance: float | None = None
    params: int | None = None
    """Parameters found in the built module."""
    memory: Literal["agrees", "differs"] | None = None
    """On a GPU: whether the measured peak of requested bytes is the counted one within 1 %, and what was counted to
    fit did fit."""
    traced_flops: int | None = None
    """What torch's FlopCounterMode says of the same module on the meta device."""
    explained_flops: int | None = None
    """What the count says that tracer must see, by named rules; equal to `traced_flops`, or the check failed."""
    rules: tuple[str, ...] = ()
    reason: str | None = None
    """Why something above is absent."""


class Predicted(Value, frozen=True):
    """What the run's planner expected before the case ran: never mixed with what was measured."""

    time_s: float | None = None
    """Of one call."""
    peak_bytes: int | None = None
    basis: str
    """What the prediction stands on."""


class Protocol(Value, frozen=True):
    """How a suite's cases are measured."""

    warmup_calls: int = Field(default=2, ge=0)
    """At least this many after the first call, until two agree within 10 %."""
    min_samples: int = Field(default=6, ge=1)
    """Six are the least that give a 95 % interval of the median."""
    max_samples: int = Field(default=50, ge=1)
    target_ratio: float = Field(default=0.02, gt=0, lt=1)
    """Sampling stops when half the interval is within this share of the median."""
    case_budget_s: float = Field(default=20.0, gt=0)
    """Sampling stops when a case has used this much, whatever `min_samples` says; the record shows how many it got."""
    l2: Literal["warm"] = "warm"
    """What a GPU's second-level cache holds when a call begins: what the call before left there."""
    timeout_s: float = Field(default=600.0, gt=0)
    """A worker silent for longer on one case is killed."""


class Record(Value, frozen=True):
    """One case's outcome. A field that is absent is null, and `reason` says why."""

    schema_version: int = Field(SCHEMA, alias="schema")
    key: str
    suite: str
    suite_version: int
    case: Case
    status: Status
    reason: str | None = None
    path: str | None = None
    """The implementation that ran; null if none did."""
    measured: Measured | None = None
    summary: dict[str, Summary] = Field(default_factory=dict)
    tokens_per_s: float | None = None
    counted: Counted | None = None
    checked: Checked | None = None
    predicted: Predicted | None = None
    protocol: Protocol
    env: str
    """The id of the environment in run.json."""
    started_at: str
    wall_s: float
    steps_s: dict[str, float] = Field(default_factory=dict)
    """Of gate, build, timing, memory and trace, those that the case came to. On a GPU the trace runs beside the others,
    and `wall_s` is without it."""
    host: str

    def to_json(self) -> dict[str, Any]:
        """Plain data, as one line of records.jsonl holds it."""
        return self.model_dump(mode="json", by_alias=True)


def latest(records: Sequence[Record]) -> dict[str, Record]:
    """The last record of each key, in order of first appearance: a repeated case replaces its earlier outcome."""
    return {record.key: record for record in records}
