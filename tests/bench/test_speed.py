"""How fast the models and the counters are here. Reports; asserts nothing about time."""

import subprocess
import sys
from time import perf_counter

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchbench.case import Case, Task, completed
from benchbench.counters import count
from benchbench.devices import device
from benchbench.fit import Answer, Field, Sizes, largest
from benchbench.models import build
from benchbench.specs import preset
from benchbench.suite import load

FAMILIES = ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny", "transformer-130m", "mamba-130m", "resnet-bk-130m")
ASKED = ("transformer-130m", "mamba-130m", "mamba-1.4b", "resnet-bk-130m")
TRACED = ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny")


def describe(benchmark: BenchmarkFixture, case: Case) -> None:
    """What a stored timing needs beside it to mean anything."""
    counted = count(case).counted
    benchmark.group = f"{case.task} N{case.seq_len}"
    benchmark.extra_info.update(
        case=case.id, path=case.path, params=counted.params, flops=counted.flops, threads=torch.get_num_threads()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_forward(benchmark: BenchmarkFixture, name: str) -> None:
    case = Case.of(preset(name), task="prefill", seq_len=512)
    model = build(case.spec)
    tokens = torch.zeros(1, 512, dtype=torch.int64)
    describe(benchmark, case)
    with torch.inference_mode():
        benchmark.pedantic(model.backbone, (tokens,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("name", TRACED)
def test_forward_and_backward(benchmark: BenchmarkFixture, name: str) -> None:
    case = Case.of(preset(name), task="train", seq_len=512)
    model = build(case.spec)
    tokens = torch.zeros(1, 512, dtype=torch.int64)
    describe(benchmark, case)
    benchmark.pedantic(lambda: model.loss(tokens, tokens).backward(), rounds=5, warmup_rounds=1)


def test_count_the_long_context_suite(benchmark: BenchmarkFixture) -> None:
    cases = load("long-context").cases
    benchmark.extra_info["cases"] = len(cases)
    benchmark(lambda: [count(case).counted for case in cases])


@pytest.mark.parametrize("seq_len", [1024, 1_048_576])
def test_count_as_a_process(benchmark: BenchmarkFixture, seq_len: int) -> None:
    """The verb from start to exit, beside an import of torch in the same minute: `ratio` is the one over the other."""
    verb = [sys.executable, "-m", "benchbench", "count", "--model", "mamba-2.8b", "--task", "train"]
    rival = [sys.executable, "-c", "import torch"]
    ratios: list[float] = []

    def pair() -> None:
        start = perf_counter()
        subprocess.run([*verb, "--seq-len", str(seq_len), "--format", "json"], check=True, capture_output=True)
        middle = perf_counter()
        subprocess.run(rival, check=True)
        ratios.append((middle - start) / (perf_counter() - middle))

    benchmark.pedantic(pair, rounds=5, warmup_rounds=1)
    benchmark.extra_info["ratio_to_import_torch"] = sorted(ratios)[len(ratios) // 2]


@pytest.mark.parametrize("field", ["seq_len", "batch"])
@pytest.mark.parametrize("task", ["train", "prefill", "decode"])
@pytest.mark.parametrize("name", ASKED)
def test_fit(benchmark: BenchmarkFixture, name: str, task: Task, field: Field) -> None:
    """One question about an H200, from nothing counted to the answer."""
    case = Case(**completed(preset(name), {"task": task, "seq_len": 2048}, "cuda"))
    memory = device("h200").memory_bytes
    assert memory is not None

    def question() -> tuple[Sizes, Answer]:
        sizes = Sizes(case, field, "cuda")
        return sizes, largest(sizes, memory)

    sizes, answer = benchmark.pedantic(question, rounds=5, warmup_rounds=1)
    benchmark.group = f"fit {field}"
    benchmark.extra_info.update(case=case.id, at=answer.at, simulated_events=sizes.events)


@pytest.mark.parametrize("name", TRACED)
def test_check(benchmark: BenchmarkFixture, name: str) -> None:
    from benchbench.counters.trace import check_case

    case = Case.of(preset(name), task="train", seq_len=128)
    describe(benchmark, case)
    benchmark.pedantic(check_case, (case,), rounds=3, warmup_rounds=1)
