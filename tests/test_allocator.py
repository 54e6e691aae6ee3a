"""The caching allocator's policy, on blocks that an H200 was asked for (torch 2.11), and derived by hand."""

import pytest

from benchbench.counters.allocations.workspaces import summing_bytes
from benchbench.counters.allocator import Allocator, Peaks, Piece, play, simulated
from benchbench.counters.timeline import Block, Event, Items, Repeat, Timeline

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
    allocator.release(allocator.allocate(free))
    taken = allocator.reserved
    allocator.allocate(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, taken)


def test_neighbours_that_are_free_become_one() -> None:
    """A segment of 20 MiB, cut into 8, 8 and 4: the first two freed hold 16, which the third would not have let in."""
    allocator = Allocator()
    first, second, third = (allocator.allocate(size * MIB) for size in (8, 8, 4))
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)
    allocator.release(first)
    allocator.release(third)
    allocator.allocate(9 * MIB)
    assert allocator.reserved == 40 * MIB, "8 and 4 lie apart"
    allocator.release(second)
    allocator.allocate(19 * MIB)
    # 8, 8 and 4 are whole again; the rest of 1 MiB goes with the block.
    assert (allocator.allocated, allocator.reserved) == (9 * MIB + 20 * MIB, 40 * MIB)


def test_the_smallest_that_is_large_enough_is_taken() -> None:
    allocator = Allocator()
    sizes = (30 * MIB, 14 * MIB)
    for piece in [allocator.allocate(size) for size in sizes]:
        allocator.release(piece)
    allocator.allocate(12 * MIB)
    allocator.allocate(30 * MIB)
    assert allocator.reserved == 44 * MIB


def test_small_and_large_blocks_never_share() -> None:
    allocator = Allocator()
    allocator.release(allocator.allocate(20 * MIB))
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


class Numbered(Allocator):
    """Numbers what it hands out, from 1 up, and notes the numbers; of what it takes back as negative."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[int] = []
        self.numbers: dict[int, int] = {}

    def hand_out(self, size: int) -> Piece:
        piece = super().hand_out(size)
        self.numbers[id(piece)] = sum(number > 0 for number in self.noted) + 1
        self.noted.append(self.numbers[id(piece)])
        return piece

    def release(self, piece: Piece) -> None:
        self.noted.append(-self.numbers[id(piece)])
        super().release(piece)


def block(size: int = 12 * MIB) -> Block:
    return Block(size, "x", "workspace")


def repeated(times: int, items: Items) -> Repeat:
    stretch = Repeat(times)
    stretch.items = items
    return stretch


def noted(*items: Event | Repeat) -> list[int]:
    allocator = Numbered()
    play(Timeline((), list(items)), allocator)
    return allocator.noted


def test_a_round_frees_what_the_one_before_it_left() -> None:
    """x = f(x): the first round finds x from before, and the last one's is freed after the loop."""
    before, made = block(), block()
    assert noted((before, 1), repeated(3, [(made, 1), (before, -1)]), (made, -1)) == [1, 2, -1, 3, -2, 4, -3, -4]


def test_what_forward_kept_goes_in_reverse() -> None:
    """Each round keeps what it makes, and its backward frees what it found: the first that from before the loop."""
    before, made = block(), block()
    forward, backward = repeated(3, [(made, 1)]), repeated(3, [(before, -1)])
    assert noted((before, 1), forward, (made, -1), backward) == [1, 2, 3, 4, -4, -3, -2, -1]


def test_what_rounds_of_an_inner_loop_made_goes_in_the_next_round_of_the_outer() -> None:
    """Two a pass, which go together once the next pass has made its own: LIFO, of the pass before."""
    before, made = block(), block()
    passes = repeated(2, [repeated(2, [(made, 1)]), (before, -2)])
    assert noted(repeated(2, [(before, 1)]), passes, (made, -2)) == [1, 2, 3, 4, -2, -1, 5, 6, -4, -3, -6, -5]


def test_what_is_held_was_made_layer_by_layer() -> None:
    """Weights of 8 and 12 MiB in each of 2 layers fill 20 MiB a layer; both of 8 first, those of 12 lie apart: 44."""
    held = tuple(Block(size * MIB, "w", "params", count=2, rounds=2) for size in (8, 12))
    assert simulated(Timeline(held, [])).reserved == 40 * MIB


@pytest.mark.parametrize(
    ("rows", "cols", "size"),
    [(64, 64, 0), (4096, 1024, 33_554_432), (512, 50_257, 0), (1, 1024, 0)],
)
def test_what_a_sum_over_rows_hands_from_block_to_block(rows: int, cols: int, size: int) -> None:
    """What an H200 allocated for the bias of a linear layer, in backward; beside it 4 bytes a group of columns."""
    assert summing_bytes(rows, cols) == size
