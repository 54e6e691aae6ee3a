"""What the CUDA allocator did during a call, event by event, and where each block was asked for.

A recording is a dictionary that JSON can hold:

    events    in order: +bytes asked for, or -(k + 1) where the k-th block of this recording is freed
    outside   [position, bytes]: blocks from before the call that were freed during it; their event is 0
    segments  [position, +-bytes]: what the driver gave and took back
    at        the place of each block, an index into `places` (only with places=True)
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from benchbench.counters.places import ModulePaths

MARK = 3_000_001
"""Markers are blocks of this many bytes and twice their number: odd, unlike every tensor of two-byte numbers."""
PACKAGE = ("/models/", "/tasks/", "mamba_ssm", "causal_conv1d", "/tests/bench/")


def sync() -> None:
    torch.cuda.synchronize()


def settle(workspaces: bool = True) -> None:
    """Nothing cached, and with `workspaces` no cuBLAS workspace held either."""
    sync()
    if workspaces:
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def current() -> dict[str, int]:
    stats = torch.cuda.memory_stats()
    return {kind: stats[f"{kind}_bytes.all.current"] for kind in ("requested", "allocated", "reserved")}


def peaks(call: Callable[[], object], workspaces: bool = True) -> dict[str, dict[str, int]]:
    """The three counters before the call, their peaks above that during it, and what is left above it after."""
    settle(workspaces)
    before = current()
    torch.cuda.reset_peak_memory_stats()
    call()
    sync()
    stats = torch.cuda.memory_stats()
    after = current()
    return {
        "before": before,
        "peak": {kind: stats[f"{kind}_bytes.all.peak"] - before[kind] for kind in before},
        "left": {kind: after[kind] - before[kind] for kind in before},
    }


def record(call: Callable[[], object], workspaces: bool = True, model: nn.Module | None = None) -> dict[str, Any]:
    """The allocator's events during `call`; with a `model`, where each block was asked for."""
    settle(workspaces)
    torch.cuda.memory._record_memory_history(
        "all", context="alloc" if model is not None else None, stacks="python", clear_history=True
    )
    names: list[str] = []
    try:
        if model is None:
            call()
        else:
            with marked(model, names):
                call()
        sync()
        snapshot: Any = torch.cuda.memory._snapshot()
        trace = snapshot["device_traces"][torch.cuda.current_device()]
    finally:
        torch.cuda.memory._record_memory_history(None)
    return encoded(trace, names, places=model is not None)


def encoded(trace: list[Any], names: list[str], places: bool) -> dict[str, Any]:
    events: list[int] = []
    outside: list[list[int]] = []
    segments: list[list[int]] = []
    live: dict[int, int] = {}
    table: dict[str, int] = {}
    at: list[int] = []
    where, markers, blocks = "", set[int](), 0
    for entry in trace:
        action, size, address = entry["action"], entry["size"], entry["addr"]
        if action == "alloc" and size > MARK and size % 2 and (size - MARK) // 2 < len(names) + 1:
            where = names[(size - MARK) // 2 - 1]
            markers.add(address)
        elif action == "alloc":
            live[address] = blocks
            blocks += 1
            events.append(size)
            if places:
                place = f"{where} @ {frames(entry.get('frames', []))}"
                at.append(table.setdefault(place, len(table)))
        elif action == "free_completed" and address in markers:
            markers.discard(address)
        elif action == "free_completed":
            if address in live:
                events.append(-(live.pop(address) + 1))
            else:
                outside.append([len(events), size])
                events.append(0)
        elif action in ("segment_alloc", "segment_free"):
            segments.append([len(events), size if action == "segment_alloc" else -size])
    found: dict[str, Any] = {"events": events, "outside": outside, "segments": segments}
    return {**found, "at": at, "places": list(table)} if places else found


def frames(stack: list[dict[str, Any]]) -> str:
    """The innermost frame, the innermost two of the model's own code, and nothing between."""
    lines = [f"{'/'.join(f['filename'].split('/')[-2:])}:{f['line']} {f['name']}" for f in stack]
    skipped = ("cuda_recorder.py", "dump_cuda_memory.py")
    own = [
        line
        for line, f in zip(lines, stack, strict=True)
        if any(part in f["filename"] for part in PACKAGE) and not f["filename"].endswith(skipped)
    ]
    return " < ".join(dict.fromkeys([*lines[:1], *own[:2]]))


@contextmanager
def marked(model: nn.Module, names: list[str]) -> Iterator[None]:
    """While open, a block of a telling size is taken whenever a module or an autograd node starts or ends."""
    paths = ModulePaths(model)
    leaves = {id(parameter): name for name, parameter in model.named_parameters()}
    known = set(model.modules())

    def mark(name: str) -> None:
        names.append(name)
        torch.empty(MARK + 2 * len(names), dtype=torch.uint8, device="cuda")

    def here() -> str:
        node = torch._C._current_autograd_node()
        path = paths._stack[-1][0] if paths._stack else ""
        return f"{'forward' if node is None else 'again'} {path}"

    def module_event(module: nn.Module, *_: Any) -> None:
        if module in known:
            mark(here())

    def node_event(name: str) -> Callable[..., None]:
        return lambda *_: mark(name)

    def watch(root: Node) -> None:
        todo, seen = [root], set[Node]()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            leaf: Any = getattr(node, "variable", None)
            path = leaves.get(id(leaf), "") if leaf is not None else paths.made_by(node)
            node.register_prehook(node_event(f"backward {path} {node.name()}"))
            todo += [after for after, _ in node.next_functions if after is not None]

    backward = Tensor.backward

    def watched(self: Tensor, *args: Any, **kwargs: Any) -> None:
        assert self.grad_fn is not None
        watch(self.grad_fn)
        mark("backward starts")
        backward(self, *args, **kwargs)
        mark("backward ended")

    with paths:
        handles = [
            nn.modules.module.register_module_forward_pre_hook(module_event),
            nn.modules.module.register_module_forward_hook(module_event, always_call=True),
        ]
        Tensor.backward = watched  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            Tensor.backward = backward
            for handle in handles:
                handle.remove()


def highest(recording: dict[str, Any]) -> int:
    """The highest sum of the bytes asked for in a recording."""
    sizes: list[int] = []
    freed = dict(map(tuple, recording["outside"]))
    most = now = 0
    for i, event in enumerate(recording["events"]):
        if event > 0:
            sizes.append(event)
            now += event
        else:
            now -= sizes[-event - 1] if event else freed[i]
        most = max(most, now)
    return most


def attempt(found: dict[str, Any], name: str, call: Callable[[], Any]) -> Any:
    """`found[name] = call()`, or what went wrong."""
    try:
        found[name] = call()
    except Exception as error:
        found.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1500:]}"
        return None
    return found[name]
