"""Which round's block it is that an event of a timeline is about.

A timeline names the blocks of one round of a loop for those of all. Of a block that was allocated in several rounds the
latest is freed first: backward lets go in reverse of what forward keeps, and where several go with nothing allocated in
between, their order makes no difference to an allocator.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from benchbench.counters.timeline import Block, Items, Repeat, Timeline, Weigh

Stack = list[Any]
"""What was allocated for a block, and is alive, the latest last."""
Step = tuple[Stack, int | None]
"""So many bytes are allocated; None frees the latest."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Steps to take `times` times. After each round, what it left to the next is moved to where that one finds it."""

    times: int
    parts: "list[list[Step] | Stretch]"
    left: list[tuple[Stack, Stack]]


def stretch(timeline: Timeline, weigh: Weigh) -> tuple[Stretch, dict[Block, Stack]]:
    """All that a timeline allocates and frees, block by block, and where what is alive of each block will be."""
    found = _Stretches(timeline, weigh)
    return found.whole, found.stacks


class _Stretches:
    def __init__(self, timeline: Timeline, weigh: Weigh) -> None:
        self._weigh = weigh
        self._found = _found(timeline)
        self.stacks: dict[Block, Stack] = defaultdict(list)
        self._left: list[tuple[Stack, Block, tuple[Stretch, ...]]] = []
        """What rounds leave, what it is found as, and the stretches that it is allocated in, from the outermost."""
        self._freed: dict[Block, list[Stretch]] = defaultdict(list)
        self.whole = self._stretch(timeline.items, 1, ())
        for made, found, around in self._left:
            # The round of the loop that frees what it finds: it may have made it in another loop inside.
            end = next((one for one in around if one in self._freed[found]), around[-1])
            end.left.append((made, self.stacks[found]))

    def _stretch(self, items: Items, times: int, around: tuple[Stretch, ...]) -> Stretch:
        steps: list[Step] = []
        stretch = Stretch(times, [steps], [])
        around = (*around, stretch)
        for item in items:
            if isinstance(item, Repeat):
                steps = []
                stretch.parts.extend((self._stretch(item.items, item.times, around), steps))
                continue
            block, sign = item
            found = self._found.get(block, block)
            stack: Stack = self.stacks[found]
            if sign < 0:
                self._freed[block].append(stretch)
            elif found is not block:
                stack = []
                self._left.append((stack, found, around))
            step = (stack, self._weigh(block.size) if sign > 0 else None)
            number = block.count if sign > 0 else -sign * block.count
            if number == 1:
                steps.append(step)
            else:
                steps.extend(step for _ in range(number))
        return stretch


def _found(timeline: Timeline) -> dict[Block, Block]:
    """Blocks that a round of a loop leaves to the next, each with the one that the first round finds in its place.

    A round frees what it finds, and the timeline calls that what the first round finds: it is allocated once and freed
    in every round. What a round leaves is allocated in every round and freed once, after the loop.
    """
    left: dict[tuple[str, str, int, int], list[Block]] = defaultdict(list)
    freed: list[tuple[Block, int]] = []
    for block, times in timeline.balance().items():
        if times > 0:
            left[block.name, block.place, block.size, times * block.count].append(block)
        elif times < 0:
            freed.append((block, -times * block.count))
    return {left[block.name, block.place, block.size, times].pop(0): block for block, times in freed}
