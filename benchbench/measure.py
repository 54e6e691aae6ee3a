# pyright: standard
"""One case, measured: the gate, the build, the clock, the memory, the trace; and whatever went wrong, as a status."""

import gc
import re
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchbench import memory
from benchbench.case import Case
from benchbench.clock import OnPhase, gpu_uuid, sample, timer_for, wake
from benchbench.errors import BenchError, UnsupportedError
from benchbench.gate import Verdict, gate, standing_for
from benchbench.gpu import watched
from benchbench.models import LanguageModel
from benchbench.record import Checked, Measured, Protocol, Status
from benchbench.tasks import Prepared, built, prepare
from benchbench.value import Value

PROBE_TOKENS = 64
"""How long a call is whose allocations are counted before a longer one's are followed."""


class Request(Value, frozen=True):
    """One case to do. Without `measure` it is only traced, on the meta device."""

    case: Case
    protocol: Protocol
    trace: bool = True
    measure: bool = True
    gates: tuple[tuple[str, float, float], ...] = ()
    """What earlier workers' gates found: `gate_key`, error, tolerance."""


@dataclass
class Result:
    """What a case has come to so far; what was found before something failed is kept."""

    status: Status = "ok"
    reasons: list[str] = field(default_factory=list[str])
    path: str | None = None
    measured: Measured | None = None
    checked: Checked = field(default_factory=Checked)
    gate_key: str | None = None
    steps_s: dict[str, float] = field(default_factory=dict[str, float])

    def check(self, **found: Any) -> None:
        self.checked = self.checked.replace(**found)

    def fail(self, status: Status, reason: str) -> None:
        self.status = status
        self.reasons.insert(0, reason)

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "reason": "; ".join(self.reasons) or None,
            "path": self.path,
            "measured": self.measured.model_dump(mode="json") if self.measured else None,
            "checked": self.checked.model_dump(mode="json") if self.checked != Checked() else None,
            "gate_key": self.gate_key,
            "steps_s": self.steps_s,
        }


class CaseError(BenchError):
    """What was measured cannot stand: the reason is the record's."""


@dataclass
class Bench:
    """Does cases on one device and holds one model at a time, for as long as the next case wants the same."""

    device: torch.device
    on_phase: OnPhase
    _key: tuple[Any, ...] | None = None
    _model: LanguageModel | None = None

    def run(self, request: Request) -> Result:
        """Whatever happens is an outcome; an unexpected error leaves its traceback on stderr."""
        result = Result()
        try:
            self._run(request, result)
        except UnsupportedError as error:
            result.fail("unsupported", error.message)
        except CaseError as error:
            result.fail("error", str(error))
        except Exception as error:
            if is_out_of_memory(error):
                result.fail("oom", out_of_memory_reason(error))
            else:
                traceback.print_exc()
                result.fail("error", f"{type(error).__name__}: {error}")
            self._drop()
        return result

    def _run(self, request: Request, result: Result) -> None:
        request.case.require_supported()
        if request.measure:
            self._gate(request, result)
            self._measure(request.case, request.protocol, result)
        if request.trace:
            self._phase("trace")
            with self._step("trace", result):
                trace(request.case, result)

    def _gate(self, request: Request, result: Result) -> None:
        self._phase("gate")
        case, key = request.case, gate_key(request.case)
        with self._step("gate", result):
            known = {name: Verdict(error, tolerance) for name, error, tolerance in request.gates}
            verdict = known[key] if key in known else gate(case, self.device)
        result.gate_key = key
        result.check(
            gate="passed" if verdict.passed else "failed",
            gate_error=min(verdict.error, sys.float_info.max),
            gate_tolerance=verdict.tolerance,
        )
        if not verdict.passed:
            raise CaseError(
                f"the path '{case.path}' differs from the reference by {verdict.error:.3g}, "
                f"more than {verdict.tolerance:g}: it was not timed"
            )

    def _measure(self, case: Case, protocol: Protocol, result: Result) -> None:
        self._phase("build")
        with self._step("build", result):
            model = self._get(case)
        result.path = case.path  # of a graph, the model has the path that is captured
        result.check(params=sum(parameter.numel() for parameter in model.parameters()))
        with self._step("memory", result):
            allocations = expected_allocations(model, case, self.device)
        with self._step("timing", result):
            prepared = prepare(model, case)
            torch.manual_seed(case.seed)
            measured, output = timed(prepared, protocol, self.device, self.on_phase)
        if not bool(torch.isfinite(output).all()):
            if case.task == "train":
                raise CaseError(f"the loss is {float(output)}")
            result.reasons.append("the logits are not finite")
        del output
        result.measured = measured
        if reason := unfollowed(allocations, measured, protocol):
            result.reasons.append(f"memory was not measured: {reason}")
            return
        self._phase("memory")
        with self._step("memory", result):
            prepared.release()
            try:
                peaks = memory.peaks(prepared.call, prepared.held(), self.device)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # The timed calls had room: this one finds the optimizer's states scattered over the segments they took.
                result.reasons.append(f"memory was not measured: {out_of_memory_reason(error)} in the pass for it")
                return
        result.measured = measured.replace(
            peak_requested_bytes=peaks.requested_bytes,
            peak_allocated_bytes=peaks.allocated_bytes,
            peak_reserved_bytes=peaks.reserved_bytes,
        )

    def _get(self, case: Case) -> LanguageModel:
        """The model of `case`, from its seed; training moves the weights, so its model is never used again."""
        key = (case.spec, case.path, case.dtype, case.seed, case.checkpoint)
        train = case.task == "train"
        if self._model is None or train or key != self._key:
            self._drop()
            self._model = built(case, self.device)
        self._key = None if train else key
        return self._model

    def _drop(self) -> None:
        self._key = self._model = None
        gc.collect()
        if self.device.type == "cuda":
            memory.settle_cuda(self.device)  # or the next weights lie around workspaces of what ran before

    def _phase(self, phase: str) -> None:
        self.on_phase(phase, 0, None)

    @contextmanager
    def _step(self, name: str, result: Result) -> Generator[None, None, None]:
        """Adds the seconds that it lasts to the step's, what the device has still to do included."""
        began = perf_counter()
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        finally:
            result.steps_s[name] = result.steps_s.get(name, 0.0) + perf_counter() - began


def gate_key(case: Case) -> str:
    """A name of all that the gate's verdict on `case` depends on."""
    return sha256(standing_for(case).model_dump_json().encode()).hexdigest()[:12]


def timed(prepared: Prepared, protocol: Protocol, device: torch.device, on_phase: OnPhase) -> tuple[Measured, Tensor]:
    """The times, the host's peak resident set meanwhile, and the last call's output.

    Whatever ran before, the first call finds no more memory in use on a GPU than what is held.
    """
    outputs: list[Tensor] = []

    def call() -> None:
        outputs.clear()  # not alive beside the next, which may need its memory
        outputs.append(prepared.call())

    fresh = memory.reset_host_peak()
    wake(device)
    if device.type == "cuda":
        memory.settle_cuda(device)
    timing, used = watched(gpu_uuid(device), lambda: sample(call, protocol, timer_for(device), on_phase))
    measured = Measured(
        time_s=tuple(timing.time_s),
        first_call_s=timing.first_call_s,
        warmup_s=tuple(timing.warmup_s),
        host_slowdown=tuple(timing.host_slowdown),
        host_rss_bytes=memory.host_peak_bytes() if fresh else None,
        gpu=used,
    )
    return measured, outputs[0]


def expected_allocations(model: LanguageModel, case: Case, device: torch.device) -> int:
    """At most how many allocations and frees a call makes on the CPU; 0 where none need be foreseen.

    A short call's are counted and scaled with the length: no path makes more of them a token at a greater length.
    """
    if device.type != "cpu" or case.task == "decode" or case.seq_len <= PROBE_TOKENS:
        return 0
    short = prepare(model, case.replace(seq_len=PROBE_TOKENS))
    found = len(memory.allocations(short.call))
    short.release()
    return found * -(-case.seq_len // PROBE_TOKENS)


def unfollowed(allocations: int, measured: Measured, protocol: Protocol) -> str | None:
    """Why one more call for the memory would take too long, or None."""
    if allocations > memory.MAX_EVENTS:
        return f"a call makes up to {allocations:,} allocations and frees, and {memory.MAX_EVENTS:,} can be followed"
    call_s = median(measured.time_s)
    if call_s > protocol.case_budget_s:
        return f"a call takes {call_s:.3g} s, and the case has {protocol.case_budget_s:g} s"
    return None


def trace(case: Case, result: Result) -> None:
    """Lays the count beside what a tracer sees of the module on the meta device."""
    from benchbench.counters.trace import check_case

    try:
        found = check_case(case, witness="torch")
    except UnsupportedError as error:
        result.check(reason=error.message)
        return
    result.check(
        params=found.params if result.checked.params is None else result.checked.params,
        traced_flops=found.traced_flops,
        explained_flops=found.explained_flops,
        rules=found.rules,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"can't allocate memory|not enough memory", str(error)))


def out_of_memory_reason(error: BaseException) -> str:
    """What was asked for, and what was free, as far as the allocator says."""
    said = str(error)
    size = r"([\d.]+ (?:bytes|[KMGT]iB))"
    asked = re.search(rf"(?:Tried to allocate|tried to allocate) {size}", said)
    free = re.search(rf"of which {size} is free", said)
    parts = [f"asked for {asked[1]}"] if asked else []
    parts += [f"{free[1]} free"] if free else []
    return f"out of memory: {', '.join(parts)}" if parts else "out of memory"


def obtainable_bytes(device: torch.device) -> int | None:
    """GPU memory that tensors of this process can have: the card's, less what other processes and contexts hold.

    None of the CPU, whose memory the parent bounds.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def calibrate(device: torch.device) -> dict[str, float]:
    """What the device computes and copies in a second: medians over a float32 matrix product and a 256 MiB copy.

    A product of 1024 x 1024 matrices is 2·1024³ FLOPs; a copied byte counts twice, read and written.
    """
    n = 1024
    a = torch.rand(n, n, device=device)
    product = torch.empty_like(a)
    matmul_s = _median_s(lambda: torch.mm(a, a, out=product), device, calls=9)
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    copy_s = _median_s(lambda: target.copy_(source), device, calls=5)
    return {"matmul_flops_per_s": 2 * n**3 / matmul_s, "copy_bytes_per_s": 2 * source.nbytes / copy_s}


def _median_s(call: Callable[[], object], device: torch.device, calls: int) -> float:
    timer = timer_for(device)
    timer(call)
    return median(timer(call).seconds for _ in range(calls))
