"""torch's caching allocator where it may take no more than so many bytes.

From c10/cuda/CUDACachingAllocator: before it takes a segment that would put it above its limit, it gives back every
segment that is wholly free, and takes it then if it fits; what fails after that is out of memory.
"""

from collections import Counter

from benchbench.counters.allocator import ADDRESS, AFTER, BEFORE, SIZE, Allocator, Piece, play, take
from benchbench.counters.rounds import Stretch
from benchbench.counters.timeline import Block, Event, Repeat, Timeline, one_by_one

CALLS = 3
"""Training steps that are followed. The third may need more segments than the second; later ones hardly ever do."""


class Full(Exception):  # noqa: N818
    """More is asked for than may be taken."""


class Limited(Allocator):
    """Takes what it is asked for, above its limit too, so that `taken` says by how much it does not fit."""

    def __init__(self, limit: int, *, strict: bool = False) -> None:
        super().__init__()
        self.limit = limit
        self.strict = strict
        """Whether it raises `Full` instead."""
        self.taken: int = 0
        """The most bytes of segments at once, after free ones were given back."""
        self._requests: dict[int, int] = {}
        """What each segment was taken for, by its address."""
        self._log: list[tuple[int, int]] = []
        """The requests for which segments were taken, and with -1 those whose segments were given back."""
        self._fullest = 0

    def segment(self, size: int) -> Piece:
        piece = super().segment(size)
        self._requests[piece[ADDRESS]] = size
        self._log.append((size, 1))
        if self.reserved > self.limit:
            self._give_back()
        if self.reserved > self.taken:
            self.taken, self._fullest = self.reserved, len(self._log)
            if self.strict and self.taken > self.limit:
                raise Full
        return piece

    @property
    def requests(self) -> Counter[int]:
        """What the segments were taken for that were there together when most was taken."""
        counts: Counter[int] = Counter()
        for size, sign in self._log[: self._fullest]:
            counts[size] += sign
        return counts

    def _give_back(self) -> None:
        for free in (self.small, self.large):
            for piece in [piece for piece in free if piece[BEFORE] is piece[AFTER] is None]:
                free.remove(piece)
                self.reserved -= piece[SIZE]
                self._log.append((self._requests[piece[ADDRESS]], -1))


def played(timeline: Timeline, limit: int) -> Limited:
    """An allocator with a limit after all that a call allocates and frees, and what was before that."""
    return _through(timeline, Limited(limit))


def played_within(timeline: Timeline, limit: int) -> Limited | None:
    """The same; None as soon as it would be out of memory."""
    try:
        return _through(timeline, Limited(limit, strict=True))
    except Full:
        return None


def _through(timeline: Timeline, allocator: Limited) -> Limited:
    """A call, from an empty allocator; of training with an optimizer that has states, the first calls.

    The end of the first makes the states. They take their place in segments that its activations left, where those of
    the second call then do not fit as they did.
    """
    states = [block for block in timeline.held if block.category == "optimizer"]
    if not states:
        play(timeline, allocator)
        return allocator
    update = next((i for i, item in enumerate(timeline.items) if _updates(item)), len(timeline.items))
    made = [(Block(block.size, block.name, "optimizer"), 1) for block in one_by_one(states)]
    items = [*timeline.items[:update], *made, *timeline.items[update:]]
    others = tuple(block for block in timeline.held if block.category != "optimizer")
    whole, left = play(Timeline(others, items), allocator)
    for _ in range(CALLS - 1):
        _release_gradients(left, allocator)
        whole = _without_what_is_there(whole)
        take(whole, allocator)
    return allocator


def _release_gradients(left: dict[Block, list[Piece]], allocator: Allocator) -> None:
    for block, pieces in left.items():
        if block.category == "grads":
            while pieces:
                allocator.release(pieces.pop())


def _updates(item: Event | Repeat) -> bool:
    """Whether the optimizer's step has begun."""
    return any(map(_updates, item.items)) if isinstance(item, Repeat) else item[0].place == "optimizer" and item[1] > 0


def _without_what_is_there(whole: Stretch) -> Stretch:
    """What a later call does, to which the optimizer's states and the libraries' workspaces are left."""
    parts = [
        _without_what_is_there(part) if isinstance(part, Stretch) else [step for step in part if not step[0]]
        for part in whole.parts
    ]
    return Stretch(whole.times, parts, whole.left)
