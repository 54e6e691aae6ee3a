"""The state-space dual layer two ways, against each other and against its equation; what the chunked way promises."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchbench.counters.ssd import SSD_CHUNK, SSD_SPAN
from benchbench.models.ssd import CHUNK, SPAN, SSD, Inputs, chunked, one_step, sequential

# With chunks of 4 tokens a span has 32: one chunk, a ragged one, whole spans, a ragged span.
LENGTHS = (1, 3, 4, 5, 32, 33, 75)


def draw(
    batch: int,
    length: int,
    *,
    groups: int = 2,
    heads: int = 6,
    p: int = 3,
    n: int = 5,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """The layer's inputs and a first state; dt is softplus(N(-1, 1)), A uniform in -16..-1 as at initialisation."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    dt_BLH = torch.nn.functional.softplus(normal(batch, length, heads) - 1)
    B_BLGN, C_BLGN = (normal(batch, length, groups, n) for _ in range(2))
    A_H = -1 - 15 * torch.rand(heads, generator=generator, dtype=dtype)
    drawn = [normal(batch, length, heads, p), dt_BLH, B_BLGN, C_BLGN, A_H, normal(heads), normal(batch, heads, p, n)]
    return [tensor.requires_grad_() for tensor in drawn]


def by_four(inputs: Inputs, h_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    return chunked(inputs, h_BHPN, 4)


def run(layer: Callable[[Inputs, Tensor], tuple[Tensor, Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """Output, last state, and the gradients of a scalar that uses both."""
    y, h = layer(Inputs(*tensors[:-1]), tensors[-1])
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, h)]
    return [y, h, *torch.autograd.grad((y * weights[0]).sum() + (h * weights[1]).sum(), tensors)]


def test_sequential_is_the_equation():
    # One head of one channel and one state, A = -1, B = C = 1, D = 10 and dt = ln 2, so that exp(dt A) = 1/2; x = 1:
    # h = ln2, then h/2 + ln2 and so on: ln2·(1, 1.5, 1.75), and y = h + 10.
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    ln2 = torch.tensor(2.0, dtype=torch.float64).log()
    inputs = Inputs(one[..., None], ln2 * one, one[..., None], one[..., None], -one[0, 0], 10 * one[0, 0])
    y, h = sequential(inputs, torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    expected = ln2 * torch.tensor([1, 1.5, 1.75], dtype=torch.float64)
    torch.testing.assert_close(y.flatten(), expected + 10)
    torch.testing.assert_close(h.flatten(), expected[-1:])


def test_heads_of_a_group_share_its_b_and_c():
    # Four heads in two groups are two heads in each of two layers of one group.
    *inputs, h = (tensor.detach() for tensor in draw(1, 9, heads=4))
    x, dt, B, C, A, D = inputs
    y, last = by_four(Inputs(*inputs), h)
    for group, heads in enumerate((slice(0, 2), slice(2, 4))):
        shared = slice(group, group + 1)
        alone = Inputs(x[:, :, heads], dt[:, :, heads], B[:, :, shared], C[:, :, shared], A[heads], D[heads])
        y_of_group, last_of_group = sequential(alone, h[:, heads])
        torch.testing.assert_close(y[:, :, heads], y_of_group, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(last[:, heads], last_of_group, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", [1, 2])
def test_chunked_equals_sequential_in_float64(batch, length):
    tensors = draw(batch, length)
    for expected, got in zip(run(sequential, tensors), run(by_four, tensors), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_whole_chunks_equal_sequential_in_float64():
    tensors = draw(1, 2 * CHUNK + 1)
    for expected, got in zip(run(sequential, tensors), run(chunked, tensors), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_gradients_equal_finite_differences():
    tensors = draw(1, 5, heads=2, p=2, n=1)
    assert torch.autograd.gradcheck(lambda *t: by_four(Inputs(*t[:-1]), t[-1]), tensors)


@pytest.mark.parametrize("pick", [0, 1])
def test_one_of_the_two_outputs_alone_may_be_differentiated(pick):
    tensors = draw(1, 11)
    a, b = (layer(Inputs(*tensors[:-1]), tensors[-1])[pick].sum() for layer in (sequential, by_four))
    expected = torch.autograd.grad(a, tensors, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(torch.autograd.grad(b, tensors), expected, rtol=1e-11, atol=1e-11)


def test_float32_is_within_1e_5_of_the_rms_of_float64():
    tensors = draw(2, 200, heads=4, p=16, n=16)
    # dt as at initialisation, up to 0.1: the sums over a chunk stay within 64·16·0.1, which float32 rounds by 4e-6.
    tensors[1].data.uniform_(1e-3, 0.1)
    exact = run(sequential, tensors)
    rough = run(chunked, [tensor.detach().float().requires_grad_() for tensor in tensors])
    for expected, got in zip(exact, rough, strict=True):
        assert (got - expected).abs().max() <= 2e-5 * expected.square().mean().sqrt()


@torch.no_grad()
def test_a_decay_to_nothing_does_not_overflow():
    # A chunk's sum of dt·A is -64·16·20, whose exponential is 0 and its inverse infinite: only differences are taken.
    tensors = draw(1, 100, dtype=torch.float32)
    tensors[1].fill_(20)
    y, h = chunked(Inputs(*tensors[:-1]), tensors[-1])
    expected, last = sequential(Inputs(*tensors[:-1]), tensors[-1])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(h, last, rtol=1e-5, atol=1e-3)


@torch.no_grad()
def test_one_step_equals_the_loop():
    *inputs, h = draw(3, 1)
    for expected, got in zip(sequential(Inputs(*inputs), h), one_step(Inputs(*inputs), h), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 4, 33])
def test_it_continues_from_its_state(cut):
    *inputs, h = draw(2, 40)
    whole, last = by_four(Inputs(*inputs), h)
    y, h = by_four(Inputs(*(t[:, :cut] for t in inputs[:4]), *inputs[4:]), h)
    z, h = by_four(Inputs(*(t[:, cut:] for t in inputs[:4]), *inputs[4:]), h)
    torch.testing.assert_close(torch.cat((y, z), dim=1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, last, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("changed", [1, 3, 4, 33])
def test_a_token_does_not_touch_the_outputs_before_it(changed):
    *inputs, h = draw(2, 40, dtype=torch.float32)
    before, _ = by_four(Inputs(*inputs), h)
    for tensor in inputs[:4]:
        tensor[:, changed:] += 1
    after, _ = by_four(Inputs(*inputs), h)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize("path", ["chunked", "eager"])
@pytest.mark.parametrize("cast", [False, True])
def test_bfloat16_inputs_are_summed_in_float32(path, cast):
    *exact, h = (tensor.detach() for tensor in draw(1, 150, dtype=torch.float32))
    rounded = [tensor.bfloat16() for tensor in exact]
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        y, last = SSD(path)(Inputs(*rounded), h)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    same, _ = sequential(Inputs(*(tensor.float() for tensor in rounded)), h)
    # Only the output is rounded: half a unit in the last of 8 bits.
    torch.testing.assert_close(y.float(), same, rtol=2**-8, atol=1e-5)


def saved_bytes(layer: Callable[[Inputs, Tensor], tuple[Tensor, Tensor]], tensors: list[Tensor]) -> int:
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(Inputs(*tensors[:-1]), tensors[-1])
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def test_chunked_keeps_its_inputs_and_one_state_a_span():
    tensors = draw(1, 70, dtype=torch.float32)
    # x: 70·6·3; dt: 70·6; B, C: 70·2·5 each; A, D: 6 each; 70 tokens are 3 spans of 32, each with a state of 6·3·5.
    kept = 70 * 6 * 3 + 70 * 6 + 2 * 70 * 2 * 5 + 2 * 6 + 3 * 6 * 3 * 5
    assert saved_bytes(by_four, tensors) == 4 * kept
    # The loop: every state twice, decays and dt x beside the inputs (D, a view of it, is one of them).
    assert saved_bytes(sequential, tensors) == 4 * (kept - 3 * 90 + 2 * 70 * 90 + 70 * 6 + 70 * 18)


def test_the_count_knows_the_chunks():
    assert (SSD_CHUNK, SSD_SPAN) == (CHUNK, SPAN)


def test_a_million_tokens_have_a_shape_without_a_loop():
    length = 2**20
    shapes = ((length, 4, 8), (length, 4), (length, 2, 6), (length, 2, 6))
    with torch.device("meta"):
        sequences = [torch.empty(2, *shape) for shape in shapes]
        tensors = [t.requires_grad_() for t in (*sequences, torch.empty(4), torch.empty(4), torch.empty(2, 4, 8, 6))]
    y, h = chunked(Inputs(*tensors[:-1]), tensors[-1])
    grads = torch.autograd.grad(y.sum() + h.sum(), tensors)
    assert (y.shape, h.shape) == (tensors[0].shape, tensors[-1].shape)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in tensors]


def test_fake_tensors_are_shapes_too():
    with FakeTensorMode() as mode:
        *inputs, h = (mode.from_tensor(tensor) for tensor in draw(1, 40))
        y, last = by_four(Inputs(*inputs), h)
    assert (y.shape, last.shape) == (inputs[0].shape, h.shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_chunked_equals_sequential_on_cuda():
    tensors = [tensor.detach().cuda().requires_grad_() for tensor in draw(2, 75)]
    y, h = sequential(Inputs(*tensors[:-1]), tensors[-1])
    expected = (y, h, *torch.autograd.grad(y.square().sum() + h.sum(), tensors))
    y, h = by_four(Inputs(*tensors[:-1]), tensors[-1])
    found = (y, h, *torch.autograd.grad(y.square().sum() + h.sum(), tensors))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
