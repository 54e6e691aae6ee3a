"""What the mixture of experts does on CUDA alone, compared on the CPU; and, on a GPU, that it runs there."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchbench.models.moe import MoE, Taken


def mixture(top_k: int, dtype: torch.dtype = torch.float64, **sizes: Any) -> MoE:
    torch.manual_seed(0)
    moe = MoE(**{"d_model": 8, "d_ff": 16, "n_experts": 4, "top_k": top_k, "dropout": 0.0} | sizes)
    for bias in (moe.router.bias, moe.experts.up.bias, moe.experts.down.bias):
        torch.nn.init.normal_(bias)
    return moe.to(dtype)


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return list(torch.autograd.grad(out, inputs, cotangent))


@pytest.mark.parametrize("copies", [1, 3])
def test_rows_come_back_as_their_gradient(copies: int):
    x_TD = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    order_R = torch.randperm(5 * copies)
    back_R = torch.argsort(order_R)
    ours, plain = Taken.apply(x_TD, order_R // copies, back_R, copies), x_TD.index_select(0, order_R // copies)
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradients(ours, [x_TD])[0], gradients(plain, [x_TD])[0], rtol=0, atol=1e-14)


def test_rows_with_weights_of_their_own_equal_grouped_ones():
    moe, x_RD = mixture(1), torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    expert_R = torch.tensor([0, 2, 2, 3])
    ends_E = torch.tensor([1, 1, 3, 4])
    order_R = torch.tensor([3, 1, 0, 2])
    each_RD = moe.experts.each(x_RD[order_R], expert_R[order_R])
    grouped_RD = moe.experts(x_RD, ends_E)[order_R]
    torch.testing.assert_close(each_RD, grouped_RD, rtol=0, atol=1e-14)
    inputs = [x_RD, *moe.experts.parameters()]
    for ours, reference in zip(gradients(each_RD, inputs), gradients(grouped_RD, inputs), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-13)


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_on_the_device(top_k: int, tokens: int, dtype: torch.dtype):
    moe = mixture(top_k, dtype, d_model=64, d_ff=96)
    # Logits far apart, so that no rounding sends a token elsewhere: each token has a digit at its experts' places.
    with torch.no_grad():
        moe.router.bias.zero_()
        moe.router.weight.zero_()
        moe.router.weight[:, :4] = torch.eye(4, dtype=dtype)
    x_BND = torch.randn(1, tokens, 64, dtype=dtype)
    x_BND[..., :4] = torch.stack([torch.randperm(4) for _ in range(tokens)]).to(dtype)
    exact = mixture(top_k, d_model=64, d_ff=96)
    exact.load_state_dict(moe.state_dict())
    leaf, exact_leaf = x_BND.cuda().requires_grad_(), x_BND.double().requires_grad_()
    moe.cuda()
    found, expected = [y := moe(leaf)], [z := exact(exact_leaf)]
    if dtype == torch.float32:
        # In bfloat16 a hidden unit near 0 rounds across the ReLU's edge, which its gradient jumps at.
        found += gradients(y, [leaf, *moe.parameters()])
        expected += gradients(z, [exact_leaf, *exact.parameters()])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, reference in zip(found, expected, strict=True):
        difference = (ours.double().cpu() - reference).norm()
        assert difference <= tolerance * reference.norm() + 1e-12


@pytest.mark.gpu
def test_autocast_takes_the_grouped_kernel():
    moe, x_BND = mixture(1, torch.float32, d_model=64, d_ff=96), torch.randn(1, 300, 64)
    expected = moe(x_BND)
    moe.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = moe(x_BND.cuda())
    rows_N = (found.float().cpu() - expected).norm(dim=-1)[0] / expected.norm(dim=-1)[0]
    assert rows_N.median() < 2e-2  # a token whose logits nearly tie may go elsewhere
