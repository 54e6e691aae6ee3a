"""The count against fvcore and torch's counter on the real modules, and which witnesses the verb asks."""

import csv
import io
import json

import pytest
import torch

from benchbench.__main__ import main
from benchbench.case import Case
from benchbench.commands import check_hardware, doctor
from benchbench.counters import count, hardware, trace
from benchbench.counters.hardware import INSTRUCTIONS, Seen
from benchbench.counters.kernels import Kernel, lines
from benchbench.counters.products import products
from benchbench.counters.trace import check_case
from benchbench.errors import BenchError, UnsupportedError
from benchbench.models import build
from benchbench.specs import preset, presets

TINY = [name for name in presets() if name.endswith("-tiny")]
FULL = [name for name in presets() if not name.endswith("-tiny")]


@pytest.mark.parametrize("witness", ["torch", "fvcore"])
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", TINY)
def test_tiny_models_with_numbers(name: str, task: str, witness: str) -> None:
    spec = preset(name)
    for path in spec.paths:
        check = check_case(Case.of(spec, task=task, seq_len=37, batch=2, path=path), witness, "cpu")  # type: ignore[arg-type]
        assert check.unexplained == ()
        assert check.params == check.counted_params
        assert check.traced_flops > 0


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", FULL)
def test_full_models_as_shapes(name: str, task: str) -> None:
    spec = preset(name)
    case = Case.of(spec, task=task, seq_len=min(3000, (spec.longest or 3001) - 1))
    if reason := case.unsupported():
        with pytest.raises(UnsupportedError, match=reason):
            check_case(case)
        return
    check = check_case(case)
    assert check.unexplained == ()
    assert check.params == check.counted_params


def test_a_million_tokens_as_shapes() -> None:
    for name in ("transformer-130m", "mamba-130m", "resnet-bk-130m"):
        check = check_case(Case.of(preset(name), task="prefill", seq_len=2**20))
        assert check.unexplained == ()


def test_torch_by_hand_on_a_linear_model() -> None:
    # resnet-bk-tiny, 2 layers, 8 rows: v 64·1, o 2·64, router 64·4, two experts 2·64·96 each; head 1 row of 64·256.
    check = check_case(Case.of(preset("resnet-bk-tiny"), task="prefill", seq_len=8))
    assert check.traced_flops == 2 * 8 * 2 * (64 + 128 + 256 + 2 * 2 * 64 * 96) + 2 * 64 * 256


def test_the_depthwise_rule_is_the_published_overcount() -> None:
    # Torch prices the weight gradient as dense: 2·K·D² a position instead of 2·K·D.
    check = check_case(Case.of(preset("mamba-tiny"), task="train", seq_len=16))
    row = next(row for row in check.rows if row.path.endswith("conv1d") and row.phase == "backward")
    assert row.traced == 2 * (2 * 16 * 128 * 4 + 2 * 16 * 4 * 128 * 128)


def test_a_wrong_count_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = preset("mamba-tiny")
    wrong = build(spec.replace(d_conv=3))
    monkeypatch.setattr(trace, "_module", lambda *_: wrong)
    check = check_case(Case.of(spec, task="prefill", seq_len=16), "torch", "cpu")
    assert [row.path for row in check.unexplained] == ["backbone.layers.*.mixer.conv1d"]
    assert check.unexplained[0].unexplained == -2 * 2 * 16 * 128
    assert check.params != check.counted_params
    assert not check.passed


def test_fvcore_says_what_it_cannot_see() -> None:
    check = check_case(Case.of(preset("transformer-tiny"), task="prefill", seq_len=16), "fvcore", "cpu")
    assert check.blind["aten::scaled_dot_product_attention"] == 2
    with pytest.raises(UnsupportedError, match="without numbers"):
        check_case(Case.of(preset("mamba-tiny"), task="prefill", seq_len=16), "fvcore", "meta")


def counted_by_a_gpu(case: Case, more: int = 0) -> Seen:
    """What a GPU without tiles would count of products and resolvent; of the last, `more` than the count says."""
    cost, nothing = count(case), dict.fromkeys(INSTRUCTIONS, 0)
    kernels = [
        Kernel("gemm", op.path, op.phase, {**nothing, "tensor": product.flops})
        for op in cost.ops
        for product, times in products(op)
        for _ in range(times)
    ]
    (op,) = (op for op in cost.ops if op.kind == "resolvent")
    flops = op.repeat * op.executed_flops + more
    return Seen([*kernels, Kernel("two_sided_forward", op.path, op.phase, {**nothing, "add": flops})])


def code_of(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as stopped:
        return int(stopped.code or 0)


CHECK = ["check", "--model", "resnet-bk-tiny", "--task", "prefill", "--set", "form=bk-exact"]


def test_without_a_gpu_the_tracers_testify_and_a_line_says_why(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert code_of(*CHECK) == 0
    out = capsys.readouterr().out
    assert "6 of 6 agree to the last FLOP; 0 absent." in out
    assert out.endswith("hardware: absent: no NVIDIA GPU.\n")
    assert code_of(*CHECK, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["witness"] for one in found} == {"torch", "fvcore", "dispatch"}
    assert {one["case"]["spec"]["form"] for one in found} == {"bk-exact"}


@pytest.mark.parametrize(("more", "verdict", "code"), [(0, "agrees", 0), (1, "differs", 1)])
def test_with_a_gpu_its_counters_testify_too(more: int, verdict: str, code: int, capsys, monkeypatch) -> None:
    monkeypatch.setattr(check_hardware, "lacking", lambda: None)
    monkeypatch.setattr(hardware, "profile", lambda cases: [counted_by_a_gpu(case, more) for case in cases])
    assert code_of(*CHECK, "--format", "json") == code
    told = capsys.readouterr()
    *traced, seen = json.loads(told.out)
    assert [one["verdict"] for one in traced] == ["agrees"] * 6
    assert (seen["witness"], seen["verdict"], seen["case"]["path"]) == ("hardware", verdict, "triton")
    assert told.err == "hardware 1 of 1: resnet-bk-tiny\n"
    # Asked for by name, beside one tracer.
    assert code_of(*CHECK, "--witness", "hardware", "--witness", "torch") == code
    out = capsys.readouterr().out
    assert out.index("counted against traced") < out.index("2 of 2 agree") < out.index("bfloat16/triton under hardware")
    # One sheet, with the numbers of both.
    assert code_of(*CHECK, "--witness", "hardware", "--witness", "torch", "--format", "csv") == code
    header, *rows = capsys.readouterr().out.splitlines()
    assert {"traced", "tensor"} <= set(header.split(","))
    assert len(rows) == 2 + 2
    # As shapes, or module by module, there are tracers alone.
    assert code_of(*CHECK, "--device", "meta", "--format", "json") == 0
    assert "hardware" not in capsys.readouterr().out


def test_a_case_that_breaks_under_ncu_fails_and_the_others_are_told(capsys, monkeypatch) -> None:
    def profile(cases: list[Case]) -> list[Seen]:
        return [Seen([], "out of memory") if one.task == "core" else counted_by_a_gpu(one) for one in cases]

    monkeypatch.setattr(hardware, "profile", profile)
    words = (*CHECK, "--task", "core", "--witness", "hardware", "--format", "json")
    assert code_of(*words) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["case"]["task"], one["verdict"]) for one in found] == [("prefill", "agrees"), ("core", "failed")]

    def broken(cases: list[Case]) -> list[Seen]:
        raise BenchError("ncu failed")

    monkeypatch.setattr(hardware, "profile", broken)
    assert code_of(*words[:-1], "csv") == 1
    assert capsys.readouterr().out == ""
    assert code_of(*words) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["verdict"], one["reason"]) for one in found] == [("failed", "ncu failed")] * 2


def test_what_ncu_prints_is_told_apart_by_case() -> None:
    names = ["ID", "Kernel Name", "Grid Size", "thread Domain:Push/Pop_Range:PL_Type", *INSTRUCTIONS.values()]
    range_of = '"<default domain>:1|backward|backbone.norm_f:none:none"'
    rows = [names, [""] * len(names), ["0", "gemm", "(1, 2, 3)", range_of, *["1,000"] * len(INSTRUCTIONS)]]
    page = io.StringIO()
    csv.writer(page, quoting=csv.QUOTE_ALL).writerows(rows)
    first = 'case failed: [0, "RuntimeError: no"]'
    failed, found = hardware.seen(["==PROF== Connected", first, *page.getvalue().splitlines()], 2)
    assert failed == ([], "RuntimeError: no")
    assert found == ([Kernel("gemm", "backbone.norm_f", "backward", dict.fromkeys(INSTRUCTIONS, 1000), 3)], None)


def test_products_that_never_ran_are_missed() -> None:
    cost = count(Case.of(preset("resnet-bk-tiny"), task="prefill", seq_len=64, path="triton"))
    found = {line.kind: line for line in lines(cost, [])}
    assert found.keys() == {"matmul", "resolvent"}
    assert "lm_head: 1x64 by 64x256 did not run" in found["matmul"].unexplained
    assert found["resolvent"].found == 0 < (found["resolvent"].expected or 0)


def test_what_hardware_counters_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "counters_here", lambda: doctor.counters(None, "", root=True))
    assert check_hardware.lacking() == "ncu is not on PATH. Install NVIDIA Nsight Compute"
    monkeypatch.setattr(doctor, "counters_here", lambda: doctor.counters("ncu", "", root=True))
    assert check_hardware.lacking() is None


def test_a_head_with_a_bias_in_chunks_is_counted_as_it_runs() -> None:
    case = Case.of(preset("resnet-bk-baseline"), task="train", seq_len=128, batch=64)
    assert check_case(case, "dispatch", "meta").unexplained == ()
