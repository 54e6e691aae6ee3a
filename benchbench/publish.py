"""Results for the repository: a folder a suite, a file a device, and the list of them in the README."""

from collections.abc import Sequence
from pathlib import Path

from benchbench.errors import BenchError
from benchbench.files import write_whole
from benchbench.lead import Environment, commits, device_name, dirty
from benchbench.record import Record
from benchbench.report import Results, load, machines, write
from benchbench.table import Column, build, markdown

BEGIN, END = "<!-- runs: written by benchbench report -->", "<!-- end of runs -->"

Row = tuple[Path, Results]


def publish(results: Results, out: Path, *, allow_dirty: bool = False, plot: bool = False) -> list[Path]:
    """`<suite>/<device>.json`, `.md` and, with `plot`, `.svg` and `.png` under `out`; its README lists them.

    Raises:
        BenchError: A record was measured from a source tree with uncommitted changes, which nobody could repeat.
    """
    unclean = sorted({r.env for r in results.records if dirty(results.environments[r.env])})
    if unclean and not allow_dirty:
        message = f"measured with uncommitted changes: {commits(results.environments[e] for e in unclean)}."
        raise BenchError(message, "Commit and measure again, or pass --allow-dirty: the table will say so.")
    written: list[Path] = []
    for (suite, device), part in results.parts().items():
        stem = out / suite / device
        written += write(stem, part)
        if plot:
            from benchbench.plot import draw

            for number, machine in enumerate(machines(part), start=1):
                written += draw(machine.records, stem.with_name(f"{device}-{number}") if number > 1 else stem)
    readme = out / "README.md"
    if readme.exists():
        write_whole(readme, with_index(readme.read_text("utf-8"), out))
        written.append(readme)
    return written


def with_index(readme: str, out: Path) -> str:
    """`readme` with the table between its two marks made anew from the results under `out`."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{index(out)}\n\n{END}{after}"


def index(out: Path) -> str:
    """One row a file of results: when, on what, from which commits, how many cases."""
    files = sorted(out.glob("*/*.json"))
    if not files:
        return "No results yet."
    rows = [(path, load(path)) for path in files]
    columns: tuple[Column[Row], ...] = (
        Column[Row]("suite", "suite", "text", lambda row: row[1].records[0].suite),
        Column[Row]("date", "date", "text", lambda row: max(r.started_at for r in row[1].records)[:10]),
        Column[Row]("device", "device", "text", lambda row: device_name(_first_environment(row[1]))),
        Column[Row]("commit", "commit", "text", lambda row: commits(row[1].environments.values())),
        Column[Row]("torch", "torch", "text", lambda row: _first_environment(row[1])["packages"]["torch"]),
        Column[Row]("cases", "cases", "text", lambda row: _tally(row[1].records)),
        Column[Row]("table", "table", "text", lambda row: _link(row[0].relative_to(out))),
    )
    return markdown(build("runs", (), columns, rows))


def _first_environment(results: Results) -> Environment:
    return results.environments[results.records[0].env]


def _tally(records: Sequence[Record]) -> str:
    statuses = [record.status for record in records]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(sorted(statuses)))


def _link(path: Path) -> str:
    return f"[{path.stem}]({path.with_suffix('.md').as_posix()})"
