"""`benchbench claims`: published numbers, each counted again."""

import json
from pathlib import Path

import click

from benchbench.claims import page, written
from benchbench.commands.options import echo_tables
from benchbench.files import write_whole


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE.toml]...")
@click.option("--format", "output", type=click.Choice(["table", "md", "json"]), default="table", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write claims.md there instead.")
def command(files: tuple[Path, ...], output: str, out: Path | None) -> None:
    """Recompute published numbers by the count: confirmed, refuted or undecided."""
    sections = page.audited([written.load(path) for path in files] or written.built_in())
    if out is not None:
        place = out / "claims.md"
        write_whole(place, page.as_markdown(sections))
        click.echo(place)
    elif output == "json":
        click.echo(json.dumps(page.as_json(sections), indent=2, ensure_ascii=False))
    elif output == "md":
        click.echo(page.as_markdown(sections), nl=False)
    else:
        notes = [page.sentence([row for one in sections for row in one.audits])]
        echo_tables([page.verdicts_table(one) for one in sections], output, notes)
