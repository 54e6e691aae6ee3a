"""`benchbench report`: tables and findings of a run, printed or written beside the results of other machines."""

import sys
from pathlib import Path

import click

from benchbench.errors import BenchError


@click.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "md", "csv", "json", "latex"]),
    default="table",
    help="What is printed.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write <suite>/<device> files there instead."
)
@click.option("--plot", is_flag=True, help="With --out: draw time and cost over the length, too.")
@click.option("--allow-dirty", is_flag=True, help="With --out: accept what was measured with uncommitted changes.")
@click.option("--recount", is_flag=True, help="Count anew, by the present formulas; what was measured stays.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a record.")
def command(
    run: Path | None, form: str, out: Path | None, plot: bool, allow_dirty: bool, recount: bool, schema: bool
) -> None:
    """Print the tables of RUN: a run folder, or a JSON file of results."""
    from benchbench import report

    if schema:
        sys.stdout.write(report.schema())
        return
    if run is None:
        raise BenchError("report needs a run: a folder, or a JSON file of results.", "See: benchbench list runs")
    if out is None and (plot or allow_dirty):
        raise BenchError(
            f"--{'plot' if plot else 'allow-dirty'} goes with --out.", "Pass --out results to write files."
        )
    results = report.load(run)
    if not results.records:
        raise BenchError(f"'{run}' has no records yet.")
    if recount:
        import benchbench
        from benchbench.env import git
        from benchbench.recount import recounted

        results = recounted(results, git(Path(benchbench.__file__).parents[1]))
    if out is not None:
        from benchbench.publish import publish

        for path in publish(results, out, allow_dirty=allow_dirty, plot=plot):
            click.echo(path)
    elif form == "table":
        from benchbench.table import stdout_console

        report.render(results, stdout_console())
    else:
        writers = {"md": report.as_markdown, "csv": report.as_csv, "json": report.as_json, "latex": report.as_latex}
        sys.stdout.write(writers[form](results))
