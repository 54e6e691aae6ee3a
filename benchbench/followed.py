# pyright: standard
"""What an allocator did during one call, block by block: the measured timeline of its memory.

The code runs as it always does, unlike under a dispatch mode. On the CPU torch's profiler reports each block between
the operators that ask for it, so a block that an operator takes and gives back itself is known: a temporary of its
kernel. On CUDA the caching allocator keeps a history of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from difflib import SequenceMatcher
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch.autograd.profiler import profile

from benchbench import memory
from benchbench.counters.timeline import Block, Items, Timeline

INSIDE = "inside the operator"
"""The place of a block that no tensor of the program ever had."""


def follow(call: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> Timeline:
    """Every block handed out and taken back during `call`, around which the tensors `held` are alive."""
    before = Block(memory.held_bytes(held), "held before the call", "params")
    items = cuda_items(call, device) if device.type == "cuda" else cpu_items(call)
    return Timeline((before,), items)


def visible(timeline: Timeline) -> Timeline:
    """A timeline without the temporaries of kernels: what the tensors of the program take."""
    return Timeline(timeline.held, [event for event in timeline.events() if event[0].place != INSIDE])


def cuda_items(call: Callable[[], object], device: torch.device) -> Items:
    """From the caching allocator's history; like `memory.peaks`, from no cached block and no cuBLAS workspace on."""
    memory.settle_cuda(device)
    torch.cuda.memory._record_memory_history("all", context=None, clear_history=True)
    try:
        call()
        torch.cuda.synchronize(device)
        snapshot: Any = torch.cuda.memory._snapshot(device)
    finally:
        torch.cuda.memory._record_memory_history(None)
    index = torch.cuda.current_device() if device.index is None else device.index
    changes = {"alloc": 1, "free_completed": -1}
    trace = snapshot["device_traces"][index]
    reports = ((one["addr"], changes[one["action"]] * one["size"]) for one in trace if one["action"] in changes)
    return _blocks((address, size, None, 0) for address, size in reports)


def cpu_items(call: Callable[[], object]) -> Items:
    """From the profiler's tree of operators: a block is named after the one that a dispatch mode would see."""
    config = profile(use_cpu=True, profile_memory=True).config()
    activities = {torch.profiler.ProfilerActivity.CPU}
    _prepare_profiler(config, activities)
    _enable_profiler(config, activities)
    try:
        call()
    finally:
        roots = _disable_profiler().experimental_event_tree()
    reports = sorted(_reports(roots, None), key=lambda report: report[0].start_time_ns)
    return _blocks(
        (event.extra_fields.ptr, event.extra_fields.alloc_size, maker, event.start_time_ns) for event, maker in reports
    )


class _Operator(NamedTuple):
    name: str
    end_ns: int


NOBODY = _Operator("number", 0)
"""Who asks for the tensors that stand for Python's numbers: each is of one element."""


def _blocks(reports: Iterable[tuple[int, int, _Operator | None, int]]) -> Items:
    """Address, bytes (negative where freed), the operator that asked, and when. Earlier blocks are not reported."""
    alive: dict[int, tuple[Block, int]] = {}
    items: Items = []
    for address, size, maker, now in reports:
        if size > 0:
            block = Block(size, maker.name if maker else "block", "workspace", INSIDE if maker is NOBODY else "")
            alive[address] = block, maker.end_ns if maker else 0
            items.append((block, 1))
        elif address in alive:
            block, end = alive.pop(address)
            if now < end:
                block.place = INSIDE
            items.append((block, -1))
    return items


def _reports(events: Iterable[Any], maker: _Operator | None) -> Iterator[tuple[Any, _Operator]]:
    """The allocator's reports, each with the operator that it was made in."""
    for event in events:
        if event.name == memory.REPORT:
            yield event, maker or NOBODY
        elif maker is None and _is_operator(event.name) and not _casts(event):
            yield from _reports(event.children, _Operator(event.name.removeprefix("aten::"), event.end_time_ns))
        else:
            yield from _reports(event.children, maker)


@cache
def _is_operator(name: str) -> bool:
    """Whether torch has a kernel of this name, and does not run it as the operators that it is written in."""
    if not name.startswith("aten::"):
        return False
    overloads: list[str] = []
    with suppress(AttributeError):
        packet = getattr(torch.ops.aten, name.removeprefix("aten::"))
        overloads = [getattr(packet, overload).name() for overload in packet.overloads()]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    kernels = [one for one in overloads if torch._C._dispatch_has_kernel(one) and not one.endswith("out")]
    return any(has(one, "CPU") or not has(one, "CompositeImplicitAutograd") for one in kernels)


def _casts(event: Any) -> bool:
    """Whether autocast runs here: it calls the operator again, of the same name, on the inputs that it has cast."""
    inner = {child.name for child in event.children if child.name != memory.REPORT or child.extra_fields.alloc_size > 0}
    return event.name in inner and memory.REPORT not in inner


def without(timeline: Timeline, traced: Timeline) -> Timeline:
    """A timeline whose blocks that have no like in `traced` are marked as kernels' own.

    Sizes are matched in order; where the order differs, by themselves.
    """
    events, others = list(timeline.events()), list(traced.events())
    sizes, other_sizes = ([sign * block.size for block, sign in one] for one in (events, others))
    steps = SequenceMatcher(None, sizes, other_sizes, autojunk=False).get_opcodes()
    moved = [step for step in steps if step[0] != "equal"]
    left = Counter(size for _, _, _, start, end in moved for size in other_sizes[start:end])
    for _, start, end, _, _ in moved:
        for block, sign in events[start:end]:
            if sign > 0 and left[block.size] > 0:
                left[block.size] -= 1
            elif sign > 0:
                block.place = INSIDE
    return timeline
