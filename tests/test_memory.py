from typing import Any

import pytest
import torch
from torch import nn

from benchbench import memory
from benchbench.counters.allocator import simulated
from benchbench.counters.timeline import Block, Timeline
from benchbench.models import build
from benchbench.specs import preset

CPU = torch.device("cpu")


def known() -> None:
    """float32 blocks of 4,000 and 8,000 bytes, the first freed, then 2,000: 4000, 12000, 8000, 10000 alive."""
    a = torch.empty(1000)
    b = torch.empty(2000)
    del a
    c = torch.empty(500)
    del b, c


def test_every_allocation_and_free_is_reported_in_order():
    assert memory.allocations(known) == [4000, 8000, -4000, 2000, -8000, -2000]


def test_the_peak_is_what_was_held_and_the_highest_sum():
    held = torch.zeros(250)

    assert memory.peaks(known, [held], CPU) == memory.Peaks(requested_bytes=1000 + 12000)


@pytest.mark.parametrize(
    ("changes", "highest"),
    [([], 0), ([-5], 0), ([3, 4, -7, 6], 7), ([-5, 3, 4], 2)],
)
def test_highest_sum(changes: list[int], highest: int):
    assert memory.highest_sum(changes) == highest


def test_views_and_tied_weights_are_held_once():
    a = torch.zeros(100)
    tied = nn.Linear(10, 10, bias=False)

    assert memory.held_bytes([a, a[:50], a.view(10, 10)]) == 400
    assert memory.held_bytes([tied.weight, tied.weight.detach()]) == 400
    assert memory.held_bytes([a, tied.weight]) == 800


def test_a_linear_layers_backward_by_hand():
    # Batch 4, 8 inputs, 16 outputs, float32. Forward: the output, 4·16·4 = 256 B, and its sum, 4 B; the output goes,
    # for a sum keeps only its shape. Backward: the sum's gradient, 4 B, is seen as (4, 16) without a copy; the weight's
    # gradient, 16·8·4 = 512 B, is a product that needs its left side as a matrix: a copy of 256 B. The loss and its
    # gradient are alive until then: 4 + 4 + 512 + 256 = 776, more than forward's 260.
    layer = nn.Linear(8, 16, bias=False)
    x = torch.zeros(4, 8)

    def call() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).sum().backward()

    changes = memory.allocations(call)
    layer.zero_grad(set_to_none=True)

    assert changes[:3] == [256, 4, -256]
    assert memory.highest_sum(changes) == 776
    assert sum(changes) == 512, "the gradient alone is left"


def test_allocations_after_an_error_are_followed_again():
    def fails() -> None:
        torch.empty(10)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        memory.allocations(fails)
    assert memory.allocations(known)[0] == 4000


def test_operators_are_not_recorded_beside_the_reports():
    a = torch.zeros(10)

    assert memory.allocations(lambda: [a.sin_() for _ in range(100)]) == []


def test_the_hosts_peak_is_reset_and_rises_with_what_is_touched():
    if not memory.reset_host_peak():
        pytest.skip("/proc/self/clear_refs cannot be written here")
    before = memory.host_peak_bytes()
    torch.ones(2**24)
    touched = memory.host_peak_bytes()
    memory.reset_host_peak()
    after = memory.host_peak_bytes()

    assert before is not None
    assert touched is not None
    assert after is not None
    assert touched - before > 2**25, "a tensor of 2^26 bytes was touched"
    assert after < touched


@pytest.mark.gpu
def test_cuda_peaks_by_hand():
    # Requests of 4,000, 8,000 and 2,000 bytes in blocks of 512: 4,096, 8,192, 2,048. The peak is with the first two.
    device = torch.device("cuda")
    before: Any = memory.peaks(lambda: None, [], device)

    def call() -> None:
        a = torch.empty(1000, device=device)
        b = torch.empty(2000, device=device)
        del a
        c = torch.empty(500, device=device)
        del b, c

    found: Any = memory.peaks(call, [], device)

    assert found.requested_bytes - before.requested_bytes == 12000
    assert found.allocated_bytes - before.allocated_bytes == 4096 + 8192
    assert found.reserved_bytes >= found.allocated_bytes


@pytest.mark.gpu
def test_cuda_peaks_do_not_depend_on_what_ran_before():
    # A backward pass multiplies on a thread of its own, which gets a workspace of its own; the forward's peak, in the
    # same process later, must not have it.
    device = torch.device("cuda")
    a = torch.zeros(64, 64, device=device, requires_grad=True)

    def forward() -> None:
        with torch.no_grad():
            torch.mm(a, a)

    before = memory.peaks(forward, [a], device)
    torch.mm(a, a).sum().backward()
    a.grad = None

    assert memory.peaks(forward, [a], device) == before


@pytest.mark.gpu
def test_the_weights_of_a_model_lie_without_holes():
    # Each weight is one request, in order, to an allocator that has handed out nothing else.
    device = torch.device("cuda")
    memory.settle_cuda(device)
    before = torch.cuda.memory_reserved(device)

    model = build(preset("mamba-130m", n_layers=4), device=device, dtype=torch.bfloat16)
    memory.settle_cuda(device)

    weights = tuple(Block(tensor.nbytes, "weight", "params") for tensor in model.parameters())
    assert 0 < torch.cuda.memory_reserved(device) - before <= simulated(Timeline(weights, [])).reserved
