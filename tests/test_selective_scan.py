"""The two scans against each other, and what the chunked one promises about memory, order and size."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchbench.models.scan_inputs import Inputs
from benchbench.models.selective_scan import CHUNK, SelectiveScan, chunked_scan, one_step, sequential_scan

LENGTHS = (1, 15, 16, 17, 64, 100)


def draw(batch: int, length: int, d: int = 12, n: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The scan's inputs and a first state; dt is softplus(N(-1, 1)), A is -1..-n as at initialisation."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    wide = [normal(batch, length, d) for _ in range(3)]
    wide[1] -= 1
    A_DN = -torch.arange(1.0, n + 1, dtype=dtype).repeat(d, 1)
    drawn = [*wide, normal(batch, length, n), normal(batch, length, n), A_DN, normal(d), normal(batch, d, n)]
    return [tensor.requires_grad_() for tensor in drawn]


def run(scan: Callable[[Inputs, Tensor], tuple[Tensor, Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """Output, last state, and the gradients of a scalar that uses both."""
    y, h = scan(Inputs(*tensors[:-1]), tensors[-1])
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (y, h)]
    return [y, h, *torch.autograd.grad((y * weights[0]).sum() + (h * weights[1]).sum(), tensors)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", [1, 2])
def test_chunked_equals_sequential_in_float64(batch, length):
    tensors = draw(batch, length)
    for expected, got in zip(run(sequential_scan, tensors), run(chunked_scan, tensors), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_float32_is_within_1e_5_of_the_rms_of_float64(length):
    tensors = draw(2, length)
    exact = run(sequential_scan, tensors)
    rough = run(chunked_scan, [tensor.detach().float().requires_grad_() for tensor in tensors])
    for expected, got in zip(exact[:2], rough[:2], strict=True):
        rms = expected.square().mean().sqrt()
        assert (got - expected).abs().max() <= 1e-5 * rms


def test_sequential_is_the_equation():
    # One channel, one state, A = -1, B = C = 1, D = 0, a gate of silu(z) and dt = ln 2, so that exp(dt A) = 1/2:
    # h = ln2·1, then h/2 + ln2·1 and so on: ln2·(1, 1.5, 1.75). softplus(raw) = ln 2 at raw = 0.
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    gate = torch.full_like(one, 2.0)
    inputs = Inputs(one, 0 * one, gate, one, one, -one[0, :1], 0 * one[0, 0])
    y, h = sequential_scan(inputs, torch.zeros(1, 1, 1, dtype=torch.float64))
    silu = 2 / (1 + torch.tensor(-2.0, dtype=torch.float64).exp())
    expected = torch.tensor([1, 1.5, 1.75], dtype=torch.float64) * torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(y[0, :, 0], expected * silu)
    torch.testing.assert_close(h[0, 0, 0], expected[-1])


def test_gradients_equal_finite_differences():
    tensors = draw(2, CHUNK + 2, d=2, n=2)
    assert torch.autograd.gradcheck(lambda *t: chunked_scan(Inputs(*t[:-1]), t[-1]), tensors)


def test_one_of_the_two_outputs_alone_may_be_differentiated():
    for pick in (0, 1):
        tensors = draw(1, 20)
        a, b = (scan(Inputs(*tensors[:-1]), tensors[-1])[pick].sum() for scan in (sequential_scan, chunked_scan))
        expected = torch.autograd.grad(a, tensors, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(torch.autograd.grad(b, tensors), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_one_step_equals_the_scan():
    *inputs, h = draw(3, 1)
    for expected, got in zip(sequential_scan(Inputs(*inputs), h), one_step(Inputs(*inputs), h), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 16, 23])
def test_a_scan_continues_from_its_state(cut):
    *inputs, h = draw(2, 40)
    whole, last = chunked_scan(Inputs(*inputs), h)
    y, h = chunked_scan(Inputs(*(t[:, :cut] for t in inputs[:5]), *inputs[5:]), h)
    z, h = chunked_scan(Inputs(*(t[:, cut:] for t in inputs[:5]), *inputs[5:]), h)
    torch.testing.assert_close(torch.cat((y, z), dim=1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, last, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 15, 16, 33])
def test_a_token_does_not_touch_the_outputs_before_it(changed):
    *inputs, h = draw(2, 40, dtype=torch.float32)
    before, _ = chunked_scan(Inputs(*inputs), h)
    for tensor in inputs[:5]:
        tensor[:, changed:] += 1
    after, _ = chunked_scan(Inputs(*inputs), h)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize("path", ["chunked", "eager"])
def test_bfloat16_inputs_are_scanned_in_float32(path):
    *exact, h = (tensor.detach() for tensor in draw(1, 300, dtype=torch.float32))
    rounded = [tensor.bfloat16() for tensor in exact]
    y, last = SelectiveScan(path)(Inputs(*rounded), h)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    same, _ = sequential_scan(Inputs(*(tensor.float() for tensor in rounded)), h)
    # Only the output is rounded: half a unit in the last of 8 bits.
    torch.testing.assert_close(y.float(), same, rtol=2**-8, atol=1e-6)


def saved_bytes(scan: Callable[[Inputs, Tensor], tuple[Tensor, Tensor]], tensors: list[Tensor]) -> int:
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan(Inputs(*tensors[:-1]), tensors[-1])
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def test_the_chunked_scan_keeps_its_inputs_and_one_state_a_chunk():
    tensors = draw(1, 256, d=64, n=16, dtype=torch.float32)
    # u, raw, z: 3·256·64; B, C: 2·256·16; A: 64·16; D: 64; states: 16 chunks of 64·16. In float32.
    assert saved_bytes(chunked_scan, tensors) == 4 * (3 * 256 * 64 + 2 * 256 * 16 + 64 * 16 + 64 + 16 * 64 * 16)
    # Decays, their exponents' factors and the states alone are 3·256·64·16 numbers for the loop.
    assert saved_bytes(sequential_scan, tensors) > 4 * 3 * 256 * 64 * 16


def test_a_million_tokens_have_a_shape_without_a_loop():
    length = 2**20
    with torch.device("meta"):
        inputs = [torch.empty(2, length, 8) for _ in range(3)] + [torch.empty(2, length, 4) for _ in range(2)]
        tensors = [t.requires_grad_() for t in (*inputs, torch.empty(8, 4), torch.empty(8), torch.empty(2, 8, 4))]
    y, h = chunked_scan(Inputs(*tensors[:-1]), tensors[-1])
    grads = torch.autograd.grad(y.sum() + h.sum(), tensors)
    assert (y.shape, h.shape) == ((2, length, 8), (2, 8, 4))
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in tensors]


def test_fake_tensors_are_shapes_too():
    with FakeTensorMode() as mode:
        *inputs, h = (mode.from_tensor(tensor) for tensor in draw(1, 40))
        y, last = chunked_scan(Inputs(*inputs), h)
    assert (y.shape, last.shape) == (inputs[0].shape, h.shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_chunked_equals_sequential_on_cuda():
    tensors = [tensor.detach().cuda().requires_grad_() for tensor in draw(2, 100)]
    for scan in (sequential_scan, chunked_scan):
        y, h = scan(Inputs(*tensors[:-1]), tensors[-1])
        grads = torch.autograd.grad(y.square().sum() + h.sum(), tensors)
        if scan is sequential_scan:
            expected = (y, h, *grads)
    torch.testing.assert_close((y, h, *grads), expected, rtol=1e-11, atol=1e-11)
