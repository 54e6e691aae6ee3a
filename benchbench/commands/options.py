"""Options that several verbs share, and how they print tables."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from benchbench.case import SETTINGS, TASKS, Case, completed
from benchbench.errors import BenchError
from benchbench.reading import read
from benchbench.specs import ModelSpec, preset, presets
from benchbench.table import Table

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = click.option(
    "--format", "output", type=click.Choice(["table", "md", "csv", "json"]), default="table", show_default=True
)


def SIZES(function: F) -> F:  # noqa: N802 - a decorator, like FORMATS
    """The options that spell out one case."""
    options = (
        click.option("--model", metavar="NAME", help="See: benchbench list models"),
        click.option("--task", type=click.Choice(TASKS), default="prefill", show_default=True),
        click.option("--seq-len", type=int, default=2048, show_default=True, help="Tokens read, or already read."),
        click.option("--batch", type=int, default=1, show_default=True),
        click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16."),
        click.option("--path", help="The implementation; the family's default if left out."),
        click.option("--optimizer", help="sgd, momentum, adam or adamw (the default where a case trains)."),
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Change a size of the model, or of the case: checkpoint=true, accumulate=4, autocast=bfloat16.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def case_of(*, model: str | None, changes: Sequence[str] = (), device: str = "cpu", **sizes: Any) -> Case:
    """The case that the options spell out, on the family's path for `device` unless one is given.

    Raises:
        BenchError: A name does not exist, or a value is of the wrong type or range.
    """
    if model is None:
        raise BenchError("no model is named.", "Pass --model NAME. See: benchbench list models")
    pairs = settings(changes)
    own = {key: pairs.pop(key) for key in SETTINGS if key in pairs}
    spec = preset(model, **pairs)
    case = read(Case, completed(spec, {**sizes, **own}, device), model)
    case.require_supported()
    return case


def settings(changes: Sequence[str]) -> dict[str, str]:
    """`field=value` texts, by field."""
    pairs: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise BenchError(f"--set {change}: expected FIELD=VALUE.")
        pairs[key] = value
    return pairs


def specs_of(names: Sequence[str], changes: Sequence[str]) -> list[ModelSpec]:
    """The models called `names`, with the changes of `--set`; all of them where none is named.

    Raises:
        BenchError: A name or a field does not exist, or there are changes and no name.
    """
    if changes and not names:
        raise BenchError(f"--set {changes[0]}: no model is named.", "Pass --model NAME. See: benchbench list models")
    return [preset(name, **settings(changes)) for name in names] or list(presets().values())


def echo_tables(tables: Sequence[Table], output: str, notes: Sequence[str] = ()) -> None:
    """Tables on stdout in the format asked for; notes below them."""
    from benchbench import table

    if output == "csv":
        click.echo(table.csv(tables), nl=False)
        return
    if output == "md":
        blocks = [f"{one.title}\n\n{table.markdown(one)}" for one in tables]
        if blocks or notes:
            click.echo("\n\n".join([*blocks, *notes]))
        return
    from rich.console import Console

    # Into a pipe or a file a table is as wide as it needs to be.
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    for one in tables:
        console.print(one.title, style="bold")
        for part in table.terminal(one, console):
            console.print(part)
    for note in notes:
        console.print(note)


REAL_PARAMS = 1_000_000
"""Models up to this size run for real, with numbers; larger ones on the meta device or on fake tensors, as shapes."""


def runs_for_real(case: Case) -> bool:
    from benchbench.counters import count

    return count(case).params <= REAL_PARAMS
