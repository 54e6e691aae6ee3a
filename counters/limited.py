"""torch's caching allocator where it may take no more than so many bytes.

From c10/cuda/CUDACachingAllocator: before it takes a segment that would put it above its limit, it gives back every
segment that is wholly free, and takes it then if it fits; what fails after that is out of memory.
"""

from typing import Any

from benchbench.counters import allocator
from benchbench.counters.timeline import Timeline


class Limited(allocator.Allocator):
    """Takes what it is asked for, above its limit too, so that `taken` says by how much it does not fit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.reserved: int = 0
        self.limit = limit
        self.taken = 0
        """The most bytes of segments at once, after free ones were given back."""

    def _segment(self, size: int) -> Any:
        piece = super()._segment(size)
        if self.reserved > self.limit:
            self._give_back()
        self.taken = max(self.taken, self.reserved)
        return piece

    def _give_back(self) -> None:
        for pool in (self._small, self._large):
            free = [pool.pieces[address] for _, address in pool.free]
            for piece in free:
                if piece.before is None and piece.after is None:
                    pool.remove(piece)
                    self.reserved -= piece.size


def played(timeline: Timeline, limit: int) -> Limited:
    """An allocator with a limit after all that a timeline, its rounds written out, allocates and frees."""
    return allocator.played(timeline, Limited(limit))
