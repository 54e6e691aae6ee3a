"""What several verbs do with options that do not fit: refused, never left aside."""

import json

import pytest

from benchbench.__main__ import main


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said of bad input, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("count", "--suite", "smoke", "--seq-len", "5"), "--seq-len goes without --suite."),
        (("count", "--suite", "smoke", "--set", "n_layers=1"), "--set goes without --suite."),
        (("check", "--suite", "smoke", "--batch", "7"), "--batch goes without --suite."),
        (("check", "--memory", "--witness", "torch"), "--witness goes without --memory."),
        (("check", "--memory", "--suite", "smoke", "--model", "nobody"), "no case is left to check."),
        (("check", "--batch", "0"), "0 is not in the range"),
        (("check", "--seq-len", "0"), "0 is not in the range"),
        (
            ("check", "--model", "mamba-tiny", "--task", "train", "--seq-len", "1"),
            "training needs seq_len of 2 or more",
        ),
        (("count", "--model", "mamba-tiny", "--set", "name=foo"), "a model keeps its name"),
        (("check", "--model", "mamba-tiny", "--set", "family=foo"), "a model keeps its family"),
        (("list", "cases", "--device", "tpu"), "no device 'tpu'"),
        (("fit", "--model", "mamba-tiny", "--memory", "0"), "--memory 0: that is nothing."),
        (("fit", "--model", "mamba-tiny", "--memory", ""), "'' is no amount of memory."),
        (
            ("fit", "--model", "mamba-tiny", "--task", "train", "--seq-len", "1", "--memory", "1GiB"),
            "training needs seq_len of 2 or more",
        ),
        (
            ("crossover", "mamba-tiny", "gpt2", "--metric", "time", "--device", "h200", "--max", "5"),
            "times are compared from 16 tokens on",
        ),
    ],
)
def test_what_does_not_fit_is_refused(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in said(capsys, *words)


def test_a_gpus_memory_where_a_gpu_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--device", "cuda", "--format", "json")
    main(("list", "cases", "--suite", "long-context", *words))
    name = "transformer-130m/prefill/N2048/B1/bfloat16/flash"
    listed = next(row for row in json.loads(capsys.readouterr().out) if row["case"] == name)
    main(("show", name, "--suite", "long-context", *words))
    shown = json.loads(capsys.readouterr().out)
    main(("count", "--model", "transformer-130m", "--dtype", "bfloat16", "--device", "h200", "--format", "json"))
    counted = json.loads(capsys.readouterr().out)
    assert listed["peak_bytes"] == shown["counted"]["peak_bytes"] == counted["counted"]["peak_bytes"]


def test_closed_forms_of_a_model_with_few_positions(capsys: pytest.CaptureFixture[str]) -> None:
    assert not main(("count", "--model", "gpt2", "--task", "decode", "--symbolic"))
    assert "Exact for every N from 1 to 1,023." in capsys.readouterr().out


def test_devices_that_hold_nothing_beside_the_reserve(capsys: pytest.CaptureFixture[str]) -> None:
    main(("fit", "--model", "mamba-tiny", "--reserve", "100GiB"))
    assert "-" not in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("t4 ")).split()[1]


def test_a_check_that_sees_nothing_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("check", "--model", "gpt2", "--task", "prefill", "--seq-len", "5000", "--witness", "torch")) == 2
    assert "nothing was checked" in capsys.readouterr().err
