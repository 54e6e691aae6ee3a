import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchbench import gate, measure, memory
from benchbench.case import Case
from benchbench.counters import trace
from benchbench.errors import UnsupportedError
from benchbench.measure import Bench, Request, is_out_of_memory, out_of_memory_reason
from benchbench.models.transformer import FlashCore
from benchbench.record import Protocol
from benchbench.specs import preset

SHORT = Protocol(min_samples=1, max_samples=2, warmup_calls=0)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    gate._gate.cache_clear()


class Told(list):
    def __call__(self, phase: str, samples: int, half_ratio: float | None) -> None:
        if not self or self[-1] != phase:
            self.append(phase)


@pytest.fixture
def phases() -> Told:
    return Told()


@pytest.fixture
def bench(phases: Told) -> Bench:
    return Bench(CPU, phases)


def case(name: str = "transformer-tiny", task: str = "prefill", **sizes: object) -> Case:
    return Case.of(preset(name), task=task, **{"seq_len": 32, **sizes})


def do(bench: Bench, case: Case, *, trace: bool = False, measure: bool = True, protocol: Protocol = SHORT) -> Any:
    result = bench.run(Request(case=case, protocol=protocol, trace=trace, measure=measure))
    json.dumps(result.to_json(), allow_nan=False)
    return result


@pytest.mark.parametrize("name", ["transformer-tiny", "mamba-tiny", "resnet-bk-tiny"])
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_a_case_is_measured_and_checked(bench: Bench, phases: Told, name: str, task: str):
    result = do(bench, case(name, task), trace=True)

    assert result.status == "ok"
    assert result.reasons == []
    assert result.path == preset(name).paths[0]
    assert phases == ["gate", "build", "warm-up", "sampling", "memory", "trace"]
    assert result.measured is not None
    assert 1 <= len(result.measured.time_s) <= 2
    assert result.measured.first_call_s is not None
    assert result.measured.peak_requested_bytes is not None
    assert result.measured.peak_requested_bytes > 4 * result.checked.params
    assert result.measured.peak_allocated_bytes is None, "the CPU's allocator hands out what is asked"
    assert result.checked.gate == "passed"
    assert result.checked.traced_flops > 0
    assert result.checked.explained_flops > 0


def test_the_peak_of_a_prefill_by_hand(bench: Bench):
    # At the least weights, tokens and the cache, which are there at once. At the most also the logits and every
    # activation of a token, of both layers at once and each of them twice, in 4 bytes: the residual stream 64, three
    # norms, q 64, k and v 32 each, the attention's output 64, and gate, up and their product 160 each.
    result = do(bench, case(seq_len=32))
    weights, tokens, cache, logits = 102_720 * 4, 32 * 8, 2 * 2 * 2 * 32 * 16 * 4, 256 * 4
    least = weights + tokens + cache
    most = least + logits + 2 * 2 * 4 * 32 * (64 + 3 * 64 + 64 + 2 * 32 + 64 + 3 * 160)

    assert least < result.measured.peak_requested_bytes < most


def test_without_measure_it_is_only_traced(bench: Bench, phases: Told):
    result = do(bench, case(), trace=True, measure=False)

    assert phases == ["trace"]
    assert result.status == "ok"
    assert result.path is None
    assert result.measured is None
    assert result.checked.gate is None
    assert result.checked.params == 102_720


def test_a_model_is_kept_for_the_next_case_but_not_after_training(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    built: list[str] = []
    real = measure.built
    monkeypatch.setattr(measure, "built", lambda one, device: built.append(one.spec.name) or real(one, device))
    for one in [
        case(),
        case(seq_len=16),
        case(task="decode"),
        case(dtype="bfloat16"),
        case(task="train"),
        case(task="train", seq_len=16),
        case(),
    ]:
        assert do(bench, one).status == "ok"

    assert len(built) == 5, "the first three share one; each of the others is built anew"


def test_a_failed_gate_is_an_error_and_nothing_is_timed(bench: Bench, phases: Told, monkeypatch: pytest.MonkeyPatch):
    right = FlashCore.forward
    monkeypatch.setattr(FlashCore, "forward", lambda self, *inputs: right(self, *inputs) * 1.1)
    result = do(bench, case(), trace=True)

    assert result.status == "error"
    assert "the path 'flash' differs from the reference by" in result.reasons[0]
    assert phases == ["gate"]
    assert result.measured is None
    assert result.checked.gate == "failed"
    assert result.checked.gate_error > result.checked.gate_tolerance == 1e-4


def test_a_known_verdict_is_taken_over(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("gated again")

    key = do(bench, case()).gate_key
    monkeypatch.setattr(measure, "gate", never)
    known = Request(case=case(), protocol=SHORT, trace=False, gates=((key, 0.25, 0.5),))
    passed = bench.run(known)
    failed = bench.run(known.replace(gates=((key, 0.75, 0.5),)))

    assert (passed.status, passed.checked.gate, passed.checked.gate_error) == ("ok", "passed", 0.25)
    assert (failed.status, failed.checked.gate, failed.measured) == ("error", "failed", None)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"seq_len": 500}, True),  # all longer than the gate's 77 tokens are alike
        ({"seq_len": 500, "seed": 3}, True),
        ({"seq_len": 76}, False),
        ({"batch": 2}, False),
        ({"path": "eager"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"task": "decode"}, False),
        ({"name": "mamba-tiny", "path": "chunked"}, False),
    ],
)
def test_a_verdict_is_known_by_what_the_gate_looks_at(other: dict[str, Any], same: bool):
    first, second = case(seq_len=77), case(**{"seq_len": 77, **other})

    assert (measure.gate_key(first) == measure.gate_key(second)) == same


def test_a_verdict_on_training_is_one_for_all_optimizers():
    plain, other, kept = (
        case(task="train", seq_len=77, **way) for way in ({}, {"optimizer": "sgd"}, {"checkpoint": True})
    )

    assert measure.gate_key(plain) == measure.gate_key(other.replace(accumulate=2)) != measure.gate_key(kept)


def test_the_seconds_of_a_failed_step_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "built", lambda *_, **__: torch.empty(2**60))
    result = do(bench, case())

    assert result.status == "oom"
    assert set(result.steps_s) == {"gate", "build"}


def test_a_loss_that_is_not_finite_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    real = measure.built

    def spoiled(*args: object, **how: object) -> torch.nn.Module:
        model = real(*args, **how)
        torch.nn.init.constant_(model.backbone.norm_f.weight, torch.inf)
        return model

    monkeypatch.setattr(measure, "built", spoiled)
    result = do(bench, case(task="train"))

    assert result.status == "error"
    assert result.reasons == ["the loss is nan"]
    assert result.measured is None


def test_logits_that_are_not_finite_are_said(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    real = measure.built

    def spoiled(*args: object, **how: object) -> torch.nn.Module:
        model = real(*args, **how)
        torch.nn.init.constant_(model.backbone.norm_f.weight, torch.inf)
        return model

    monkeypatch.setattr(measure, "built", spoiled)
    result = do(bench, case())

    assert result.status == "ok"
    assert result.reasons == ["the logits are not finite"]


def test_what_the_architecture_cannot_do_is_unsupported(bench: Bench):
    result = do(bench, Case.of(preset("gpt2"), task="prefill", seq_len=1025))

    assert result.status == "unsupported"
    assert result.reasons == ["gpt2 has learned positions for 1024 tokens, not 1025"]


def test_a_path_that_gives_up_is_unsupported(bench: Bench):
    spec = preset("transformer-tiny", dropout=0.1)
    result = do(bench, Case.of(spec, task="train", seq_len=8))

    assert result.status == "unsupported"
    assert "no attention dropout on the CPU" in result.reasons[0]


def test_an_unexpected_error_is_told_by_name(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(FlashCore, "forward", broken)
    result = do(bench, case())

    assert result.status == "error"
    assert result.reasons == ["KeyError: 'oops'"]


def test_a_tracer_that_cannot_see_the_case_leaves_its_columns_absent(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def blind(case: Case, witness: str) -> None:
        raise UnsupportedError("too dark")

    monkeypatch.setattr(trace, "check_case", blind)
    result = do(bench, case(), trace=True)

    assert result.status == "ok"
    assert result.checked.traced_flops is None
    assert result.checked.reason == "too dark"
    assert result.checked.params == 102_720


def test_a_broken_tracer_is_an_error_that_keeps_what_was_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def broken(case: Case, witness: str) -> None:
        raise NotImplementedError("later")

    monkeypatch.setattr(trace, "check_case", broken)
    result = do(bench, case(), trace=True)

    assert result.status == "error"
    assert result.reasons == ["NotImplementedError: later"]
    assert result.measured is not None


def test_the_witness_is_torch_and_its_answer_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    answer = SimpleNamespace(params=7, traced_flops=10, explained_flops=11, rules=("a rule",))
    monkeypatch.setattr(trace, "check_case", lambda case, witness: {"torch": answer}[witness])
    checked = do(bench, case(), trace=True, measure=False).checked

    assert (checked.params, checked.traced_flops, checked.explained_flops, checked.rules) == (7, 10, 11, ("a rule",))


def test_a_call_with_too_many_allocations_is_not_followed(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "MAX_EVENTS", 100)
    result = do(bench, case("mamba-tiny", path="eager", seq_len=65))

    assert result.status == "ok"
    assert result.measured.time_s
    assert result.measured.peak_requested_bytes is None
    assert result.reasons[0].startswith("memory was not measured: a call makes up to ")
    assert result.reasons[0].endswith(" allocations and frees, and 100 can be followed")


def test_a_pass_for_the_memory_that_runs_out_of_it_leaves_the_times(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 394.00 MiB.")

    monkeypatch.setattr(memory, "peaks", full)
    result = do(bench, case(task="train"))

    assert result.status == "ok"
    assert result.reasons == ["memory was not measured: out of memory: asked for 394.00 MiB in the pass for it"]
    assert result.measured.time_s
    assert result.measured.peak_requested_bytes is None


def test_a_pass_for_the_memory_that_breaks_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "peaks", lambda *_: 1 / 0)

    assert do(bench, case()).status == "error"


def test_a_call_longer_than_the_budget_is_not_repeated_for_its_memory(bench: Bench):
    result = do(bench, case(), protocol=Protocol(case_budget_s=1e-9))

    assert len(result.measured.time_s) == 1
    assert result.measured.peak_requested_bytes is None
    assert "and the case has 1e-09 s" in result.reasons[0]


@pytest.mark.parametrize("name", ["transformer-tiny", "mamba-tiny", "resnet-bk-tiny"])
@pytest.mark.parametrize("task", ["prefill", "train"])
@pytest.mark.parametrize("path", [0, 1])
def test_allocations_are_foreseen_from_a_short_call(name: str, task: str, path: int):
    long = case(name, task, seq_len=400, path=preset(name).paths[path])
    model = measure.built(long, CPU)
    foreseen = measure.expected_allocations(model, long, CPU)
    unit = measure.prepare(model, long)
    unit.call()
    unit.release()

    assert len(memory.allocations(unit.call)) <= foreseen


def test_out_of_memory_on_the_cpu_is_known_by_its_message():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)

    assert is_out_of_memory(caught.value)
    assert out_of_memory_reason(caught.value) == f"out of memory: asked for {2**60} bytes"
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_out_of_memory_on_cuda_says_what_was_free():
    # The wording of torch's CUDACachingAllocator.
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 24.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 11.20 GiB "
        "is free. Process 1 has 128.61 GiB memory in use."
    )

    assert is_out_of_memory(error)
    assert out_of_memory_reason(error) == "out of memory: asked for 24.00 GiB, 11.20 GiB free"


def test_calibration_is_of_this_machine():
    # No machine multiplies slower than 1e8 FLOP/s, copies slower than 1e8 B/s, or does either a million times faster.
    found = measure.calibrate(CPU)

    assert 1e8 < found["matmul_flops_per_s"] < 1e15
    assert 1e8 < found["copy_bytes_per_s"] < 1e14


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["transformer-tiny", "mamba-tiny", "resnet-bk-tiny"])
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_case_is_measured_on_a_gpu(name: str, task: str, dtype: str):
    result = do(Bench(torch.device("cuda"), Told()), case(name, task, dtype=dtype, seq_len=100))

    assert result.status == "ok", result.reasons
    measured = result.measured
    assert all(seconds > 0 for seconds in measured.time_s)
    assert 0 < measured.peak_requested_bytes <= measured.peak_allocated_bytes <= measured.peak_reserved_bytes


@pytest.mark.gpu
def test_out_of_memory_on_a_gpu_says_what_was_asked_for():
    # The eager path's scores take 2^18 · 2^18 · 4 heads · 4 bytes = 1 TiB.
    result = do(Bench(torch.device("cuda"), Told()), case(seq_len=2**18, path="eager"))

    assert result.status == "oom"
    assert "asked for" in result.reasons[0]
    assert "free" in result.reasons[0]
