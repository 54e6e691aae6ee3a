"""The fused path of Mamba: what calls the kernels is tested anywhere, on kernels written here in plain torch; the real
ones, on a GPU, against the reference path."""

from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchbench import extras
from benchbench.case import Case
from benchbench.errors import UnsupportedError
from benchbench.gate import difference, gate
from benchbench.models import LanguageModel, build, mamba_fused
from benchbench.models.mamba_fused import Kernels
from benchbench.specs import preset
from benchbench.specs.mamba import MambaSpec

TINY = MambaSpec(name="small", d_model=32, n_layers=2, vocab_size=64, d_state=4)
SMALL = MambaSpec(name="small", d_model=64, n_layers=2, vocab_size=256)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CHUNK = 2048
"""Tokens that the fused scan reads between two states it keeps."""


def pair(spec: MambaSpec, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[LanguageModel, ...]:
    """The fused model and the reference, on the same weights."""
    return tuple(build(spec, path=path, device=device, dtype=dtype, seed=1) for path in ("fused", "eager"))


def tokens(spec: MambaSpec, batch: int, length: int, device: torch.device) -> Tensor:
    return torch.randint(spec.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length)).to(device)


# ---- anywhere: refusals


def test_the_cpu_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="'fused' needs an NVIDIA GPU, not the device 'cpu'") as caught:
        build(TINY, path="fused")(tokens(TINY, 1, 4, CPU))
    assert "chunked" in caught.value.hint


def test_tracing_without_data_is_refused():
    with pytest.raises(UnsupportedError, match="cannot be traced without data"):
        build(TINY, path="fused", device="meta")(torch.zeros(1, 4, dtype=torch.long, device="meta"))


@pytest.mark.parametrize(
    ("module", "what", "command"),
    [
        ("mamba_ssm", "needs mamba-ssm, which", "MAMBA_FORCE_BUILD=TRUE"),
        ("mamba_ssm.ops", "needs mamba-ssm, which", "MAMBA_FORCE_BUILD=TRUE"),
        ("selective_scan_cuda", "CUDA extension of mamba-ssm", "MAMBA_FORCE_BUILD=TRUE"),
        ("causal_conv1d", "needs causal-conv1d, which", "CAUSAL_CONV1D_FORCE_BUILD=TRUE"),
        ("causal_conv1d_cuda", "CUDA extension of causal-conv1d", "CAUSAL_CONV1D_FORCE_BUILD=TRUE"),
        ("triton", "needs Triton", "pip install triton"),
        ("einops", "einops, which mamba-ssm imports", "pip install einops"),
        ("something_new", "needs something_new", "pip install something_new"),
    ],
)
def test_a_missing_piece_is_named_with_what_to_type(module: str, what: str, command: str):
    refusal = extras.refusal("fused", ModuleNotFoundError(f"No module named '{module}'", name=module))

    assert what in refusal.message
    assert "is not installed" in refusal.message
    assert command in refusal.hint


def test_a_build_for_another_torch_is_told_from_a_missing_one():
    error = ImportError("undefined symbol: _ZN3c10", name="selective_scan_cuda")

    assert extras.refusal("fused", error).message == (
        "the path 'fused' cannot import the CUDA extension of mamba-ssm: undefined symbol: _ZN3c10."
    )


@pytest.mark.skipif(find_spec("causal_conv1d") is not None, reason="causal-conv1d is installed")
def test_without_the_extra_the_kernels_are_refused():
    with pytest.raises(UnsupportedError, match="needs causal-conv1d, which is not installed"):
        mamba_fused.kernels()


def test_parameters_are_those_of_the_other_paths():
    fused, eager = (build(TINY, path=path, seed=3).state_dict() for path in ("fused", "eager"))

    assert list(fused) == list(eager)
    assert all(torch.equal(fused[name], eager[name]) for name in eager)


# ---- anywhere: the calls, on kernels in plain torch with the documented arguments


def inner(xz, conv_w, conv_b, x_proj, dt_proj, out_proj, out_bias, A, *, D, delta_bias, delta_softplus):
    assert delta_softplus
    assert out_bias is None
    x, z = xz.chunk(2, dim=1)
    u = conv(x, conv_w[:, 0], conv_b, activation="silu")
    low = u.mT @ x_proj.T
    rank, n = dt_proj.shape[1], A.shape[1]
    raw = (low[..., :rank] @ dt_proj.T).mT
    B, C = low[..., rank : rank + n].mT, low[..., -n:].mT
    y, _ = scan(u, raw, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True, return_last_state=True)
    return y.mT @ out_proj.T


def conv(x, weight, bias, activation):
    assert activation == "silu"
    width = weight.shape[1]
    return F.silu(F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=len(weight)))


def conv_step(x, state, weight, bias, activation):
    assert activation == "silu"
    assert x.dtype == state.dtype
    state.copy_(torch.cat((state[..., 1:], x[..., None]), dim=-1))
    return F.silu((state * weight).sum(-1) + bias)


def scan(u, delta, A, B, C, D, *, z, delta_bias, delta_softplus, return_last_state):
    assert delta_softplus
    assert return_last_state
    h, outs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        y, h = one_token(h, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, z[..., t], delta_bias)
        outs.append(y)
    return torch.stack(outs, dim=-1), h


def scan_step(state, x, dt, A, B, C, D, *, z, dt_bias, dt_softplus):
    assert dt_softplus
    y, after = one_token(state, x, dt, A, B, C, D, z, dt_bias)
    state.copy_(after)
    return y


def one_token(h, x, dt, A, B, C, D, z, dt_bias):
    dt = F.softplus(dt + dt_bias)
    h = h * torch.exp(dt[..., None] * A) + (dt * x)[..., None] * B[:, None]
    return ((h * C[:, None]).sum(-1) + D * x) * F.silu(z), h


def norm(x, weight, bias, *, residual, eps, prenorm, residual_in_fp32, is_rms_norm):
    assert residual_in_fp32
    assert is_rms_norm
    assert bias is None
    total = x.float() if residual is None else x + residual
    y = F.rms_norm(total, weight.shape, weight.float(), eps).to(x.dtype)
    return (y, total) if prenorm else y


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Kernels(inner=inner, conv=conv, scan=scan, conv_step=conv_step, scan_step=scan_step, norm=norm)
    monkeypatch.setattr(mamba_fused, "kernels", lambda: found)
    monkeypatch.setattr(mamba_fused, "require_gpu", lambda tensor: None)
    torch.set_num_threads(1)


def same_logits_and_gradients(spec: MambaSpec, length: int, device: torch.device) -> None:
    fused, eager = pair(spec, device)
    x = tokens(spec, 2, length, device)
    assert difference(fused(x).detach().flatten(0, 1), eager(x).detach().flatten(0, 1)) < 1e-4
    for model in (fused, eager):
        model.loss(x, x).backward()
    for (name, found), expected in zip(fused.named_parameters(), eager.parameters(), strict=True):
        assert difference([found.grad], [expected.grad]) < 1e-4, name


@torch.inference_mode()
def same_prefill_and_decode(spec: MambaSpec, length: int, device: torch.device) -> None:
    fused, eager = pair(spec, device)
    x = tokens(spec, 2, length + 6, device)
    states = fused.new_state(2, length + 6), eager.new_state(2, length + 6)
    found, expected = (m.prefill(x[:, :length], s) for m, s in zip((fused, eager), states, strict=True))
    assert difference(found.unbind(), expected.unbind()) < 1e-4
    for t in range(length, length + 6):
        for one, other in zip(states[0].tensors(), states[1].tensors(), strict=True):
            assert difference([one], [other]) < 1e-4
        found, expected = (m.decode(x[:, t], s) for m, s in zip((fused, eager), states, strict=True))
        assert difference(found.unbind(), expected.unbind()) < 1e-4
    assert states[0].length == length + 6


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("length", [1, 3, 20])
def test_the_calls_give_the_references_logits_and_gradients(length: int):
    same_logits_and_gradients(TINY, length, CPU)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 20])
def test_the_calls_leave_the_references_state(length: int):
    same_prefill_and_decode(TINY, length, CPU)


@pytest.mark.usefixtures("plain")
def test_checkpointed_layers_give_the_same_gradients():
    x = tokens(TINY, 2, 9, CPU)
    plain, kept = (build(TINY, path="fused", seed=1, checkpoint=checkpoint) for checkpoint in (False, True))
    for model in (plain, kept):
        model.loss(x, x).backward()

    assert difference([p.grad for p in kept.parameters()], [p.grad for p in plain.parameters()]) < 1e-6


@pytest.mark.usefixtures("plain")
def test_a_prompt_in_pieces_is_refused():
    model, x = build(TINY, path="fused"), tokens(TINY, 1, 8, CPU)
    state = model.new_state(1, 8)
    with torch.inference_mode():
        model.prefill(x[:, :4], state)
        with pytest.raises(UnsupportedError, match="cannot read 4 tokens behind 4 others"):
            model.prefill(x[:, 4:], state)


def test_the_state_has_the_weights_dtype():
    # Two layers, three sequences, 64 channels, 4 columns and 4 states, 2 bytes each.
    assert build(TINY, path="fused", dtype=torch.bfloat16).new_state(3, 10**6).nbytes == 2 * 3 * 64 * (4 + 4) * 2


# 512 tokens a chunk, 4 a thread, in float32; 1,024 and 8 in half precision.
RIGHT = [(torch.float32, n) for n in (3, 511, 512, 516, 1023)] + [(torch.bfloat16, n) for n in (513, 1023, 1024, 1032)]
WRONG = [(torch.float32, n) for n in (513, 515, 2050)] + [
    *((torch.bfloat16, n) for n in (1025, 1031, 2049)),
    (torch.float16, 1028),
]


@pytest.mark.usefixtures("plain")
def test_lengths_whose_gradients_causal_conv1d_gets_wrong_are_refused():
    model, x = build(TINY, path="fused"), tokens(TINY, 1, 514, CPU)
    with pytest.raises(UnsupportedError, match="cannot train on 514 tokens: 1 to 3 more than a multiple of 512"):
        model.loss(x, x)
    with torch.inference_mode():
        model.prefill(x, model.new_state(1, 514))


@pytest.mark.parametrize(("dtype", "length"), RIGHT)
def test_other_lengths_are_not(dtype: torch.dtype, length: int):
    mamba_fused.require_right_gradient(torch.zeros(1, 1, length, dtype=dtype, requires_grad=True))


# ---- on a GPU: the real kernels


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "length", "refused"), [(*one, False) for one in RIGHT] + [(*one, True) for one in WRONG]
)
def test_what_is_refused_is_what_causal_conv1d_gets_wrong(dtype: torch.dtype, length: int, refused: bool):
    """Right gradients of x are off by rounding, less than 2^-7 in half precision; wrong ones, by whole terms."""
    torch.manual_seed(length)
    x, w, g = (torch.randn(*size, device=CUDA).to(dtype) for size in ((2, 64, length), (64, 4), (2, 64, length)))
    x.requires_grad_()
    (found,) = torch.autograd.grad(mamba_fused.kernels().conv(x, w, None, activation="silu"), x, g)
    y = conv(x.double(), w.double(), None, "silu")
    (expected,) = torch.autograd.grad(y, x, g.double())
    error = (found.double() - expected).abs().max() / expected.abs().max()

    assert error > 0.05 if refused else error < (1e-5 if dtype == torch.float32 else 0.02)
    with pytest.raises(UnsupportedError) if refused else nullcontext():
        mamba_fused.require_right_gradient(x)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 77, CHUNK + 4])
def test_logits_and_gradients_are_the_references(length: int):
    same_logits_and_gradients(SMALL, length, CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 77, CHUNK, CHUNK + 1])
def test_prefill_and_decode_are_the_references(length: int):
    same_prefill_and_decode(SMALL, length, CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_published_size_passes_the_gate(task: str, dtype: str):
    # The gate's own tolerances: 1e-4 in float32, 5e-2 in half precision.
    verdict = gate(Case.of(preset("mamba-130m"), task=task, seq_len=4096, dtype=dtype, path="fused"), CUDA)

    assert verdict.passed, verdict


@pytest.mark.gpu
def test_training_under_autocast_passes_the_gate():
    case = Case.of(preset("mamba-130m"), task="train", seq_len=4096, autocast="bfloat16", path="fused")
    verdict = gate(case, CUDA)

    assert verdict.passed, verdict


@pytest.mark.gpu
def test_every_kernel_is_one_of_mamba_ssms():
    """The convolution, the scan and the norm of a forward run in one kernel each, a layer."""
    model = build(SMALL, path="fused", device=CUDA, dtype=torch.bfloat16)
    x = tokens(SMALL, 2, 64, CUDA)
    with torch.inference_mode():
        model(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            model(x)
            torch.cuda.synchronize()
    counts = {
        part: sum(event.count for event in profile.key_averages() if part in event.key)
        for part in ("causal_conv1d_fwd_kernel", "selective_scan_fwd_kernel", "_layer_norm_fwd")
    }

    assert counts == {
        "causal_conv1d_fwd_kernel": SMALL.n_layers,
        "selective_scan_fwd_kernel": SMALL.n_layers,
        "_layer_norm_fwd": SMALL.n_layers + 1,
    }
