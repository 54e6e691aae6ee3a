"""The caching allocator's policy, on blocks that an H200 was asked for (torch 2.11), and derived by hand."""

import pytest

from benchbench.counters.allocations.workspaces import summing_bytes
from benchbench.counters.allocator import Allocator, Peaks, simulated
from benchbench.counters.timeline import Block, Repeat, Timeline

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (100_000, 100_352, 2 * MIB),
        (1_048_575, 1_048_576, 2 * MIB),
        (1_048_576, 1_048_576, 2 * MIB),
        (1_048_577, 1_049_088, 20 * MIB),
        (3_145_729, 3_146_240, 20 * MIB),
        # From 10 MiB on, a segment of its own, in whole 2 MiB.
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (102_926_336, 102_926_336, 104_857_600),
        # The rest of 781 KiB goes with the block.
        (154_389_504, 155_189_248, 155_189_248),
    ],
)
def test_a_first_block_of_each_size(size: int, allocated: int, reserved: int) -> None:
    """What an H200 handed out and took from the driver."""
    allocator = Allocator()
    allocator.allocate(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


@pytest.mark.parametrize(
    ("free", "size", "allocated"),
    [
        # A rest of 1 MiB or less of a large segment is handed out with the block.
        (12_582_912, 12_582_400, 12_582_912),
        (12_582_912, 11_534_848, 12_582_912),
        (12_582_912, 11_534_336, 12_582_912),
        (12_582_912, 11_533_824, 11_533_824),
        (12_582_912, 3_145_728, 3_145_728),
        (31_457_280, 11_534_336, 11_534_336),
        # Of a small one a rest of 512 is cut off.
        (1_000, 500, 512),
        (1_048_576, 100_000, 100_352),
        (314_572_800, 2_097_152, 2_097_152),
    ],
)
def test_what_a_freed_block_gives(free: int, size: int, allocated: int) -> None:
    """What an H200 handed out of a segment that was free, taking none."""
    allocator = Allocator()
    allocator.release(allocator.allocate(free), free)
    taken = allocator.reserved
    allocator.allocate(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, taken)


def test_neighbours_that_are_free_become_one() -> None:
    """A segment of 20 MiB, cut into 8, 8 and 4: the first two freed hold 16, which the third would not have let in."""
    allocator = Allocator()
    first, second, third = (allocator.allocate(size * MIB) for size in (8, 8, 4))
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)
    allocator.release(first, 8 * MIB)
    allocator.release(third, 4 * MIB)
    allocator.allocate(9 * MIB)
    assert allocator.reserved == 40 * MIB, "8 and 4 lie apart"
    allocator.release(second, 8 * MIB)
    allocator.allocate(19 * MIB)
    # 8, 8 and 4 are whole again; the rest of 1 MiB goes with the block.
    assert (allocator.allocated, allocator.reserved) == (9 * MIB + 20 * MIB, 40 * MIB)


def test_the_smallest_that_is_large_enough_is_taken() -> None:
    allocator = Allocator()
    sizes = (30 * MIB, 14 * MIB)
    for piece, size in [(allocator.allocate(size), size) for size in sizes]:
        allocator.release(piece, size)
    allocator.allocate(12 * MIB)
    allocator.allocate(30 * MIB)
    assert allocator.reserved == 44 * MIB


def test_small_and_large_blocks_never_share() -> None:
    allocator = Allocator()
    allocator.release(allocator.allocate(20 * MIB), 20 * MIB)
    allocator.allocate(512)
    assert allocator.reserved == 22 * MIB


def test_peaks_of_a_timeline() -> None:
    """Weights of 3 MiB; twice: 5 MiB that come, 2 KiB + 1 that come and go with them.

    Requested: 8 MiB + 2049. Handed out: 8 MiB + 2560. Taken: 20 MiB for the large ones, 2 MiB for the small one.
    """
    weights, large, small = (Block(size, "x", "workspace") for size in (3 * MIB, 5 * MIB, 2 * KIB + 1))
    round_ = Repeat(2)
    round_.items = [(large, 1), (small, 1), (small, -1), (large, -1)]
    peaks = simulated(Timeline((weights,), [round_]))
    assert peaks == Peaks(8 * MIB + 2049, 8 * MIB + 2560, 22 * MIB)


@pytest.mark.parametrize(
    ("rows", "cols", "size"),
    [(64, 64, 0), (4096, 1024, 33_554_432), (512, 50_257, 0), (1, 1024, 0)],
)
def test_what_a_sum_over_rows_hands_from_block_to_block(rows: int, cols: int, size: int) -> None:
    """What an H200 allocated for the bias of a linear layer, in backward; beside it 4 bytes a group of columns."""
    assert summing_bytes(rows, cols) == size
