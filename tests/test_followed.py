"""Sizes by hand: float32 is 4 bytes a number."""

import pytest
import torch
from torch import nn

from benchbench import followed, memory
from benchbench.counters.timeline import Block, Timeline

CPU = torch.device("cpu")


def changes(timeline: Timeline) -> list[int]:
    return [sign * block.size for block, sign in timeline.events()]


def test_every_block_is_named_after_its_operator_and_freed_as_itself():
    held = torch.zeros(250)

    def call() -> None:
        a = torch.empty(1000)
        b = torch.zeros(2000)
        del a
        c = held.exp()
        del b, c

    found = followed.follow(call, [held], CPU)

    assert changes(found) == [4000, 8000, -4000, 1000, -8000, -1000]
    assert [block.name for block, sign in found.events() if sign > 0] == ["empty", "zeros", "exp"]
    assert found.peak() == 1000 + 12000


def test_what_an_operator_takes_and_gives_back_is_inside_it():
    # The weight's gradient is a product of the sum's gradient, which is one number seen as (4, 16), and x: the product
    # makes a matrix of its left side, 4·16·4 = 256 B, beside its own 16·8·4 = 512 B. Alive then: the loss and its
    # gradient, 4 B each. Without what is inside: 520.
    layer = nn.Linear(8, 16, bias=False)
    x = torch.zeros(4, 8)

    def call() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).sum().backward()

    found = followed.follow(call, [], CPU)
    inside = [(block.name, block.size) for block, sign in found.events() if sign > 0 and block.place == followed.INSIDE]

    assert found.peak() == 776
    assert inside == [("mm", 256)]
    assert followed.visible(found).peak() == 520


def test_a_python_number_is_no_tensor_of_the_program():
    a = torch.zeros(100)

    found = followed.follow(lambda: a * 2.0, [], CPU)

    assert [block.size for block, _ in followed.visible(found).events()] == [400, 400]
    assert max(changes(found)) == 400
    assert "number" in {block.name for block, _ in found.events()}


def test_what_autocast_casts_is_a_tensor_of_the_program():
    a, b = torch.zeros(8, 8), torch.zeros(8, 8)

    def call() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.bmm(a[None], b[None])

    # Both casts and the product, 8·8·2 bytes each.
    assert changes(followed.visible(followed.follow(call, [], CPU)))[:3] == [128, 128, 128]


def test_blocks_that_a_trace_does_not_have_are_the_kernels_own():
    sizes = [512, 64, -64, 256, 32, -32, -512, -256]
    blocks = {size: Block(size, "block", "workspace") for size in sizes if size > 0}
    measured = Timeline((), [(blocks[abs(size)], 1 if size > 0 else -1) for size in sizes])
    a, b = Block(512, "a", "workspace"), Block(256, "b", "workspace")
    traced = Timeline((), [(a, 1), (b, 1), (a, -1), (b, -1)])

    found = followed.without(measured, traced)

    assert changes(followed.visible(found)) == [512, 256, -512, -256]


@pytest.mark.gpu
def test_the_history_of_the_cuda_allocator_has_the_peak_of_its_counters():
    device = torch.device("cuda")
    layer = nn.Linear(256, 512, device=device)
    x = torch.zeros(64, 256, device=device)

    def call() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).sum().backward()

    held = [*layer.parameters(), x]
    call()
    layer.zero_grad(set_to_none=True)
    peaks = memory.peaks(call, held, device)
    layer.zero_grad(set_to_none=True)

    assert followed.follow(call, held, device).peak() == peaks.requested_bytes
