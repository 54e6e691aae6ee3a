"""ResNet-BK against the manner in which it was published: one position at a time, boolean-mask experts.

    python tests/bench/peers_resnet_bk.py [--rounds 7]

Prints a Markdown table. One thread; CPU time; both sides take turns in every round, each for 20 ms or one call,
whichever is longer; the median of the rounds and, in brackets, the fastest. Speed stands beside the largest error
against float64. Core, backbone and head are timed apart: a head of 30,000 words would hide everything else.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.autograd import Function

from benchbench.models import build
from benchbench.models.moe import MoE
from benchbench.models.resolvent import Resolvent, plain_left, plain_two_sided
from benchbench.specs.resnet_bk import ResNetBKSpec

SPEC = ResNetBKSpec(name="peer", n_layers=2, d_model=256, d_ff=512, vocab_size=256, n_experts=4, top_k=1)


class LoopCore(Function):
    """The published core: both determinants in complex128, 0-dimensional tensor by tensor, under vmap."""

    @staticmethod
    def forward(ctx: Any, v_BN: Tensor) -> Tensor:
        ones_BN = torch.ones(v_BN.shape[0], v_BN.shape[1] - 1, dtype=torch.complex128)
        g_BN = torch.vmap(loop_diagonal)((v_BN - 2).to(torch.complex128), ones_BN, ones_BN)
        g_BN = torch.where(g_BN.isfinite(), g_BN, 0)
        size_BN = g_BN.abs()
        g_BN = torch.where(size_BN > 50, g_BN * (50 / (size_BN + 1e-9)), g_BN).to(torch.complex64)
        ctx.save_for_backward(g_BN)
        return torch.view_as_real(g_BN)

    @staticmethod
    def backward(ctx: Any, cotangent_BN2: Tensor) -> Tensor:
        (g_BN,) = ctx.saved_tensors
        cotangent_BN = torch.view_as_complex(cotangent_BN2.contiguous())
        square_BN = g_BN * g_BN
        size_BN = square_BN.abs()
        floored_BN = torch.where(size_BN >= 1e-3, square_BN, square_BN * (1e-3 / (size_BN + 1e-9)))
        mixed_BN = -0.5 * (cotangent_BN * square_BN).real - 0.5 * (cotangent_BN / (floored_BN + 1e-6)).real
        return mixed_BN.clamp(-1000, 1000).nan_to_num(0.0)


def loop_diagonal(a_N: Tensor, upper_N: Tensor, lower_N: Tensor) -> Tensor:
    """The diagonal of the resolvent of one sequence from its leading and trailing minors."""
    N, x_N = len(a_N), a_N - 1j
    theta = [torch.ones_like(x_N[0]), x_N[0]]
    for i in range(1, N):
        theta.append(x_N[i] * theta[-1] - upper_N[i - 1] * lower_N[i - 1] * theta[-2])
    phi = [torch.ones_like(x_N[0]), x_N[N - 1]]
    for i in range(N - 2, 0, -1):
        phi.append(x_N[i] * phi[-1] - upper_N[i] * lower_N[i] * phi[-2])
    return torch.stack(theta[:N]) * torch.stack(phi).flip(0) / (theta[N] + 1e-18)


class LoopResolvent(nn.Module):
    def forward(self, v_BN: Tensor, state_B2: Tensor | None = None) -> Tensor:
        return LoopCore.apply(v_BN)


class MaskedMoE(nn.Module):
    """The experts of `moe`, each on the tokens that a boolean mask finds for it."""

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe
        self.up = nn.ParameterList(moe.experts.up.weight.detach().mT.contiguous().unbind())
        self.down = nn.ParameterList(moe.experts.down.weight.detach().mT.contiguous().unbind())

    def forward(self, x_BND: Tensor) -> Tensor:
        x_TD, experts = x_BND.flatten(0, 1), self.moe.experts
        values_TK, expert_TK = self.moe.router(x_TD).topk(1, dim=-1)
        gates_TK, y_TD = values_TK.softmax(-1), torch.zeros_like(x_TD)
        for e in range(SPEC.n_experts):
            token_R, slot_R = (expert_TK == e).nonzero(as_tuple=True)
            hidden_RF = nn.functional.linear(x_TD[token_R], self.up[e], experts.up.bias[e]).relu()
            out_RD = nn.functional.linear(hidden_RF, self.down[e], experts.down.bias[e])
            y_TD = y_TD.index_add(0, token_R, out_RD * gates_TK[token_R, slot_R, None])
        return y_TD.view_as(x_BND)


def published_backbone(seed: int) -> nn.Module:
    backbone = build(SPEC, seed=seed).backbone
    for layer in backbone.layers:
        layer.core, layer.moe = LoopResolvent(), MaskedMoE(layer.moe)
    return backbone


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call: the mean over 20 ms of calls, or over one if it takes longer."""
    start, calls, spent = time.process_time(), 0, 0.0
    while spent < 0.02:
        call()
        calls, spent = calls + 1, time.process_time() - start
    return spent / calls


def in_turns(calls: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """CPU seconds of each call in each round, after one untimed round."""
    samples = [[seconds(call) for call in calls] for _ in range(rounds + 1)][1:]
    return [list(times) for times in zip(*samples, strict=True)]


def backward(module: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    return lambda: module(x).square().sum().backward()


def rows(rounds: int) -> Iterator[list[str]]:
    """What was timed, its length, ours, the published manner, their ratio, both errors."""

    def timed(what: str, n: int, ours: Callable[[], object], theirs: Callable[[], object], *errors: str) -> list[str]:
        fast, slow = in_turns([ours, theirs], rounds)
        cells = [f"{statistics.median(t) * 1e3:.2f} ({min(t) * 1e3:.2f})" for t in (fast, slow)]
        return [what, str(n), *cells, f"{statistics.median(slow) / statistics.median(fast):.1f}", *errors]

    published = LoopResolvent()
    for n in (2048, 8192):
        v_BN = torch.randn(1, n).mul(2**0.5).clamp(-3, 3)
        leaf_BN = v_BN.clone().requires_grad_()
        for form, exact in (("bk-causal", lambda v: plain_left(v, v.new_zeros(1, 2))), ("bk-exact", plain_two_sided)):
            core = Resolvent(form, "chunked", 0.5)
            error = f"{(core(v_BN) - exact(v_BN.double())).abs().max():.0e}"
            loss = f"{(published(v_BN) - plain_two_sided(v_BN.double())).abs().max():.0e}"
            calls = [partial(torch.no_grad()(side), v_BN) for side in (core, published)]
            yield timed(f"core {form}, forward", n, *calls, error, loss)
            both = (backward(core, leaf_BN), backward(published, leaf_BN))
            yield timed(f"core {form}, forward and backward", n, *both, error, loss)
    n = 8192
    tokens_BN = torch.randint(SPEC.vocab_size, (1, n))
    model, peer = build(SPEC, seed=0), published_backbone(seed=0)
    with torch.no_grad():
        exact_BND = build(SPEC, path="eager", seed=0, dtype=torch.float64).backbone(tokens_BN)
        error = f"{(model.backbone(tokens_BN) - exact_BND).abs().max():.0e}"
        yield timed("backbone, forward", n, lambda: model.backbone(tokens_BN), lambda: peer(tokens_BN), error, "")
    yield timed(
        "backbone, forward and backward", n, backward(model.backbone, tokens_BN), backward(peer, tokens_BN), error, ""
    )
    hidden_BND = torch.randn(1, n, SPEC.d_model)
    with torch.no_grad():
        yield timed(
            "head of 256 words, forward (the same on both sides)",
            n,
            lambda: model.lm_head(hidden_BND),
            lambda: model.lm_head(hidden_BND),
            "",
            "",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    header = ["what", "N", "benchbench ms", "published manner ms", "ratio", "error", "its error"]
    print(tabulate(list(rows(parser.parse_args().rounds)), header, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
