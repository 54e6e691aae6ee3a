import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchbench.errors import UnsupportedError
from benchbench.models import LanguageModel, build
from benchbench.models.transformer import Rotary, RotaryTable
from benchbench.specs import preset, presets
from benchbench.specs.transformer import TransformerSpec

TINY = preset("transformer-tiny")
LLAMA = TINY.replace(vocab_size=61)
GPT2 = TINY.replace(
    vocab_size=61,
    positions="learned",
    max_seq_len=32,
    norm="layer",
    activation="gelu",
    bias=True,
    n_kv_heads=4,
)
PATHS = ("flash", "eager")
VARIANTS = {"llama": LLAMA, "gpt2": GPT2}


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test))


every_path = pytest.mark.parametrize("path", PATHS)
every_variant = pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)


def random_tokens(spec: TransformerSpec, *shape: int) -> Tensor:
    return torch.randint(0, spec.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def n_parameters(model: LanguageModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# GPT-2: embeddings (50257 + 1024)·768; a layer 4 attention matrices of 768² + 768, two of 768·3072 with 3072 + 768
# biases, two norms of 2·768; a final norm. 39,383,808 + 12 · 7,087,872 + 1,536.
# transformer-130m: no biases; 50280·768; a layer 4·768² + 3·768·2240 + 2·768 = 7,521,792; a final norm of 768.
@pytest.mark.parametrize(("name", "expected"), [("gpt2", 124_439_808), ("transformer-130m", 90_262_272 + 50280 * 768)])
def test_parameter_counts(name, expected):
    assert n_parameters(build(preset(name), device="meta")) == expected


@every_path
@pytest.mark.parametrize("name", [name for name, spec in presets().items() if spec.family == "transformer"])
def test_every_preset_runs_on_the_meta_device(name, path):
    model = build(preset(name), path=path, device="meta", dtype=torch.bfloat16)
    logits = model(torch.zeros(2, 16, dtype=torch.long, device="meta"))
    assert logits.shape == (2, 16, preset(name).vocab_size)
    assert logits.dtype == torch.bfloat16
    assert logits.is_meta


def test_module_names_are_those_the_counters_use():
    names = {name for name, _ in build(LLAMA.replace(n_layers=1), device="meta").named_modules()}
    layer = "backbone.layers.0"
    shared = {"", "lm_head", "backbone", "backbone.embedding", "backbone.dropout", "backbone.layers", "backbone.norm_f"}
    shared |= {layer} | {f"{layer}.{part}" for part in ("norm1", "norm2", "attn", "mlp", "dropout")}
    shared |= {f"{layer}.attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "core", "rotary")}
    shared |= {f"{layer}.mlp.{part}" for part in ("up_proj", "down_proj", "act")}
    assert names == shared | {"backbone.rotary", f"{layer}.mlp.gate_proj"}
    gpt2 = {name for name, _ in build(GPT2.replace(n_layers=1), device="meta").named_modules()}
    assert gpt2 == shared | {"backbone.positions"}


def test_weights_start_as_in_gpt2():
    model = build(GPT2.replace(d_model=256, d_ff=1024, n_layers=8))
    weights = dict(model.named_parameters())
    # The standard deviation of n normal draws is known to 1/√(2n): 0.3 % for the smallest matrix here, 256 x 256.
    for name, std in [("attn.q_proj", 0.02), ("mlp.up_proj", 0.02), ("attn.o_proj", 0.005), ("mlp.down_proj", 0.005)]:
        assert weights[f"backbone.layers.3.{name}.weight"].std().item() == pytest.approx(std, rel=0.02)
    assert weights["backbone.embedding.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert not weights["backbone.layers.3.attn.q_proj.bias"].any()
    assert (weights["backbone.norm_f.weight"] == 1).all()


def test_rotary_turns_the_halves_by_position():
    # d_head 4, theta 100: pairs (0, 2) and (1, 3) turn by p·1 and p·100^(-1/2) = p/10. At p = 5: 5 and 0.5 radians.
    cos_NE, sin_NE = RotaryTable(4, 100.0)(torch.tensor([5]))
    x = torch.tensor([1.0, 3.0, 0.0, 2.0])
    turned = Rotary()(x.view(1, 1, 1, 4), (cos_NE, sin_NE)).flatten()
    c, s = math.cos(0.5), math.sin(0.5)
    torch.testing.assert_close(turned, torch.tensor([math.cos(5), 3 * c - 2 * s, math.sin(5), 2 * c + 3 * s]))


@every_variant
def test_paths_agree_in_values_and_gradients(spec):
    tokens = random_tokens(spec, 2, 24)
    logits, gradients = {}, {}
    for path in PATHS:
        model = build(spec, path=path, dtype=torch.float64)
        logits[path] = model(tokens)
        logits[path].logsumexp(-1).sum().backward()
        gradients[path] = {name: parameter.grad for name, parameter in model.named_parameters()}
    # Rotation is float32 in both, so float64 leaves only the order of summation.
    torch.testing.assert_close(logits["flash"], logits["eager"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients["flash"], gradients["eager"], rtol=1e-7, atol=1e-10)
    assert all(gradient.any() for gradient in gradients["flash"].values())


@every_path
@every_variant
@torch.no_grad()
def test_prefill_and_decode_continue_the_full_forward(spec, path):
    model = build(spec, path=path, dtype=torch.float64)
    tokens = random_tokens(spec, 2, 14)
    expected = model(tokens)
    state = model.new_state(batch=2, capacity=14)
    torch.testing.assert_close(model.prefill(tokens[:, :6], state), expected[:, 5], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(model.decode(tokens[:, 6], state), expected[:, 6], rtol=1e-6, atol=1e-8)
    several = model.lm_head(model.backbone(tokens[:, 7:11], state))
    torch.testing.assert_close(several, expected[:, 7:11], rtol=1e-6, atol=1e-8)
    for i in range(11, 14):
        torch.testing.assert_close(model.decode(tokens[:, i], state), expected[:, i], rtol=1e-6, atol=1e-8)
    assert state.length == 14


@every_path
@torch.no_grad()
def test_a_state_begins_token_by_token_as_well(path):
    model = build(LLAMA, path=path, dtype=torch.float64)
    tokens = random_tokens(LLAMA, 1, 4)
    state = model.new_state(batch=1, capacity=4)
    decoded = torch.stack([model.decode(tokens[:, i], state) for i in range(4)], dim=1)
    torch.testing.assert_close(decoded, model(tokens), rtol=1e-6, atol=1e-8)


def test_a_state_holds_the_grouped_heads_only():
    state = build(TINY, dtype=torch.bfloat16).new_state(batch=3, capacity=10)
    # K and V of 2 layers: 3 sequences, 2 heads, 10 tokens, 16 wide, 2 bytes.
    assert state.nbytes == 2 * 2 * (3 * 2 * 10 * 16) * 2
    assert {tensor.shape for tensor in state.tensors()} == {(3, 2, 10, 16)}


def test_a_full_state_is_an_error_and_stays_as_it_was():
    model = build(LLAMA)
    state = model.new_state(batch=1, capacity=4)
    model.prefill(random_tokens(LLAMA, 1, 3), state)
    with pytest.raises(ValueError, match="room for 4 tokens, not 5"):
        model.backbone(random_tokens(LLAMA, 1, 2), state)
    assert state.length == 3


def test_learned_positions_end():
    model = build(GPT2)
    assert model(random_tokens(GPT2, 1, 32)).shape == (1, 32, 61)
    with pytest.raises(ValueError, match="learned positions for 32 tokens, not 33"):
        model(random_tokens(GPT2, 1, 33))


@every_path
@every_variant
def test_bfloat16_stays_near_float32(spec, path):
    tokens = random_tokens(spec, 2, 24)
    exact = build(spec, path=path)(tokens)
    model = build(spec, path=path, dtype=torch.bfloat16)
    logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    # bfloat16 rounds to 2^-9 relative; some twenty roundings on the way add like a random walk.
    assert (logits - exact).pow(2).mean().sqrt() < 20 * 2**-9 * exact.std()
    model.loss(tokens, tokens).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class LargestTensor(TorchDispatchMode):
    """The most elements that any operation puts out."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def largest_tensor(path: str, n: int) -> int:
    """In a forward and backward pass of grouped attention over `n` tokens."""
    model = build(TINY, path=path)
    tokens = random_tokens(TINY, 1, n)
    with LargestTensor() as largest:
        model.backbone(tokens).sum().backward()
    return largest.numel


def test_flash_never_holds_the_square():
    # The widest activation is SwiGLU's, n x 160; the scores of 4 heads are 4·n², and eager does hold them.
    assert largest_tensor("flash", 512) == 512 * 160
    assert largest_tensor("eager", 512) == 4 * 512 * 512


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_on_cuda_flash_memory_is_linear(dtype):
    model = build(TINY, device="cuda", dtype=dtype)
    peaks = []
    for n in (2048, 8192, 16384):  # the first is for what libraries allocate once
        tokens = random_tokens(TINY, 1, n).cuda()
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model.backbone(tokens).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] < 2.1 * peaks[1]
    assert peaks[1] < 8192 * 8192 * dtype.itemsize  # the scores of one head of the four


@gpu
@every_variant
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@torch.no_grad()
def test_on_cuda_flash_equals_eager_and_continues(spec, dtype, tolerance):
    tokens = random_tokens(spec, 2, 14).cuda()
    expected = build(spec, path="eager", dtype=dtype).cuda()(tokens)
    model = build(spec, path="flash", dtype=dtype).cuda()
    torch.testing.assert_close(model(tokens), expected, rtol=tolerance, atol=tolerance)
    state = model.new_state(batch=2, capacity=14)
    parts = [model.prefill(tokens[:, :6], state)[:, None], model.decode(tokens[:, 6], state)[:, None]]
    parts += [model.lm_head(model.backbone(tokens[:, 7:], state))]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected[:, 5:], rtol=tolerance, atol=tolerance)


def test_flash_refuses_what_its_kernel_cannot_do():
    model = build(GPT2.replace(dropout=0.1))
    with pytest.raises(UnsupportedError, match="no attention dropout on the CPU"):
        model(random_tokens(GPT2, 1, 8))
    assert model.eval()(random_tokens(GPT2, 1, 8)).isfinite().all()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_slow_kernel_is_shut_out_wherever_attention_runs(checkpoint, monkeypatch):
    # A checkpointed layer runs once forward and once more in backward.
    model = build(TINY.replace(n_layers=1), checkpoint=checkpoint)
    allowed, attention = [], F.scaled_dot_product_attention

    def watched(*heads, **how):
        allowed.append(torch.backends.cuda.math_sdp_enabled())
        return attention(*heads, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    model.backbone(random_tokens(TINY, 1, 8)).sum().backward()
    assert allowed == [False] * (2 if checkpoint else 1)
    assert torch.backends.cuda.math_sdp_enabled()


def gpt2_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' GPT-2 weights under our names: its matrices are transposed, and q, k, v are one."""
    names = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_proj": "attn.o_proj", "mlp.c_fc": "mlp.up_proj"}
    names |= {"mlp.c_proj": "mlp.down_proj", "wte": "embedding", "wpe": "positions", "ln_f": "norm_f", "h.": "layers."}
    ours = {}
    for key, tensor in theirs.items():
        name = key.replace("transformer.", "backbone.")
        for old, new in names.items():
            name = name.replace(old, new)
        value = tensor.T if tensor.ndim == 2 and ".layers." in name else tensor
        if "attn.c_attn" in name:
            for part, piece in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                ours[name.replace("c_attn", part)] = piece
        else:
            ours[name] = value
    return ours


def llama_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"model.": "backbone.", "self_attn": "attn", "input_layernorm": "norm1", "embed_tokens": "embedding"}
    names |= {"post_attention_layernorm": "norm2", "backbone.norm.": "backbone.norm_f."}
    ours = {}
    for key, tensor in theirs.items():
        name = key
        for old, new in names.items():
            name = name.replace(old, new)
        ours[name] = tensor
    return ours


def gpt2_reference(dropout: float):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=61,
        n_positions=32,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_inner=160,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        attn_implementation="eager",
    )
    torch.manual_seed(7)
    model = transformers.GPT2LMHeadModel(config)
    return jittered(model)


def jittered(model):
    """Norms and biases off their initial ones and zeros, so that a misplaced one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@every_path
def test_logits_and_loss_equal_gpt2(path):
    theirs = gpt2_reference(dropout=0.0).eval()
    ours = build(GPT2, path=path)
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    tokens = random_tokens(GPT2, 2, 32)
    expected = theirs(tokens, labels=tokens)
    torch.testing.assert_close(ours(tokens), expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.loss(tokens[:, :-1], tokens[:, 1:]), expected.loss, rtol=1e-6, atol=1e-6)


def test_dropout_falls_where_gpt2_drops():
    # The same seed draws the same masks only if they are drawn in the same places, order and shapes.
    theirs = gpt2_reference(dropout=0.2).train()
    ours = build(GPT2.replace(dropout=0.2), path="eager").train()
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    tokens = random_tokens(GPT2, 2, 16)
    torch.manual_seed(3)
    expected = theirs(tokens).logits
    torch.manual_seed(3)
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)


@every_path
def test_logits_and_loss_equal_llama_with_grouped_heads(path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    torch.manual_seed(7)
    theirs = jittered(transformers.LlamaForCausalLM(config).eval())
    ours = build(LLAMA.replace(tied_head=False), path=path)
    ours.load_state_dict(llama_weights(theirs.state_dict()))
    tokens = random_tokens(LLAMA, 2, 48)
    expected = theirs(tokens, labels=tokens)
    torch.testing.assert_close(ours(tokens), expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.loss(tokens[:, :-1], tokens[:, 1:]), expected.loss, rtol=1e-6, atol=1e-6)
