# pyright: standard
"""Cost, time and memory over the context length or the batch: a row of panels a task, counted and measured apart."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchbench.axis import Axis
from benchbench.columns import Group, grouped
from benchbench.errors import BenchError
from benchbench.files import whole
from benchbench.record import Record
from benchbench.scaling import METRICS, Point, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart with any kind of colour vision (jfly.uni-koeln.de/color)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LEGEND, TITLE = 160, 38
"""Characters beside one another in the legend, and over a panel."""
DASHES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (8, 3)))


class Panel(NamedTuple):
    """One quantity. `unit` is what it is drawn in, and the title says so."""

    title: str
    unit: float
    kind: Literal["counted", "measured"]
    point: Callable[[Record, Axis], Point | None]


def measured_peak(record: Record, axis: Axis) -> Point | None:
    """Bytes that the allocator handed out; a CPU's hands out what is requested."""
    measured = record.measured
    if measured is None:
        return None
    peak = measured.peak_allocated_bytes or measured.peak_requested_bytes
    return Point(axis.of(record.case), peak, peak, peak) if peak else None


_METRICS = {metric.name: metric for metric in METRICS}
PANELS = (
    Panel("TFLOP (counted)", 1e12, "counted", _METRICS["counted FLOPs"].point),
    Panel("seconds a call (measured)", 1.0, "measured", _METRICS["measured time"].point),
    Panel("peak memory, GiB (counted)", 2.0**30, "counted", _METRICS["counted peak memory"].point),
    Panel("peak memory, GiB (measured)", 2.0**30, "measured", measured_peak),
)
MEMORY = slice(2, 4)
"""The panels that share one scale, so that counted and measured can be laid side by side."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "benchbench",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def draw(records: Sequence[Record], stem: Path) -> list[Path]:
    """`<stem>.svg` and `<stem>.png` of one suite's records on one machine; the same records give the same bytes.

    Raises:
        BenchError: matplotlib is not installed, or a file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise BenchError("plots need matplotlib, which is not installed.", "pip install 'benchbench[plot]'") from None
    with mpl.rc_context(STYLE):
        drawn = figure(records)
        files = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
        with whole(files[0]) as draft:
            drawn.savefig(draft, format="svg", metadata={"Date": None, "Creator": None})
        with whole(files[1]) as draft:
            drawn.savefig(draft, format="png", dpi=150, metadata={"Software": None})
    return files


def figure(records: Sequence[Record]) -> "Figure":
    """A row for each task, dtype and batch; a column for each of `PANELS`."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = grouped(records)
    drawn = Figure(figsize=(3.1 * len(PANELS), 2.9 * len(groups) + 0.4), layout="constrained")
    grid = drawn.subplots(len(groups), len(PANELS), squeeze=False)
    known = looks(groups.values())
    for row, (group, members) in zip(grid, groups.items(), strict=True):
        values = [draw_panel(axes, one, group, members, known) for axes, one in zip(row, PANELS, strict=True)]
        both = [value for found in values[MEMORY] for value in found]
        values[MEMORY] = [both if found else [] for found in values[MEMORY]]
        for axes, one, found in zip(row, PANELS, values, strict=True):
            scale(axes, one, found)
    handles = [
        Line2D(
            [], [], color=look.color, linestyle=look.dashes, marker=look.marker, markerfacecolor=look.fill, label=label
        )
        for label, look in known.items()
    ]
    columns = max(1, min(4, len(handles), LEGEND // (12 + max(map(len, known), default=0))))
    drawn.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.5)
    return drawn


class Look(NamedTuple):
    """A family's colour and marker; its second model or path has other dashes, and another marker, which is hollow."""

    color: str
    marker: str
    dashes: Any
    fill: str


def looks(groups: Iterable[Sequence[Record]]) -> dict[str, Look]:
    """How each series is drawn, by label, the same in every panel."""
    families = {label: members[0].case.family for group in groups for label, members in series(group).items()}
    colours = sorted(set(families.values()))
    known: dict[str, Look] = {}
    for label in sorted(families):
        which = colours.index(families[label])
        place = sum(families[other] == families[label] for other in known)
        color = PALETTE[which % len(PALETTE)]
        dashes = DASHES[place % len(DASHES)]
        marker = MARKERS[(which + place * len(colours)) % len(MARKERS)]
        known[label] = Look(color, marker, dashes, "white" if place else color)
    return known


def draw_panel(
    axes: "Axes", panel: Panel, group: Group, records: Sequence[Record], known: dict[str, Look]
) -> list[float]:
    """One quantity: dashed lines where it is counted, dots with intervals where measured. Returns what was drawn."""
    lengths = sorted({group.axis.of(record.case) for record in records})
    ticks = lengths[:: max(1, -(-len(lengths) // 6))]
    axes.set_title("\n".join((*fill(group.title.split(" · "), TITLE), panel.title)), loc="left", fontsize=9)
    axes.set_xlabel(f"{group.axis.symbol} ({group.axis.unit}s)")
    axes.set_xscale("log", base=2)
    axes.set_xlim(lengths[0] / 1.5, lengths[-1] * 1.5)
    axes.set_xticks(ticks, [short(n) for n in ticks])
    axes.set_xticks([], minor=True)
    values: list[float] = []
    for label, members in series(records).items():
        look = known[label]
        found = sorted({point.n: point for record in members if (point := panel.point(record, group.axis))}.values())
        n, value = [point.n for point in found], [point.value / panel.unit for point in found]
        values += value
        if panel.kind == "counted":
            alone = {"marker": "_", "markersize": 14} if len(n) == 1 else {}
            axes.plot(n, value, color=look.color, linestyle=look.dashes, linewidth=1.6, **alone)
        elif found:
            spread = [[(p.value - p.low) / panel.unit for p in found], [(p.high - p.value) / panel.unit for p in found]]
            axes.errorbar(
                n,
                value,
                spread,
                fmt=look.marker,
                color=look.color,
                markersize=5,
                markerfacecolor=look.fill,
                capsize=2.5,
            )
    return values


def scale(axes: "Axes", panel: Panel, values: Sequence[float]) -> None:
    """A logarithmic axis of whole decades around `values`, so that it has two numbers at least."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if values:
        axes.set_ylim(10 ** floor(log10(min(values) / 1.05)), 10 ** ceil(log10(max(values) * 1.05)))
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, f"nothing was {panel.kind}", transform=axes.transAxes, ha="center", va="center")


def fill(words: Sequence[str], width: int) -> list[str]:
    """Words with dots between them, in lines of at most `width` characters, or of one word."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" · {word}"
        else:
            lines.append(word)
    return lines


def short(n: int) -> str:
    """512, 4k, 1M: a length on an axis, where it is a multiple of 1,024."""
    for factor, letter in ((2**20, "M"), (2**10, "k")):
        if n >= factor and n % factor == 0:
            return f"{n // factor}{letter}"
    return str(n)
