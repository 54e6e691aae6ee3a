"""torch's caching allocator on CUDA, as far as its policy decides how much it hands out and takes.

From c10/cuda/CUDACachingAllocator: requests are rounded up to 512 bytes; those up to 1 MiB are cut from segments of
2 MiB, larger ones below 10 MiB from segments of 20 MiB, and from 10 MiB on a segment is the request in whole 2 MiB. The
smallest free block that is large enough is taken, and cut unless what would be left is too small to be of use: then all
of it is handed out. What is freed joins its free neighbours and stays in the allocator.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

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


class Piece:
    """A part of a segment; `before` and `after` are its neighbours there."""

    __slots__ = ("address", "after", "before", "free", "size")

    def __init__(self, address: int, size: int, before: "Piece | None", after: "Piece | None") -> None:
        self.address = address
        self.size = size
        self.before = before
        self.after = after
        self.free = False


class Pool:
    """Free pieces by size, then by address."""

    __slots__ = ("free", "least")

    def __init__(self, least: int) -> None:
        self.least = least
        """A remainder of fewer bytes is handed out with the piece."""
        self.free: list[tuple[int, int, Piece]] = []

    def add(self, piece: Piece) -> None:
        piece.free = True
        insort(self.free, (piece.size, piece.address, piece))

    def remove(self, piece: Piece) -> None:
        piece.free = False
        del self.free[bisect_left(self.free, (piece.size, piece.address))]


class Allocator:
    """Hands out and takes back, and remembers the most."""

    def __init__(self) -> None:
        self.allocated: int = 0
        self.reserved: int = 0
        self.most_allocated = 0
        self.most_reserved = 0
        self.small = Pool(least=BLOCK)
        self.large = Pool(least=SMALL + 1)
        self._end = 0

    def allocate(self, size: int) -> Piece:
        """A piece of at least `size` bytes."""
        return self.hand_out(rounded(size))

    def hand_out(self, size: int) -> Piece:
        """A piece of at least `size` bytes, which are whole blocks."""
        pool = self.small if size <= SMALL else self.large
        # The smallest that is large enough, and of those the one of the lowest address.
        place = bisect_left(pool.free, (size,))
        if place < len(pool.free):
            piece = pool.free.pop(place)[2]
            piece.free = False
        else:
            piece = self.segment(size)
        left = piece.size - size
        if left >= pool.least:
            rest = Piece(piece.address + size, left, piece, piece.after)
            if rest.after is not None:
                rest.after.before = rest
            piece.size, piece.after = size, rest
            pool.add(rest)
        self.allocated = now = self.allocated + piece.size
        if now > self.most_allocated:
            self.most_allocated = now
        return piece

    def release(self, piece: Piece) -> None:
        """Takes back a piece that was handed out."""
        self.allocated -= piece.size
        # A piece of the small pool is never larger than what was asked for, one of the large pool never smaller.
        pool = self.small if piece.size <= SMALL else self.large
        before, after = piece.before, piece.after
        if before is not None and before.free:
            pool.remove(before)
            piece = _joined(before, piece)
        if after is not None and after.free:
            pool.remove(after)
            piece = _joined(piece, after)
        pool.add(piece)

    def segment(self, size: int) -> Piece:
        """A segment from the driver, in one piece."""
        whole = segment_bytes(size)
        self.reserved += whole
        self.most_reserved = max(self.most_reserved, self.reserved)
        # Segments do not touch: only pieces of one are joined.
        piece = Piece(self._end, whole, None, None)
        self._end += whole + GRAIN
        return piece


def _joined(first: Piece, second: Piece) -> Piece:
    first.size += second.size
    first.after = second.after
    if first.after is not None:
        first.after.before = first
    return first


def simulated(timeline: Timeline) -> Peaks:
    """The peaks of a timeline."""
    allocator = Allocator()
    play(timeline, allocator)
    return Peaks(timeline.peak(), allocator.most_allocated, allocator.most_reserved)


def play(timeline: Timeline, allocator: Allocator) -> dict[Block, list[Piece]]:
    """Takes `allocator` through all that a timeline allocates and frees; the pieces of each block that are left then.

    Those of what is held are not among them.
    """
    for block in one_by_one(timeline.held):
        allocator.allocate(block.size)
    whole, left = stretch(timeline, rounded)
    _take(whole, allocator)
    return left


def _take(stretch: Stretch, allocator: Allocator) -> None:
    hand_out, release = allocator.hand_out, allocator.release
    for _ in range(stretch.times):
        for part in stretch.parts:
            if isinstance(part, Stretch):
                _take(part, allocator)
                continue
            for stack, size in part:
                if size is None:
                    release(stack.pop())
                else:
                    stack.append(hand_out(size))
        for made, stack in stretch.left:
            stack += made
            made.clear()
