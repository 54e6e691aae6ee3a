"""Where two models cost the same: by hand for states, by counting everywhere else."""

import json

import pytest

from benchbench.__main__ import main
from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.crossover import METRICS, compare
from benchbench.specs import preset


def case_of(model: str, task: str = "prefill", **sizes) -> Case:
    return Case.of(preset(model), task=task, **{"seq_len": 2, **sizes})


def counted(model: str, n: int, name: str, task: str = "prefill") -> int:
    return getattr(count(case_of(model, task, seq_len=n)).counted, name)


def test_states_cross_where_the_keys_and_values_fill_mambas():
    """transformer-tiny: 2·4·2·16 = 256 bytes a layer and token; mamba-tiny: (4 + 8)·128·4 = 6144 a layer: N = 24."""
    found = compare(case_of("transformer-tiny"), case_of("mamba-tiny"), "state")
    assert [(one.low, one.high, one.order) for one in found.stretches] == [(1, 23, -1), (24, 24, 0), (25, 2**40, 1)]
    assert {one.n: one.first - one.second for one in found.verified if one.n in (23, 24, 25)} == {
        23: -256 * 2,
        24: 0,
        25: 256 * 2,
    }


def test_a_state_that_is_less_from_the_first_token_never_crosses():
    """resnet-bk-130m keeps 8·12 bytes; transformer-130m 2·4·768·12 for its first token already: they never cross."""
    found = compare(case_of("resnet-bk-130m"), case_of("transformer-130m"), "state")
    assert found.crossings == ()
    assert (found.low, found.high, found.stretches[0].order) == (1, 2**40, -1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("task", ["prefill", "decode"])
def test_the_count_changes_sides_where_it_is_said_to(metric, task):
    found = compare(case_of("transformer-130m", task), case_of("mamba-130m", task), metric)
    name = METRICS[metric]
    for stretch in found.stretches:
        for n in (stretch.low, (stretch.low + stretch.high) // 2, stretch.high):
            first, second = (counted(model, n, name, task) for model in ("transformer-130m", "mamba-130m"))
            assert (first > second) - (first < second) == stretch.order
    assert [one.low for one in found.stretches[1:]] == [one.high + 1 for one in found.stretches[:-1]]


def test_every_length_of_a_short_stretch_is_decided_as_counted():
    found = compare(case_of("gpt2"), case_of("resnet-bk-130m"), "bytes", limit=60)
    orders = {n: one.order for one in found.stretches for n in range(one.low, one.high + 1)}
    assert list(orders) == list(range(1, 61))
    for n, order in orders.items():
        first, second = (counted(model, n, "bytes_moved") for model in ("gpt2", "resnet-bk-130m"))
        assert (first > second) - (first < second) == order


def test_a_model_with_itself_is_equal_everywhere():
    found = compare(case_of("mamba-tiny"), case_of("mamba-tiny"), "flops")
    assert [(one.low, one.high, one.order) for one in found.stretches] == [(1, 2**40, 0)]


def test_the_shorter_model_ends_it(capsys):
    """gpt2 decodes its 1,024th token with 1,023 behind it. State: 2·4·768·12·(N + 1) against 24·20·1536·4: N = 39."""
    assert main(["crossover", "gpt2", "mamba-130m", "--task", "decode", "--metric", "state", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "They are equal at N=39." in out
    assert "mamba-130m is smaller than gpt2 at N=40 to 1,023." in out
    assert "gpt2 has learned positions for 1024 tokens, not 1025: they are compared up to N=1,023." in out


def test_the_command_line_names_who_overtakes_whom(capsys):
    assert main(["crossover", "transformer-130m", "mamba-130m", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (at,) = shown["crossovers"]
    assert counted("transformer-130m", at - 1, "flops") <= counted("mamba-130m", at - 1, "flops")
    assert counted("transformer-130m", at, "flops") > counted("mamba-130m", at, "flops")
    assert [one["n"] for one in shown["verified"]] == [1, at - 1, at, at + 1, 2**40]
    assert main(["crossover", "transformer-130m", "mamba-130m", "--format", "md"]) == 0
    assert f"mamba-130m overtakes transformer-130m at N={at}: cheaper up to" in capsys.readouterr().out


def test_the_command_line_says_that_they_never_cross(capsys):
    assert main(["crossover", "mamba-tiny", "mamba-130m", "--max", "1000"]) == 0
    said = "They never cross: mamba-tiny is cheaper than mamba-130m at every N from 1 to 1,000, by their closed forms."
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mamba-130m", "mamba-13m"], "no model 'mamba-13m'. Did you mean 'mamba-130m'?"),
        (["mamba-130m", "gpt2", "--metric", "time"], "--metric time: on what?"),
        (["mamba-130m", "gpt2", "--device", "h200"], "--device goes with --metric time, and --metric flops is"),
        (["resnet-bk-baseline", "gpt2", "--task", "decode"], "cannot generate token by token"),
        (["mamba-130m", "gpt2", "--metric", "tim"], "'tim' is not one of"),
    ],
)
def test_errors_are_said_and_exit_2(capsys, words, message):
    assert main(["crossover", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
