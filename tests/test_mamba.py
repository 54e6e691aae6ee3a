"""Mamba against its published names, counts and initialisation, against transformers, and against itself."""

import math
from importlib.util import find_spec

import pytest
import torch

from benchbench.models import build
from benchbench.models.base import LanguageModel
from benchbench.specs import preset
from benchbench.specs.mamba import MambaSpec

TINY = MambaSpec(name="small", d_model=32, n_layers=2, vocab_size=64, d_state=4)
PATHS = MambaSpec.paths


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


def tiny(path: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return build(TINY, path=path, dtype=dtype, seed=1)


# Counts of the published checkpoints (state-spaces/mamba-*), the tied embedding once, vocabulary 50,280.
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mamba-130m", 129_135_360),
        ("mamba-370m", 371_516_416),
        ("mamba-790m", 793_204_224),
        ("mamba-1.4b", 1_372_178_432),
        ("mamba-2.8b", 2_768_345_600),
    ],
)
def test_published_parameter_counts(name, params):
    assert sum(p.numel() for p in build(preset(name), device="meta").parameters()) == params


def test_state_dict_is_the_checkpoints():
    # mamba-130m: d 768, inner 1536, state 16, conv 4, dt rank 48, so x_proj has 48 + 2·16 rows.
    shapes = {name: tuple(w.shape) for name, w in build(preset("mamba-130m"), device="meta").state_dict().items()}
    mixer = {
        "in_proj.weight": (3072, 768),
        "conv1d.weight": (1536, 1, 4),
        "conv1d.bias": (1536,),
        "x_proj.weight": (80, 1536),
        "dt_proj.weight": (1536, 48),
        "dt_proj.bias": (1536,),
        "A_log": (1536, 16),
        "D": (1536,),
        "out_proj.weight": (768, 1536),
    }
    expected = {"backbone.embedding.weight": (50280, 768), "backbone.norm_f.weight": (768,)}
    expected["lm_head.weight"] = (50280, 768)
    for i in range(24):
        expected[f"backbone.layers.{i}.norm.weight"] = (768,)
        expected |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
    assert shapes == expected


def test_initialisation_is_the_published_one():
    spec = MambaSpec(name="wide", d_model=256, n_layers=4, vocab_size=1000)
    model = build(spec)
    assert model.backbone.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for block in model.backbone.layers:
        mixer = block.mixer
        dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
        assert dt.min() >= 1e-3 * (1 - 1e-4)
        assert dt.max() <= 1e-1 * (1 + 1e-4)
        # log-uniform: the mean of log dt is the middle of [log 1e-3, log 1e-1] = log 1e-2, with a standard error of
        # (log 100 / √12) / √512 = 0.059 over 512 channels.
        assert dt.log().mean().item() == pytest.approx(math.log(1e-2), abs=4 * 0.059)
        # uniform ± dt_rank^-0.5 = ± 1/4, and ± (1/√512)/√4 layers = ± 0.0221
        assert 0.24 < mixer.dt_proj.weight.abs().max() <= 0.25
        assert 0.0220 < mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(512) / 2
        torch.testing.assert_close(mixer.A_log[7].exp(), torch.arange(1.0, 17.0))
        assert torch.equal(mixer.D, torch.ones(512))


@pytest.mark.skipif(
    find_spec("mamba_ssm") is not None, reason="transformers calls mamba_ssm's CUDA kernels wherever they are installed"
)
def test_logits_and_gradients_equal_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(
        vocab_size=TINY.vocab_size,
        hidden_size=TINY.d_model,
        num_hidden_layers=TINY.n_layers,
        state_size=TINY.d_state,
        use_cache=False,
    )
    theirs = transformers.MambaForCausalLM(config)
    for path in PATHS:
        ours = tiny(path)
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


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 100])
def test_paths_agree_in_logits_and_gradients(length):
    x = tokens(2, length)
    eager, chunked = (tiny(path, torch.float64) for path in ("eager", "chunked"))
    torch.testing.assert_close(chunked(x), eager(x), rtol=1e-11, atol=1e-12)
    for model in (eager, chunked):
        model.loss(x, x).backward()
    for (name, a), b in zip(eager.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
def test_decoding_equals_the_whole_forward(path):
    model, x = tiny(path, torch.float64), tokens(2, 40)
    whole, state = model(x), model.new_state(2, 40)
    torch.testing.assert_close(model.prefill(x[:, :19], state), whole[:, 18], rtol=1e-10, atol=1e-12)
    for i in range(19, 40):
        torch.testing.assert_close(model.decode(x[:, i], state), whole[:, i], rtol=1e-10, atol=1e-12)
    assert state.length == 40


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cuts", [(1, 39), (2, 1, 37), (17, 3, 20)])
def test_a_split_prefill_leaves_the_state_of_single_tokens(path, cuts):
    model, x = tiny(path, torch.float64), tokens(2, 40)
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
    model, x = tiny(path), tokens(1, 50)
    before = model.backbone(x)
    x[0, 33] = (x[0, 33] + 1) % TINY.vocab_size
    after = model.backbone(x)
    assert torch.equal(before[:, :33], after[:, :33])
    assert not torch.equal(before[:, 33], after[:, 33])


def test_state_has_its_size_at_any_length():
    # A layer, a sequence: 64 channels · (4 columns + 4 states) float32.
    state = tiny("chunked", torch.bfloat16).new_state(batch=3, capacity=10**6)
    assert state.nbytes == 2 * 3 * 64 * (4 + 4) * 4


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_keeps_the_residual_stream_in_float32(path):
    model, x = tiny(path, torch.bfloat16), tokens(2, 40)
    seen = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    logits = model(x)
    assert (logits.dtype, seen) == (torch.bfloat16, [torch.float32] * 2)
    model.loss(x, x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    exact = tiny(path).double()
    exact.load_state_dict(model.state_dict())
    expected = exact(x)
    assert (logits - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()


def saved_bytes(model: LanguageModel) -> int:
    """Bytes autograd keeps for the backward of the layers, distinct storages, without parameters."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.backbone(tokens(1, 256))
    return sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in owned)


def test_chunked_saves_under_a_fifth_of_eager():
    spec = MambaSpec(name="x", d_model=64, n_layers=2, vocab_size=64)
    chunked, eager = (saved_bytes(build(spec, path=path)) for path in ("chunked", "eager"))
    assert chunked < eager / 5


def test_a_million_tokens_can_be_traced():
    model = build(preset("mamba-130m"), device="meta")
    hidden = model.backbone(torch.empty(1, 2**20, dtype=torch.long, device="meta"))
    hidden.sum().backward()
    assert hidden.shape == (1, 2**20, 768)
    assert model.backbone.embedding.weight.grad is not None
