"""The time of a case on a device, from its operations: a bound from the datasheet, a prediction from measurements.

The bound is the roofline: every operation takes the longer of its arithmetic at the dtype's dense peak and its bytes at
the memory's. No case is faster, and most are slower.

The prediction follows the queue between host and device. The host launches one kernel after the other, each taking
it some microseconds, and the device does them in that order, each when it is launched and the one before is done; the
case ends when both are. Where whole models were measured, the host takes what they took it, by their layers, and each
launch its share of that. A captured graph is launched at once. On a CPU there is no queue: the times add up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchbench.case import Case
from benchbench.counters.cost import Cost, count
from benchbench.counters.launch import RAGGED, Launch
from benchbench.counters.launches import launches, update
from benchbench.counters.op import Op
from benchbench.devices import Device
from benchbench.devices.calibration import Calibration, HostCost, Timing
from benchbench.record import Counted

LAYER = "backbone.layers.*"

SAME_WIDTH = {"float16": "bfloat16", "bfloat16": "float16"}
"""Where a dtype was not measured, the other of its width stands for it."""

VIEWS = {"attention": 8, "selective_scan": 6, "depthwise_conv": 4, "resolvent": 2}
"""Views that the modules around an operation take, which the host alone pays for."""

EXACT = 3
"""Layers that are followed one by one; in those that remain the queue moves as in the last of them."""


@dataclass(frozen=True)
class Time:
    """Seconds of one call. Without measurements `time_s` is the bound, and the case takes at least that."""

    time_s: float
    low_s: float
    """At the datasheet's ceilings, where the device has them, else at the fastest that was measured."""
    high_s: float | None
    """At the slowest that was measured; None of a bound."""
    bound: bool
    basis: str
    host_s: float = 0.0
    """What the host takes to launch it all, while the device works; 0 where that is not known."""


class Piece(NamedTuple):
    """What one operation takes: the device, at its slowest, and the host."""

    device_s: float = 0.0
    high_s: float = 0.0
    low_s: float = 0.0
    host_s: float = 0.0


def predict(cost: Cost, device: Device) -> Time | None:
    """The time of one call of `cost` on `device`; None where neither peaks nor measurements of it are known.

    Without a calibration, or with one that lacks something the case runs, it is the roofline's bound.
    """
    floor = roofline(cost, device)
    if device.calibration is None:
        return _bound(floor, f"at least, by the peaks of {device.name}: {device.source}")
    missing: list[str] = []
    pieces = [(op, piece_of(op, cost, device.calibration, missing)) for op in cost.ops]
    if missing:
        lacks = ", ".join(dict.fromkeys(missing))
        return _bound(floor, f"at least: the calibration of {device.name} lacks {lacks}")
    if model := whole_model(cost.case, device.calibration):
        like, host = model
        factor = measured_over_pieces(like, host, pieces, cost, device.calibration)
        pieces = hosted(pieces, factor)
        slow = elapsed(hosted(pieces, host.spread), cost.case, device.calibration)
        total = elapsed(pieces, cost.case, device.calibration)._replace(high_s=slow.high_s)
    else:
        total = elapsed(pieces, cost.case, device.calibration)
    low = floor if floor is not None else sum(op.repeat * piece.low_s for op, piece in pieces)
    basis = f"as measured on {device.name}"
    return Time(total.device_s, min(low, total.device_s), total.high_s, False, basis, total.host_s)


def counted_on(cost: Cost, device: Device) -> Counted:
    """The counted sums of `cost` with its time on `device`, where anything is known of that."""
    found = predict(cost, device)
    times = (
        {}
        if found is None
        else {
            "time_s": found.time_s,
            "time_low_s": found.low_s,
            "time_high_s": found.high_s,
            "time_basis": found.basis,
        }
    )
    return cost.counted.model_copy(update={"device": device.name, **times})


def _bound(floor: float | None, basis: str) -> Time | None:
    return None if floor is None else Time(floor, floor, None, True, basis)


def roofline(cost: Cost, device: Device) -> float | None:
    """Every operation at the datasheet's peaks; None where one is not known."""
    peak, bandwidth = device.peak(cost.case.autocast or cost.case.dtype), device.memory_bytes_per_s
    if peak is None or bandwidth is None:
        return None
    return sum(op.repeat * max(op.executed_flops / peak, op.bytes_moved / bandwidth) for op in cost.ops)


def piece_of(op: Op, cost: Cost, measured: Calibration, missing: list[str]) -> Piece:
    """One repetition of `op`, by the curves it is made of."""
    case = cost.case
    parts = (update(case, tensors(cost), cost.params),) if op.phase == "optimizer" else launches(op, case)
    if parts is None:
        missing.append(f"a curve for {op.formula.name}")
        return Piece()
    host = measured.host
    time = high = low = launching = 0.0
    count = 0.0
    for part in parts:
        timing = _timing(part, case, measured)
        if timing is None:
            missing.append(f"{part.curve} in {part.dtype or case.autocast or case.dtype}")
            continue
        time += part.times * timing.time_s
        high += part.times * (timing.high_s if part.times > 0 else timing.low_s)
        low += part.times * (timing.low_s if part.times > 0 else timing.high_s)
        launching += part.times * timing.host_s
        count += part.times
    if _queued(measured):
        if op.phase == "forward":
            launching += host.get("module_s", 0.0) + VIEWS.get(op.formula.name, 0) * host.get("view_s", 0.0)
            launching += max(0.0, count) * host.get("tape_s", 0.0) if case.task == "train" else 0.0
        elif op.phase == "backward":
            launching += VIEWS.get(op.formula.name, 0) * 0.5 * host.get("node_s", 0.0)
    elif op.phase == "forward":
        time += host.get("module_s", 0.0) + VIEWS.get(op.formula.name, 0) * host.get("view_s", 0.0)
    return Piece(max(0.0, time), max(0.0, high), max(0.0, low), max(0.0, launching))


Pieces = list[tuple[Op, Piece]]


def hosted(pieces: Pieces, factor: float) -> Pieces:
    """The host's part of all pieces, times `factor`."""
    return [(op, piece._replace(host_s=factor * piece.host_s)) for op, piece in pieces]


def whole_model(case: Case, measured: Calibration) -> tuple[Case, HostCost] | None:
    """What the host takes to launch models like `case`, and the case that they stand for; None if none was measured.

    They were measured in bfloat16, one pass a step of AdamW, and decoding one sequence.
    """
    name = f"{case.family}/{case.task}/{case.path}"
    again = case.checkpoint and f"{name}/checkpoint" in measured.modules
    host = measured.modules.get(f"{name}/checkpoint" if again else name)
    if host is None:
        return None
    like = case.replace(dtype="bfloat16", autocast=None, checkpoint=again, accumulate=1)
    if case.task == "decode":
        like = like.replace(batch=1)
    if case.task == "train":
        like = like.replace(optimizer="adamw")
    return like, host


def measured_over_pieces(like: Case, host: HostCost, pieces: Pieces, cost: Cost, measured: Calibration) -> float:
    """What the host takes for a model as a whole, over what its launches add up to, each measured alone.

    A case that departs from what was measured takes its factor: its own launches make the difference.
    """
    if like != cost.case:
        counted, missing = count(like), list[str]()
        pieces = [(op, piece_of(op, counted, measured, missing)) for op in counted.ops]
        if missing:
            return 1.0
    launching = sum(op.repeat * piece.host_s for op, piece in pieces)
    return host.of(cost.case.spec.n_layers) / launching if launching else 1.0


def _timing(part: Launch, case: Case, measured: Calibration) -> Timing | None:
    """By the curve itself, or by the first there is of those that can stand for it."""
    dtype = part.dtype or case.autocast or case.dtype
    curves = dict.fromkeys((part.curve, part.curve.replace(RAGGED, "")))
    found = (
        measured.timing(curve, one, part.sizes) for curve in curves for one in (dtype, SAME_WIDTH.get(dtype, dtype))
    )
    return next((timing for timing in found if timing), None)


def _queued(measured: Calibration) -> bool:
    """Whether a host launches what another device does."""
    return measured.environment.get("device") != "cpu"


def tensors(cost: Cost) -> int:
    """Parameter tensors of the model: a formula's own, once a repetition."""
    count = sum(op.repeat for op in cost.placed if op.formula.params)
    return count + sum(op.repeat for op in cost.placed if op.formula.name == "layer_norm")


class Queue(NamedTuple):
    """When the host and the device will have done what they were given so far."""

    host_s: float = 0.0
    device_s: float = 0.0
    high_s: float = 0.0

    def after(self, piece: Piece) -> "Queue":
        host = self.host_s + piece.host_s
        return Queue(host, max(self.device_s, host) + piece.device_s, max(self.high_s, host) + piece.high_s)


def elapsed(pieces: Sequence[tuple[Op, Piece]], case: Case, measured: Calibration) -> Queue:
    """What all pieces take one after the other, layer by layer."""
    if case.path == "graph":
        host, gap = measured.host.get("graph_launch_s", 0.0), measured.host.get("graph_gap_s", 0.0)
        done = [
            (op.repeat, Piece(max(0.0, p.device_s - gap), max(0.0, p.high_s - gap))) for op, p in pieces if p.device_s
        ]
        total = sum(repeat * piece.device_s for repeat, piece in done)
        return Queue(host, host + total, host + sum(repeat * piece.high_s for repeat, piece in done))
    queue = Queue()
    for repeat, group in _groups(pieces):
        before = queue
        for _ in range(min(repeat, EXACT)):
            before = queue
            for piece in group:
                queue = queue.after(piece)
        more = max(0, repeat - EXACT)
        queue = Queue(*(now + more * (now - then) for now, then in zip(queue, before, strict=True)))
    return Queue(queue.host_s, max(queue.host_s, queue.device_s), max(queue.host_s, queue.high_s))


def _groups(pieces: Sequence[tuple[Op, Piece]]) -> Iterator[tuple[int, list[Piece]]]:
    """Operations that run in turn, layer after layer, and how often; of those that run less often, a share."""
    group: list[tuple[int, Piece]] = []
    inside = ("", False)
    for op, piece in (*pieces, (None, Piece())):
        here = ("", False) if op is None else (op.phase, op.path.startswith(LAYER))
        if group and here != inside:
            yield from _group(group)
            group = []
        if op is not None:
            group.append((op.repeat, piece))
        inside = here


def _group(group: Sequence[tuple[int, Piece]]) -> Iterator[tuple[int, list[Piece]]]:
    most = max(repeat for repeat, _ in group)
    yield most, [Piece(*(repeat / most * value for value in piece)) for repeat, piece in group]
