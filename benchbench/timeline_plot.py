# pyright: standard
"""One call's memory over its allocations and frees, stacked by what it is for, with the fullest moment marked."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench import units
from benchbench.counters.cost import Cost
from benchbench.counters.timeline import CATEGORIES, Category, Items, Repeat, Timeline
from benchbench.errors import BenchError
from benchbench.files import whole
from benchbench.plot import PALETTE, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS: dict[Category, str] = dict(
    zip(
        ("params", "grads", "optimizer", "activations", "state", "workspace", "logits"),
        ("#777777", PALETTE[4], PALETTE[3], PALETTE[0], PALETTE[2], PALETTE[5], PALETTE[1]),
        strict=True,
    )
)
SUFFIXES = (".png", ".svg")
BINS = 1000
"""As many moments are drawn: of several that share one, the fullest."""
MOST_EVENTS = 5_000_000


class Moment(NamedTuple):
    """Bytes by category after an event, the `event`-th."""

    event: int
    bytes: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.bytes)


def draw(cost: Cost, file: Path) -> None:
    """Writes the picture of a case; the same case gives the same bytes.

    Raises:
        BenchError: The file is no .png or .svg or cannot be written, matplotlib is not installed, or the case's memory
            is not followed.
    """
    if file.suffix not in SUFFIXES:
        raise BenchError(f"--timeline {file}: a picture is a .png or .svg.", f"Try {file.with_suffix('.svg')}.")
    try:
        import matplotlib as mpl
    except ImportError:
        raise BenchError("plots need matplotlib, which is not installed.", "pip install 'benchbench[plot]'") from None
    metadata = {"Date": None, "Creator": None} if file.suffix == ".svg" else {"Software": None}
    with mpl.rc_context(STYLE), whole(file) as draft:
        figure(cost).savefig(draft, format=file.suffix[1:], dpi=150, metadata=metadata)


def figure(cost: Cost) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    fullest = cost.fullest
    if not fullest.exact:
        raise BenchError(f"the memory of {cost.case.id} is bounded by a sum: it has no timeline.")
    shown = moments(fullest.timeline)
    top = max(shown, key=lambda one: one.total)
    factor, unit = units.unit_for(top.total, units.BYTES)
    drawn = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = drawn.subplots()
    x = [one.event for one in shown]
    below: list[float] = [0.0] * len(shown)
    used = [i for i in range(len(CATEGORIES)) if any(one.bytes[i] for one in shown)]
    for i in used:
        above = [height + one.bytes[i] / factor for height, one in zip(below, shown, strict=True)]
        axes.fill_between(x, below, above, step="post", color=COLORS[CATEGORIES[i]], linewidth=0)
        below = above
    # Spikes are narrower than a pixel where there are many events.
    axes.plot(x, below, drawstyle="steps-post", color="black", linewidth=0.5)
    highest = top.total / factor
    axes.set_xlim(0, max(1, x[-1]))
    axes.set_ylim(0, 1.18 * highest)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel("allocations and frees, in order")
    axes.set_title(f"{cost.case.id}\nmemory on {_NAMES[cost.device]}, {unit} (counted)", loc="left", fontsize=9)
    left = top.event < x[-1] / 2
    axes.plot([top.event], [highest], marker="v", color="black", markersize=6, clip_on=False)
    axes.annotate(
        f"peak {units.size(top.total)}" + (f"\n{fullest.at}" if fullest.at else ""),
        (top.event, highest),
        xytext=(8 if left else -8, 6),
        textcoords="offset points",
        ha="left" if left else "right",
        va="bottom",
    )
    patches = [Patch(color=COLORS[CATEGORIES[i]], label=CATEGORIES[i]) for i in reversed(used)]
    drawn.legend(handles=patches, loc="outside right center")
    return drawn


_NAMES = {"cpu": "a CPU", "cuda": "a GPU"}


def moments(timeline: Timeline) -> Sequence[Moment]:
    """What is alive after each event, or in each of `BINS` stretches of them at its fullest; the fullest is among them.

    Raises:
        BenchError: There are too many events.
    """
    events = number(timeline.items)
    if events > MOST_EVENTS:
        raise BenchError(f"a call makes {events:,} allocations and frees.", f"Up to {MOST_EVENTS:,} can be drawn.")
    width = -(-(events + 1) // BINS)
    found: list[Moment] = []
    for one in _after_each(timeline):
        if one.event % width == 0:
            found.append(one)
        elif one.total > found[-1].total:
            found[-1] = one
    return found


def number(items: Items) -> int:
    """Events, with every round."""
    return sum(item.times * number(item.items) if isinstance(item, Repeat) else 1 for item in items)


def _after_each(timeline: Timeline) -> Iterator[Moment]:
    place = {category: i for i, category in enumerate(CATEGORIES)}
    alive: list[Any] = [0] * len(CATEGORIES)
    for block in timeline.held:
        alive[place[block.category]] += block.count * block.size
    yield Moment(0, tuple(alive))
    for index, (block, sign) in enumerate(timeline.events(), start=1):
        alive[place[block.category]] += sign * block.count * block.size
        yield Moment(index, tuple(alive))
