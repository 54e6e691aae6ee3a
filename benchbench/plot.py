# pyright: standard
"""Cost and time over the context length: one row of panels a task, counted lines and measured dots apart."""

from collections.abc import Iterable, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench.columns import Group, grouped
from benchbench.errors import BenchError
from benchbench.record import Record
from benchbench.scaling import METRICS, Metric, points, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart with any kind of colour vision (jfly.uni-koeln.de/color)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (8, 3)))

PANELS = {
    "counted FLOPs": (1e12, "TFLOP (counted)"),
    "counted peak memory": (2.0**30, "peak memory, GiB (counted)"),
    "measured time": (1.0, "seconds a call (measured)"),
}
"""The metrics drawn, the unit they are drawn in, and the title that says so."""

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
        BenchError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise BenchError("plots need matplotlib, which is not installed.", "pip install 'benchbench[plot]'") from None
    with mpl.rc_context(STYLE):
        drawn = figure(records)
        files = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
        drawn.savefig(files[0], metadata={"Date": None, "Creator": None})
        drawn.savefig(files[1], dpi=150, metadata={"Software": None})
    return files


def figure(records: Sequence[Record]) -> "Figure":
    """A row for each task, dtype and batch; a column for each of `PANELS`."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = grouped(records)
    metrics = [metric for metric in METRICS if metric.name in PANELS]
    drawn = Figure(figsize=(3.4 * len(metrics), 2.9 * len(groups) + 0.4), layout="constrained")
    grid = drawn.subplots(len(groups), len(metrics), squeeze=False)
    known = looks(groups.values())
    for row, (group, members) in zip(grid, groups.items(), strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            panel(axes, metric, group, members, known)
    handles = [
        Line2D(
            [], [], color=look.color, linestyle=look.dashes, marker=look.marker, markerfacecolor=look.fill, label=label
        )
        for label, look in known.items()
    ]
    drawn.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)), handlelength=3.5)
    return drawn


class Look(NamedTuple):
    """A family's colour and marker; its second model has other dashes and a hollow marker."""

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
        known[label] = Look(color, MARKERS[which % len(MARKERS)], dashes, "white" if place else color)
    return known


def panel(axes: "Axes", metric: Metric, group: Group, records: Sequence[Record], known: dict[str, Look]) -> None:
    """One metric over N, both logarithmic: dashed lines where it is counted, dots with intervals where measured."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    unit, title = PANELS[metric.name]
    lengths = sorted({record.case.seq_len for record in records})
    ticks = lengths[:: max(1, -(-len(lengths) // 6))]
    axes.set_title(f"{group.title}\n{title}", loc="left", fontsize=9)
    axes.set_xlabel("N (tokens)")
    axes.set_xscale("log", base=2)
    axes.set_xlim(lengths[0] / 1.5, lengths[-1] * 1.5)
    axes.set_xticks(ticks, [short(n) for n in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    values: list[float] = []
    for label, members in series(records).items():
        look, found = known[label], sorted(points(metric, members).values())
        n, value = [point.n for point in found], [point.value / unit for point in found]
        values += value
        if metric.counted:
            axes.plot(n, value, color=look.color, linestyle=look.dashes, linewidth=1.6)
        elif found:
            spread = [[(p.value - p.low) / unit for p in found], [(p.high - p.value) / unit for p in found]]
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
    if values:
        # Whole decades, so that an axis has two numbers at least.
        axes.set_ylim(10 ** floor(log10(min(values) / 1.05)), 10 ** ceil(log10(max(values) * 1.05)))
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, f"nothing was {metric.kind}", transform=axes.transAxes, ha="center", va="center")


def short(n: int) -> str:
    """512, 4k, 1M: a length on an axis, where it is a multiple of 1,024."""
    for factor, letter in ((2**20, "M"), (2**10, "k")):
        if n >= factor and n % factor == 0:
            return f"{n // factor}{letter}"
    return str(n)
