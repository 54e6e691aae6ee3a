"""The state-space dual layer of Mamba-2 (Dao & Gu, arXiv 2405.21060, sections 5 and 6), two ways.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ,   y_t = h_t C_t + D x_t

for each head, with one number A and one D a head; the heads of a group share B and C. With a_t, the sum of dt A from a
chunk's first token to t, the outputs of a chunk whose first state is h are

    y_t = exp(a_t) h C_t + Σ_{s ≤ t} exp(a_t - a_s) (C_t·B_s) dt_s x_s + D x_t

and its last state is exp(a_Q) h + Σ_s exp(a_Q - a_s) dt_s x_s B_sᵀ: products of matrices but for the decays, whose
exponents are never above 0. A decay is off by the rounding of a: by |a_Q| 6e-8 of itself in float32.

Shape suffixes: B batch, L tokens, G groups, R heads a group, H = G·R heads, P headdim, E = R·P, N d_state;
c chunks, Q tokens a chunk, M = c·B·G. Inside, chunks come first and a state is (N, E): all heads of a group are then
one product with their common B or C. States, decays and sums are float32 or wider.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench.models.base import has_numbers
from benchbench.models.selective_scan import state_dtype

CHUNK = 64
"""Tokens a chunk, at most: the squares of more would cost more than the states of fewer."""

SPAN = 8
"""Chunks at a time. Of each span one state is kept for backward."""


class Inputs(NamedTuple):
    """What the layer reads besides a state. x: (B, L, H, P); dt, positive: (B, L, H); B, C: (B, L, G, N); A, D: (H)."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    D: Tensor


class SSD(nn.Module):
    """The layer that `path` names: `eager`, the loop over tokens, or `chunked`. It has no parameters."""

    def __init__(self, path: str, chunk: int = CHUNK) -> None:
        super().__init__()
        self.path = path
        self.chunk = min(chunk, CHUNK)

    def forward(self, inputs: Inputs, h_BHPN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (B, L, H, P) in the dtype of `x`, and the state (B, H, P, N) after the last token.

        Continues from the state `h_BHPN` (zeros if None). Both states are differentiable.
        """
        x_BLHP = inputs.x
        if h_BHPN is None:
            shape = (len(x_BLHP), *x_BLHP.shape[2:], inputs.B.shape[-1])
            h_BHPN = x_BLHP.new_zeros(shape, dtype=state_dtype(x_BLHP.dtype))
        with _without_autocast(x_BLHP.device.type):
            if self.path == "eager":
                return sequential(inputs, h_BHPN)
            if x_BLHP.shape[1] == 1 and not torch.is_grad_enabled():
                return one_step(inputs, h_BHPN)
            return chunked(inputs, h_BHPN, self.chunk)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def sequential(inputs: Inputs, h_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, differentiated by autograd, which keeps every state."""
    x_BLHP, dt_BLH, B_BLGN, C_BLGN, A_H, D_H = (tensor.to(h_BHPN.dtype) for tensor in inputs)
    heads = (B_BLGN.shape[2], -1)
    decay_BLGR = torch.exp(dt_BLH * A_H).unflatten(2, heads)
    dtx_BLGRP = (dt_BLH[..., None] * x_BLHP).unflatten(2, heads)
    added_BLGRPN = dtx_BLGRP[..., None] * B_BLGN[:, :, :, None, None]
    h_BGRPN = h_BHPN.unflatten(1, heads)
    states: list[Tensor] = []
    for decay_BGR, added_BGRPN in zip(decay_BLGR.unbind(1), added_BLGRPN.unbind(1), strict=True):
        h_BGRPN = decay_BGR[..., None, None] * h_BGRPN + added_BGRPN
        states.append(h_BGRPN)
    y_BLGE = (torch.stack(states, dim=1).flatten(3, 4) @ C_BLGN[..., None])[..., 0]
    y_BLHP = y_BLGE.reshape(x_BLHP.shape) + D_H[:, None] * x_BLHP
    return y_BLHP.to(inputs.x.dtype), h_BGRPN.flatten(1, 2)


def one_step(inputs: Inputs, h_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    """One token without gradients, in few operations."""
    x_B1HP, dt_B1H, B_B1GN, C_B1GN, A_H, D_H = (tensor.to(h_BHPN.dtype) for tensor in inputs)
    batch, groups, states = len(x_B1HP), *B_B1GN.shape[2:]
    decay_BH = torch.exp(dt_B1H * A_H)[:, 0]
    dtx_BGE1 = (dt_B1H[..., None] * x_B1HP).view(batch, groups, -1, 1)
    h_BGEN = (decay_BH[..., None, None] * h_BHPN).view(batch, groups, -1, states)
    h_BGEN.addcmul_(dtx_BGE1, B_B1GN[:, 0, :, None])
    y_ME1 = torch.bmm(h_BGEN.flatten(0, 1), C_B1GN.reshape(-1, states, 1))
    y_B1HP = y_ME1.view(x_B1HP.shape).addcmul_(x_B1HP, D_H[:, None])
    return y_B1HP.to(inputs.x.dtype), h_BGEN.view(h_BHPN.shape)


def chunked(inputs: Inputs, h_BHPN: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """A span of chunks at a time; keeps its inputs and one state a span, recomputes the rest."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, h_BHPN)):
        return _Chunked.apply(*inputs, h_BHPN, chunk)  # pyright: ignore[reportReturnType]
    return _forward(inputs, h_BHPN, chunk, keep=False)[:2]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, h_BHPN, chunk = given
        y_BLHP, last_BHPN, starts = _forward(Inputs(*tensors), h_BHPN, chunk, keep=True)
        ctx.save_for_backward(*tensors, starts)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y_BLHP, last_BHPN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        return (*_backward(Inputs(*inputs), starts, ctx.chunk, *grad_outputs), None)


def _forward(inputs: Inputs, h_BHPN: Tensor, chunk: int, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and with `keep` the state before each span, (spans, B, G, N, E)."""
    length, groups = inputs.x.shape[1], inputs.B.shape[2]
    chunk = min(chunk, length)
    y_BLHP = inputs.x.new_empty(inputs.x.shape)
    h_BGNE = _inside(h_BHPN, groups)
    starts = h_BGNE.new_empty(-(-length // (SPAN * chunk)) if keep else 0, *h_BGNE.shape)
    for i, begin in enumerate(range(0, length, _tokens(inputs.x, chunk))):
        if keep:
            starts[i] = h_BGNE
        span = _span(inputs, begin, chunk, h_BHPN.dtype)
        states_cBGNE = _states(span, span.entering(), h_BGNE)
        decays_cBGRQQ, scores_cBG1QQ = _squares(span)
        y_cBGQRP = torch.bmm(span.C_MQN, states_cBGNE[:-1].flatten(0, 2)).view(span.x_cBGQRP.shape)
        y_cBGQRP.mul_(span.decay_cBGQR[..., None])
        y_cBGQRP += _products(decays_cBGRQQ.mul_(scores_cBG1QQ), span.dtx()).transpose(3, 4)
        y_cBGQRP.addcmul_(span.x_cBGQRP, span.D_G1RP)
        _paste(y_BLHP, begin, y_cBGQRP)
        h_BGNE = states_cBGNE[-1]
    return y_BLHP, h_BGNE.mT.reshape(h_BHPN.shape), starts


def _backward(
    inputs: Inputs, starts: Tensor, chunk: int, dout_BLHP: Tensor | None, dlast_BHPN: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of the inputs and of the first state.

    In a chunk with first state h, let g be the gradient of its last state. W = decays ∘ C Bᵀ has dW = dy (dt x)ᵀ: then
    C Bᵀ has Σ_heads dW ∘ decays, and a_t - a_s has dW ∘ W. Of what h gives, s = exp(a) dy: dC = s hᵀ, a has s·(C h),
    and dh = Cᵀ s + exp(a_Q) g. Of what enters the last state, e = B g: dB = (exp(a_Q - a) dt x) gᵀ, and a_Q - a has
    e·exp(a_Q - a) dt x. exp(a_Q) has h·g. All that a_t has, dt A has at t and at every token before it in the chunk.
    """
    (batch, length, heads, _), groups, wide = inputs.x.shape, inputs.B.shape[2], starts.dtype
    chunk = min(chunk, length)
    dx_BLHP, dB_BLGN, dC_BLGN = (tensor.new_empty(tensor.shape) for tensor in (inputs.x, inputs.B, inputs.C))
    ddt_BLH, ddtA_BLH, dD_BLH = (starts.new_empty(batch, length, heads) for _ in range(3))
    dout_BLHP = torch.zeros_like(dx_BLHP) if dout_BLHP is None else dout_BLHP
    g_BGNE = torch.zeros_like(starts[0]) if dlast_BHPN is None else _inside(dlast_BHPN.to(wide), groups)
    begins = range(0, length, _tokens(inputs.x, chunk))
    for start_BGNE, begin in zip(reversed(starts[: len(begins)].unbind()), reversed(begins), strict=True):
        span = _span(inputs, begin, chunk, wide)
        x_cBGQRP, dy_cBGQRP = span.x_cBGQRP, _cut(dout_BLHP, groups, begin, chunk, wide)
        shape, flat = x_cBGQRP.shape, (len(span.B_MQN), chunk, -1)

        # What the states before the chunks give.
        entering_MQE = span.entering()
        states_cBGNE = _states(span, entering_MQE, start_BGNE)
        grads_cBGNE = torch.empty_like(states_cBGNE)
        before_MNE = states_cBGNE[:-1].flatten(0, 2)
        s_MQE = (dy_cBGQRP * span.decay_cBGQR[..., None]).reshape(flat)
        da_cBGQR = torch.bmm(span.C_MQN, before_MNE).mul_(s_MQE).view(shape).sum(-1)
        dC_MQN = torch.bmm(s_MQE, before_MNE.mT)
        torch.bmm(span.C_MQN.mT, s_MQE, out=grads_cBGNE[:-1].flatten(0, 2))

        # What enters the states after them.
        grads_cBGNE[-1] = g_BGNE
        _pass_on(grads_cBGNE[:-1].unbind()[::-1], grads_cBGNE[1:].unbind()[::-1], span.across().unbind()[::-1])
        after_MNE = grads_cBGNE[1:].flatten(0, 2)
        dB_MQN = torch.bmm(entering_MQE, after_MNE.mT)
        e_cBGQRP = torch.bmm(span.B_MQN, after_MNE).view(shape)
        dwhole_cBGR = (states_cBGNE[:-1] * grads_cBGNE[1:]).unflatten(-1, shape[4:]).sum((3, 5))
        denters_cBGQR = (e_cBGQRP * x_cBGQRP).sum(-1)
        gone_cBGQR = denters_cBGQR * span.enters_cBGQR
        da_cBGQR -= gone_cBGQR
        da_cBGQR[:, :, :, -1] += gone_cBGQR.sum(3) + dwhole_cBGR * span.whole_cBGR

        # What the tokens of a chunk give each other.
        decays_cBGRQQ, scores_cBG1QQ = _squares(span)
        weights_cBGRQQ = decays_cBGRQQ * scores_cBG1QQ
        dy_cBGRQP = dy_cBGQRP.transpose(3, 4).contiguous()
        dweights_cBGRQQ = _products(dy_cBGRQP, span.dtx().mT)
        ddtx_cBGQRP = _products(weights_cBGRQQ.mT, dy_cBGRQP).transpose(3, 4)
        dscores_MQQ = decays_cBGRQQ.mul_(dweights_cBGRQQ).sum(3).flatten(0, 2).tril_()
        dweights_cBGRQQ.mul_(weights_cBGRQQ)
        da_cBGQR += (dweights_cBGRQQ.sum(-1) - dweights_cBGRQQ.sum(-2)).transpose(3, 4)
        dC_MQN += torch.bmm(dscores_MQQ, span.B_MQN)
        dB_MQN += torch.bmm(dscores_MQQ.mT, span.C_MQN)

        ddt_cBGQR = denters_cBGQR.mul_(span.left_cBGQR).add_((ddtx_cBGQRP * x_cBGQRP).sum(-1))
        dx_cBGQRP = e_cBGQRP.mul_(span.enters_cBGQR[..., None])
        dx_cBGQRP += ddtx_cBGQRP.mul_(span.dt_cBGQR[..., None])
        dx_cBGQRP.addcmul_(dy_cBGQRP, span.D_G1RP)
        for whole, part in (
            (dx_BLHP, dx_cBGQRP),
            (ddt_BLH, ddt_cBGQR),
            (dB_BLGN, dB_MQN.view(*shape[:4], 1, -1)),
            (dC_BLGN, dC_MQN.view(*shape[:4], 1, -1)),
            (ddtA_BLH, da_cBGQR.flip(3).cumsum(3).flip(3)),
            (dD_BLH, (dy_cBGQRP * x_cBGQRP).sum(-1)),
        ):
            _paste(whole, begin, part)
        g_BGNE = grads_cBGNE[0]
    ddt_BLH.addcmul_(ddtA_BLH, inputs.A.to(wide))
    dA_H = ddtA_BLH.mul_(inputs.dt).sum((0, 1))
    grads = (dx_BLHP, ddt_BLH, dB_BLGN, dC_BLGN, dA_H, dD_BLH.sum((0, 1)))
    dh_BHPN = g_BGNE.mT.reshape(batch, heads, -1, starts.shape[3])
    return (*(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)), dh_BHPN)


class _Span(NamedTuple):
    """Whole chunks of tokens, filled up with zeros where the sequence ends, and what they do to a state."""

    x_cBGQRP: Tensor
    dt_cBGQR: Tensor
    B_MQN: Tensor
    C_MQN: Tensor
    D_G1RP: Tensor
    a_cBGQR: Tensor
    left_cBGQR: Tensor
    """What is left of a token at the end of its chunk: exp(a_Q - a)."""
    enters_cBGQR: Tensor
    """How much of x enters the chunk's last state: dt exp(a_Q - a)."""
    decay_cBGQR: Tensor
    """What is left of the chunk's first state: exp(a)."""
    whole_cBGR: Tensor
    """The same at the chunk's end: exp(a_Q)."""

    def entering(self) -> Tensor:
        """What a token adds to the chunk's last state, before its product with B: (M, Q, E)."""
        return (self.x_cBGQRP * self.enters_cBGQR[..., None]).reshape(*self.B_MQN.shape[:2], -1)

    def dtx(self) -> Tensor:
        """dt x of each head by itself, (c, B, G, R, Q, P)."""
        x_cBGRQP, dt_cBGRQ = self.x_cBGQRP.transpose(3, 4), self.dt_cBGQR.transpose(3, 4)
        return torch.mul(x_cBGRQP, dt_cBGRQ[..., None], out=x_cBGRQP.new_empty(x_cBGRQP.shape))

    def across(self) -> Tensor:
        """`whole` of each channel, beside a state: (c, B, G, 1, E)."""
        whole_cBGRP = self.whole_cBGR[..., None].expand(*self.whole_cBGR.shape, self.x_cBGQRP.shape[-1])
        return whole_cBGRP.flatten(3)[:, :, :, None]


def _span(inputs: Inputs, begin: int, chunk: int, wide: torch.dtype) -> _Span:
    """The span that begins at a token."""
    groups, width = inputs.B.shape[2], inputs.x.shape[3]
    x_cBGQRP, dt_cBGQR, B_cBGQ1N, C_cBGQ1N = (_cut(tensor, groups, begin, chunk, wide) for tensor in inputs[:4])
    A_G1R, D_GR = inputs.A.to(wide).view(groups, 1, -1), inputs.D.to(wide).view(groups, -1)
    a_cBGQR = torch.cumsum(dt_cBGQR * A_G1R, dim=3)
    last_cBG1R = a_cBGQR[:, :, :, -1:]
    left_cBGQR = torch.exp(last_cBG1R - a_cBGQR)
    return _Span(
        x_cBGQRP,
        dt_cBGQR,
        B_cBGQ1N.flatten(0, 2)[:, :, 0],
        C_cBGQ1N.flatten(0, 2)[:, :, 0],
        # Spread out, so that sums of products run over neighbours in memory.
        D_GR[:, None, :, None].expand(-1, -1, -1, width).contiguous(),
        a_cBGQR,
        left_cBGQR,
        dt_cBGQR * left_cBGQR,
        torch.exp(a_cBGQR),
        torch.exp(last_cBG1R[:, :, :, 0]),
    )


def _states(span: _Span, entering_MQE: Tensor, h_BGNE: Tensor) -> Tensor:
    """The state before each chunk, and the one after the last: (c + 1, B, G, N, E)."""
    states_cBGNE = h_BGNE.new_empty(len(span.x_cBGQRP) + 1, *h_BGNE.shape)
    states_cBGNE[0] = h_BGNE
    torch.bmm(span.B_MQN.mT, entering_MQE, out=states_cBGNE[1:].flatten(0, 2))
    _pass_on(states_cBGNE[1:].unbind(), states_cBGNE[:-1].unbind(), span.across().unbind())
    return states_cBGNE


def _pass_on(into: Sequence[Tensor], before: Sequence[Tensor], whole: Sequence[Tensor]) -> None:
    """into[i] += whole[i] · before[i], in order: before[i + 1] is into[i]. Shapes alone have no order."""
    if has_numbers(into[0]):
        for target, state, factor in zip(into, before, whole, strict=True):
            target.addcmul_(state, factor)


def _squares(span: _Span) -> tuple[Tensor, Tensor]:
    """Within a chunk exp(a_t - a_s), (c, B, G, R, Q, Q), and C_t·B_s, (c, B, G, 1, Q, Q), which is 0 for s > t."""
    a_cBGRQ = span.a_cBGQR.transpose(3, 4).contiguous()
    decays_cBGRQQ = (a_cBGRQ[..., :, None] - a_cBGRQ[..., None, :]).clamp_(max=0).exp_()
    scores_MQQ = torch.bmm(span.C_MQN, span.B_MQN.mT).tril_()
    return decays_cBGRQQ, scores_MQQ.view(*a_cBGRQ.shape[:3], 1, *scores_MQQ.shape[1:])


def _products(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product for each chunk, sequence and head."""
    return torch.bmm(a.flatten(0, 3), b.flatten(0, 3)).unflatten(0, a.shape[:4])


def _inside(h_BHPN: Tensor, groups: int) -> Tensor:
    """A state as it is kept inside: (B, G, N, E)."""
    return h_BHPN.unflatten(1, (groups, -1)).flatten(2, 3).mT


def _cut(x_BLHE: Tensor, groups: int, begin: int, chunk: int, wide: torch.dtype) -> Tensor:
    """A span of what has heads or groups: (c, B, G, Q, R, ...) from (B, L, H, ...)."""
    x_BLHE = x_BLHE[:, begin : begin + _tokens(x_BLHE, chunk)].to(wide)
    if missing := -x_BLHE.shape[1] % chunk:
        x_BLHE = F.pad(x_BLHE, (0, 0) * (x_BLHE.dim() - 2) + (0, missing))
    return x_BLHE.unflatten(2, (groups, -1)).unflatten(1, (-1, chunk)).transpose(0, 1).transpose(2, 3)


def _paste(into_BLHE: Tensor, begin: int, x_cBGQRE: Tensor) -> None:
    """Writes a span to its place."""
    x_BLHE = x_cBGQRE.transpose(2, 3).transpose(0, 1).flatten(3, 4).flatten(1, 2)
    into_BLHE = into_BLHE[:, begin : begin + x_BLHE.shape[1]]
    into_BLHE.copy_(x_BLHE[:, : into_BLHE.shape[1]])


def _tokens(x: Tensor, chunk: int) -> int:
    """Tokens a span. What is all shape has one span: a million tokens are then traced without a loop."""
    return SPAN * chunk if has_numbers(x) else x.shape[1]
