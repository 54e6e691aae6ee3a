"""The mixture of experts against a token-by-token reference, and its grouped products against each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchbench.models.moe import MoE, kernel_linear, sliced_linear, tiled_linear

D, FF, E = 12, 20, 4


def mixture(top_k: int, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> MoE:
    torch.manual_seed(0)
    moe = MoE(D, FF, E, top_k, dropout)
    for bias in (moe.router.bias, moe.experts.up.bias, moe.experts.down.bias):
        torch.nn.init.normal_(bias)
    return moe.to(dtype)


def expert(moe: MoE, e: int, x: Tensor) -> Tensor:
    hidden = (x @ moe.experts.up.weight[e] + moe.experts.up.bias[e]).relu()
    return hidden @ moe.experts.down.weight[e] + moe.experts.down.bias[e]


def token_by_token(moe: MoE, x_TD: Tensor) -> Tensor:
    """The definition: a softmax over each token's K largest logits weighs those K experts."""
    rows = []
    for x_D in x_TD:
        logits_E = moe.router.weight @ x_D + moe.router.bias
        chosen = sorted(range(E), key=lambda e: -logits_E[e].item())[: moe.top_k]
        gates_K = logits_E[chosen].softmax(0)
        rows.append(sum(gate * expert(moe, e, x_D) for gate, e in zip(gates_K, chosen, strict=True)))
    return torch.stack(rows)


def gradients(moe: MoE, out: Tensor, x: Tensor) -> list[Tensor]:
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad(out, [x, *moe.parameters()], cotangent))


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_equals_the_definition(top_k: int):
    moe, x_BND = mixture(top_k), torch.randn(2, 9, D, dtype=torch.float64, requires_grad=True)
    fast, plain = moe(x_BND), token_by_token(moe, x_BND.flatten(0, 1)).view(2, 9, D)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-13)
    for ours, reference in zip(gradients(moe, fast, x_BND), gradients(moe, plain, x_BND), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


def test_all_experts_are_the_dense_softmax_mixture():
    moe, x_BND = mixture(E), torch.randn(1, 7, D, dtype=torch.float64)
    outputs_BNDE = torch.stack([expert(moe, e, x_BND) for e in range(E)], dim=-1)
    dense_BND = (outputs_BNDE * moe.router(x_BND).softmax(-1)[:, :, None]).sum(-1)
    torch.testing.assert_close(moe(x_BND), dense_BND, rtol=0, atol=1e-13)


def test_one_expert_for_every_token_leaves_the_others_without_gradient():
    moe, x_BND = mixture(1), torch.randn(1, 7, D, dtype=torch.float64)
    with torch.no_grad():
        moe.router.bias.copy_(torch.tensor([0.0, 0.0, 1e6, 0.0]))
    y_BND = moe(x_BND)
    torch.testing.assert_close(y_BND, expert(moe, 2, x_BND), rtol=0, atol=1e-13)
    y_BND.square().sum().backward()
    used_E = moe.experts.up.weight.grad.flatten(1).any(1)
    assert used_E.tolist() == [False, False, True, False]


def test_router_learns_only_from_two_experts_on():
    for top_k, learns in ((1, False), (2, True)):
        moe = mixture(top_k)
        moe(torch.randn(1, 7, D, dtype=torch.float64)).square().sum().backward()
        assert bool(moe.router.weight.grad.any()) is learns


def test_dropout_acts_in_training_alone():
    x_BND = torch.randn(1, 7, D, dtype=torch.float64)
    moe, without = mixture(2, dropout=0.5), mixture(2)
    assert not torch.equal(moe(x_BND), without(x_BND))
    assert torch.equal(moe.eval()(x_BND), without(x_BND))


def test_bits_of_a_token_do_not_depend_on_where_the_others_go():
    torch.manual_seed(0)
    moe = MoE(64, 96, E, 1, 0.0)
    x_BND = torch.randn(1, 40, 64)
    first, best_N = x_BND[:, :1], moe.router(x_BND).argmax(-1)[0]
    for alike in range(1, 20):  # `alike` tokens share the first one's expert, the first included
        others = torch.cat((x_BND[0, best_N == best_N[0]][1:2].expand(alike - 1, -1), x_BND[0, best_N != best_N[0]]))
        y_BND = moe(torch.cat((first, others[None]), dim=1))
        assert torch.equal(y_BND[:, 0], moe(torch.cat((first, x_BND[:, 1:]), dim=1))[:, 0])


@pytest.mark.parametrize("top_k", [1, 2, E])
@pytest.mark.parametrize("tokens", [1, 37])
def test_tracers_see_the_chosen_rows_and_no_others(top_k: int, tokens: int):
    # Router 2·T·D·E, and T·K rows of 2·D·F up and as much down. Fake and meta tensors, which cannot route, agree.
    expected = 2 * tokens * D * E + 4 * tokens * top_k * D * FF
    moe = mixture(top_k)
    with FlopCounterMode(display=False) as real:
        moe(torch.randn(1, tokens, D, dtype=torch.float64))
    with FlopCounterMode(display=False) as meta:
        assert moe.to("meta")(torch.empty(1, tokens, D, dtype=torch.float64, device="meta")).shape == (1, tokens, D)
    with FakeTensorMode(), FlopCounterMode(display=False) as fake:
        MoE(D, FF, E, top_k, 0.0)(torch.empty(1, tokens, D))
    assert [real.get_total_flops(), meta.get_total_flops(), fake.get_total_flops()] == [expected] * 3


def groups(sizes: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, ends, weights and biases of groups of the given sizes, 8 numbers in and 16 out."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(sizes), 8), (len(sizes), 8, 16), (len(sizes), 16))
    x_RI, w_EIO, b_EO = (torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    return x_RI, torch.tensor(sizes).cumsum(0), w_EIO, b_EO


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(sum))
def test_tiles_equal_slices(sizes: list[int]):
    x_RI, ends_E, w_EIO, b_EO = groups(sizes, torch.float64)
    parts = [x @ w + b for x, w, b in zip(x_RI.split(sizes), w_EIO, b_EO, strict=True)]
    expected = torch.cat(parts)
    cotangent = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    wanted = torch.autograd.grad(expected, (x_RI, w_EIO, b_EO), cotangent)
    for product in (sliced_linear, tiled_linear):
        out = product(x_RI, ends_E, w_EIO, b_EO)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
        for ours, reference in zip(torch.autograd.grad(out, (x_RI, w_EIO, b_EO), cotangent), wanted, strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
@pytest.mark.parametrize("sizes", [[5, 0, 9, 2], [16, 0, 0, 0], [1, 1, 1, 1]])
def test_grouped_kernel_equals_slices(sizes: list[int]):
    x_RI, ends_E, w_EIO, b_EO = groups(sizes, torch.bfloat16)
    exact = [x @ w for x, w in zip(x_RI.double().split(sizes), w_EIO.double(), strict=True)]
    product_RO = torch.cat(exact)
    sum_RO = product_RO + b_EO.double().repeat_interleave(torch.tensor(sizes), dim=0)
    # The product and then the sum are each rounded to the 8 bits of bfloat16, an error of 2^-8 of its size at most.
    bound_RO = 1.01 * 2**-8 * (product_RO.abs() + sum_RO.abs())
    assert ((kernel_linear(x_RI, ends_E, w_EIO, b_EO).double() - sum_RO).abs() <= bound_RO).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_device_is_never_waited_for(dtype: torch.dtype):
    moe = MoE(64, 96, E, 2, 0.0).to("cuda", dtype)
    x_BND = torch.randn(2, 50, 64, device="cuda", dtype=dtype, requires_grad=True)
    expected = moe.double().cpu()(x_BND.double().cpu())
    moe.to("cuda", dtype)(x_BND).square().sum().backward()  # the first call compiles and allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        y_BND = moe(x_BND)
        y_BND.square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(y_BND.double().cpu(), expected, rtol=tolerance, atol=tolerance)
