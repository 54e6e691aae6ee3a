"""torch's caching allocator where it may take no more than so many bytes.

From c10/cuda/CUDACachingAllocator: before it takes a segment that would put it above its limit, it gives back every
segment that is wholly free, and takes it then if it fits; what fails after that is out of memory.
"""

from collections import Counter

from benchbench.counters import allocator
from benchbench.counters.allocator import Piece
from benchbench.counters.timeline import Timeline


class Limited(allocator.Allocator):
    """Takes what it is asked for, above its limit too, so that `taken` says by how much it does not fit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.taken: int = 0
        """The most bytes of segments at once, after free ones were given back."""
        self._requests: dict[int, int] = {}
        """What each segment was taken for, by its address."""
        self._log: list[tuple[int, int]] = []
        """The requests for which segments were taken, and with -1 those whose segments were given back."""
        self._fullest = 0

    def segment(self, size: int) -> Piece:
        piece = super().segment(size)
        self._requests[piece.address] = size
        self._log.append((size, 1))
        if self.reserved > self.limit:
            self._give_back()
        if self.reserved > self.taken:
            self.taken, self._fullest = self.reserved, len(self._log)
        return piece

    @property
    def requests(self) -> Counter[int]:
        """What the segments were taken for that were there together when most was taken."""
        counts: Counter[int] = Counter()
        for size, sign in self._log[: self._fullest]:
            counts[size] += sign
        return counts

    def _give_back(self) -> None:
        for pool in (self.small, self.large):
            for piece in [piece for _, _, piece in pool.free]:
                if piece.before is None and piece.after is None:
                    pool.remove(piece)
                    self.reserved -= piece.size
                    self._log.append((self._requests[piece.address], -1))


class _Full(Exception):  # noqa: N818
    """More is asked for than may be taken."""


class _Strict(Limited):
    """Stops where it would be out of memory."""

    def segment(self, size: int) -> Piece:
        piece = super().segment(size)
        if self.taken > self.limit:
            raise _Full
        return piece


def played(timeline: Timeline, limit: int) -> Limited:
    """An allocator with a limit after all that a timeline allocates and frees."""
    return allocator.played(timeline, Limited(limit))


def played_within(timeline: Timeline, limit: int) -> Limited | None:
    """The same; None as soon as it would be out of memory."""
    try:
        return allocator.played(timeline, _Strict(limit))
    except _Full:
        return None
