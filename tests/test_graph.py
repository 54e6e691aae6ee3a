"""The path `graph`: what a replay returns, and what it holds."""

import pytest
import torch

from benchbench import memory
from benchbench.case import Case
from benchbench.errors import UnsupportedError
from benchbench.gate import difference
from benchbench.models import LanguageModel, build
from benchbench.specs import preset
from benchbench.tasks import DTYPES, graph, task_module
from benchbench.tasks.prepared import Prepared

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FAMILIES = ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny")


def made(name: str, task: str, dtype: str = "float32", path: str | None = None) -> tuple[LanguageModel, Case]:
    """A model on the GPU, running what the path `graph` captures unless another `path` is named."""
    spec = preset(name)
    case = Case.of(spec, task=task, seq_len=96, batch=2, dtype=dtype, path=path or spec.cuda_path)
    return build(spec, path=case.path, device=CUDA, dtype=DTYPES[dtype]).eval(), case


def prepared(model: LanguageModel, case: Case) -> Prepared:
    return task_module(case).prepare(model, case)


def test_the_cpu_has_no_graphs():
    plain = Prepared(lambda: torch.zeros(1), tokens=1, held=lambda: iter(()))
    with pytest.raises(UnsupportedError, match="'graph' is a CUDA graph and needs an NVIDIA GPU, not the device 'cpu'"):
        graph.captured(plain, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("task", ["decode", "prefill"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replay_returns_what_the_plain_call_does(name: str, task: str, dtype: str):
    model, case = made(name, task, dtype)
    for found, expected in graph.compare(model, case, prepared):
        assert len(found) == 2 * case.batch
        # The same kernels on the same numbers; a library may choose another one while capturing.
        assert difference(found, expected) < (1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.gpu
def test_every_replay_moves_the_state_on():
    # Mamba's state decays to what its one token feeds it, so two replays differ; a transformer overwrites one slot.
    differ = {}
    for name in ("mamba-tiny", "transformer-tiny"):
        replayed = graph.captured(prepared(*made(name, "decode")), CUDA)
        first = replayed.call().clone()
        differ[name] = not torch.equal(first, replayed.call())

    assert differ == {"mamba-tiny": True, "transformer-tiny": False}


@pytest.mark.gpu
def test_a_replay_allocates_nothing():
    replayed = graph.captured(prepared(*made("transformer-tiny", "prefill")), CUDA)
    output = replayed.call()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]

    assert replayed.call() is output
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["decode", "prefill"])
def test_after_release_a_peak_holds_what_the_graph_works_in(task: str):
    # The plain call's peak is the least: warm-up does the same. What the graph holds beside it is its output twice.
    model, case = made("transformer-tiny", task)
    plain = prepared(model, case)
    plain.call()
    expected = memory.peaks(plain.call, plain.held(), CUDA)
    replayed = graph.captured(plain, CUDA)
    replayed.call()
    replayed.release()
    found = memory.peaks(replayed.call, replayed.held(), CUDA)
    logits = case.batch * case.spec.vocab_size * 4

    assert expected.requested_bytes <= found.requested_bytes <= expected.requested_bytes + 2 * logits


@pytest.mark.gpu
def test_release_gives_the_memory_back():
    model, case = made("transformer-tiny", "prefill")
    plain = prepared(model, case)
    plain.call()
    memory.peaks(plain.call, plain.held(), CUDA)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    replayed = graph.captured(plain, CUDA)
    replayed.call()
    replayed.release()

    assert torch.cuda.memory_allocated() <= before


@pytest.mark.gpu
def test_a_call_that_waits_for_the_gpu_is_refused_and_the_gpu_still_works():
    x = torch.ones(4, device=CUDA)

    def waits() -> torch.Tensor:
        return x * float(x.sum())

    plain = Prepared(waits, tokens=1, held=lambda: iter((x,)))
    with pytest.raises(UnsupportedError, match="'graph' cannot capture this call"):
        graph.captured(plain, CUDA).call()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert float(waits().sum()) == 16.0
