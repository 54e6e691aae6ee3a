"""Public FLOP and memory counters on our models, beside the count and every operator that torch really runs.

    python tests/bench/public_counters.py --out results/counters.md [--peers DIR] [--rounds 5]

Writes the page and, beside it, a JSON file with every number. The truth of a case is the sum of the prices of all
operators that torch runs (the witness `dispatch`), which the count must equal to the last FLOP. A counter is one small
adapter below; one that is not installed is listed as absent. `--peers` is a folder with counters that are not
installed: `pip install --no-deps --target DIR thop` and so on leaves everything else as it is.

The counters take turns on one thread, each on a model of its own, after a first call that is not timed.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import public_counter_rules as rules
import public_counters_page as page
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench import env, memory
from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.rules import MULTIPLY_ADD, Seen, Setting, seen
from benchbench.counters.trace import check_case, lone_rows
from benchbench.models import LanguageModel, build
from benchbench.specs import preset
from benchbench.tasks import train

SIZES: dict[str, int] = {"d_model": 256, "n_layers": 4, "vocab_size": 1024}
SPECS = (
    preset("transformer-tiny").replace(name="transformer", n_heads=8, n_kv_heads=2, d_ff=680, **SIZES),
    preset("mamba-tiny").replace(name="mamba", d_state=16, **SIZES),
    preset("resnet-bk-tiny").replace(name="resnet-bk", d_ff=512, **SIZES),
)


class Pass(nn.Module):
    """A case's forward as a module of its tokens alone: the loss where it trains, else a prefill."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = build(case.spec, path=case.path)
        self.trains = case.task == "train"
        self.train(self.trains)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        if self.trains:
            return self.model.loss(tokens_BN, tokens_BN)
        return self.model.prefill(tokens_BN, self.model.new_state(*tokens_BN.shape))

    def run(self, tokens_BN: Tensor) -> None:
        """The whole of what is counted: forward, and backward where it trains."""
        with torch.set_grad_enabled(self.trains):
            result = self(tokens_BN)
        if self.trains:
            self.model.zero_grad()
            result.backward()


Adapter = Callable[[Pass, Tensor], float]


def by_torch(module: Pass, tokens: Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        module.run(tokens)
    return counter.get_total_flops()


def by_fvcore(module: Pass, tokens: Tensor) -> float:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, (tokens,))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def by_profiler(module: Pass, tokens: Tensor) -> float:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as found:
        module.run(tokens)
    return sum(event.flops for event in found.key_averages())


def by_thop(module: Pass, tokens: Tensor) -> float:
    from thop import profile  # pyright: ignore[reportMissingImports]

    return profile(module, inputs=(tokens,), verbose=False)[0]


def by_torchinfo(module: Pass, tokens: Tensor) -> float:
    from torchinfo import summary  # pyright: ignore[reportMissingImports]

    return summary(module, input_data=[tokens], verbose=0).total_mult_adds


def by_ptflops(backend: str) -> Adapter:
    def found(module: Pass, tokens: Tensor) -> float:
        from ptflops import get_model_complexity_info  # pyright: ignore[reportMissingImports]

        given: dict[str, Any] = {"as_strings": False, "print_per_layer_stat": False, "backend": backend}
        return get_model_complexity_info(module, (1,), input_constructor=lambda _: {"tokens_BN": tokens}, **given)[0]

    return found


def by_calflops(module: Pass, tokens: Tensor) -> float:
    from calflops import calculate_flops  # pyright: ignore[reportMissingImports]

    given: dict[str, Any] = {"print_results": False, "output_as_string": False}
    return calculate_flops(module, args=[tokens], include_backPropagation=module.trains, **given)[0]


def by_deepspeed(module: Pass, tokens: Tensor) -> float:
    from deepspeed.profiling.flops_profiler import FlopsProfiler  # pyright: ignore[reportMissingImports]

    profiler = FlopsProfiler(module)
    profiler.start_profile()
    module(tokens)
    profiler.stop_profile()
    flops = profiler.get_total_flops()
    profiler.end_profile()
    return flops


@dataclass(frozen=True)
class Counter:
    """A public counter: what it calls itself, how it is called, and the rules that predict it."""

    name: str
    package: str
    adapter: Adapter
    unit: str
    rule: rules.Rule | str
    """A rule of a forward operation, or the witness of counters/rules.py that predicts it."""
    backward: str | None = None
    """How it counts a backward pass; None where it does not."""
    needs: tuple[str, ...] = ()
    """Other packages that importing it takes, beside torch and fvcore."""

    @property
    def version(self) -> str | None:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    @property
    def factor(self) -> int:
        """FLOPs of one of what it counts."""
        return 2 if self.unit == "MAC" else 1


DEEPSPEED_NEEDS = ("hjson", "msgpack", "py-cpuinfo", "einops", "ninja")
AS_IT_RUNS, DOUBLED = "counted as it runs", "taken as twice the forward"

COUNTERS = (
    Counter("torch FlopCounterMode", "torch", by_torch, "FLOP", "torch", AS_IT_RUNS),
    Counter("fvcore", "fvcore", by_fvcore, "MAC", "fvcore"),
    Counter("torch.profiler, with_flops", "torch", by_profiler, "FLOP", rules.profiler, AS_IT_RUNS),
    Counter("DeepSpeed", "deepspeed", by_deepspeed, "FLOP", rules.deepspeed, None, DEEPSPEED_NEEDS),
    Counter("calflops", "calflops", by_calflops, "FLOP", rules.calflops, DOUBLED, ("accelerate",)),
    Counter("ptflops, pytorch", "ptflops", by_ptflops("pytorch"), "MAC", rules.ptflops),
    Counter("ptflops, aten", "ptflops", by_ptflops("aten"), "MAC", rules.ptflops_aten),
    Counter("thop", "thop", by_thop, "MAC", rules.thop),
    Counter("torchinfo", "torchinfo", by_torchinfo, "MAC", rules.torchinfo),
)  # fmt: skip


def planned(seq_len: int = 128) -> list[Case]:
    """Each family's default path and eager, a long prefill of fused attention, and training."""
    sizes = {"batch": 2, "seq_len": seq_len}
    pairs = [(spec, path) for spec in SPECS for path in dict.fromkeys((spec.paths[0], "eager"))]
    prefills = [Case.of(spec, task="prefill", path=path, **sizes) for spec, path in pairs]
    prefills.append(Case.of(SPECS[0], task="prefill", batch=2, seq_len=8 * seq_len))
    return [*prefills, *(Case.of(spec, task="train", path=path, optimizer="adamw", **sizes) for spec, path in pairs)]


def measured(cases: Sequence[Case], counters: Sequence[Counter], rounds: int) -> dict[str, Any]:
    """Everything that the page says, as plain data."""
    here = [counter for counter in counters if counter.version is not None]
    return {
        "environment": env.describe("cpu"),
        "counters": [
            {key: getattr(counter, key) for key in ("name", "package", "version", "unit", "backward", "needs")}
            for counter in counters
        ],
        "rounds": rounds,
        "cases": [case_found(case, here, rounds) for case in cases],
        "memory": [memory_found(case) for case in cases if case.task == "train"],
    }


def case_found(case: Case, counters: Sequence[Counter], rounds: int) -> dict[str, Any]:
    """The truth of a case, and what each counter says of it."""
    tokens = torch.zeros(case.batch, case.seq_len, dtype=torch.int64)
    check = check_case(case, "dispatch", "cpu")
    rows = [row for row in check.rows if row.phase != "optimizer"]
    settings = setting_of(case, tokens)
    asked = [counter for counter in counters if case.task != "train" or counter.backward]
    found = [{"name": counter.name, **said(counter, case, tokens, settings)} for counter in asked]
    plain = Pass(case)
    calls: dict[str, Callable[[], object]] = {
        "count": lambda: count(case).counted,
        "plain": lambda: plain.run(tokens),
        **{
            counter.name: call_of(counter, case, tokens)
            for counter, one in zip(asked, found, strict=True)
            if one["error"] is None
        },
    }
    times = in_turns(calls, rounds)
    return {
        "id": case.id,
        "case": case.model_dump(mode="json"),
        "flops": sum(count(case).counted.flops_by_phase[phase] for phase in ("forward", "backward")),
        "flops_by_kind": {k: n for k, n in count(case).counted.flops_by_kind.items() if k != "optimizer"},
        "executed_flops": sum(row.counted for row in rows),
        "expected_flops": sum(row.expected for row in rows),
        "dispatch_flops": sum(row.traced for row in rows),
        "dispatch_rules": sorted({rule for row in rows for rule in row.rules}),
        "counters": [{**one, "time_s": times.get(one["name"], [])} for one in found],
        "count_s": times["count"],
        "plain_s": times["plain"],
    }


def setting_of(case: Case, tokens: Tensor) -> Setting:
    """What the rules need to know of the run that no size says."""
    module = Pass(case)
    with lone_rows(module.model) as lone:
        module.run(tokens)
    return Setting("dispatch", "cpu", case, len(list(module.parameters())), lone)


def said(counter: Counter, case: Case, tokens: Tensor, setting: Setting) -> dict[str, Any]:
    """What a counter reports, what its rules predict, and what they add to the truth and take from it, in FLOPs."""
    try:
        reported = int(call_of(counter, case, tokens)())
    except Exception as error:  # whatever a counter raises is its answer
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return {"reported": None, "flops": None, "predicted": None, "differences": {}, "error": reason}
    differences: dict[str, int] = {}
    predicted = 0
    for op in count(case).ops:
        if op.phase == "optimizer":
            continue
        truth = seen(op, setting)
        found = prediction(counter, op, case, setting)
        if found is None:
            return {
                "reported": reported,
                "flops": counter.factor * reported,
                "predicted": None,
                "differences": {},
                "error": None,
            }
        assert truth is not None
        expected = op.repeat * found.flops + found.once
        predicted += expected
        if difference := counter.factor * expected - (op.repeat * truth.flops + truth.once):
            rule = "; ".join(rule for rule in found.rules if rule != MULTIPLY_ADD) or rules.TRUTH
            differences[rule] = differences.get(rule, 0) + difference
    return {
        "reported": reported,
        "flops": counter.factor * reported,
        "predicted": predicted,
        "differences": differences,
        "error": None,
    }  # fmt: skip


def prediction(counter: Counter, op: Any, case: Case, setting: Setting) -> Seen | None:
    """What a counter must report of an operation; None where no rule says."""
    if isinstance(counter.rule, str):
        return seen(op, setting._replace(witness=counter.rule))
    if case.task == "prefill" or (op.phase == "forward" and counter.backward == DOUBLED):
        return counter.rule(op, case)
    if counter.backward == DOUBLED:
        found = counter.rule(op.first, case)
        return Seen(2 * found.flops, (rules.DOUBLED,))
    return None


def call_of(counter: Counter, case: Case, tokens: Tensor) -> Callable[[], float]:
    """The counter on a model of its own: many leave something behind."""
    module = Pass(case)

    def call() -> float:
        with restored(), redirect_stdout(io.StringIO()):
            return counter.adapter(module, tokens)

    return call


@contextmanager
def restored() -> Iterator[None]:
    """Puts back the functions of torch that a counter replaced and, where it failed, has not put back itself."""
    places = (torch, F, Tensor)
    before = [dict(vars(place)) for place in places]
    try:
        yield
    finally:
        for place, names in zip(places, before, strict=True):
            for name, value in names.items():
                if vars(place)[name] is not value:
                    setattr(place, name, value)


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one untimed round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = perf_counter()
            call()
            if round_:
                times[name].append(perf_counter() - start)
    return times


def memory_found(case: Case) -> dict[str, Any]:
    """Peak bytes of a training step: by the allocator's events, by MemTracker, and counted. Of the second step."""
    counted = count(case).counted
    return {
        "id": case.id,
        "allocator_bytes": allocator_peak(case),
        "tracker_bytes": tracker_peak(case),
        "counted_bytes": counted.peak_requested_bytes,
    }


def stepping(case: Case) -> tuple[LanguageModel, Any]:
    model = build(case.spec, path=case.path)
    return model, train.prepare(model, case)


def allocator_peak(case: Case) -> int:
    _, prepared = stepping(case)
    prepared.call()
    prepared.release()
    return memory.peaks(prepared.call, prepared.held(), torch.device("cpu")).requested_bytes


def tracker_peak(case: Case) -> int:
    from torch.distributed._tools.mem_tracker import MemTracker

    model, prepared = stepping(case)
    inputs = [tensor for tensor in prepared.held() if not isinstance(tensor, nn.Parameter)]
    tracker = MemTracker()
    tracker.track_external(model, *inputs)
    with tracker:
        prepared.call()
        tracker.reset_mod_stats()
        prepared.call()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/counters.md"))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.peers:
        sys.path.append(str(given.peers))
    torch.set_num_threads(1)
    data = measured(planned(), COUNTERS, given.rounds)
    given.out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    given.out.write_text(page.as_markdown(data), "utf-8")


if __name__ == "__main__":
    main()
