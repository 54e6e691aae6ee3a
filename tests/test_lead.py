import pytest
from records import ENVIRONMENT

from benchbench.lead import command_line, commits, dirty, environment_line, protocol_line, slug
from benchbench.record import Protocol

GPU = {
    **ENVIRONMENT,
    "device": "cuda",
    "cuda": "13.0",
    "gpu": {"name": "NVIDIA H200", "memory_bytes": 140 * 2**30, "driver": "580.65"},
}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.60GHz", "cpu-2-cores-intel-xeon"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "cpu-2-cores-intel-core-i7-9750h"),
        ("AMD EPYC 7763 64-Core Processor", "cpu-2-cores-amd-epyc-7763"),
        (None, "cpu-2-cores"),
    ],
)
def test_a_processor_as_a_file_name(model, name):
    assert slug({**ENVIRONMENT, "cpu": {**ENVIRONMENT["cpu"], "model": model}}) == name


def test_a_gpu_as_a_file_name():
    assert slug(GPU) == "nvidia-h200"


def test_where_it_was_measured():
    assert environment_line([ENVIRONMENT]) == (
        "Environment: Intel(R) Xeon(R) Processor @ 2.60GHz (8.00 GiB) · 2 threads on 2 cores, AVX512 · fvcore 0.1.5 · "
        "numpy 2.4.6 · torch 2.13.0 · benchbench 0.1.0 · commit 4be1c02"
    )
    assert environment_line([GPU]).startswith(
        "Environment: NVIDIA H200 (140 GiB, driver 580.65) · 2 threads on 2 cores"
    )
    assert "CUDA 13.0" in environment_line([GPU])


def test_uncommitted_changes_are_said():
    changed = {**ENVIRONMENT, "git": {"sha": "9d0a7f1" + "0" * 33, "branch": None, "dirty": True}}
    assert (dirty(changed), dirty(ENVIRONMENT)) == (True, False)
    assert environment_line([ENVIRONMENT, changed]).endswith("commit 4be1c02 and 9d0a7f1 (dirty)")
    assert commits([{**ENVIRONMENT, "git": None}]) == "unknown"
    assert not dirty({**ENVIRONMENT, "git": None})


def test_how_it_was_measured():
    usual = Protocol.model_validate({"min_samples": 7, "target_ratio": 0.01, "case_budget_s": 4})
    line = protocol_line([usual, usual])
    assert line == (
        "Protocol: first call apart; 2 or more warm-up calls; 7 to 50 samples, until half the 95% interval is within "
        "1.0% of the median or 4.00 s are spent; times are medians, ± is that half interval"
    )
    assert "2.0% of the median" in protocol_line([usual, Protocol.model_validate({})])


def test_with_which_command():
    plain = "benchbench run --suite tiny --device cpu"
    assert command_line("tiny", 3, [plain]) == f"Reproduce: `{plain}` (version 3 of the suite)"
    both = command_line("tiny", 3, [plain, f"{plain} --model gpt2"])
    assert both == f"Reproduce: `{plain}`, then `{plain} --model gpt2` (version 3 of the suite)"
    assert not command_line("tiny", 3, []).startswith("Reproduce")
