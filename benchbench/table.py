"""Rows of typed cells, and those rows as Markdown, terminal, CSV and LaTeX tables.

A cell is counted, traced, measured or text; no column mixes them. What is absent is an em dash, and a note in the same
row says why.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from benchbench import units

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

FORMAT_HINT = "Try --format md."
FOLDED = 10
"""Characters that a folded text needs at the least."""

Kind = Literal["text", "counted", "traced", "measured"]
Plain = str | int | float | None
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """`value` in SI units or None; `text` as every reader sees it; `note` says why something is missing."""

    value: Plain
    text: str
    note: str = ""


@dataclass(frozen=True)
class Column(Generic[T]):
    """How one column is read from an item and shown. `name` is its CSV header, with the unit of its values."""

    name: str
    title: str
    kind: Kind
    read: Callable[[T], Plain]
    show: Callable[[Any], str] = str
    note: Callable[[T], str] = lambda _: ""
    detail: int = 0
    """Where the terminal is too narrow, columns above 0 are left out, the highest first."""

    @property
    def right(self) -> bool:
        """Whether numbers line up at the right."""
        return self.kind != "text" or self.name in ("n", "batch")

    @property
    def header(self) -> str:
        return self.title if self.kind in ("text", "traced") else f"{self.title} ({self.kind})"

    def cell(self, item: T) -> Cell:
        value = self.read(item)
        return Cell(value, units.ABSENT if value is None else self.show(value), self.note(item))


@dataclass(frozen=True)
class Table:
    """What every backend renders. `labels` are the columns that CSV puts in front, the same in every row."""

    title: str
    labels: tuple[tuple[str, Plain], ...]
    columns: tuple[Column[Any], ...]
    rows: tuple[tuple[Cell, ...], ...]


def build(title: str, labels: Iterable[tuple[str, Plain]], columns: Iterable[Column[T]], items: Iterable[T]) -> Table:
    fixed = tuple(columns)
    return Table(title, tuple(labels), fixed, tuple(tuple(column.cell(item) for column in fixed) for item in items))


def markdown(table: Table) -> str:
    """A pipe table; the status carries its reason."""
    from tabulate import tabulate

    def text(cell: Cell) -> str:
        return (f"{cell.text}: {cell.note}" if cell.note else cell.text).replace("|", "\\|")

    return tabulate(
        [[text(cell) for cell in row] for row in table.rows],
        headers=[column.header for column in table.columns],
        tablefmt="pipe",
        colalign=["right" if column.right else "left" for column in table.columns],
        disable_numparse=True,
    )


def stdout_console() -> "Console":
    """Where tables are printed: on a terminal as wide as it is, into a pipe or a file as wide as they need."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def terminal(table: Table, console: "Console", hint: str = FORMAT_HINT) -> list["RichTable | str"]:
    """A rich table with the columns that the console has room for, then the reasons that its status column numbers.

    `hint` says how to see the other columns.
    """
    notes = numbered_notes(table)
    endless = console.options.update(width=10_000)
    hidden: list[Column[Any]] = []

    def width(but: Sequence[Column[Any]] = ()) -> int:
        left = rich_table(table, notes, hide=[column.name for column in (*hidden, *but)])
        return console.measure(left, options=endless).maximum

    details = sorted((column for column in table.columns if column.detail), key=lambda column: column.detail)
    while details and width() > console.width:
        hidden.append(details.pop())
    # What is left folds its texts; where even so there is no room, numbers go, the last ones first.
    texts = [column for column in table.columns if not column.right and column not in hidden]
    numbers = [column for column in table.columns[1:] if column.right and column not in hidden]
    while numbers and width(but=texts) + FOLDED * len(texts) > console.width:
        hidden.append(numbers.pop())
    drawn = rich_table(table, notes, hide=[column.name for column in hidden])
    lines = [" ".join(f"({number}) {note}." for note, number in notes.items())] if notes else []
    if hidden:
        lines.append(f"Too narrow for: {units.listing([column.header for column in hidden])}. {hint}")
    return [drawn, *lines]


def numbered_notes(table: Table) -> dict[str, int]:
    """Every distinct note, with its number."""
    notes = dict.fromkeys(cell.note for row in table.rows for cell in row if cell.note)
    return {note: number for number, note in enumerate(notes, start=1)}


def rich_table(table: Table, notes: dict[str, int], hide: Sequence[str]) -> "RichTable":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=SIMPLE_HEAD, padding=(0, 0), show_edge=False, header_style="bold")
    shown = [index for index, column in enumerate(table.columns) if column.name not in hide]
    kinds = [table.columns[index].kind for index in shown]
    for place, index in enumerate(shown):
        column = table.columns[index]
        named = column.kind in ("counted", "measured") and (place == 0 or kinds[place - 1] != column.kind)
        title = column.title.replace(" = ", "\n= ").replace("peak ", "peak\n").replace("state ", "state\n")
        title = title.replace("first call", "first\ncall")
        drawn.add_column(
            Text(f"{column.kind if named else ''}\n{title}"),
            justify="right" if column.right else "left",
            no_wrap=column.right,
            overflow="fold",
        )
    before = ""
    for row in table.rows:
        texts = [row[i].text + (f" ({notes[row[i].note]})" if row[i].note else "") for i in shown]
        repeated = table.columns[shown[0]].name == "n" and texts[0] == before
        before = texts[0]
        drawn.add_row("" if repeated else texts[0], *map(Text, texts[1:]))
    return drawn


def csv(tables: Sequence[Table]) -> str:
    """Every table's values in SI units, one below the other in one sheet; the header says counted or measured."""
    from pandas import DataFrame, concat

    frames = [
        DataFrame(
            [
                {**dict(table.labels), **{c.name: cell.value for c, cell in zip(table.columns, row, strict=True)}}
                | {"reason": next((cell.note for cell in row if cell.note), None)}
                for row in table.rows
            ],
            dtype=object,
        )
        for table in tables
    ]
    return concat(frames, ignore_index=True).to_csv(index=False, lineterminator="\n") if frames else ""


LATEX_GLYPHS = {
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    units.ABSENT: "---",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "·": r"$\cdot$",
}


def latex(table: Table) -> str:
    r"""A tabular whose upper header row says which columns are counted; needs the packages booktabs and amssymb."""
    from pandas import DataFrame, MultiIndex

    header = [("" if c.kind in ("text", "traced") else c.kind, c.title) for c in table.columns]
    frame = DataFrame([[cell.text for cell in row] for row in table.rows], columns=MultiIndex.from_tuples(header))
    align = "".join("r" if column.right else "l" for column in table.columns)
    drawn = frame.to_latex(index=False, escape=True, column_format=align, multicolumn_format="c")
    for glyph, command in LATEX_GLYPHS.items():
        drawn = drawn.replace(glyph, command)
    return f"% {table.title}\n{drawn}"
