"""Prices of torch's operators by hand, and the count against every operator that runs."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from benchbench.case import Case
from benchbench.counters import count, trace
from benchbench.counters.aten import FREE, PRICES, Call, Sized, price
from benchbench.counters.dispatch import Prices, common
from benchbench.counters.places import ModulePaths
from benchbench.counters.rules import RMS_STEPS
from benchbench.counters.trace import check_case
from benchbench.errors import BenchError, UnsupportedError
from benchbench.models import build
from benchbench.specs import ModelSpec, preset, presets
from benchbench.specs.resnet_bk import ResNetBKSpec
from benchbench.specs.transformer import TransformerSpec

TINY = [name for name in presets() if name.endswith("-tiny")]
FULL = ["gpt2", "transformer-130m", "mamba-130m", "resnet-bk-130m", "resnet-bk-baseline"]


def real(*shape: int) -> Sized:
    return Sized(shape)


def test_no_operator_is_both_priced_and_free() -> None:
    assert not PRICES.keys() & FREE


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "out", "flops"),
    [
        # 3·5 dot products of 4 multiply-adds; with a bias, 15 sums more.
        ("mm", (real(3, 4), real(4, 5)), {}, real(3, 5), 2 * 3 * 4 * 5),
        ("addmm", (real(5), real(3, 4), real(4, 5)), {}, real(3, 5), 2 * 3 * 4 * 5 + 15),
        ("bmm", (real(2, 3, 4), real(2, 4, 5)), {}, real(2, 3, 5), 2 * 2 * 3 * 4 * 5),
        ("mul_", (real(2, 3), real(3)), {}, real(2, 3), 6),
        ("add", (real(6), real(6)), {"alpha": -1}, real(6), 6),
        ("add", (real(6), real(6)), {"alpha": -0.1}, real(6), 12),
        # (a + ib)(c + id): four products, two sums. By division: six for the product with the conjugate, c² + d² three.
        ("mul", (Sized((7,), "complex"), Sized((7,), "complex")), {}, Sized((7,), "complex"), 7 * 6),
        ("div", (Sized((7,), "complex"), Sized((7,), "complex")), {}, Sized((7,), "complex"), 7 * 11),
        ("abs", (Sized((7,), "complex"),), {}, real(7), 7 * 4),
        ("abs", (real(7),), {}, real(7), 0),
        ("pow", (real(4), 3), {}, real(4), 8),
        ("pow", (real(4), 1.0), {}, real(4), 0),
        ("pow", (10_000.0, real(4)), {}, real(4), 4),
        ("sum", (real(3, 4), [0]), {}, real(4), 12),
        ("mean", (real(3, 4), [1]), {}, real(3), 12 + 3),
        ("_softmax", (real(3, 4), -1, False), {}, real(3, 4), 4 * 12),
        ("_log_softmax", (real(3, 4), 1, False), {}, real(3, 4), 4 * 12 + 3),
        ("addcdiv_", (real(5), real(5), real(5)), {"value": -0.1}, real(5), 15),
        ("_foreach_addcmul_", ([real(5), real(2)], [real(5), real(2)], [real(5), real(2)]), {}, (), 14),
        # One row of 4: 7 an element with γ and β, 4 a row. Backward 11 and the rebuilt input 2, 2 a row.
        ("native_layer_norm", (real(1, 4), [4], real(4), real(4), 1e-5), {}, (real(1, 4),), 28 + 4),
        (
            "native_layer_norm_backward",
            (real(1, 4), real(1, 4), [4], real(1, 1), real(1, 1), real(4), real(4), [True, True, True]),
            {},
            (real(1, 4),),
            13 * 4 + 2,
        ),
        # Depthwise, 4 taps, 6 channels, 5 outputs each: 2·4 and the bias. Backward: both products, and the bias's sum.
        (
            "convolution",
            (real(1, 6, 1, 8), real(6, 1, 1, 4), real(6), [1, 1], [0, 0], [1, 1], False, [0, 0], 6),
            {},
            real(1, 6, 1, 5),
            30 * 9,
        ),
        (
            "convolution_backward",
            (
                *(real(1, 6, 1, 5), real(1, 6, 1, 8), real(6, 1, 1, 4), [6]),
                *([1, 1], [0, 0], [1, 1], False, [0, 0], 6, [True, True, True]),
            ),
            {},
            (real(1, 6, 1, 8),),
            30 * 17,
        ),
        # 2 sequences, 3 heads, 5 queries of 4: 15 visible pairs, 8 for each product pair, scale and softmax 5.
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            (real(2, 3, 5, 4), real(2, 1, 5, 4), real(2, 1, 5, 4), 0.0, True),
            {},
            (real(2, 3, 5, 4),),
            6 * 15 * (4 * 4 + 5),
        ),
        ("topk", (real(3, 4), 2), {}, (real(3, 2), Sized((3, 2), "integer")), 0),
        ("add", (Sized((3,), "integer"), 1), {}, Sized((3,), "integer"), 0),
    ],
)
def test_prices_by_hand(name: str, args: tuple, kwargs: dict, out: object, flops: int) -> None:
    assert price(name, Call(args, kwargs, out)) == flops


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("seq_len", [2, 17, 41])
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", TINY)
def test_tiny_models_to_the_last_flop(name: str, task: str, seq_len: int, batch: int) -> None:
    spec = preset(name)
    for path in spec.paths:
        check = check_case(Case.of(spec, task=task, seq_len=seq_len, batch=batch, path=path), "dispatch", "cpu")
        assert check.unexplained == ()
        by_kind: dict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
        for row in check.rows:
            by_kind[row.phase, row.kinds] += row.traced - row.expected
        assert not any(by_kind.values())


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", TINY)
def test_what_eager_executes_is_what_runs(name: str, task: str) -> None:
    optimizer = "sgd" if task == "train" else None
    case = Case.of(preset(name), task=task, seq_len=9, batch=2, path="eager", optimizer=optimizer)
    check = check_case(case, "dispatch", "cpu")
    # Autograd takes an RMS norm apart: 1 an element of 64 and 3 a row more, for 18 rows; Mamba-2's gated ones have 128.
    norms = {"transformer-tiny": 5, "mamba-tiny": 3, "mamba2-tiny": 3, "resnet-bk-tiny": 0}[name]
    gated = 2 if name == "mamba2-tiny" else 0
    apart = 18 * (norms * (64 + 3) + gated * (128 + 3)) if task == "train" else 0
    assert check.rules == ((RMS_STEPS,) if apart else ())
    assert check.traced_flops == count(case).counted.executed_flops + apart


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", FULL)
def test_full_models_as_shapes(name: str, task: str) -> None:
    # Mamba's eager scan loops over tokens.
    case = Case.of(preset(name), task=task, seq_len=7 if name == "mamba-130m" else 100, batch=2, path="eager")
    if case.unsupported():
        pytest.skip(case.unsupported() or "")
    assert check_case(case, "dispatch", "meta").unexplained == ()


def test_a_chunked_loss_as_shapes() -> None:
    # 2^27 // 50280 = 2669 rows fit: two chunks.
    case = Case.of(preset("transformer-130m"), task="train", seq_len=3000, path="eager")
    assert check_case(case, "dispatch", "meta").unexplained == ()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_optimizers(optimizer: str) -> None:
    spec = preset("mamba-tiny")
    check = check_case(Case.of(spec, task="train", seq_len=4, optimizer=optimizer), "dispatch", "cpu")
    (row,) = [row for row in check.rows if row.phase == "optimizer"]
    # 2 layers of 10 tensors, the embedding, the last norm. Adam counts the steps of each.
    steps = 22 if optimizer.startswith("adam") else 0
    assert row.traced == {"sgd": 2, "momentum": 4, "adam": 13, "adamw": 14}[optimizer] * check.params + steps
    assert not row.unexplained


VARIANTS = (
    TransformerSpec(
        name="learned",
        n_layers=2,
        d_model=24,
        n_heads=3,
        n_kv_heads=1,
        d_ff=20,
        vocab_size=50,
        positions="learned",
        max_seq_len=99,
        norm="layer",
        activation="gelu",
        tied_head=False,
        dropout=0.2,
    ),
    ResNetBKSpec(
        name="two-sided", form="bk-exact", n_layers=2, d_model=16, d_ff=12, n_experts=8, top_k=3, vocab_size=40
    ),
    ResNetBKSpec(
        name="published", form="bk-compat", n_layers=2, d_model=16, d_ff=12, n_experts=4, vocab_size=40, dropout=0.1
    ),
)


@pytest.mark.parametrize("task", ["prefill", "train"])
@pytest.mark.parametrize("spec", VARIANTS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_variants(spec: TransformerSpec | ResNetBKSpec, task: str, device: str) -> None:
    for path in ("eager",) if spec.dropout else spec.paths:
        case = Case.of(spec, task=task, seq_len=43, batch=2, path=path)
        if not case.unsupported():
            assert check_case(case, "dispatch", device).unexplained == ()


WAYS = ({"checkpoint": True}, {"accumulate": 3}, {"autocast": "bfloat16"}, {"checkpoint": True, "accumulate": 2})
RANDOM = (
    TransformerSpec(
        name="random",
        n_layers=2,
        d_model=16,
        n_heads=2,
        n_kv_heads=2,
        d_ff=24,
        vocab_size=40,
        positions="learned",
        max_seq_len=64,
        norm="layer",
        activation="gelu",
        bias=True,
        dropout=0.1,
    ),
    ResNetBKSpec(name="random-mixture", n_layers=2, d_model=16, d_ff=24, top_k=2, vocab_size=40, dropout=0.1),
)


@pytest.mark.parametrize(
    ("witness", "way"),
    [("fvcore", {"accumulate": 2}), *((witness, way) for witness in ("dispatch", "torch") for way in WAYS)],
    ids=str,
)
@pytest.mark.parametrize("spec", [*map(preset, TINY), *RANDOM], ids=lambda spec: spec.name)
def test_ways_to_train(spec: ModelSpec, witness: str, way: dict[str, object]) -> None:
    for path in ("eager",) if getattr(spec, "dropout", 0) else spec.paths:
        case = Case.of(spec, task="train", seq_len=19, batch=2, path=path, **way)
        assert check_case(case, witness, "cpu").unexplained == ()


@pytest.mark.parametrize("witness", ["dispatch", "torch", "fvcore"])
def test_an_expert_given_one_row_computes_it_twice(witness: str) -> None:
    # Three tokens and two experts each of eight: some expert has one row. Batch 1 keeps it away from other sequences.
    spec = ResNetBKSpec(name="r", n_layers=2, d_model=16, d_ff=12, n_experts=8, top_k=3, vocab_size=40)
    for seq_len in (2, 3, 5):
        check = check_case(Case.of(spec, task="prefill", seq_len=seq_len), witness, "cpu")
        assert check.unexplained == ()
        if any("twice" in rule for rule in check.rules):
            return
    pytest.fail("no expert was given one row")


def test_fused_attention_cannot_be_seen_as_shapes() -> None:
    with pytest.raises(UnsupportedError, match="takes fused attention apart"):
        check_case(Case.of(preset("transformer-tiny"), task="prefill", seq_len=8), "dispatch", "meta")


def test_a_wrong_count_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = preset("transformer-tiny")
    wrong = build(spec.replace(activation="gelu", d_ff=160), path="eager")
    monkeypatch.setattr(trace, "_module", lambda *_: wrong)
    check = check_case(Case.of(spec, task="prefill", seq_len=16, path="eager"), "dispatch", "cpu")
    found = {row.path.removeprefix("backbone.layers.*."): row.unexplained for row in check.unexplained}
    n = 2 * 16 * 160
    # The tanh GELU is 9 an element and SiLU 4; the gate's product and projection are gone.
    assert found == {"mlp.act": 5 * n, "mlp": -n, "mlp.gate_proj": -2 * 64 * n}


def test_a_wrong_activation_is_found_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = preset("resnet-bk-tiny")
    wrong = build(spec, path="eager")
    for layer in wrong.backbone.layers:
        layer.moe.experts.act = nn.SiLU()
    monkeypatch.setattr(trace, "_module", lambda *_: wrong)
    check = check_case(Case.of(spec, task="train", seq_len=16, path="eager"), "dispatch", "cpu")
    # Counted as ReLU: 2 layers, 16 tokens, 2 experts of 96 each. No other witness can see it.
    n = 2 * 16 * 2 * 96
    assert [(row.phase, row.unexplained) for row in check.unexplained] == [("forward", 4 * n), ("backward", 9 * n)]
    assert {row.path for row in check.unexplained} == {"backbone.layers.*.moe.experts.act"}
    assert not check.passed


def test_an_unknown_operator_is_named() -> None:
    model = nn.Linear(2, 2)
    with ModulePaths(model) as paths, pytest.raises(BenchError, match="aten::erfinv"), Prices(paths):
        torch.erfinv(torch.zeros(3))


def test_gradients_meet_in_the_module_that_reads_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * self.b(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice = nn.Linear(4, 4, bias=False), Twice()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return y + self.twice(y)

    model = Model()
    with ModulePaths(model) as paths, Prices(paths) as prices:
        loss = model(torch.zeros(3, 4)).sum()
        prices.sums.watch(loss.grad_fn)
        loss.backward()
    # y has three readers: a and b meet in `twice`, with its product's two gradients; the residual meets them above.
    assert prices.flops["twice", "backward"] == 2 * 12 + 12
    assert prices.flops["", "backward"] == 12


def test_paths_meet() -> None:
    assert common("a.b.c", "a.b.d") == "a.b"
    assert common("a.bc", "a.bd") == "a"
    assert common("a", "") == ""
