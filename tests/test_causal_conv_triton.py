"""The convolution's Triton kernels against the plain convolution: interpreted on a CPU, compiled on a GPU.

Run as a program, this file computes `CUTS` with whatever Triton it gets and saves what it finds. A process of its own
does so under the interpreter, which is chosen when Triton is imported, for all of a process.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from interpreted import saved_by
from torch import Tensor
from torch.nn import functional as F

from benchbench import models
from benchbench.case import Case
from benchbench.counters.causal_conv import TRITON_TOKENS, causal_conv
from benchbench.counters.cost import count
from benchbench.counters.op import Step
from benchbench.counters.storages import follow
from benchbench.counters.trace import check_case
from benchbench.errors import UnsupportedError
from benchbench.models import causal_conv_triton as ours
from benchbench.specs import preset

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")


class Cut(NamedTuple):
    """Sizes: an interpreted tile is 4 tokens of 8 channels."""

    batch: int
    length: int
    channels: int
    taps: int
    past: bool


CUTS = (
    Cut(1, 1, 8, 4, past=False),
    Cut(2, 1, 5, 4, past=True),
    Cut(2, 4, 8, 4, past=False),
    Cut(1, 3, 13, 4, past=True),
    Cut(2, 11, 13, 4, past=True),
    Cut(1, 9, 3, 2, past=False),
    Cut(1, 6, 3, 1, past=True),
)
cuts = pytest.mark.parametrize("cut", CUTS, ids=str)
NAMES = ("u", "x", "w", "b", "past")


def draw(cut: Cut, device: str = "cpu") -> list[Tensor]:
    """x as half of a wider tensor, as in_proj gives it; a weight, a bias, and what comes before."""
    generator = torch.Generator().manual_seed(cut.length)
    batch, length, channels, taps, _ = cut

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    x = normal(batch, length, 2 * channels).chunk(2, dim=-1)[0]
    return [x, normal(channels, 1, taps), normal(channels), normal(batch, channels, taps)]


def plain(x_BLD: Tensor, w_D1K: Tensor, b_D: Tensor, past_BDK: Tensor | None) -> Tensor:
    """By torch's convolution, in the dtype that it is given."""
    taps = w_D1K.shape[-1]
    before = x_BLD.new_zeros(len(x_BLD), x_BLD.shape[2], taps) if past_BDK is None else past_BDK.to(x_BLD.dtype)
    seen = torch.cat((before, x_BLD.mT), dim=-1)
    if past_BDK is not None:
        past_BDK.copy_(seen[..., -taps:].detach())
    return F.silu(F.conv1d(seen[..., 1:], w_D1K, b_D, groups=len(b_D))).mT


def both_ways(conv: Any, tensors: list[Tensor], past: bool) -> dict[str, Tensor]:
    """The output, with and without gradients, the gradients of a scalar of it, and the past moved on."""
    x, w, b, before = (tensor.detach() for tensor in tensors)
    leaves = [tensor.requires_grad_() for tensor in (x, w.clone(), b.clone())]
    behind = [before.clone() if past else None for _ in range(2)]
    u = conv(*leaves, behind[0])
    weight = torch.randn(u.shape, generator=torch.Generator().manual_seed(0)).to(u)
    grads = torch.autograd.grad((u * weight).sum(), leaves)
    with torch.no_grad():
        again = conv(*leaves, behind[1])
    found = dict(zip(NAMES, [u.detach(), *grads], strict=False)) | {"again": again}
    return found | ({"past": behind[0], "past again": behind[1]} if past else {})  # pyright: ignore[reportReturnType]


def exact(cut: Cut, tensors: list[Tensor]) -> dict[str, Tensor]:
    return both_ways(plain, [tensor.double() for tensor in tensors], cut.past)


def everything() -> dict[str, Any]:
    """All that the tests below compare."""
    ours.FORWARD = ours.BACKWARD = ours.Tile(tokens=4, channels=8, unroll=2)
    found: dict[str, Any] = {str(cut): both_ways(ours.triton_conv, draw(cut), cut.past) for cut in CUTS}
    half = [*(tensor.bfloat16() for tensor in draw(CUTS[4])[:3]), draw(CUTS[4])[3]]
    found["bfloat16"] = both_ways(ours.triton_conv, half, past=True)
    return found


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return saved_by(__file__, tmp_path_factory.mktemp("interpreted"))


def check(found: dict[str, Tensor], wanted: dict[str, Tensor], share: float = 2e-6) -> None:
    """Every number within a share of the tensor's rms: float32 rounds at 6e-8 of sums of a few terms."""
    assert set(found) == set(wanted)
    for name, reference in wanted.items():
        rms = reference.double().square().mean().sqrt().item()
        error = (found[name].double().cpu() - reference.double().cpu()).abs().max().item()
        assert error <= share * rms, (name, error / rms)


@needs_triton
@cuts
def test_interpreted_kernels_equal_the_plain_convolution(interpreted: dict[str, Any], cut: Cut):
    check(interpreted[str(cut)], exact(cut, draw(cut)))


@needs_triton
def test_bfloat16_is_read_and_written_and_computed_in_float32(interpreted: dict[str, Any]):
    found, (*tensors, before) = interpreted["bfloat16"], draw(CUTS[4])
    kinds = {name: found[name].dtype for name in NAMES}
    assert kinds == dict.fromkeys(NAMES[:-1], torch.bfloat16) | {"past": torch.float32}
    # The scalar's weights are rounded to 8 bits, and the interpreter cuts dL/ds and the result off after as many, where
    # a GPU rounds: 2^-9 + 2 · 2^-8 < 2^-7 of each term. The terms of one gradient are, without signs, below 8 rms.
    check(found, exact(CUTS[4], [*(tensor.bfloat16() for tensor in tensors), before]), share=8 * 2**-7)


@needs_triton
def test_tensors_in_memory_of_the_cpu_are_refused():
    *tensors, _ = draw(CUTS[0])
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU, not the device 'cpu'"):
        ours.triton_conv(*tensors)


def test_without_triton_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("selective_scan_kernels", "causal_conv_kernels"):
        monkeypatch.delitem(sys.modules, f"benchbench.models.{name}", raising=False)
        monkeypatch.delattr(models, name, raising=False)
    *tensors, _ = draw(CUTS[0])
    with pytest.raises(UnsupportedError, match="pip install triton"):
        ours.triton_conv(*tensors)


def test_wider_numbers_are_refused():
    *tensors, _ = (tensor.double() for tensor in draw(CUTS[0]))
    with pytest.raises(UnsupportedError, match=r"not in torch\.float64"):
        ours.triton_conv(*tensors)


def test_training_keeps_what_it_is_given_and_nothing_it_makes():
    kept: list[int] = []
    x, w, b, _ = (tensor.to("meta") for tensor in draw(Cut(2, 100, 6, 4, past=False)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t.shape, lambda t: t):
        ours.triton_conv(x, w.requires_grad_(), b)
    assert len(kept) == 3


def test_the_count_knows_how_the_kernels_are_cut():
    assert ours.BACKWARD.tokens == TRITON_TOKENS


def test_the_count_of_the_triton_path():
    # 4096 tokens of 1536 channels, 4 taps, bfloat16. Backward finds the sum again, 8 an element; each of 32 programs
    # does so, and for the SiLU's slope 9, for 3 tokens more, and has shares of 4 · 1536 weights and 1536 biases. Bytes:
    # x, du, dx; the weight read and its gradient written; the shares in float32, written and read.
    n, shares = 4096 * 1536, 32 * 5 * 1536
    conv, shift, act = causal_conv(Step(1, 4096, 0, 0, 2, "triton", True, 1), 1536, 4)
    assert (conv.forward.flops + conv.forward.extra_flops, conv.backward.flops) == (8 * n, 16 * n)
    assert conv.backward.extra_flops == 8 * n + 17 * 32 * 3 * 1536 + shares
    assert conv.backward.bytes_moved == 6 * n + 4 * 4 * 1536 + 8 * shares
    assert (conv.saved_bytes, act.saved_bytes, shift.forward.bytes_moved, act.backward.bytes_moved) == (0, 0, 0, 0)


TINY = preset("mamba-tiny")


@pytest.mark.parametrize("witness", ["torch", "dispatch"])
@pytest.mark.parametrize("task", ["prefill", "train", "decode"])
def test_what_torch_does_around_the_kernels_is_explained(task: Any, witness: Any):
    optimizer = "adamw" if task == "train" else None
    case = Case(spec=TINY, task=task, seq_len=300, batch=2, path="triton", optimizer=optimizer)
    assert check_case(case, witness=witness).unexplained == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("task", "seq_len", "batch"), [("prefill", 2, 3), ("prefill", 300, 2), ("decode", 9, 2), ("train", 300, 2)]
)
def test_memory_around_the_launches_is_counted(task: Any, seq_len: int, batch: int, dtype: Any):
    optimizer = "adamw" if task == "train" else None
    case = Case(spec=TINY, task=task, seq_len=seq_len, batch=batch, dtype=dtype, path="triton", optimizer=optimizer)
    loss = 4 if task == "train" else 0  # the fake step keeps the gradient of the loss to the end
    assert follow(case, "cuda").peak() == count(case, "cuda").fullest.requested + loss


@pytest.mark.gpu
@pytest.mark.parametrize("cut", [*CUTS, Cut(3, 1000, 1000, 4, past=True)], ids=str)
def test_on_a_gpu_float32_equals_the_plain_convolution_in_float64(cut: Cut):
    tensors = draw(cut, "cuda")
    # The gradients of weight and bias are sums over up to 3000 tokens.
    check(both_ways(ours.triton_conv, tensors, cut.past), exact(cut, tensors), share=2e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(everything(), Path(sys.argv[1]))
