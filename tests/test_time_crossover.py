"""Crossovers in predicted time: each turn is where the predictions turn, on the committed calibration of an H200."""

from pathlib import Path

import pytest

from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.time import predict
from benchbench.devices import device
from benchbench.errors import BenchError
from benchbench.specs import preset
from benchbench.time_crossover import stretches

H200 = device(str(Path(__file__).parents[1] / "results" / "devices" / "nvidia-h200.toml"))


def prefill(name: str, **sizes: object) -> Case:
    spec = preset(name)
    return Case.of(spec, task="prefill", seq_len=2, dtype="bfloat16", path=spec.cuda_path, **sizes)


def seconds(case: Case, n: int) -> float:
    found = predict(count(case.replace(seq_len=n), "cuda"), H200)
    assert found is not None
    return found.time_s


def test_a_turn_is_found_to_the_token() -> None:
    transformer, mamba = prefill("transformer-130m"), prefill("mamba-130m")
    before, after = stretches((transformer, mamba), H200, 2**17)
    assert (before.low, before.faster, after.faster, after.high) == (16, 0, 1, 2**17)
    assert before.high == after.low - 1
    assert seconds(transformer, before.high) <= seconds(mamba, before.high)
    assert seconds(mamba, after.low) < seconds(transformer, after.low)
    assert after.seconds == (seconds(transformer, after.low), seconds(mamba, after.low))


def test_a_model_never_overtakes_itself() -> None:
    (only,) = stretches((prefill("mamba-130m"), prefill("mamba-130m")), H200, 2**12)
    assert (only.low, only.high, only.faster) == (16, 2**12, 0)


def test_a_bound_is_no_prediction() -> None:
    with pytest.raises(BenchError, match="no time of transformer-130m can be predicted: what is known is a bound"):
        stretches((prefill("transformer-130m"), prefill("mamba-130m")), device("b200"), 64)
