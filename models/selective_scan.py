"""The selective scan of Mamba (Gu & Dao, arXiv 2312.00752, eq. 2-4), two ways.

    dt = softplus(raw),  h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t,  y_t = (C_t h_t + D u_t) silu(z_t)

Shape suffixes: B batch, L tokens, D d_inner, N d_state, T tokens a chunk, R = T·B rows, E any.
The chunked scan works time first and keeps the channels innermost, (R, N, D): one step is then one contiguous update.
States are float32 or wider.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench.models.base import has_numbers
from benchbench.models.scan_inputs import Inputs

CHUNK = 16
"""Tokens a chunk: four (T, N, D) buffers stay in a core's second-level cache at D = 512, N = 16."""


class SelectiveScan(nn.Module):
    """The scan that `path` names: `eager`, the loop as written above, `chunked`, or `triton`. It has no parameters."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, inputs: Inputs, h_BDN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (B, L, D) in the dtype of `u`, and the state (B, D, N) after the last token.

        Continues from the state `h_BDN` (zeros if None). Both states are differentiable.
        """
        u_BLD, A_DN = inputs.u, inputs.A
        if h_BDN is None:
            h_BDN = u_BLD.new_zeros(len(u_BLD), *A_DN.shape, dtype=state_dtype(u_BLD.dtype))
        if self.path == "eager":
            return sequential_scan(inputs, h_BDN)
        if self.path == "triton":
            from benchbench.models.selective_scan_triton import triton_scan

            return triton_scan(inputs, h_BDN)
        if u_BLD.shape[1] == 1 and not torch.is_grad_enabled():
            return one_step(inputs, h_BDN)
        return chunked_scan(inputs, h_BDN)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a state of activations in `dtype` is kept in."""
    return torch.promote_types(dtype, torch.float32)


def sequential_scan(inputs: Inputs, h_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, differentiated by autograd, which keeps every state."""
    u_BLD, raw_BLD, z_BLD, B_BLN, C_BLN, A_DN, D_D = (tensor.to(h_BDN.dtype) for tensor in inputs)
    dt_BLD = F.softplus(raw_BLD)
    decay_BLDN = torch.exp(dt_BLD[..., None] * A_DN)
    added_BLDN = (dt_BLD * u_BLD)[..., None] * B_BLN[:, :, None]
    states: list[Tensor] = []
    # Slicing [:, t] instead would cost a full-size zero tensor a token in backward.
    for decay_BDN, added_BDN in zip(decay_BLDN.unbind(1), added_BLDN.unbind(1), strict=True):
        h_BDN = decay_BDN * h_BDN + added_BDN
        states.append(h_BDN)
    y_BLD = torch.einsum("bldn,bln->bld", torch.stack(states, dim=1), C_BLN) + D_D * u_BLD
    return (y_BLD * F.silu(z_BLD)).to(inputs.u.dtype), h_BDN


def one_step(inputs: Inputs, h_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """One token without gradients, in few operations."""
    u_B1D, raw_B1D, z_B1D, B_B1N, C_B1N, A_DN, D_D = (tensor.to(h_BDN.dtype) for tensor in inputs)
    dt_B1D = F.softplus(raw_B1D)
    h_BDN = torch.exp(dt_B1D.mT * A_DN).mul_(h_BDN).addcmul_((dt_B1D * u_B1D).mT, B_B1N)
    y_B1D = torch.bmm(C_B1N, h_BDN.mT).addcmul_(u_B1D, D_D).mul_(F.silu(z_B1D))
    return y_B1D.to(inputs.u.dtype), h_BDN


def chunked_scan(inputs: Inputs, h_BDN: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk of tokens at a time in reused buffers; keeps its inputs and one state a chunk, recomputes the rest."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, h_BDN)):
        return _ChunkedScan.apply(*inputs, h_BDN)  # pyright: ignore[reportReturnType]
    return _forward(inputs, h_BDN, keep=False)[:2]


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        y_BLD, h_BDN, starts = _forward(Inputs(*tensors[:-1]), tensors[-1], keep=True)
        ctx.save_for_backward(*tensors[:-1], starts)
        ctx.set_materialize_grads(False)
        return y_BLD, h_BDN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor, ...]:
        *inputs, starts = ctx.saved_tensors
        return _backward(Inputs(*inputs), starts, *grad_outputs)


def _forward(inputs: Inputs, h_BDN: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and with `keep` the state before each chunk, (L/T, B, N, D)."""
    wide = h_BDN.dtype
    u_LBD, raw_LBD, z_LBD, B_LBN, C_LBN = (tensor.transpose(0, 1).to(wide) for tensor in inputs[:5])
    (length, batch, _), A_ND = u_LBD.shape, inputs.A.T.to(wide).contiguous()
    T = min(CHUNK, length)
    y_LBD = u_LBD.new_empty(u_LBD.shape)
    starts = u_LBD.new_empty(-(-length // T) if keep else 0, batch, *A_ND.shape)
    h_RND = u_LBD.new_empty((T + 1) * batch, *A_ND.shape)
    if not u_LBD.is_meta:
        decay_RND = torch.empty_like(h_RND[batch:])
        dt_LBD = F.softplus(raw_LBD)
        h_RND[:batch] = h_BDN.mT
        hs, decays = h_RND.split(batch), decay_RND.split(batch)
        by_row = [_rows(x_LBE) for x_LBE in (dt_LBD, dt_LBD * u_LBD, B_LBN, C_LBN, y_LBD)]
        for i, (dt, dtu, B, C, y) in enumerate(_chunks(by_row, T * batch)):
            R = len(dt)
            n, h, decay = R // batch, h_RND[batch : batch + R], decay_RND[:R]
            if keep:
                starts[i] = hs[0]
            torch.mul(dt, A_ND, out=decay).exp_()
            torch.mul(dtu, B.mT, out=h)
            _accumulate(hs[1 : n + 1], decays[:n], hs[:n])
            torch.bmm(C, h, out=y)
            hs[0].copy_(hs[n])
        y_LBD.addcmul_(u_LBD, inputs.D).mul_(F.silu(z_LBD))
    return y_LBD.transpose(0, 1).to(inputs.u.dtype), h_RND[:batch].mT.clone(), starts


def _backward(inputs: Inputs, starts: Tensor, dout_BLD: Tensor | None, dh_BDN: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of the inputs and of the first state.

    With y = C h and g_t = dL/dh_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}:
    dC_t = <h_t, dy_t>,  dB_t = <g_t, dt_t u_t>,  d(dt_t u_t) = <g_t, B_t>,
    w_t = d(dt_t A) = g_t h_{t-1} exp(dt_t A),  so  dA = sum_t dt_t w_t,  and d(dt_t) has <w_t, A>.
    """
    wide = starts.dtype
    if starts.is_meta:
        return (*(torch.empty_like(tensor) for tensor in inputs), starts.new_empty(starts.shape[1:]).mT)
    u_LBD, raw_LBD, z_LBD, B_LBN, C_LBN = (tensor.transpose(0, 1).to(wide) for tensor in inputs[:5])
    (length, batch, _), A_ND = u_LBD.shape, inputs.A.T.to(wide).contiguous()
    T = min(CHUNK, length)
    dt_LBD = F.softplus(raw_LBD)
    dtu_LBD = dt_LBD * u_LBD
    dout_LBD = torch.zeros_like(u_LBD) if dout_BLD is None else dout_BLD.transpose(0, 1).to(wide)
    dy_LBD = dout_LBD * F.silu(z_LBD)
    y_LBD, ddt_LBD, ddtu_LBD = (u_LBD.new_empty(u_LBD.shape) for _ in range(3))
    dB_LBN, dC_LBN = (B_LBN.new_empty(B_LBN.shape) for _ in range(2))
    h_RND = u_LBD.new_empty((T + 1) * batch, *A_ND.shape)
    decay_RND, g_RND = torch.empty_like(h_RND[batch:]), torch.empty_like(h_RND[batch:])
    dA_RND = torch.zeros_like(g_RND)
    carry_BND = torch.zeros_like(starts[0]) if dh_BDN is None else dh_BDN.mT.to(wide).contiguous()
    ones_R1N = A_ND.new_ones(T * batch, 1, len(A_ND))
    hs, decays, gs = h_RND.split(batch), decay_RND.split(batch), g_RND.split(batch)
    by_step = (dt_LBD, dtu_LBD, dy_LBD, B_LBN, C_LBN, y_LBD, ddt_LBD, ddtu_LBD, dB_LBN, dC_LBN)
    by_row = [_rows(x_LBE) for x_LBE in by_step]
    chunks = _chunks(by_row, T * batch)
    for i, (dt, dtu, dy, B, C, y, ddt, ddtu, dB, dC) in reversed(list(enumerate(chunks))):
        R = len(dt)
        n, h, decay, g, w = R // batch, h_RND[batch : batch + R], decay_RND[:R], g_RND[:R], h_RND[:R]
        hs[0].copy_(starts[i])
        torch.mul(dt, A_ND, out=decay).exp_()
        torch.mul(dtu, B.mT, out=h)
        _accumulate(hs[1 : n + 1], decays[:n], hs[:n])
        torch.bmm(C, h, out=y)
        torch.bmm(dy, h.mT, out=dC)
        torch.mul(dy, C.mT, out=g)
        gs[n - 1].add_(carry_BND)
        _accumulate(gs[: n - 1][::-1], decays[1:n][::-1], gs[1:n][::-1])
        torch.mul(decays[0], gs[0], out=carry_BND)
        torch.bmm(dtu, g.mT, out=dB)
        torch.bmm(B, g, out=ddtu)
        w.mul_(g).mul_(decay)
        dA_RND[:R].addcmul_(w, dt)
        torch.bmm(ones_R1N[:R], w.mul_(A_ND), out=ddt)
    draw_LBD = ddt_LBD.addcmul_(ddtu_LBD, u_LBD).mul_(torch.sigmoid(raw_LBD))
    dz_LBD = torch.ops.aten.silu_backward(y_LBD.addcmul_(u_LBD, inputs.D).mul_(dout_LBD), z_LBD)
    dD_D = (dy_LBD * u_LBD).sum((0, 1))
    du_LBD = ddtu_LBD.mul_(dt_LBD).addcmul_(dy_LBD, inputs.D)
    grads = (*(x.transpose(0, 1) for x in (du_LBD, draw_LBD, dz_LBD, dB_LBN, dC_LBN)), dA_RND.sum(0).T, dD_D)
    return (*(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)), carry_BND.mT)


def _rows(x_LBE: Tensor) -> Tensor:
    """(L·B, 1, E): one row for each token and sequence, a left side of a batched product."""
    return x_LBE.flatten(0, 1)[:, None]


def _chunks(by_row: Sequence[Tensor], R: int) -> list[tuple[Tensor, ...]]:
    """R rows of every tensor at a time. None of fake tensors, of which all but the loop over the chunks then runs."""
    if not has_numbers(by_row[0]):
        return []
    return list(zip(*(x_R1E.split(R) for x_R1E in by_row), strict=True))


def _accumulate(into: tuple[Tensor, ...], decays: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> None:
    """into[i] += decays[i] · before[i], in order: before[i + 1] is into[i]."""
    if into and into[0].device.type == "cpu":
        # On CPU this is a loop in C++ over the list, in order; elsewhere it is one kernel without an order.
        torch._foreach_addcmul_(into, decays, before)  # pyright: ignore[reportPrivateImportUsage]
        return
    for target, decay, previous in zip(into, decays, before, strict=True):
        target.addcmul_(decay, previous)
