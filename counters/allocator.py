"""torch's caching allocator on CUDA, as far as its policy decides how much it hands out and takes.

From c10/cuda/CUDACachingAllocator: requests are rounded up to 512 bytes; those up to 1 MiB are cut from segments of
2 MiB, larger ones below 10 MiB from segments of 20 MiB, and from 10 MiB on a segment is the request in whole 2 MiB. The
smallest free block that is large enough is taken, and cut unless what would be left is too small to be of use: then all
of it is handed out. What is freed joins its free neighbours and stays in the allocator.
"""

from bisect import bisect_left, insort
from typing import Any, NamedTuple

from benchbench.counters.rounds import Stretch, stretch
from benchbench.counters.timeline import Block, Timeline, one_by_one

BLOCK = 512
SMALL = 2**20
SMALL_SEGMENT = 2 * 2**20
LARGE = 10 * 2**20
LARGE_SEGMENT = 20 * 2**20
GRAIN = 2 * 2**20


class Peaks(NamedTuple):
    """Most bytes at once: as requested, as handed out, and as taken from the driver."""

    requested: int
    allocated: int
    reserved: int


def rounded(size: int) -> int:
    """The least that is handed out for a request."""
    return -(-size // BLOCK) * BLOCK or BLOCK


def segment_bytes(size: int) -> int:
    """What is taken for a request that no free piece is large enough for."""
    return SMALL_SEGMENT if size <= SMALL else LARGE_SEGMENT if size < LARGE else -(-size // GRAIN) * GRAIN


SIZE, ADDRESS, BEFORE, AFTER, FREE = range(5)
"""What is where in a piece; before and after it are its neighbours in the segment."""

Piece = list[Any]
"""A part of a segment. A list, because lists sort by size, then by address, faster than anything else that does."""


class Allocator:
    """Hands out and takes back, and remembers the most."""

    def __init__(self) -> None:
        self.allocated: int = 0
        self.reserved: int = 0
        self.most_allocated = 0
        self.most_reserved = 0
        self.small: list[Piece] = []
        """Free pieces of segments that are cut into small ones, in order."""
        self.large: list[Piece] = []
        self._end = 0

    def allocate(self, size: int) -> Piece:
        """A piece of at least `size` bytes."""
        return self.hand_out(rounded(size))

    def hand_out(self, size: int) -> Piece:
        """A piece of at least `size` bytes, which are whole blocks."""
        # A remainder of fewer bytes than `least` is handed out with the piece.
        free, least = (self.small, BLOCK) if size <= SMALL else (self.large, SMALL + 1)
        # The smallest that is large enough, and of those the one of the lowest address.
        place = bisect_left(free, [size])
        if place == len(free):
            made = self.segment(size)
            place = len(free)  # which may be less than it was: free segments may have been given back
            free.append(made)
        piece = free[place]
        left = piece[SIZE] - size
        if left < least:
            del free[place]
        else:
            rest: Piece = [left, piece[ADDRESS] + size, piece, piece[AFTER], True]
            if rest[AFTER] is not None:
                rest[AFTER][BEFORE] = rest
            piece[SIZE], piece[AFTER] = size, rest
            # It takes the place of the whole, unless it is now smaller than others.
            free[place] = rest
            if place and rest < free[place - 1]:
                del free[place]
                insort(free, rest, 0, place)
        piece[FREE] = False
        self.allocated = now = self.allocated + piece[SIZE]
        if now > self.most_allocated:
            self.most_allocated = now
        return piece

    def release(self, piece: Piece) -> None:
        """Takes back a piece that was handed out."""
        size, _, before, after, _ = piece
        self.allocated -= size
        # A piece of the small pool is never larger than what was asked for, one of the large pool never smaller.
        free = self.small if size <= SMALL else self.large
        if before is not None and before[FREE]:
            del free[bisect_left(free, before)]
            piece = _joined(before, piece)
        if after is not None and after[FREE]:
            del free[bisect_left(free, after)]
            piece = _joined(piece, after)
        piece[FREE] = True
        insort(free, piece)

    def segment(self, size: int) -> Piece:
        """A segment from the driver, in one piece, which is free."""
        whole = segment_bytes(size)
        self.reserved += whole
        self.most_reserved = max(self.most_reserved, self.reserved)
        # Segments do not touch: only pieces of one are joined.
        piece: Piece = [whole, self._end, None, None, True]
        self._end += whole + GRAIN
        return piece


def _joined(first: Piece, second: Piece) -> Piece:
    first[SIZE] += second[SIZE]
    first[AFTER] = after = second[AFTER]
    if after is not None:
        after[BEFORE] = first
    return first


def simulated(timeline: Timeline) -> Peaks:
    """The peaks of a timeline."""
    allocator = Allocator()
    play(timeline, allocator)
    return Peaks(timeline.peak(), allocator.most_allocated, allocator.most_reserved)


def play(timeline: Timeline, allocator: Allocator) -> tuple[Stretch, dict[Block, list[Piece]]]:
    """Takes `allocator` through all that a timeline allocates and frees.

    What it was taken through once what is held was there, and the pieces of each block that are left after that.
    """
    for block in one_by_one(timeline.held):
        allocator.allocate(block.size)
    whole, left = stretch(timeline, rounded)
    take(whole, allocator)
    return whole, left


def take(stretch: Stretch, allocator: Allocator) -> None:
    """Takes `allocator` through a stretch."""
    hand_out, release = allocator.hand_out, allocator.release
    for _ in range(stretch.times):
        for part in stretch.parts:
            if isinstance(part, Stretch):
                take(part, allocator)
                continue
            for stack, size in part:
                if size is None:
                    release(stack.pop())
                else:
                    stack.append(hand_out(size))
        for made, stack in stretch.left:
            stack += made
            made.clear()
