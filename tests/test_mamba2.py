"""Mamba-2 against its published names, counts and initialisation, against transformers, its count, and itself."""

import math
from importlib.util import find_spec

import pytest
import torch

from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.aten import Call, Sized, price
from benchbench.counters.ssd import PRODUCTS, UNPASSED
from benchbench.counters.trace import check_case
from benchbench.errors import BenchError
from benchbench.models import build
from benchbench.models.base import LanguageModel
from benchbench.specs import preset
from benchbench.specs.mamba2 import Mamba2Spec

# 16 heads of 4 in two groups; chunks of 8 tokens.
SMALL = Mamba2Spec(name="small", d_model=32, n_layers=2, vocab_size=64, d_state=6, headdim=4, n_groups=2, chunk=8)
PATHS = Mamba2Spec.paths


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


def small(path: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return build(SMALL, path=path, dtype=dtype, seed=1)


# Counts of the published checkpoints (state-spaces/mamba2-*), the tied embedding once, vocabulary 50,288.
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mamba2-130m", 128_989_632),
        ("mamba2-370m", 368_346_624),
        ("mamba2-780m", 780_161_280),
        ("mamba2-1.3b", 1_343_757_312),
        ("mamba2-2.7b", 2_702_599_680),
    ],
)
def test_published_parameter_counts(name, params):
    assert sum(p.numel() for p in build(preset(name), device="meta").parameters()) == params
    assert count(Case.of(preset(name), task="prefill", seq_len=1)).params == params


def test_state_dict_is_the_checkpoints():
    # mamba2-130m: d 768, inner 1536, 24 heads, one group of 128 states, so the convolution has 1536 + 2·128 channels
    # and in_proj 1536 more for z and 24 for dt.
    shapes = {name: tuple(w.shape) for name, w in build(preset("mamba2-130m"), device="meta").state_dict().items()}
    mixer = {
        "dt_bias": (24,),
        "A_log": (24,),
        "D": (24,),
        "in_proj.weight": (3352, 768),
        "conv1d.weight": (1792, 1, 4),
        "conv1d.bias": (1792,),
        "norm.weight": (1536,),
        "out_proj.weight": (768, 1536),
    }
    expected = {"backbone.embedding.weight": (50288, 768), "backbone.norm_f.weight": (768,)}
    expected["lm_head.weight"] = (50288, 768)
    for i in range(24):
        expected[f"backbone.layers.{i}.norm.weight"] = (768,)
        expected |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
    assert shapes == expected


def test_initialisation_is_the_published_one():
    spec = Mamba2Spec(name="wide", d_model=256, n_layers=4, vocab_size=1000, d_state=16, headdim=1)
    model = build(spec)
    assert model.backbone.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for block in model.backbone.layers:
        mixer = block.mixer
        dt, A = torch.nn.functional.softplus(mixer.dt_bias), mixer.A_log.exp()
        assert dt.min() >= 1e-3 * (1 - 1e-4)
        assert dt.max() <= 1e-1 * (1 + 1e-4)
        # log-uniform: the mean of log dt is the middle of [log 1e-3, log 1e-1] = log 1e-2, with a standard error of
        # (log 100 / √12) / √512 = 0.059 over 512 heads; A is uniform in [1, 16]: 8.5 ± (15 / √12) / √512 = 0.19.
        assert dt.log().mean().item() == pytest.approx(math.log(1e-2), abs=4 * 0.059)
        assert A.mean().item() == pytest.approx(8.5, abs=4 * 0.19)
        assert A.min() >= 1 - 1e-5
        assert A.max() <= 16 + 1e-4
        # uniform ± (1/√512)/√4 layers = ± 0.0221
        assert 0.0220 < mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(512) / 2
        assert torch.equal(mixer.D, torch.ones(512))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"headdim": 48}, "the inner width 128 is not divisible by headdim 48"), ({"n_groups": 3}, "8 heads are not")],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(BenchError, match=message):
        preset("mamba2-tiny", **changes)


@pytest.mark.skipif(
    find_spec("mamba_ssm") is not None, reason="transformers calls mamba_ssm's CUDA kernels wherever they are installed"
)
@pytest.mark.parametrize("groups", [1, 2])
def test_logits_and_gradients_equal_transformers(groups):
    transformers = pytest.importorskip("transformers")
    spec = SMALL.replace(n_groups=groups)
    config = transformers.Mamba2Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        num_hidden_layers=spec.n_layers,
        state_size=spec.d_state,
        num_heads=spec.n_heads,
        head_dim=spec.headdim,
        n_groups=groups,
        chunk_size=spec.chunk,
        tie_word_embeddings=True,
        use_cache=False,
    )
    theirs = transformers.Mamba2ForCausalLM(config)
    for path in PATHS:
        ours = build(spec, path=path, seed=1)
        theirs.load_state_dict({k.replace("embedding.", "embeddings."): w for k, w in ours.state_dict().items()})
        x = tokens(2, 37)
        expected = theirs(x).logits
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(expected.flatten(0, 1), x.flatten()).backward()
        ours.loss(x, x).backward()
        for name, weight in ours.named_parameters():
            like = theirs.get_parameter(name.replace("embedding.", "embeddings."))
            torch.testing.assert_close(weight.grad, like.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 70])
def test_paths_agree_in_logits_and_gradients(length):
    x = tokens(2, length)
    eager, chunked = (small(path, torch.float64) for path in ("eager", "chunked"))
    torch.testing.assert_close(chunked(x), eager(x), rtol=1e-11, atol=1e-12)
    for model in (eager, chunked):
        model.loss(x, x).backward()
    for (name, a), b in zip(eager.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
def test_decoding_equals_the_whole_forward(path):
    model, x = small(path, torch.float64), tokens(2, 40)
    whole, state = model(x), model.new_state(2, 40)
    torch.testing.assert_close(model.prefill(x[:, :19], state), whole[:, 18], rtol=1e-10, atol=1e-12)
    for i in range(19, 40):
        torch.testing.assert_close(model.decode(x[:, i], state), whole[:, i], rtol=1e-10, atol=1e-12)
    assert state.length == 40


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cuts", [(1, 39), (2, 1, 37), (17, 3, 20)])
def test_a_split_prefill_leaves_the_state_of_single_tokens(path, cuts):
    model, x = small(path, torch.float64), tokens(2, 40)
    pieces, single = model.new_state(2, 40), model.new_state(2, 40)
    logits = [model.prefill(piece, pieces) for piece in x.split(cuts, dim=1)][-1]
    for token in x.unbind(1):
        last = model.decode(token, single)
    torch.testing.assert_close(logits, last, rtol=1e-10, atol=1e-12)
    for a, b in zip(pieces.tensors(), single.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
def test_a_later_token_changes_nothing_before_it(path):
    model, x = small(path), tokens(1, 50)
    before = model.backbone(x)
    x[0, 33] = (x[0, 33] + 1) % SMALL.vocab_size
    after = model.backbone(x)
    assert torch.equal(before[:, :33], after[:, :33])
    assert not torch.equal(before[:, 33], after[:, 33])


def test_state_has_its_size_at_any_length():
    # A layer, a sequence: 64 + 2·2·6 channels of 4 columns, and 16 heads of 4·6 states, in float32.
    state = small("chunked", torch.bfloat16).new_state(batch=3, capacity=10**6)
    assert [tuple(tensor.shape) for tensor in state.tensors()] == 2 * [(3, 88, 4), (3, 16, 4, 6)]
    bytes_held = 2 * 3 * (88 * 4 + 16 * 4 * 6) * 4
    assert state.nbytes == bytes_held
    assert count(Case.of(SMALL, task="decode", seq_len=10**6, batch=3)).counted.state_bytes == bytes_held


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_keeps_the_residual_stream_in_float32(path):
    model, x = small(path, torch.bfloat16), tokens(2, 40)
    seen = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    logits = model(x)
    assert (logits.dtype, seen) == (torch.bfloat16, [torch.float32] * 2)
    model.loss(x, x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    exact = small(path).double()
    exact.load_state_dict(model.state_dict())
    expected = exact(x)
    assert (logits - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()


def test_checkpointed_layers_give_the_same_gradients():
    x = tokens(2, 20)
    plain, again = small("chunked"), build(SMALL, path="chunked", seed=1, checkpoint=True)
    for model in (plain, again):
        model.loss(x, x).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


# Counts by hand. SMALL: d 32, inner 64 = 16 heads of 4, two groups of 6 states, 4 taps; the convolution has
# 64 + 2·12 = 88 channels, in_proj 64 + 88 + 16 = 168 rows. 2 sequences of 12 tokens: 24 rows.
ROWS, STATES, CHANNELS, HEADS = 24, 24 * 64 * 6, 24 * 64, 24 * 16


def test_a_forward_by_hand():
    counted = count(Case.of(SMALL, task="prefill", seq_len=12, batch=2)).counted
    assert counted.flops_by_kind["matmul"] == 2 * ROWS * 2 * (32 * 168 + 64 * 32) + 2 * 2 * 32 * 64
    assert counted.flops_by_kind["conv"] == 2 * ROWS * 88 * 4 * 2
    # 5 a state, 3 a channel, 2 a head; A = -exp(A_log) 2 for each of 16.
    assert counted.flops_by_kind["scan"] == 2 * (5 * STATES + 3 * CHANNELS + 2 * HEADS + 2 * 16)
    # Convolution bias 1 and SiLU 4; dt's bias 1 and softplus 3; the gate's SiLU 4 and product 1; the residual 1.
    assert counted.flops_by_kind["elementwise"] == 2 * (5 * ROWS * 88 + 4 * HEADS + 5 * CHANNELS + ROWS * 32)
    # Norms: 4 an element, 3 a row; the gated one has two rows a token.
    layer = 4 * ROWS * 32 + 3 * ROWS + 4 * CHANNELS + 3 * 2 * ROWS
    assert counted.flops_by_kind["norm"] == 2 * layer + 4 * ROWS * 32 + 3 * ROWS
    assert sum(counted.flops_by_kind.values()) == counted.flops
    # 12 tokens take two chunks of 8: 32 with the zeros, and 4 chunks in all. Products: 4 a state, and for each of 8
    # tokens of the chunk 2 for each of 12 numbers of B and C, and 2 a channel. Beside them 6 a channel, 6 + 3·8 a head,
    # and a chunk 2 a state and 1 a head.
    products = 32 * (4 * 64 * 6 + 8 * (2 * 12 + 2 * 64))
    ran = products + 32 * (6 * 64 + 30 * 16) + 4 * (2 * 64 * 6 + 16)
    assert counted.executed_flops - counted.flops == 2 * (ran - (5 * STATES + 3 * CHANNELS + 2 * HEADS))


def test_a_backward_by_hand():
    case = Case.of(SMALL, task="train", seq_len=12, batch=2)
    by_kind = count(case).counted.flops_by_kind
    # 11 a state, 7 a channel, 5 a head; dA·A 1.
    forward = 5 * STATES + 3 * CHANNELS + 2 * HEADS + 2 * 16
    assert by_kind["scan"] == 2 * (forward + 11 * STATES + 7 * CHANNELS + 5 * HEADS + 16)
    (op,) = [op for op in count(case).ops if op.formula.name == "ssd" and op.phase == "backward"]
    # With states 12 each; with squares of 8 tokens 6 for B and C, 4 a channel. Beside them 16 a channel, 2 for B and C,
    # 14 + 8·8 a head; a chunk 6 a state and 4 a head; at the end 5 a head.
    products = 32 * (12 * 64 * 6 + 8 * (6 * 12 + 4 * 64))
    assert op.executed_flops == products + 32 * (16 * 64 + 2 * 12 + 78 * 16) + 4 * (6 * 64 * 6 + 4 * 16) + 5 * HEADS
    # The loop: C·dy 2 a state; of a state of each sequence the first decay·dh and the last sum are not there.
    (op,) = [op for op in count(case.replace(path="eager")).ops if op.formula.name == "ssd" and op.phase == "backward"]
    assert op.executed_flops - op.flops == STATES - 2 * 2 * 64 * 6


def test_the_recurrence_costs_five_a_state_at_the_published_size():
    # mamba2-130m, a token and layer: 5·1536·128 + 3·1536 + 2·24, of which the states are 983,040.
    (op,) = [
        op for op in count(Case.of(preset("mamba2-130m"), task="decode", seq_len=9)).ops if op.formula.name == "ssd"
    ]
    assert op.flops == op.executed_flops == 983_040 + 4_608 + 48


def test_cumulative_sums_cost_an_addition_an_element_and_triangles_nothing():
    square = Sized((2, 3, 3))
    assert price("cumsum", Call((square, 1), {}, square)) == 18
    assert price("tril_", Call((square,), {}, square)) == 0


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("seq_len", [2, 8, 21, 70])
def test_witnesses_agree_to_the_last_flop(seq_len, device, task):
    for path in PATHS:
        case = Case.of(SMALL, task=task, seq_len=seq_len, batch=2, path=path)
        for witness in ("torch", "dispatch"):
            check = check_case(case, witness, device)
            assert check.unexplained == ()
            assert check.params == check.counted_params
            in_chunks = path == "chunked" and task != "decode"
            assert (UNPASSED in check.rules) == (witness == "dispatch" and device == "meta" and in_chunks)
            assert (PRODUCTS in check.rules) == (witness == "torch")


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
def test_what_eager_executes_is_what_runs(task):
    optimizer = "sgd" if task == "train" else None
    case = Case.of(SMALL, task=task, seq_len=9, batch=2, path="eager", optimizer=optimizer)
    check = check_case(case, "dispatch", "cpu")
    # Autograd takes an RMS norm apart: 1 an element and 3 a row more. 18 tokens; two layers have a row of 32 and two of
    # 32 each, and the last norm has a row of 32.
    norms = (2 * 3 + 1) * 18 * (32 + 3) if task == "train" else 0
    assert check.traced_flops == count(case).counted.executed_flops + norms


@pytest.mark.parametrize("changes", [{"checkpoint": True, "accumulate": 2}, {"autocast": "bfloat16"}])
def test_other_ways_to_train_agree_too(changes):
    for path in PATHS:
        check = check_case(Case.of(SMALL, task="train", seq_len=21, batch=2, path=path, **changes), "dispatch", "cpu")
        assert check.unexplained == ()


def test_a_million_tokens_as_shapes():
    check = check_case(Case.of(preset("mamba2-130m", n_layers=2), task="prefill", seq_len=2**20))
    assert check.unexplained == ()
    # 2^14 chunks of 64: 4 for each of 1536·128 states a token, 2·64·(128 + 1536) within its chunk.
    (row,) = [row for row in check.rows if row.path.endswith("ssd")]
    assert row.traced == 2 * 2**20 * (4 * 1536 * 128 + 2 * 64 * (128 + 1536))
