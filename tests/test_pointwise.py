"""Formulas of single operations by hand, and beside every operator that torch runs for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench.counters import dense, module_check, pointwise, routing, training
from benchbench.counters.dispatch import Prices
from benchbench.counters.op import Formula
from benchbench.counters.places import ModulePaths
from benchbench.models.transformer import Rotary, RotaryTable

ROWS, D, S = 6, 8, 4
N = ROWS * D


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def priced(module: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """FLOPs of every operator that torch runs, forward and backward with a gradient of ones that is made outside."""
    with ModulePaths(module) as paths:
        with Prices(paths) as prices:
            y = module(*inputs)
        ones = torch.ones_like(y)
        if y.requires_grad:
            with prices:
                prices.sums.watch(y.grad_fn)
                y.backward(ones)
    phases = {phase: sum(n for (_, at), n in prices.flops.items() if at == phase) for phase in ("forward", "backward")}
    return phases["forward"], phases["backward"]


def executed(formula: Formula) -> tuple[int, int]:
    forward, backward = formula.forward, formula.backward
    return forward.flops + forward.extra_flops, backward.flops + backward.extra_flops


def leaf(*shape: int) -> Tensor:
    return torch.rand(*shape, requires_grad=True)


# By hand


def test_a_dense_convolution_by_hand():
    # 10 rows, 6 channels in 2 groups to 4, 3 taps. An output reads 3 channels at 3 taps: 9 multiply-adds, 18 FLOPs.
    formula = dense.conv(10, 6, 4, 3, S, groups=2)
    assert formula.forward.flops == 10 * 4 * 18
    assert formula.backward.flops == 2 * 10 * 4 * 18
    # Each of the 4 filters has 3 channels of 3 taps.
    assert formula.params == 4 * 9
    # x 60 and y 40 elements, 36 weights; backward reads x, dy and W, and writes dx and dW.
    assert formula.forward.bytes_moved == S * (60 + 40 + 36)
    assert formula.backward.bytes_moved == S * (60 + 40 + 36 + 60 + 36)
    assert formula.saved_bytes == S * 60
    # One sequence of 10 and two rows that padding adds at its end: 2·4·18.
    assert dense.conv(10, 6, 4, 3, S, groups=2, dropped=2).forward.extra_flops == 2 * 4 * 18


def test_a_convolution_of_one_channel_a_group_is_depthwise():
    ours, depthwise = dense.conv(10, 6, 6, 3, S, groups=6), dense.depthwise_conv(10, 6, 3, S)
    for part in ("forward", "backward", "params", "saved_bytes", "scratch_bytes"):
        assert getattr(ours, part) == getattr(depthwise, part)


def test_a_convolution_of_one_tap_is_a_linear_map():
    ours, linear = dense.conv(10, 6, 4, 1, S), dense.linear(10, 6, 4, S)
    assert (ours.forward.flops, ours.backward.flops) == (linear.forward.flops, linear.backward.flops)
    assert (ours.forward.bytes_moved, ours.params) == (linear.forward.bytes_moved, linear.params)


def test_an_embedding_by_hand():
    formula = dense.embedding(ROWS, D, 100, S)
    assert formula.forward.flops == 0
    # Backward adds 6 rows of 8.
    assert formula.backward.flops == 48
    # Read 48 and written 48 elements of 4 bytes, 6 indices of 8.
    assert formula.forward.bytes_moved == 48 * 4 + 48 * 4 + 6 * 8
    assert formula.params == 800


def test_dropout_by_hand():
    # A product with the mask and one with 1/(1 - p). x and y in 4 bytes, the mask in one.
    formula = pointwise.dropout(N, S)
    assert (formula.forward.flops, formula.backward.flops) == (96, 96)
    assert formula.forward.bytes_moved == 48 * (4 + 4 + 1)
    assert formula.saved_bytes == 48


def test_rotary_by_hand():
    # 24 pairs: 4 products and 2 sums each.
    assert pointwise.rotary(N, S).forward.flops == 24 * 6
    # Turning back the same; autograd's difference is a product by -1 more a pair.
    assert executed(pointwise.rotary(N, S))[1] == 24 * 7
    # 6 tokens, d_head 8: 4 angles each, a product, cos and sin.
    table = pointwise.rotary_table(6, 8)
    assert (table.forward.flops, table.forward.transcendental) == (6 * 4 * 3, 6 * 4 * 2)


def test_a_softmax_of_top_k_by_hand():
    # 6 rows of 2: subtract the maximum, exp, sum, divide. exp and division are transcendental.
    gate = routing.top_k_gate(ROWS, 4, 2, S)
    assert (gate.forward.flops, gate.forward.transcendental) == (6 * 2 * 4, 6 * 2 * 2)
    # p·(dp - Σ p·dp): product, sum, difference, product.
    assert gate.backward.flops == 6 * 2 * 4


def test_cross_entropy_by_hand():
    # 6 rows of 8 logits: subtract the maximum, exp, sum; a row the logarithm, the difference, the sum over rows.
    loss = training.cross_entropy(ROWS, D, S)
    assert (loss.forward.flops, loss.forward.transcendental) == (3 * 48 + 3 * 6, 48 + 6)
    # exp of the log-probability, times dy; a row the target's one.
    assert loss.backward.flops == 2 * 48 + 6


# Beside torch


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize(("d_in", "d_out", "groups"), [(6, 4, 1), (6, 4, 2), (6, 6, 6), (4, 8, 4)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_runs_what_is_counted(taps: int, d_in: int, d_out: int, groups: int, bias: bool):
    """Causal: K - 1 zeros at both ends, and the K - 1 outputs too many cut off."""
    batch, tokens = 2, 5
    conv = nn.Conv1d(d_in, d_out, taps, groups=groups, padding=taps - 1, bias=bias)
    formula = dense.conv(batch * tokens, d_in, d_out, taps, S, groups=groups, dropped=batch * (taps - 1))
    # A bias is an operation of its own, and runs on the rows that are cut off too.
    run = batch * (tokens + taps - 1) * d_out if bias else 0
    forward, backward = executed(formula)
    assert priced(conv, leaf(batch, d_in, tokens)) == (forward + run, backward + run)
    assert formula.params == conv.weight.numel()


def test_a_convolution_is_what_torchs_counter_says():
    """Of one group: of several, it counts the weight gradient as if there were one."""
    conv = nn.Conv1d(6, 4, 3, padding=2, bias=False)
    formula = dense.conv(10, 6, 4, 3, S, dropped=4)
    check = module_check.check_module(conv, [leaf(2, 6, 5)], {}, backward=True)
    assert (check.forward, check.backward) == executed(formula)


@pytest.mark.parametrize(
    ("formula", "function", "inputs"),
    [
        (pointwise.silu(N, S), F.silu, (leaf(ROWS, D),)),
        (pointwise.softplus(N, S), F.softplus, (leaf(ROWS, D),)),
        (pointwise.relu(N, S), F.relu, (leaf(ROWS, D),)),
        (pointwise.gelu_tanh(N, S), lambda x: F.gelu(x, approximate="tanh"), (leaf(ROWS, D),)),
        (pointwise.join(N, S), torch.add, (leaf(ROWS, D), leaf(ROWS, D))),
        (pointwise.multiply(N, S), torch.mul, (leaf(ROWS, D), leaf(ROWS, D))),
        (pointwise.learned_scale(N, S), torch.mul, (leaf(ROWS, D), leaf(1))),
        (pointwise.clamp(N, S), lambda x: x.clamp(-1, 1), (leaf(ROWS, D),)),
        (dense.linear(ROWS, D, 5, S), F.linear, (leaf(ROWS, D), leaf(5, D))),
        (dense.bias(ROWS, D, S), torch.add, (leaf(ROWS, D).detach(), leaf(D))),
    ],
    ids=lambda value: value.name if isinstance(value, Formula) else "",
)
def test_an_operation_runs_what_is_counted(formula: Formula, function: Callable, inputs: tuple[Tensor, ...]):
    assert priced(Call(function), *inputs) == executed(formula)


def test_a_softmax_runs_what_is_counted():
    assert priced(Call(lambda x: x.softmax(-1)), leaf(ROWS, 2)) == executed(routing.top_k_gate(ROWS, 4, 2, S))


def test_an_embedding_runs_what_is_counted():
    table = nn.Embedding(100, D)
    assert priced(table, torch.arange(ROWS)) == executed(dense.embedding(ROWS, D, 100, S))


def test_dropout_runs_what_is_counted():
    """Torch on the CPU divides the mask by 1 - p once, and keeps it: forward two products, backward one."""
    formula = pointwise.dropout(N, S)
    forward, backward = priced(Call(lambda x: F.dropout(x, 0.5, training=True)), leaf(ROWS, D))
    assert (forward, backward) == (formula.forward.flops, formula.backward.flops - N)


def test_rotary_runs_what_is_counted():
    """2 sequences, 3 heads, 5 tokens of 8: 240 elements, turned by 5 tokens' angles."""
    table = RotaryTable(8, 10_000.0)
    assert (
        priced(Call(lambda position: table(position)[0]), torch.arange(5))[0]
        == executed(pointwise.rotary_table(5, 8))[0]
    )
    rotation, rotary = table(torch.arange(5)), Rotary()
    assert priced(Call(lambda x: rotary(x, rotation)), leaf(2, 3, 5, 8)) == executed(pointwise.rotary(240, S))


def test_a_layer_norm_runs_what_is_counted():
    formula = pointwise.layer_norm(ROWS, D, S, stream=S)
    assert priced(nn.LayerNorm(D), leaf(ROWS, D)) == executed(formula)
    without = nn.LayerNorm(D, bias=False)
    assert priced(without, leaf(ROWS, D)) == executed(pointwise.layer_norm(ROWS, D, S, stream=S, shift=False))


def test_a_loss_in_chunks_runs_what_is_counted():
    """Logits of 6 rows, 2 at a time: their logarithms again in backward, three losses summed and divided by 6."""
    from torch.utils.checkpoint import checkpoint

    targets = torch.zeros(ROWS, dtype=torch.int64)

    def chunk(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="sum")

    def loss(logits: Tensor) -> Tensor:
        parts = zip(logits.split(2), targets.split(2), strict=True)
        return torch.stack([checkpoint(chunk, *part, use_reentrant=False) for part in parts]).sum() / ROWS

    assert priced(Call(loss), leaf(ROWS, D)) == executed(training.cross_entropy(ROWS, D, S, 3))
