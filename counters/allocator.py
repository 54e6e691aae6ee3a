"""torch's caching allocator on CUDA, as far as its policy decides how much it hands out and takes.

From c10/cuda/CUDACachingAllocator: requests are rounded up to 512 bytes; those up to 1 MiB are cut from segments of
2 MiB, larger ones below 10 MiB from segments of 20 MiB, and from 10 MiB on a segment is the request in whole 2 MiB. The
smallest free block that is large enough is taken, and cut unless what would be left is too small to be of use: then all
of it is handed out. What is freed joins its free neighbours and stays in the allocator.
"""

from bisect import bisect_left, insort
from typing import NamedTuple, TypeVar

from benchbench.counters.timeline import Timeline

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


class _Piece:
    """A part of a segment; `before` and `after` are its neighbours there."""

    __slots__ = ("address", "after", "before", "free", "size")

    def __init__(self, address: int, size: int, before: "_Piece | None", after: "_Piece | None") -> None:
        self.address = address
        self.size = size
        self.before = before
        self.after = after
        self.free = True


class _Pool:
    """Free pieces by size, then by address."""

    def __init__(self, least: int) -> None:
        self.least = least
        """A remainder of fewer bytes is handed out with the piece."""
        self.free: list[tuple[int, int]] = []
        self.pieces: dict[int, _Piece] = {}

    def add(self, piece: _Piece) -> None:
        piece.free = True
        self.pieces[piece.address] = piece
        insort(self.free, (piece.size, piece.address))

    def remove(self, piece: _Piece) -> None:
        piece.free = False
        del self.free[bisect_left(self.free, (piece.size, piece.address))]

    def smallest(self, size: int) -> _Piece | None:
        """The smallest free piece of at least `size` bytes, no longer free."""
        index = bisect_left(self.free, (size, 0))
        if index == len(self.free):
            return None
        piece = self.pieces[self.free[index][1]]
        self.remove(piece)
        return piece


class Allocator:
    """Hands out and takes back, and remembers the most."""

    def __init__(self) -> None:
        self.allocated = 0
        self.reserved = 0
        self.most_allocated = 0
        self.most_reserved = 0
        self._small = _Pool(least=BLOCK)
        self._large = _Pool(least=SMALL + 1)
        self._end = 0

    def allocate(self, size: int) -> _Piece:
        """A piece of at least `size` bytes."""
        size = max(BLOCK, -(-size // BLOCK) * BLOCK)
        pool = self._small if size <= SMALL else self._large
        piece = pool.smallest(size) or self._segment(size)
        if piece.size - size >= pool.least:
            rest = _Piece(piece.address + size, piece.size - size, piece, piece.after)
            if rest.after is not None:
                rest.after.before = rest
            piece.size, piece.after, piece.free = size, rest, False
            pool.add(rest)
        piece.free = False
        self.allocated += piece.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        return piece

    def release(self, piece: _Piece, requested: int) -> None:
        """Takes a piece back that was handed out for `requested` bytes."""
        self.allocated -= piece.size
        pool = self._small if -(-requested // BLOCK) * BLOCK <= SMALL else self._large
        for other in (piece.before, piece.after):
            if other is not None and other.free:
                pool.remove(other)
                piece = _joined(other, piece) if other.address < piece.address else _joined(piece, other)
        pool.add(piece)

    def _segment(self, size: int) -> _Piece:
        whole = SMALL_SEGMENT if size <= SMALL else LARGE_SEGMENT if size < LARGE else -(-size // GRAIN) * GRAIN
        self.reserved += whole
        self.most_reserved = max(self.most_reserved, self.reserved)
        # Segments do not touch: only pieces of one are joined.
        piece = _Piece(self._end, whole, None, None)
        self._end += whole + GRAIN
        return piece


A = TypeVar("A", bound=Allocator)


def _joined(first: _Piece, second: _Piece) -> _Piece:
    first.size += second.size
    first.after = second.after
    if first.after is not None:
        first.after.before = first
    return first


def played(timeline: Timeline, allocator: A) -> A:
    """`allocator` after all that a timeline, its rounds written out, allocates and frees."""
    for block in timeline.held:
        for _ in range(block.count):
            allocator.allocate(block.size)
    pieces: dict[int, list[_Piece]] = {}
    for block, sign in timeline.events():
        if sign > 0:
            pieces[id(block)] = [allocator.allocate(block.size) for _ in range(block.count)]
        else:
            for piece in pieces.pop(id(block)):
                allocator.release(piece, block.size)
    return allocator


def simulated(timeline: Timeline) -> Peaks:
    """The peaks of a timeline whose rounds are all written out, each with its own blocks."""
    allocator = played(timeline, Allocator())
    return Peaks(timeline.peak(), allocator.most_allocated, allocator.most_reserved)
