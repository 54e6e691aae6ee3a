"""Closed forms: derived by hand, and equal to the count at every size tried."""

import json
import subprocess
import sys
from functools import cache

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench.__main__ import main
from benchbench.case import TASKS, Case
from benchbench.counters import count
from benchbench.counters.notation import latex, parsed, readable
from benchbench.counters.sized import Condition, Sized
from benchbench.counters.stepwise import N, Stepwise
from benchbench.counters.symbolic import LIMIT, InLength, closed_form, in_length, sizes_of
from benchbench.errors import BenchError
from benchbench.specs import preset

FAMILIES = ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny", "gpt2", "resnet-bk-baseline")


def case_of(model: str, task: str, **sizes) -> Case:
    return Case.of(preset(model), task=task, **{"seq_len": 2, **sizes})


def flat(case: Case) -> dict[str, int]:
    """The count's whole numbers by dotted name, zeros left out."""
    found: dict[str, int] = {}
    for name, value in case_counted(case).items():
        found |= {f"{name}.{part}": size for part, size in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in found.items() if isinstance(value, int) and value}


def case_counted(case: Case) -> dict:
    return count(case).counted.model_dump()


SUPPORTED = [
    (model, task, path)
    for model in FAMILIES
    for task in TASKS
    for path in preset(model).paths
    if not case_of(model, task).unsupported()
]


@cache
def walked(model: str, task: str, path: str, batch: int) -> InLength:
    return in_length(case_of(model, task, path=path, batch=batch))


@pytest.mark.parametrize(("model", "task", "path"), SUPPORTED)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_at_every_length_the_form_is_the_count(model, task, path, data):
    batch = data.draw(st.sampled_from([1, 3]))
    line = walked(model, task, path, batch)
    short, long = min(line.high, 300), min(line.high, 2 ** data.draw(st.integers(9, 40)))
    n = data.draw(st.one_of(st.integers(line.low, short), st.integers(line.low, long)))
    want = flat(case_of(model, task, path=path, batch=batch, seq_len=n))
    assert {name: value for name in line.names if (value := line.at(name, n))} == want


ON_A_GPU = [
    ("mamba-tiny", "prefill", "triton"),
    ("mamba-tiny", "train", "fused"),
    ("resnet-bk-tiny", "prefill", "triton"),
]


@pytest.mark.parametrize(("model", "task", "path"), ON_A_GPU)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_on_a_gpus_path_all_but_the_allocators_choices_has_a_form(model, task, path, data):
    line = walked(model, task, path, 1)
    n = data.draw(st.integers(line.low, 2 ** data.draw(st.integers(2, 30))))
    want = flat(case_of(model, task, path=path, seq_len=n))
    assert {name: value for name in line.names if (value := line.at(name, n))} | {
        name: want[name] for name in ("peak_bytes", "peak_reserved_bytes")
    } == want


@pytest.mark.parametrize(("model", "task"), dict.fromkeys((model, task) for model, task, _ in SUPPORTED))
def test_at_both_ends_of_every_piece_the_form_is_the_count(model, task):
    line = walked(model, task, preset(model).paths[0], 1)
    assert [piece.low for piece in line.pieces[1:]] == [piece.high + 1 for piece in line.pieces[:-1]]
    for piece in line.pieces:
        for n in (piece.low, piece.high):
            want = flat(case_of(model, task, seq_len=n))
            assert {name: int(Stepwise(form).at(n)) for name, form in piece.forms.items()} == want


WIDTHS = {
    "transformer-tiny": {"d_model": 16, "d_ff": 1, "n_layers": 1, "vocab_size": 2},
    "mamba-tiny": {"d_model": 1, "n_layers": 1, "d_state": 1, "d_conv": 1, "expand": 1, "vocab_size": 2},
    "resnet-bk-tiny": {"d_model": 1, "n_layers": 1, "d_ff": 1, "vocab_size": 2},
}
"""Sizes that vary, and what they are multiples of."""


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", WIDTHS)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_where_the_conditions_hold_the_form_in_other_sizes_is_the_count(model, task, data):
    """The form is found at one set of sizes, and tried there and at others that meet its conditions."""
    name = data.draw(st.sampled_from(list(WIDTHS[model])))
    step, size = WIDTHS[model][name], data.draw(st.integers(2, 40))
    n, batch = data.draw(st.integers(4, 5000), label="N"), data.draw(st.integers(1, 9), label="B")

    def case_with(values: dict[str, int]) -> Case:
        spec = preset(model).replace(**{name: values[name]})
        return Case.of(spec, task=task, seq_len=values["N"], batch=values["B"])

    own = {"N": n, "B": batch, name: step * size}
    form = closed_form(case_with(own), own)
    other = {"N": n + data.draw(st.integers(-2, 50)), "B": batch + 1, name: step * (size + 1)}
    assert form.holds(own)
    for values in (own, *([other] if form.holds(other) else [])):
        assert {key: int(value) for key, value in form.at(values).items() if value} == flat(case_with(values))


def test_attention_by_hand():
    """N(N+1)/2 visible pairs; a pair takes 4·d_head + 5 forward, 8·d_head + 5 backward; 12 layers, 12 heads of 64."""
    forward = 12 * 12 * (4 * 64 + 5) // 2
    assert in_length(case_of("transformer-130m", "prefill")).of("flops_by_kind.attention") == (
        (1, LIMIT, forward * N**2 + forward * N),
    )
    both = 12 * 12 * (4 * 64 + 5 + 8 * 64 + 5) // 2
    assert in_length(case_of("transformer-130m", "train")).of("flops_by_kind.attention") == (
        (2, LIMIT, both * N**2 + both * N),
    )


def test_states_by_hand():
    """A key and a value a layer and token, 4 bytes each; Mamba's do not grow: (d_conv + d_state)·d_inner·4 a layer."""
    decoding = closed_form(case_of("transformer-130m", "decode"), ["N", "B", "n_layers"])
    B, layers = (sympy.Symbol(name, integer=True, positive=True) for name in ("B", "n_layers"))
    assert sympy.expand(decoding.forms["state_bytes"] - 2 * 4 * 768 * B * layers * (N + 1)) == 0
    mamba = in_length(case_of("mamba-130m", "decode"))
    assert mamba.of("state_bytes") == ((1, LIMIT, sympy.Integer(24 * (4 + 16) * 2 * 768 * 4)),)


def test_matmul_of_a_layer_by_hand():
    """Of Mamba, a token and layer: 2·(d·2i + i·(r + 2s) + r·i + i·d), i = 2d; the head once: 2·d·V."""
    d, B = (sympy.Symbol(name, integer=True, positive=True) for name in ("d_model", "B"))
    form = closed_form(case_of("mamba-130m", "prefill", seq_len=64), ["N", "B", "d_model"])
    rank = sympy.ceiling(d / 16)
    layer = 2 * (4 * d**2 + 2 * d * (rank + 32) + 2 * d * rank + 2 * d**2)
    assert sympy.expand(form.forms["flops_by_kind.matmul"] - (24 * B * N * layer + 2 * B * d * 50280)) == 0


def test_a_loss_in_pieces_begins_where_its_logits_fill_a_chunk():
    """2^27 logits at a time: 2^27 // 50280 = 2669 positions, then 2048 of them, the power of two below.

    Shorter, the optimizer's step holds more than the loss; longer, the layers' backward does.
    """
    forms = in_length(case_of("mamba-130m", "train")).of("memory.logits")
    bytes_a_row = 3 * 4 * 50280
    assert [form for *_, form in forms] == [0, bytes_a_row * N, bytes_a_row * 2048, 0]
    assert [high for _, high, _ in forms][1::2] == [2669, LIMIT]


def test_learned_positions_end_the_walk():
    line = in_length(case_of("gpt2", "decode"))
    assert (line.low, line.high) == (1, 1023)
    assert line.end == "gpt2 has learned positions for 1024 tokens, not 1025"


def test_a_model_that_cannot_do_it_says_so():
    with pytest.raises(BenchError, match="cannot generate token by token"):
        in_length(case_of("resnet-bk-baseline", "decode"))


def test_unknown_sizes_have_suggestions():
    with pytest.raises(BenchError, match=r"no size 'd_modle'. Did you mean 'd_model'?"):
        closed_form(case_of("mamba-tiny", "prefill"), ["N", "d_modle"])


@pytest.mark.parametrize("model", FAMILIES)
def test_every_size_may_be_a_symbol(model):
    case = case_of(model, "prefill", seq_len=64)
    known = sizes_of(case)
    values = {name: value for name, (_, value) in known.items()}
    form = closed_form(case, known)
    assert form.holds(values)
    assert {name: int(value) for name, value in form.at(values).items()} == flat(case)


def test_a_sized_number_computes_as_an_int_and_remembers():
    trail: dict[Condition, None] = {}
    n = Sized(33, N, trail)
    chunks = -(-n // 16)
    assert isinstance(chunks, Sized)
    assert (int.__int__(chunks), chunks.expression) == (3, sympy.ceiling(N / 16))
    assert not trail
    larger = max(2 * n, 50)
    assert larger.expression == 2 * N
    # max asks whether 50 > 66; that it is not leaves 2·N ≥ 50.
    assert list(trail) == [Condition(2 * N - 50, frozenset({0, 1}))]
    with pytest.raises(TypeError, match="no closed form: lshift of N"):
        _ = n << 1


def test_a_change_of_sign_is_found_to_the_token():
    """16·⌈N/16⌉ - 20 is below 0 up to N = 16, then 12; N² - 10^12 is 0 at 10^6."""
    steps = Stepwise(16 * sympy.ceiling(N / 16) - 20)
    assert steps.first_outside(frozenset({-1}), 1, LIMIT) == 17
    assert steps.first_outside(frozenset({1}), 17, LIMIT) is None
    square = Stepwise(N**2 - 10**12)
    assert square.first_outside(frozenset({-1}), 1, LIMIT) == 10**6
    assert square.first_outside(frozenset({0}), 10**6, LIMIT) == 10**6 + 1


@given(
    coefficients=st.lists(st.integers(-50, 50), min_size=4, max_size=4),
    low=st.integers(1, 60),
    width=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_bounds_hold_all_values_between(coefficients, low, width):
    a, b, c, d = coefficients
    form = Stepwise(a * N**2 + b * N + c * sympy.ceiling(3 * N / 8) + d * sympy.ceiling(N / sympy.ceiling(N / 8)))
    least, most = form.bounds(low, low + width)
    values = [form.at(n) for n in range(low, low + width + 1)]
    assert least <= min(values)
    assert max(values) <= most
    outside = next((n for n in range(low, low + width + 1) if form.sign(n) != 1), None)
    assert form.first_outside(frozenset({1}), low, low + width) == outside


def test_notation():
    d = sympy.Symbol("d_model", integer=True, positive=True)
    form = 18792 * N**2 + 3 * d * sympy.ceiling(N / 16)
    assert readable(form) == "18,792·N² + 3·d_model·⌈N/16⌉"
    assert parsed(str(form), ["N", "d_model"]) == form
    assert r"d_\text{model}" in latex(form)


def test_the_command_line_prints_forms_that_parse(capsys):
    assert main(["count", "--model", "mamba-tiny", "--task", "train", "--symbolic", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    want = flat(case_of("mamba-tiny", "train", seq_len=777))
    for name, pieces in shown["closed_forms"].items():
        text = next(piece["expression"] for piece in pieces if piece["from"] <= 777 <= piece["to"])
        assert parsed(text, shown["symbols"]).subs(N, 777) == want.get(name, 0)


def test_the_command_line_says_what_it_holds_for(capsys):
    words = ["count", "--model", "mamba-tiny", "--symbols", "seq_len,batch,d_model"]
    assert main([*words, "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "N is seq_len, B is batch." in out
    assert "Exact for all positive whole numbers that meet" in out
    assert main([*words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["symbols"] == {"N": "seq_len", "B": "batch", "d_model": "d_model"}


def test_ordinary_counts_leave_sympy_alone():
    code = (
        "import sys; from benchbench.__main__ import main; main(['count', '--model', 'mamba-tiny']);"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
