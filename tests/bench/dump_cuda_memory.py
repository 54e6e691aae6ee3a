"""What the CUDA allocator does during prefill, decode and training steps of small models, as gzipped JSON.

    python tests/bench/dump_cuda_memory.py --out DIR [--seconds 220] [--only REGEX] [--no-probes]

Writes `cases.json.gz` (peaks), `events.json.gz` (events of a steady-state call, and the place that asked for each
block) and `probes.json.gz` (single operations). A case that fails is written down with its error, and the next runs.
The recordings' format is in cuda_recorder.py, the probes in probe_cuda_memory.py.
"""

import argparse
import gc
import gzip
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cuda_recorder import attempt, highest, peaks, record
from probe_cuda_memory import probes

from benchbench import memory
from benchbench.case import Case
from benchbench.models import build
from benchbench.specs import ModelSpec
from benchbench.specs.mamba import MambaSpec
from benchbench.specs.resnet_bk import ResNetBKSpec
from benchbench.specs.transformer import TransformerSpec
from benchbench.tasks import prepare
from benchbench.tasks.prepared import DTYPES

LLAMA = TransformerSpec(name="tf-gqa", d_model=256, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=640, vocab_size=4096)
GPT2 = LLAMA.replace(
    name="tf-plain",
    n_kv_heads=4,
    d_ff=1024,
    positions="learned",
    max_seq_len=8200,
    norm="layer",
    activation="gelu",
    bias=True,
)
MAMBA = MambaSpec(name="mamba", d_model=256, n_layers=4, vocab_size=4096)
BK = ResNetBKSpec(name="bk", d_model=256, n_layers=4, d_ff=512, vocab_size=4096)
BK2 = BK.replace(name="bk-top2", top_k=2, positions="learned", max_seq_len=8200, tied_head=False, head_bias=True)
EXACT = BK.replace(name="bk-exact", form="bk-exact")
COMPAT = BK.replace(name="bk-compat", form="bk-compat")
SLOW = {"eager": 512, "chunked": 2048}
"""The longest sequences of the paths that are loops over the tokens on a GPU (attention's `eager` is quadratic)."""
NUMBERS: tuple[dict[str, Any], ...] = ({}, {"dtype": "bfloat16"}, {"autocast": "bfloat16"})


def cases() -> Iterator[Case]:
    """The plain cases first, then what varies one thing at a time, so that a deadline cuts off the least."""
    for spec in (LLAMA, MAMBA, BK, GPT2):
        for numbers in NUMBERS:
            yield from over_tasks(spec, 2048, batch=2, **numbers)
    for spec in (LLAMA, MAMBA, BK, GPT2):
        for numbers in NUMBERS:
            yield from training_variations(spec, numbers)
    for spec in (LLAMA, MAMBA, BK, GPT2):
        for numbers in NUMBERS:
            yield from over_tasks(spec, 512, batch=1, **numbers)
            yield from over_tasks(spec, 8192, batch=1, **numbers)
    for spec in (BK2, EXACT, COMPAT):
        for numbers in NUMBERS[:2]:
            yield from over_tasks(spec, 512, batch=2, **numbers)
    for vocab_size in (50280, 50257):
        for spec in (LLAMA, MAMBA, BK, GPT2):
            for numbers in NUMBERS:
                large = spec.replace(name=f"{spec.name}-v{vocab_size}", vocab_size=vocab_size)
                case = Case.of(large, task="train", seq_len=8192, path=large.cuda_path, **numbers)
                yield case
                yield case.replace(accumulate=2, checkpoint=True, seq_len=4096)
                yield Case.of(large, task="prefill", seq_len=8192, path=large.cuda_path, **numbers)
    for spec in (LLAMA, MAMBA, BK, GPT2):
        yield from over_tasks(spec, 1000, batch=3, dtype="float16")
        yield from over_tasks(spec.replace(name=f"{spec.name}-untied", tied_head=False), 2048, dtype="bfloat16")
        deep = spec.replace(name=f"{spec.name}-wide", d_model=1024, n_layers=12, vocab_size=50280)
        yield Case.of(deep, task="train", seq_len=4096, path=deep.cuda_path, dtype="bfloat16")
        yield Case.of(deep, task="train", seq_len=4096, path=deep.cuda_path, autocast="bfloat16", checkpoint=True)


def over_tasks(spec: ModelSpec, seq_len: int, **sizes: Any) -> Iterator[Case]:
    for path in spec.paths:
        if seq_len > SLOW.get(path, seq_len):
            continue
        for task in ("train", "prefill", "decode"):
            case = Case.of(spec, task=task, seq_len=seq_len, path=path, **sizes)
            if case.unsupported() is None:
                yield case


def training_variations(spec: ModelSpec, numbers: dict[str, Any]) -> Iterator[Case]:
    """The optimizers, checkpointing and accumulation of the GPU's path, and of the CPU's where it is another."""
    for path in dict.fromkeys((spec.cuda_path, spec.paths[0])):
        case = Case.of(spec, task="train", seq_len=2048 if path == spec.cuda_path else 512, path=path, **numbers)
        yield case.replace(optimizer="sgd")
        yield case.replace(checkpoint=True)
        yield case.replace(accumulate=2)
        yield case.replace(accumulate=3, checkpoint=True, batch=2)
        if not numbers:
            yield case.replace(optimizer="momentum")
            yield case.replace(optimizer="adam")


def dump(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The peaks of a first, a second and a third call, and the events of the fourth and fifth."""
    found: dict[str, Any] = {"case": case.model_dump(mode="json")}
    events: dict[str, Any] = {}
    device = torch.device("cuda")
    with torch.random.fork_rng():
        model = build(
            case.spec,
            path=case.path,
            device=device,
            dtype=DTYPES[case.dtype],
            seed=case.seed,
            checkpoint=case.checkpoint,
        )
    found["tensors"] = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    prepared = prepare(model, case)
    found["held_before"] = memory.held_bytes(prepared.held())
    attempt(found, "first", lambda: peaks(prepared.call))
    prepared.release()
    found["held"] = memory.held_bytes(prepared.held())
    attempt(found, "steady", lambda: peaks(prepared.call))
    prepared.release()
    attempt(found, "warm", lambda: peaks(prepared.call, workspaces=False))
    prepared.release()
    attempt(events, "plain", lambda: record(prepared.call))
    prepared.release()
    attempt(events, "placed", lambda: record(prepared.call, model=model))
    prepared.release()
    found["errors"] = {**found.get("errors", {}), **events.pop("errors", {})}
    if "plain" in events and "steady" in found:
        found["events_peak"] = highest(events["plain"])
        found["agrees"] = found["events_peak"] == found["steady"]["peak"]["requested"]
    if "placed" in events and "plain" in events:
        found["same_events"] = events["placed"]["events"] == events["plain"]["events"]
        if found["same_events"]:
            del events["placed"]["events"]
    return found, events


def describe() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "context": "bytes above what was held before the call; cuBLAS workspaces cleared first, except in `warm`",
    }


def write(folder: Path, name: str, content: Any) -> None:
    path = folder / f"{name}.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump(content, file, separators=(",", ":"))
    print(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--only", default="")
    parser.add_argument("--no-probes", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    torch.zeros(1, device="cuda")
    if not options.no_probes:
        write(options.out, "probes", {**describe(), "probes": probes()})
        print(f"probes: {time.perf_counter() - started:.1f} s", flush=True)
    peaks_of: dict[str, Any] = {}
    events_of: dict[str, Any] = {}
    skipped: list[str] = []
    try:
        for case in cases():
            if not re.search(options.only, case.id) or case.id in peaks_of:
                continue
            if time.perf_counter() - started > options.seconds:
                skipped.append(case.id)
                continue
            run(case, peaks_of, events_of)
    finally:
        write(options.out, "cases", {**describe(), "skipped": skipped, "cases": peaks_of})
        write(options.out, "events", {**describe(), "events": events_of})
        took = time.perf_counter() - started
        print(f"{len(peaks_of)} cases, {len(skipped)} past the deadline, {took:.0f} s", flush=True)


def run(case: Case, peaks_of: dict[str, Any], events_of: dict[str, Any]) -> None:
    """One case, whatever happens in it."""
    began = time.perf_counter()
    both: dict[str, Any] = {}
    result = attempt(both, "dump", lambda: dump(case))
    found, events = result or ({"case": case.model_dump(mode="json"), **both}, {})
    del result, both
    peaks_of[case.id], events_of[case.id] = found, events
    gc.collect()
    torch.cuda.empty_cache()
    steady = found.get("steady", {}).get("peak", {})
    first_error = next(iter(found.get("errors", {}).values()), "").split("\n")[0]
    print(
        f"{time.perf_counter() - began:5.2f} s  {case.id}  {steady.get('requested', 0) / 2**20:.1f} MiB"
        f"  events {len(events.get('plain', {}).get('events', []))}"
        f"  {'' if found.get('agrees', True) else 'PEAK OF EVENTS DIFFERS '}"
        f"{'' if found.get('same_events', True) else 'MARKERS CHANGE EVENTS '}{first_error[:150]}",
        flush=True,
    )


if __name__ == "__main__":
    main()
