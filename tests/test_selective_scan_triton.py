"""The selective scan's Triton kernels against the plain recurrence: interpreted on a CPU, compiled on a GPU.

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

from benchbench import models
from benchbench.counters.op import Formula, Step
from benchbench.counters.scan_paths import TRITON_BLOCK, TRITON_CHUNK
from benchbench.counters.selective_scan import selective_scan
from benchbench.errors import UnsupportedError
from benchbench.models import selective_scan_triton as ours
from benchbench.models.mamba import LayerState, Mixer
from benchbench.models.scan_inputs import Inputs
from benchbench.models.selective_scan import SelectiveScan, chunked_scan, sequential_scan
from benchbench.specs.mamba import MambaSpec

CHUNK = 4
"""What the interpreted kernels take for a chunk, so that few tokens are several."""

SPEC = MambaSpec(name="one-layer", d_model=20, n_layers=1, vocab_size=8, d_state=4)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")


class Cut(NamedTuple):
    """Sizes: a block of channels is 64 in forward and 32 in backward, a product needs 16 states."""

    batch: int
    length: int
    channels: int
    n_state: int


CUTS = (
    Cut(1, 1, 5, 4),
    Cut(2, 2, 32, 16),
    Cut(1, CHUNK - 1, 40, 1),
    Cut(1, CHUNK, 32, 16),
    Cut(2, CHUNK + 1, 40, 16),
    Cut(1, 3 * CHUNK + 1, 70, 16),
)
cuts = pytest.mark.parametrize("cut", CUTS, ids=str)
NAMES = ("y", "h", *Inputs._fields, "h0")


def draw(cut: Cut, device: str = "cpu") -> list[Tensor]:
    """The scan's inputs and a first state, float32; dt is softplus(N(-2, 1)), A is -1..-n as at initialisation."""
    generator = torch.Generator().manual_seed(cut.length)
    batch, length, d, n = cut

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    u, raw, z = (normal(batch, length, d) for _ in range(3))
    A_DN = -torch.arange(1.0, n + 1, device=device).repeat(d, 1)
    return [u, raw - 2, z, normal(batch, length, n), normal(batch, length, n), A_DN, normal(d), normal(batch, d, n)]


def both_ways(scan: Any, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Output, last state, and the gradients of a scalar that uses both."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y, h = scan(Inputs(*leaves[:-1]), leaves[-1])
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in (y, h)]
    grads = torch.autograd.grad((y * weights[0]).sum() + (h * weights[1]).sum(), leaves)
    return dict(zip(NAMES, [y.detach(), h.detach(), *grads], strict=True))


def exact(tensors: list[Tensor]) -> dict[str, Tensor]:
    return both_ways(sequential_scan, [tensor.double() for tensor in tensors])


@torch.no_grad()
def in_parts(scan: Any, cut: Cut, parts: list[int]) -> tuple[Tensor, Tensor]:
    *inputs, h = draw(cut)
    split = zip(*(tensor.split(parts, dim=1) for tensor in inputs[:5]), strict=True)
    ys = []
    for part in split:
        y, h = scan(Inputs(*part, *inputs[5:]), h)
        ys.append(y)
    return torch.cat(ys, dim=1), h


def layer(path: str) -> dict[str, Tensor]:
    """What a layer gives for 7 tokens at once, and what for 5 and then one by one, its weights' gradients included."""
    torch.manual_seed(0)
    mixer = Mixer(SPEC, path)
    x_BLE = torch.randn(2, 7, SPEC.d_model)
    out = mixer(x_BLE)
    grads = torch.autograd.grad(out.square().sum(), list(mixer.parameters()))
    inner = SPEC.d_inner
    state = LayerState(torch.zeros(2, inner, SPEC.d_conv), torch.zeros(2, inner, SPEC.d_state))
    with torch.no_grad():
        stepped = torch.cat([mixer(part, state) for part in x_BLE.split([5, 1, 1], dim=1)], dim=1)
    names = [name for name, _ in mixer.named_parameters()]
    return {"out": out.detach(), "stepped": stepped, "state": state.ssm, **dict(zip(names, grads, strict=True))}


def everything() -> dict[str, Any]:
    """All that the tests below compare."""
    ours.CHUNK = CHUNK
    ours.STATES = ours.OUTPUTS = ours.Launch(64, unroll=2)
    ours.UP = ours.DOWN = ours.Launch(32, unroll=2)
    found: dict[str, Any] = {str(cut): both_ways(ours.triton_scan, draw(cut)) for cut in CUTS}
    found["parts"] = in_parts(ours.triton_scan, Cut(2, 11, 40, 4), [1, 6, 3, 1])
    changed = draw(Cut(1, 9, 5, 4))
    before = ours.triton_scan(Inputs(*changed[:-1]), changed[-1])[0]
    for tensor in changed[:5]:
        tensor[:, 6:] += 1
    found["before, after"] = before, ours.triton_scan(Inputs(*changed[:-1]), changed[-1])[0]
    half = [tensor.bfloat16() for tensor in draw(CUTS[1])[:-1]]
    found["bfloat16"] = both_ways(ours.triton_scan, [*half, draw(CUTS[1])[-1]])
    found["layer"] = layer("triton")
    ours.STATES = ours.OUTPUTS = ours.Launch(64, unroll=1)
    found["token by token"] = both_ways(ours.triton_scan, draw(CUTS[-2]))
    return found


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return saved_by(__file__, tmp_path_factory.mktemp("interpreted"))


def check(found: dict[str, Tensor], wanted: dict[str, Tensor], share: float = 2e-5) -> None:
    """Every number within a share of the tensor's rms: float32 rounds at 6e-8 of sums of a few hundred terms."""
    for name, reference in wanted.items():
        rms = reference.square().mean().sqrt().item()
        error = (found[name].double().cpu() - reference.double().cpu()).abs().max().item()
        assert error <= share * rms, (name, error / rms)


@needs_triton
@cuts
def test_interpreted_kernels_equal_the_plain_recurrence(interpreted: dict[str, Any], cut: Cut):
    check(interpreted[str(cut)], exact(draw(cut)))


@needs_triton
def test_one_token_in_flight_is_the_same(interpreted: dict[str, Any]):
    check(interpreted["token by token"], exact(draw(CUTS[-2])))


@needs_triton
def test_continues_from_a_state_by_chunks_and_by_tokens(interpreted: dict[str, Any]):
    *inputs, h = (tensor.double() for tensor in draw(Cut(2, 11, 40, 4)))
    y, h = sequential_scan(Inputs(*inputs), h)
    check(dict(zip("yh", interpreted["parts"], strict=True)), {"y": y, "h": h})


@needs_triton
def test_a_token_does_not_touch_the_outputs_before_it(interpreted: dict[str, Any]):
    before, after = interpreted["before, after"]
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6], after[:, 6])


@needs_triton
def test_bfloat16_is_read_and_written_and_computed_in_float32(interpreted: dict[str, Any]):
    found, tensors = interpreted["bfloat16"], draw(CUTS[1])
    assert {name: found[name].dtype for name in NAMES if name not in ("h", "h0")} == dict.fromkeys(
        ("y", *Inputs._fields), torch.bfloat16
    )
    # 8 bits; the interpreter cuts the others off, where a GPU rounds; the largest of some thousand numbers is below
    # 8 rms; the weights of the output, too, are rounded.
    check(found, exact([*(tensor.bfloat16() for tensor in tensors[:-1]), tensors[-1]]), share=8 * 2**-7)


@needs_triton
def test_a_layer_reads_strided_projections_trains_and_decodes(interpreted: dict[str, Any]):
    wanted = layer("eager")
    check(interpreted["layer"], wanted, share=1e-4)  # the reference is float32 itself
    check({"out": interpreted["layer"]["stepped"]}, {"out": wanted["out"]}, share=1e-4)


@needs_triton
def test_tensors_in_memory_of_the_cpu_are_refused():
    *inputs, h = draw(CUTS[0])
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU, not the device 'cpu'"):
        SelectiveScan("triton")(Inputs(*inputs), h)


def test_without_triton_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("selective_scan_kernels", "selective_scan_kernels_backward"):
        monkeypatch.delitem(sys.modules, f"benchbench.models.{name}", raising=False)
        monkeypatch.delattr(models, name, raising=False)
    *inputs, h = draw(CUTS[0])
    with pytest.raises(UnsupportedError, match="pip install triton"):
        SelectiveScan("triton")(Inputs(*inputs), h)


def test_what_the_path_does_not_compute_is_refused():
    *inputs, h = draw(Cut(1, 1, 5, 12))
    with pytest.raises(UnsupportedError, match="a power of two up to 32, not 12"):
        SelectiveScan("triton")(Inputs(*inputs), h)
    *inputs, h = (tensor.double() for tensor in draw(CUTS[0]))
    with pytest.raises(UnsupportedError, match=r"not in torch\.float64"):
        SelectiveScan("triton")(Inputs(*inputs), h)


def test_meta_tensors_have_shapes():
    def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, device="meta", dtype=dtype, requires_grad=True)

    million = 1_048_576
    wide, narrow = [on_meta(2, million, 1536) for _ in range(3)], [on_meta(2, million, 16) for _ in range(2)]
    inputs = Inputs(*wide, *narrow, on_meta(1536, 16, dtype=torch.float32), on_meta(1536))
    y, h = SelectiveScan("triton")(inputs)
    assert (y.shape, y.dtype, h.shape, h.dtype) == (wide[0].shape, torch.bfloat16, (2, 1536, 16), torch.float32)
    grads = torch.autograd.grad(y, inputs, torch.empty_like(y))
    assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in inputs]


def test_training_keeps_its_inputs_and_one_state_more_than_there_are_chunks():
    # 300 tokens are three chunks of 128 at most: 4 states of 3 sequences, 5 channels and 2 states each, in float32.
    kept: list[int] = []
    tensors = [tensor.to("meta").requires_grad_() for tensor in draw(Cut(3, 300, 5, 2))]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda _: None):
        ours.triton_scan(Inputs(*tensors[:-1]), tensors[-1])
    assert kept == [*(tensor.nbytes for tensor in tensors[:-1]), 4 * 4 * 3 * 5 * 2]


def test_the_count_knows_how_the_kernels_are_cut():
    assert (ours.CHUNK, ours.UP.block) == (TRITON_CHUNK, TRITON_BLOCK)
    assert ours.DOWN.block == ours.UP.block


def counted(path: str, length: int, training: bool) -> Formula:
    step = Step(1, length, 0, 0, 2, path, training, 1)
    return selective_scan(step, 1536, 16)


def test_the_count_of_the_triton_path():
    # 4096 tokens are 32 chunks, 1536·16 = 24,576 states a token. Forward 12 a state and 43 a channel, of which 5 and 40
    # are more than the scan's own; 4 a state and chunk, and once 1 a state.
    forward = counted("triton", 4096, training=True).forward
    assert forward.extra_flops == 4096 * (5 * 24576 + 40 * 1536) + 4 * 32 * 24576 + 24576
    # Backward 29 a state and twice 16 by the matrix unit, 80 a channel, less 15 and 23; 10 a state and chunk, 1 a
    # state; 1536 / 32 = 48 blocks add up shares of dB and dC.
    backward = counted("triton", 4096, training=True).backward
    assert backward.extra_flops == 4096 * (46 * 24576 + 57 * 1536 + 2 * 48 * 16) + (10 * 32 + 1) * 24576
    # u's place is counted with x_proj; dt and both halves of in_proj's output, B and C, 33 states.
    assert counted("triton", 4096, training=True).saved_bytes == 4096 * 2 * (3 * 1536 + 32) + 33 * 4 * 24576
    assert counted("triton", 1, training=False).forward.extra_flops == 24576 + 18 * 1536


@pytest.mark.gpu
@pytest.mark.parametrize("cut", [*CUTS, Cut(2, 1000, 1000, 16), Cut(1, 600, 96, 32)], ids=str)
def test_on_a_gpu_float32_equals_the_chunked_scan_in_float64(cut: Cut):
    tensors = draw(cut, "cuda")
    wanted = both_ways(chunked_scan, [tensor.double() for tensor in tensors])
    # The gradient of dt is a running difference over a chunk of 128 tokens, of terms larger than what is left.
    check(both_ways(ours.triton_scan, tensors), wanted, share=2e-4)


@pytest.mark.gpu
def test_on_a_gpu_a_long_sequence_in_bfloat16_equals_mamba_ssm():
    interface = pytest.importorskip("mamba_ssm.ops.selective_scan_interface")

    def theirs(inputs: Inputs) -> Tensor:
        u, raw, z, B, C = (tensor.mT.contiguous() for tensor in inputs[:5])
        return interface.selective_scan_fn(u, raw, inputs.A, B, C, inputs.D, z, delta_softplus=True).mT

    *drawn, h = draw(Cut(2, 20000, 768, 16), "cuda")
    leaves = Inputs(*(tensor.bfloat16() if i < 5 else tensor for i, tensor in enumerate(drawn)))
    leaves = Inputs(*(tensor.requires_grad_() for tensor in leaves))
    weight = torch.randn(leaves.u.shape, generator=torch.Generator().manual_seed(0)).cuda().bfloat16()
    found, wanted = (
        [y, *torch.autograd.grad(y, leaves, weight)]
        for y in (ours.triton_scan(leaves, torch.zeros_like(h))[0], theirs(leaves))
    )
    for name, got, reference in zip(("y", *Inputs._fields), found, wanted, strict=True):
        difference = (got.double() - reference.double()).square().mean() / reference.double().square().mean()
        # Both round to 8 bits what they compute in float32: 2^-9 each, at most.
        assert difference.sqrt() < 2**-7, (name, difference.sqrt().item())


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_tokens_one_by_one_equal_the_scan():
    cut = Cut(3, 40, 1536, 16)
    *inputs, h = draw(cut, "cuda")
    whole, last = chunked_scan(Inputs(*inputs), h)
    ys = []
    for t in range(cut.length):
        y, h = ours.triton_scan(Inputs(*(tensor[:, t : t + 1] for tensor in inputs[:5]), *inputs[5:]), h)
        ys.append(y)
    check({"y": torch.cat(ys, dim=1), "h": h}, {"y": whole, "h": last})


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(everything(), Path(sys.argv[1]))
