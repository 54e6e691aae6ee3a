"""One case shown: ids read back, formulas against numbers, and witnesses beside the count."""

import json
import subprocess
import sys

import pytest

from benchbench.__main__ import main
from benchbench.case import Case
from benchbench.commands.show import parsed
from benchbench.counters import count
from benchbench.counters.op_forms import op_forms
from benchbench.counters.rules import WITNESSES
from benchbench.counters.symbolic import put
from benchbench.errors import BenchError
from benchbench.formula_tables import WRITTEN
from benchbench.specs import preset

TINY = ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny")


def shown(capsys, *arguments: str) -> dict:
    assert main(["show", *arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


# Ids


@pytest.mark.parametrize(
    "sizes",
    [
        {"task": "prefill", "seq_len": 4096},
        {"task": "decode", "seq_len": 3, "batch": 7, "dtype": "bfloat16", "path": "eager"},
        {"task": "train", "seq_len": 64},
        {"task": "train", "seq_len": 64, "optimizer": "sgd"},
        {"task": "train", "seq_len": 64, "checkpoint": True, "accumulate": 4, "autocast": "bfloat16"},
        {"task": "prefill", "seq_len": 64, "autocast": "float16"},
    ],
)
def test_an_id_is_read_back(sizes):
    for name in TINY:
        case = Case.of(preset(name), **sizes)
        assert parsed(case.id) == case


def test_changed_sizes_are_part_of_an_id():
    case = parsed("mamba-tiny+d_state=4+n_layers=3/prefill/N8/B1/float32/eager")
    assert (case.spec.d_state, case.spec.n_layers, case.spec.d_model) == (4, 3, 64)


@pytest.mark.parametrize("name", ["mamba-tiny/prefill/N128", "mamba-tiny", "mamba-tiny/prefill/128/B1/float32/eager"])
def test_what_is_no_id_is_left_to_the_suites(name):
    assert parsed(name) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mamba-tin/prefill/N1/B1/float32/eager", "…: no model 'mamba-tin'. Did you mean 'mamba-tiny'?"),
        (
            "mamba-tiny/prefil/N1/B1/float32/eager",
            "…: task = \"prefil\": expected 'prefill', 'decode', 'train' or 'core'.",
        ),
        ("mamba-tiny/prefill/N0/B1/float32/eager", "…: seq_len = 0: expected more than 0."),
        (
            "mamba-tiny/prefill/N007/B1/float32/eager",
            "no case '…'. Did you mean 'mamba-tiny/prefill/N7/B1/float32/eager'?",
        ),
        (
            "mamba-tiny/prefill/N8/B1/float32/eager/checkpoint",
            "…: checkpoint belongs to the task 'train', and only there",
        ),
    ],
)
def test_a_wrong_part_of_an_id_is_named(name, message):
    with pytest.raises(BenchError) as error:
        parsed(name)
    assert error.value.message == message.replace("…", name)


def test_a_case_of_no_suite_is_shown_and_an_unsupported_one_says_why(capsys):
    found = shown(capsys, "mamba-tiny/prefill/N77/B3/float32/eager")
    assert found["counted"]["flops"] == count(parsed(found["id"])).counted.flops
    found = shown(capsys, "gpt2/prefill/N1025/B1/float32/eager")
    assert (found["counted"], found["unsupported"]) == (None, "gpt2 has learned positions for 1024 tokens, not 1025")
    assert main(["show", "gpt2/prefill/N1025/B1/float32/eager"]) == 0
    assert "learned positions for 1024 tokens" in capsys.readouterr().out


# Formulas


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", [*TINY, "gpt2", "resnet-bk-baseline"])
def test_formulas_are_the_numbers_at_other_sizes(name, task):
    case = Case.of(preset(name), task=task, seq_len=40, batch=2)
    if case.unsupported():
        pytest.skip(case.unsupported() or "")
    forms = op_forms(case)
    # Widths that divide by the heads, as each spec's do, and lengths on the same side of every condition.
    spec = case.spec.replace(d_model=2 * case.spec.d_model, n_layers=5, vocab_size=300)
    other = case.model_copy(update={"spec": spec, "seq_len": 91, "batch": 3})
    sizes = {"N": 91, "B": 3, **{key: size for key, size in dict(spec).items() if type(size) is int}}
    for quantity in WRITTEN:
        assert [put(form, sizes) for form in forms.of(quantity)] == [getattr(op, quantity) for op in count(other).ops]


def test_formulas_in_symbols_by_hand(capsys):
    found = shown(capsys, "transformer-tiny/prefill/N100/B2/float32/flash")
    ops = {(op["path"], op["op"]): op for op in found["ops"]}
    # Two products of 2·d_head and 5 operations a visible pair, N(N + 1)/2 of them a head; d_head is d_model/n_heads.
    attention = ops["backbone.layers.*.attn.core", "attention"]
    assert attention["formulas"]["flops"] == "B*N*(N + 1)*(4*d_model + 5*n_heads)/2"
    assert attention["flops"] == 2 * 4 * 5050 * (4 * 16 + 5)
    assert ops["backbone.layers.*.mlp.up_proj", "linear"]["formulas"]["flops"] == "2*B*N*d_ff*d_model"
    assert "Eq(Mod(d_model, n_heads), 0)" in found["conditions"]


def test_the_table_has_each_formula_beside_its_number(capsys):
    assert main(["show", "mamba-tiny/prefill/N4096/B1/float32/chunked"]) == 0
    out = capsys.readouterr().out
    # 2·4096 rows, 4 taps, 128 channels, in each of two layers.
    (line,) = [line for line in out.splitlines() if "depthwise_conv" in line]
    assert line.split()[:5] == [
        "backbone.layers.*.mixer.conv1d",
        "depthwise_conv",
        "conv",
        "forward",
        "2·B·N·d_conv·d_model·expand",
    ]
    assert line.split()[5:8] == ["4,194,304", "2", "8,388,608"]
    assert "N is seq_len, B is batch; the formulas hold for N ≠ 1." in out


def test_without_formulas_the_operations_are_those_of_count(capsys):
    found = shown(capsys, "mamba-tiny/prefill/N8/B1/float32/chunked", "--no-formulas")
    assert found["ops"] == count(parsed(found["id"])).rows()


# A token's share


def test_what_a_token_and_a_sequence_cost(capsys):
    found = shown(capsys, "mamba-tiny/train/N8/B3/float32/chunked")
    phases = found["counted"]["flops_by_phase"]
    token, sequence = found["flops_per_token"], found["flops_per_sequence"]
    assert token["backward"] == phases["backward"] / 24
    assert sequence["forward"] == phases["forward"] / 3
    assert token["forward and backward"] == (phases["forward"] + phases["backward"]) / 24
    # Decoding writes one token of each sequence, whatever is behind it.
    found = shown(capsys, "transformer-tiny/decode/N8/B3/float32/flash")
    assert found["flops_per_token"] == found["flops_per_sequence"] == {"forward": found["counted"]["flops"] / 3}


def test_accumulated_passes_are_sequences_of_their_own(capsys):
    # The scan's A and the shared head's sum are once a pass: the same share in each.
    one, four = (shown(capsys, f"mamba-tiny/train/N8/B3/float32/chunked{more}") for more in ("", "/accumulate4"))
    assert four["flops_per_token"] == one["flops_per_token"]


# Witnesses


@pytest.mark.parametrize("name", TINY)
def test_witnesses_stand_beside_the_count(capsys, name):
    found = shown(capsys, f"{name}/train/N8/B2/float32/eager", "--witnesses")
    assert [one["witness"] for one in found["witnesses"]] == list(WITNESSES)
    for one in found["witnesses"]:
        assert (one["device"], one["verdict"]) == ("cpu", "agrees")
        assert sum(row["traced"] for row in one["rows"]) == one["traced_flops"] > 0


def test_a_witness_is_a_table_with_the_rules(capsys):
    assert main(["show", "mamba-tiny/prefill/N8/B1/float32/eager", "--witness", "torch", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "mamba-tiny/prefill/N8/B1/float32/eager under torch on cpu" in out
    assert "of the scan, only products that are written as matrix products are counted" in out
    assert "under fvcore" not in out


def test_a_witness_that_cannot_see_the_case_says_why(capsys):
    assert main(["show", "transformer-130m/prefill/N8/B1/float32/flash", "--witness", "dispatch"]) == 0
    assert "dispatch on meta: without numbers torch takes fused attention apart" in capsys.readouterr().out


def test_no_torch_unless_a_witness_is_asked_for():
    code = (
        "import sys; from benchbench.__main__ import main;"
        "main(['show', 'mamba-2.8b/train/N1048576/B1/float32/chunked']);"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
