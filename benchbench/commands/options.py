"""Options that several verbs share, and how they print tables."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from benchbench.case import SETTINGS, TASKS, Case, completed
from benchbench.errors import BenchError
from benchbench.reading import read
from benchbench.specs import ModelSpec, preset, presets
from benchbench.table import Table

if TYPE_CHECKING:
    from benchbench.counters.cost import Kind

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

LENGTH = click.IntRange(min=1, max=2**40)
"""Tokens, or sequences."""

FORMATS = click.option(
    "--format", "output", type=click.Choice(["table", "md", "csv", "json"]), default="table", show_default=True
)


def SIZES(function: F) -> F:  # noqa: N802 - a decorator, like FORMATS
    """The options that spell out one case."""
    options = (
        click.option("--model", metavar="NAME", help="See: benchbench list models"),
        click.option("--task", type=click.Choice(TASKS), default="prefill", show_default=True),
        click.option("--seq-len", type=LENGTH, default=2048, show_default=True, help="Tokens read, or already read."),
        click.option("--batch", type=LENGTH, default=1, show_default=True),
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
    spec = changed(model, pairs)
    case = read(Case, completed(spec, {**sizes, **own}, device), model)
    case.require_supported()
    return case


def sized(spec: ModelSpec, **sizes: Any) -> Case:
    """A case of a model, at sizes that may be wrong.

    Raises:
        BenchError: A value is of the wrong type or range, or does not go with another.
    """
    return read(Case, completed(spec, sizes), spec.name)


def settings(changes: Sequence[str]) -> dict[str, str]:
    """`field=value` texts, by field."""
    pairs: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise BenchError(f"--set {change}: expected FIELD=VALUE.")
        pairs[key] = value
    return pairs


def changed(name: str, pairs: dict[str, str]) -> ModelSpec:
    """The preset with its sizes changed."""
    if fixed := next((key for key in ("name", "family") if key in pairs), None):
        raise BenchError(f"--set {fixed}={pairs[fixed]}: a model keeps its {fixed}.", "Pass --model NAME.")
    return preset(name, **pairs)


def given(name: str) -> bool:
    """Whether the parameter was given on the command line, and did not take its default."""
    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


def some(cases: Iterable[T]) -> list[T]:
    """The cases that filters left to check; BenchError if they left none."""
    if found := list(cases):
        return found
    raise BenchError("no case is left to check.", "See: benchbench list cases --suite NAME")


def refuse_beside(what: str, *names: str) -> None:
    """Raises BenchError if one of these options was given: beside `what` it would be ignored."""
    for name in names:
        if given(name):
            raise BenchError(f"--{OPTION_OF.get(name, name.replace('_', '-'))} goes without {what}.")


OPTION_OF = {"changes": "set", "names": "model", "tasks": "task", "witnesses": "witness"}
"""Options whose parameters have other names."""


def kind_of(device: str) -> "Kind | None":
    """Whose kernels and allocator a case on `device` has: a GPU's, or its path's own.

    Raises:
        BenchError: It is neither 'cpu' nor a 'cuda' device.
    """
    if device == "cpu":
        return None
    if device.partition(":")[0] == "cuda":
        return "cuda"
    raise BenchError(
        f"no device '{device}' to run on.", "It is cpu or cuda. For its time: benchbench count --device NAME"
    )


def specs_of(names: Sequence[str], changes: Sequence[str]) -> list[ModelSpec]:
    """The models called `names`, with the changes of `--set`; all of them where none is named.

    Raises:
        BenchError: A name or a field does not exist, or there are changes and no name.
    """
    if changes and not names:
        raise BenchError(f"--set {changes[0]}: no model is named.", "Pass --model NAME. See: benchbench list models")
    return [changed(name, settings(changes)) for name in names] or list(presets().values())


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
    console = table.stdout_console()
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
