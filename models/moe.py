"""A top-k mixture of experts that computes each token's K experts and no others, without waiting for the device.

The T·K pairs of a token and its expert are sorted by expert, each expert multiplies its own run of rows, and the rows
go back to their tokens. There is no capacity limit: no token is ever dropped.

On the CPU the last bits of a product can depend on how many rows it has. A sequence's earlier outputs must not depend
on where later tokens are routed, so weights lie (inputs, outputs), for which MKL gives a row the same bits among 2 or
more rows up to a few hundred inputs, and a group of one row is doubled, unless the sequence is one token.

On CUDA a handful of rows, as in decoding, is not sorted: every row is multiplied by weights fetched for it alone, which
takes a third of the launches.

Shape suffixes: B batch, N tokens, T = B·N, D d_model, E experts, K = top_k, R = T·K rows, I inputs, O outputs,
J tiles, M rows of a tile.
"""

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from benchbench.models.base import has_numbers

TILES_PER_EXPERT = 8


class MoE(nn.Module):
    """sum over a token's K largest router logits of softmax-over-those-K times expert(x); K = E is the dense mixture.

    With K = 1 the softmax of one logit is 1, whatever the logit: the router's gradient is always 0.
    """

    def __init__(self, d_model: int, d_ff: int, n_experts: int, top_k: int, dropout: float) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(d_model, n_experts)
        self.experts = Experts(d_model, d_ff, n_experts, dropout)
        nn.init.xavier_uniform_(self.router.weight)
        nn.init.zeros_(self.router.bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_TD = x_BND.flatten(0, -2)
        logits_TK, expert_TK = largest(self.router(x_TD), self.top_k)
        gates_TK = logits_TK.softmax(-1)
        if x_TD.is_cuda and expert_TK.numel() <= self.router.out_features:
            rows_TKD = x_TD[:, None].expand(-1, self.top_k, -1)
            y_TKD = self.experts.each(rows_TKD.flatten(0, 1), expert_TK.flatten()).view_as(rows_TKD)
            return reduce(torch.add, (y_TKD * gates_TK[..., None]).unbind(1)).view_as(x_BND)
        expert_R, order_R = expert_TK.flatten().sort(stable=True)
        numbers_E = torch.arange(self.router.out_features, device=x_TD.device)
        ends_E = torch.searchsorted(expert_R, numbers_E, right=True)
        back_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=x_TD.device))
        rows_RD = taken(x_TD, order_R // self.top_k, back_R, copies=self.top_k)
        rows_RD = self.experts(rows_RD, ends_E, lone=x_BND.shape[-2] == 1)
        rows_RD = rows_RD * taken(gates_TK.flatten(), order_R, back_R)[:, None]
        y_TKD = taken(rows_RD, back_R, order_R).unflatten(0, (-1, self.top_k))
        return reduce(torch.add, y_TKD.unbind(1)).view_as(x_BND)


def largest(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The K largest logits of each token, and whose they are. On CUDA `topk` of so few takes longer than a maximum."""
    if top_k == 1 and logits_TE.is_cuda:
        return logits_TE.max(-1, keepdim=True)
    return logits_TE.topk(top_k, dim=-1)


def taken(x: Tensor, index_R: Tensor, back_R: Tensor, copies: int = 1) -> Tensor:
    """Rows `index_R` of x, each row of it taken `copies` times; row r of x is at back_R[copies·r : copies·(r + 1)].

    Torch's own gradient of it adds row by row, with atomic additions on CUDA; ours there takes the rows back.
    """
    return Taken.apply(x, index_R, back_R, copies) if x.is_cuda else x.index_select(0, index_R)


class Taken(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index_R: Tensor, back_R: Tensor, copies: int) -> Tensor:
        ctx.copies = copies
        ctx.save_for_backward(back_R)
        return x.index_select(0, index_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (back_R,) = ctx.saved_tensors
        grads = grad.index_select(0, back_R).unflatten(0, (-1, ctx.copies))
        return reduce(torch.add, grads.unbind(1)), None, None, None


class Experts(nn.Module):
    """down(dropout(ReLU(up(x)))) of each row's expert; expert e owns the rows [ends[e-1], ends[e])."""

    def __init__(self, d_model: int, d_ff: int, n_experts: int, dropout: float) -> None:
        super().__init__()
        self.up = GroupedLinear(n_experts, d_model, d_ff)
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.down = GroupedLinear(n_experts, d_ff, d_model)

    def forward(self, x_RD: Tensor, ends_E: Tensor, lone: bool = True) -> Tensor:
        return self.down(self.dropout(self.act(self.up(x_RD, ends_E, lone))), ends_E, lone)

    def each(self, x_RD: Tensor, expert_R: Tensor) -> Tensor:
        """The same of rows in any order, whose experts are given."""
        return self.down.each(self.dropout(self.act(self.up.each(x_RD, expert_R))), expert_R)


class GroupedLinear(nn.Module):
    """One linear map an expert, stacked: weight (E, I, O), bias (E, O)."""

    def __init__(self, n_experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_in, d_out))
        self.bias = nn.Parameter(torch.zeros(n_experts, d_out))
        for weight_IO in self.weight:
            nn.init.xavier_uniform_(weight_IO)

    def forward(self, x_RI: Tensor, ends_E: Tensor, lone: bool = True) -> Tensor:
        return grouped_linear(x_RI, ends_E, self.weight, self.bias, lone)

    def each(self, x_RI: Tensor, expert_R: Tensor) -> Tensor:
        """(R, O), with a copy of its expert's weight for every row."""
        w_RIO, b_RO = self.weight.index_select(0, expert_R), self.bias.index_select(0, expert_R)
        return torch.baddbmm(b_RO[:, None], x_RI[:, None], w_RIO)[:, 0]


def grouped_linear(x_RI: Tensor, ends_E: Tensor, w_EIO: Tensor, b_EO: Tensor, lone: bool = True) -> Tensor:
    """Rows [ends[e-1], ends[e]) of `x_RI` through the linear map e, (R, O), with no wait for the device on CUDA.

    `lone` lets a group of one row be a matrix-vector product on the CPU, whose last bits differ.
    """
    kind = "cuda" if x_RI.is_cuda else "cpu"
    if torch.is_autocast_enabled(kind):  # at once, not an expert's at a time
        dtype = torch.get_autocast_dtype(kind)
        x_RI, w_EIO, b_EO = x_RI.to(dtype), w_EIO.to(dtype), b_EO.to(dtype)
    if x_RI.is_cuda:
        # The kernel wants every row on a boundary of 16 bytes: 8 numbers.
        fits = x_RI.dtype == torch.bfloat16 and not any(size % 8 for size in w_EIO.shape[1:])
        product = kernel_linear if fits and hasattr(F, "grouped_mm") else tiled_linear
        return product(x_RI, ends_E, w_EIO, b_EO)
    return sliced_linear(x_RI, ends_E, w_EIO, b_EO, lone)


def sliced_linear(x_RI: Tensor, ends_E: Tensor, w_EIO: Tensor, b_EO: Tensor, lone: bool = True) -> Tensor:
    """One GEMM a group. Reads the group sizes on the host, which is free on the CPU.

    Meta and fake tensors have no sizes to read: their rows are split evenly, so that shapes and FLOPs come out right.
    """
    R, E = len(x_RI), len(w_EIO)
    unknown = not has_numbers(x_RI)
    ends = [R * (e + 1) // E for e in range(E)] if unknown else ends_E.tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    groups = zip(x_RI.split(sizes), w_EIO.unbind(), b_EO.unbind(), strict=True)
    return torch.cat([affine(x, w, b, lone or unknown) for x, w, b in groups])


def affine(x_RI: Tensor, w_IO: Tensor, b_O: Tensor, lone: bool) -> Tensor:
    """x·w + b; a single row is computed twice where it must not be alone."""
    return torch.addmm(b_O, x_RI, w_IO) if lone or len(x_RI) != 1 else torch.addmm(b_O, x_RI.expand(2, -1), w_IO)[:1]


def kernel_linear(x_RI: Tensor, ends_E: Tensor, w_EIO: Tensor, b_EO: Tensor) -> Tensor:
    """One grouped GEMM of torch, bfloat16 on CUDA, to which a product with one-hot rows adds the bias in place.

    So the bias's gradient is a product too. E is filled up with zeros to 8, a row of 16 bytes, as fast kernels want it.
    """
    row_R = torch.arange(len(x_RI), device=x_RI.device)
    expert_R = torch.searchsorted(ends_E, row_R, right=True)
    filled = -(-len(b_EO) // 8) * 8
    onehot_RE = (expert_R[:, None] == torch.arange(filled, device=x_RI.device)).to(x_RI.dtype)
    product_RO = F.grouped_mm(x_RI, w_EIO, offs=ends_E.to(torch.int32))
    return product_RO.addmm_(onehot_RE, F.pad(b_EO, (0, 0, 0, filled - len(b_EO))))


def tiled_linear(x_RI: Tensor, ends_E: Tensor, w_EIO: Tensor, b_EO: Tensor) -> Tensor:
    """One batched GEMM over tiles of M rows, each of one expert: no group size is ever read by the host.

    A group's last tile is padded; R // M + E tiles hold any split of R rows, so at most E of them are padding.
    """
    R, E = len(x_RI), len(w_EIO)
    M = -(-R // (TILES_PER_EXPERT * E))
    J = R // M + min(E, R)
    starts_E = F.pad(ends_E[:-1], (1, 0))
    tiles_E = (ends_E - starts_E + M - 1) // M
    tile_ends_E = tiles_E.cumsum(0)
    tile_J = torch.arange(J, device=x_RI.device)
    expert_J = torch.searchsorted(tile_ends_E, tile_J, right=True).clamp(max=E - 1)
    row_R = torch.arange(R, device=x_RI.device)
    expert_R = torch.searchsorted(ends_E, row_R, right=True)
    slot_R = ((tile_ends_E - tiles_E) * M - starts_E)[expert_R] + row_R
    x_JMI = x_RI.new_zeros(J * M, x_RI.shape[1]).index_copy(0, slot_R, x_RI).unflatten(0, (J, M))
    y_JMO = torch.baddbmm(b_EO[expert_J][:, None], x_JMI, w_EIO[expert_J])
    return y_JMO.flatten(0, 1).index_select(0, slot_R)
