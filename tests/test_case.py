"""Cases and architectures as values: equal when they cost the same, refused with the user's own words."""

import pytest
from pydantic import ValidationError

from benchbench.case import Case, loss_chunk_rows
from benchbench.errors import BenchError
from benchbench.specs import from_dict, preset, presets


def test_equal_cases_are_one_key_and_survive_json() -> None:
    for spec in presets().values():
        case = Case.of(spec, task="prefill", seq_len=64, batch=3)
        again = Case.model_validate_json(case.model_dump_json())
        assert again == case
        assert hash(again) == hash(case)
        assert type(again.spec) is type(spec)


def test_training_brings_its_optimizer_and_nothing_else_does() -> None:
    spec = preset("mamba-tiny")
    assert Case.of(spec, task="train", seq_len=8).optimizer == "adamw"
    assert Case.of(spec, task="prefill", seq_len=8).optimizer is None
    with pytest.raises(ValidationError, match="belongs to the task 'train'"):
        Case.of(spec, task="prefill", seq_len=8, optimizer="sgd")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"task": "prefill", "seq_len": 0}, "greater than 0"),
        ({"task": "prefill", "seq_len": 8, "batch": 0}, "greater than 0"),
        ({"task": "train", "seq_len": 1}, "one token alone has no next token"),
        ({"task": "prefill", "seq_len": 8, "path": "fast"}, "has no path 'fast'"),
        ({"task": "prefill", "seq_len": 8, "dtype": "int4"}, "'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Case.of(preset("mamba-tiny"), **sizes)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"d_model": 770}, "d_model 770 is not divisible by n_heads 12"),
        ("gpt2", {"n_kv_heads": 5}, "n_heads 12 is not divisible by n_kv_heads 5"),
        ("gpt2", {"dropout": 1.0}, "dropout = 1.0: expected less than 1"),
        ("gpt2", {"max_seq_len": None}, "learned positions need max_seq_len"),
        ("gpt2", {"d_modell": 8}, "no field 'd_modell'. Did you mean 'd_model'"),
        ("mamba-tiny", {"n_layers": "three"}, 'n_layers = "three": expected a whole number'),
        ("resnet-bk-tiny", {"top_k": 5}, "top_k 5 is more than n_experts 4"),
    ],
)
def test_impossible_architectures_are_refused(name: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        preset(name, **change)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(BenchError, match=r"no model 'mamba-130'\. Did you mean 'mamba-130m'\?"):
        preset("mamba-130")
    with pytest.raises(BenchError, match="no family 'mambo'"):
        from_dict({"family": "mambo"})


def test_the_loss_is_chunked_only_where_its_logits_would_be_large() -> None:
    # 2^27 / 50,280 = 2669.4 rows fit, and the largest power of two below is 2048.
    assert loss_chunk_rows(2669, 50_280) == 2669
    assert loss_chunk_rows(2670, 50_280) == 2048
    assert loss_chunk_rows(10**6, 2**30) == 1


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("resnet-bk-tiny", {"form": "bk-compat"}, "bk-compat runs position by position"),
        ("mamba-tiny", {"d_state": 12}, "a power of two up to 32, not 12"),
        ("mamba-tiny", {"d_state": 64}, "a power of two up to 32, not 64"),
    ],
)
@pytest.mark.parametrize("task", ["prefill", "core"])
def test_a_path_that_has_no_kernel_for_these_sizes_is_unsupported(
    name: str, change: dict, reason: str, task: str
) -> None:
    case = Case.of(preset(name, **change), task=task, seq_len=8, path="triton")
    assert reason in (case.unsupported() or "")
    assert case.replace(path="chunked").unsupported() is None
    assert Case.of(preset(name), task=task, seq_len=8, path="triton").unsupported() is None
