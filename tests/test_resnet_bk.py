"""The ResNet-BK model: its block by hand, its sizes, its two paths, its state, and what each form refuses."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchbench.models import build
from benchbench.models.resnet_bk import ResNetBK
from benchbench.specs import preset

TINY = "resnet-bk-tiny"
PATHS = ("chunked", "eager")
paths = pytest.mark.parametrize("path", PATHS)


def model(path: str = "chunked", dtype: torch.dtype = torch.float32, name: str = TINY, **changes: Any) -> ResNetBK:
    built = build(preset(name, **changes), path=path, dtype=dtype)
    assert isinstance(built, ResNetBK)
    return built


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(0))


def formula(name: str) -> int:
    """Parameters but the embedding and the head: L layers of norm, experts, router, v, o and scale; the last norm."""
    s = preset(name)
    D, E, Fd = s.d_model, s.n_experts, s.d_ff
    return s.n_layers * (2 * D + E * (2 * D * Fd + Fd + D) + D * E + E + D + 1 + 3 * D + 1) + 2 * D


def test_sizes():
    sizes = {}
    for name in ("resnet-bk-130m", "resnet-bk-baseline", TINY):
        built = build(preset(name), device="meta")
        sizes[name] = sum(p.numel() for p in built.parameters())
        head = 0 if built.spec.tied_head else sum(p.numel() for p in built.lm_head.parameters())
        tables = [table.weight for table in (built.backbone.embedding, built.backbone.positions) if table]
        assert sizes[name] - head - sum(table.numel() for table in tables) == formula(name)
    assert formula("resnet-bk-130m") == 89_842_248
    assert sizes["resnet-bk-baseline"] == 4_146_120  # what the published BASELINE model holds


def test_initialisation():
    built = model(name="resnet-bk-baseline")
    backbone = built.backbone
    for table in (backbone.embedding.weight, backbone.positions.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.02)
    layer = backbone.layers[0]
    # Xavier-uniform: U(-b, b) with b = sqrt(6 / (inputs + outputs)).
    linears = [(built.lm_head.weight, 64 + 30_000), (layer.v_proj.weight, 65), (layer.o_proj.weight, 66)]
    linears += [(layer.moe.router.weight, 68)] + [(w, 192) for w in layer.moe.experts.up.weight]
    for weight, fans in linears + [(w, 192) for w in layer.moe.experts.down.weight]:
        bound = (6 / fans) ** 0.5
        assert 0.9 * bound < weight.abs().max().item() <= bound
    biases = [parameter for name, parameter in built.named_parameters() if name.endswith("bias")]
    assert len(biases) == 4 * 6 + 2
    assert not any(bias.any() for bias in biases)
    assert layer.bk_scale.item() == 1


@paths
@pytest.mark.parametrize("form", ["bk-causal", "bk-exact"])
def test_block_by_hand(form: str, path: str):
    built = model(path, torch.float64, form=form)
    layer = built.backbone.layers[0]
    x_BND = torch.randn(1, 50, 64, dtype=torch.float64)
    with torch.no_grad():
        layer.bk_scale.fill_(0.7)
        layer.v_proj.weight.mul_(3)  # so that some v are clamped
        h_BND = F.layer_norm(x_BND, (64,), layer.norm.weight, layer.norm.bias, eps=1e-5)
        raw_N = (h_BND @ layer.v_proj.weight[0] + layer.v_proj.bias)[0]
        shifted = (
            torch.diag(raw_N.clamp(-3, 3) - 2 - 1j) + torch.diag(torch.ones(49), 1) + torch.diag(torch.ones(49), -1)
        )
        inverses = [torch.linalg.inv(shifted[:i, :i])[-1, -1] for i in range(1, 51)]
        mixed_N = torch.stack(inverses) if form == "bk-causal" else torch.linalg.inv(shifted).diagonal()
        f_N2 = torch.view_as_real(mixed_N)
        y_BND = layer.moe(h_BND) + 0.7 * (f_N2 @ layer.o_proj.weight.T + layer.o_proj.bias)
        assert (raw_N.abs() > 3).any()
        torch.testing.assert_close(layer(x_BND, None), x_BND + y_BND, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["bk-causal", "bk-exact"])
def test_paths_agree_in_values_and_gradients(form: str):
    fast, plain = (model(path, torch.float64, form=form) for path in PATHS)
    for built in (fast, plain):
        built(tokens(2, 100)).square().sum().backward()
    torch.testing.assert_close(fast(tokens(2, 100)), plain(tokens(2, 100)), rtol=0, atol=1e-12)
    for (name, ours), reference in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-9, atol=1e-9, msg=name)
    single = model("chunked", torch.float32, form=form)
    torch.testing.assert_close(single(tokens(2, 100)).double(), plain(tokens(2, 100)), rtol=0, atol=2e-5)


@paths
@pytest.mark.parametrize("pieces", [[1] * 20, [7, 13], [19, 1], [1, 18, 1]])
def test_continuing_equals_reading_at_once(path: str, pieces: list[int]):
    built = model(path, torch.float64, positions="learned", max_seq_len=20)
    state = built.new_state(batch=3, capacity=20)
    whole_BND = built.backbone(tokens(3, 20))
    parts = [built.backbone(part, state) for part in tokens(3, 20).split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole_BND, rtol=0, atol=1e-12)
    assert state.length == 20
    with pytest.raises(ValueError, match="21 tokens, but learned positions for 20"):
        built.decode(tokens(3, 1)[:, 0], state)


@paths
def test_decodes_from_one_complex_number_a_layer(path: str):
    built = model(path)
    state = built.new_state(batch=3, capacity=1_000_000)
    assert state.nbytes == 2 * 3 * 2 * 4  # layers, batch, real and imaginary part, float32
    prompt_BN = tokens(3, 60)
    with torch.no_grad():
        last_BV = built.prefill(prompt_BN[:, :50], state)
        rest = [built.decode(prompt_BN[:, i], state) for i in range(50, 60)]
        torch.testing.assert_close(torch.stack([last_BV, *rest], dim=1), built(prompt_BN)[:, 49:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", ["bk-exact", "bk-compat"])
def test_forms_that_look_ahead_read_once_and_cannot_continue(form: str):
    built = model(form=form)
    state = built.new_state(batch=1, capacity=8)
    torch.testing.assert_close(built.prefill(tokens(1, 8), state), built(tokens(1, 8))[:, -1])
    assert (state.nbytes, state.length) == (0, 8)
    with pytest.raises(ValueError, match="cannot continue"):
        built.decode(tokens(1, 1)[:, 0], state)


def test_exact_form_refuses_next_token_loss():
    with pytest.raises(ValueError, match="resnet-bk-tiny sees later tokens"):
        model(form="bk-exact").loss(tokens(1, 8), tokens(1, 8))


@paths
def test_published_form_stops_mixing_where_it_overflows(path: str):
    built = model(path, form="bk-compat").eval()
    for length, mixes in ((60, True), (1500, False)):
        changed = tokens(1, length).clone()
        changed[0, length // 2] += 1
        difference_N = (built(changed) - built(tokens(1, length)))[0].abs().amax(-1)
        difference_N[length // 2] = 0
        assert bool((difference_N > 1e-5).any()) is mixes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype):
    built, exact = model(dtype=dtype), model(dtype=torch.float64)
    state = built.new_state(batch=2, capacity=50)
    assert {tensor.dtype for tensor in state.tensors()} == {torch.float32}
    logits = built(tokens(2, 50))
    assert logits.dtype == dtype
    # Routing may flip where two logits nearly tie, so the bulk is held, not the worst case.
    assert (logits.double() - exact(tokens(2, 50))).abs().median() < 0.02


def test_meta_model_of_a_million_tokens():
    built = build(preset("resnet-bk-130m"), device="meta", dtype=torch.bfloat16)
    hidden_BND = built.backbone(torch.zeros(1, 1_048_576, dtype=torch.long, device="meta"))
    assert (hidden_BND.shape, hidden_BND.dtype) == ((1, 1_048_576, 768), torch.bfloat16)
    hidden_BND.sum().backward()
    state = built.new_state(batch=1, capacity=1)
    state.fill_random(1_048_576)
    assert built.decode(torch.zeros(1, dtype=torch.long, device="meta"), state).shape == (1, 50_280)
