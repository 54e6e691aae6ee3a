"""`benchbench run`: measure a suite's cases, append their records, print and write the tables."""

import re
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from benchbench.case import TASKS
from benchbench.commands.names import ModelName, SuiteName
from benchbench.errors import BenchError

if TYPE_CHECKING:
    from benchbench.launch import LocalLauncher
    from benchbench.runner import Ended, Request
    from benchbench.suite import Suite


class FolderName(click.Path):
    """A folder that has a name: an empty one would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a folder needs a name.", param, ctx)
        return super().convert(value, param, ctx)


@click.command(
    epilog="Exit codes: 0 every case has an answer (oom, unsupported and skipped are answers), 1 a gate or a check "
    "failed, 2 usage, 3 some cases ended in error, timeout or lost, 4 nothing was measured, 130 interrupted."
)
@click.option("--suite", "names", multiple=True, required=True, type=SuiteName(), help="Name or TOML file. Repeatable.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=ModelName(),
    help="Only this model; one that the suite lacks gets the suite's cases, re-made for it. Repeatable.",
)
@click.option("--seq-len", "seq_lens", multiple=True, type=int, metavar="N", help="Only this length. Repeatable.")
@click.option("--task", "tasks", multiple=True, type=click.Choice(TASKS), help="Only this task. Repeatable.")
@click.option("-k", "expression", default="", metavar="EXPR", help="Only ids that match: 'mamba and not decode'.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change batch, dtype, path, optimizer, seed, seq_len, a size of the models, or protocol.FIELD. Repeatable.",
)
@click.option(
    "--out",
    type=FolderName(file_okay=False, path_type=Path),
    help="Run folder. Default: results/runs/<date>-<device>-<sha>.",
)
@click.option("--device", help="cpu, cuda or cuda:1. Default: cuda where there is an NVIDIA driver, else cpu.")
@click.option("--budget", metavar="TIME", help="For the whole run: 90s, 10m, 2h. Default: what the suite gives.")
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts, from 1/N to N/N.")
@click.option("--launcher", default="local", show_default=True, help="Where workers run.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the worker.")
@click.option("--require", metavar="PATH", help="Stop before anything runs if a case would run another path: fused.")
@click.option("--fresh", is_flag=True, help="Start another folder; without it the latest of its kind is continued.")
@click.option("--retry", is_flag=True, help="Repeat cases that ended in error, timeout or lost.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no tables.")
@click.option("-v", "--verbose", is_flag=True, help="Say what each prediction stands on; tracebacks of errors.")
@click.pass_context
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    out: Path | None,
    device: str | None,
    budget: str | None,
    launcher: str,
    threads: int | None,
    fresh: bool,
    retry: bool,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    **filters: Any,
) -> int:
    """Measure a suite's cases, and print and write their tables.

    The same command continues where it stopped: what has an answer is not measured again. Cases run shortest
    predicted first; one that does not fit in memory or in the budget is skipped, and still counted and traced.
    """
    from rich.console import Console

    from benchbench import runner
    from benchbench.launch import LocalLauncher
    from benchbench.progress import view_for

    if launcher != "local":
        raise BenchError(f"no launcher '{launcher}': only 'local' is there.", "For many machines: --shard I/N on each.")
    device = default_device() if device is None else device_of(device)
    request = runner.Request(
        suites=tuple(selected(names, device, **filters)),
        out=out,
        budget_s=seconds_of(budget) if budget is not None else None,
        fresh=fresh,
        retry=retry,
        command=spelled(ctx, NOT_AGAIN),
        reproduce=f"{spelled(ctx, (*NOT_AGAIN, *OF_NO_CASE))} --device {device}",
    )
    workers = LocalLauncher(device, threads)
    if dry_run:
        print_plan(request, workers)
        return 0
    ended = runner.run(request, workers, view_for(Console(stderr=True), quiet=quiet, verbose=verbose))
    if ended.folder is not None and ended.records:
        show(ended, quiet=quiet)
    return ended.code


def selected(
    names: tuple[str, ...],
    device: str,
    *,
    models: tuple[str, ...],
    seq_lens: tuple[int, ...],
    tasks: tuple[str, ...],
    expression: str,
    settings: tuple[str, ...],
    shard: str | None,
    require: str | None,
) -> "list[Suite]":
    """The suites with the cases that are asked for."""
    from benchbench.selection import Wishes, select
    from benchbench.suite import load

    wishes = Wishes(
        models=models,
        seq_lens=seq_lens,
        tasks=tasks,
        expression=expression,
        settings=tuple(setting_of(text) for text in settings),
        shard=shard_of(shard) if shard is not None else None,
        require=require,
        device=device,
    )
    return select([load(name, device) for name in dict.fromkeys(names)], wishes)


def setting_of(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BenchError(
            f"--set {text}: expected KEY=VALUE.", "For example --set batch=2, --set protocol.min_samples=3."
        )
    return key.strip(), value.strip()


def shard_of(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise BenchError(f"--shard {text}: expected I/N with I from 1 to N.", "For example --shard 1/4 to --shard 4/4.")
    return int(found[1]), int(found[2])


def seconds_of(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text)
    example = "For example --budget 90s, 10m or 2h."
    if not found:
        raise BenchError(f"--budget {text}: expected a time: a number, and behind it s, m or h.", example)
    if float(found[1]) == 0:
        raise BenchError(f"--budget {text}: expected a time of more than 0.", example)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def device_of(text: str) -> str:
    if not re.fullmatch(r"(cpu|cuda)(:\d+)?", text):
        raise BenchError(
            f"--device {text}: expected cpu, cuda or a GPU by its number, cuda:1.", "See: benchbench doctor"
        )
    return text


def default_device() -> str:
    """cuda where the NVIDIA driver is loaded: if torch cannot use it, that is an error, not a silent slow run."""
    return "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"


NOT_AGAIN = ("out", "fresh", "dry_run")
"""Options that the command that continues must not have, or gets otherwise."""
OF_NO_CASE = ("device", "retry", "quiet", "verbose")
"""Options that say nothing of what is measured, and the device, which is said anyhow."""


def spelled(ctx: click.Context, without: Collection[str]) -> str:
    """The command line as it was given, without some options."""
    words = ["benchbench", "run"]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not given or name in without:
            continue
        value = ctx.params[name]
        given_values = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
        for one in given_values:
            words += [parameter.opts[0]] if one is True else [parameter.opts[0], str(one)]
    return shlex.join(words)


def show(ended: "Ended", *, quiet: bool) -> None:
    """The tables on stdout, their files, and how it went."""
    from benchbench.job import tally
    from benchbench.report import print_run, write_run
    from benchbench.table import stdout_console

    assert ended.folder is not None
    try:
        written = write_run(ended.folder)
    finally:  # the tables are there even if their files cannot be
        if not quiet:
            print_run(ended.folder, stdout_console())
    files = ", ".join(path.name for path in written)
    click.echo(f"{tally(ended.records)}. {ended.folder}: {files} · benchbench report {ended.folder}", err=True)


def print_plan(request: "Request", workers: "LocalLauncher") -> None:
    """What a run would do, in order, without doing it."""
    from benchbench import units
    from benchbench.commands.options import echo_tables
    from benchbench.plan import Forecast
    from benchbench.progress import duration
    from benchbench.runner import Line, planned
    from benchbench.table import Column, build

    def of_forecast(read: Callable[[Forecast], float]) -> Callable[[Line], float | None]:
        return lambda line: read(line.forecast) if line.forecast else None

    columns: tuple[Column[Line], ...] = (
        Column("case", "case", "text", lambda line: line.case.id),
        Column("call", "predicted call", "text", of_forecast(lambda forecast: forecast.call_s), units.seconds),
        Column("wall", "predicted total", "text", of_forecast(lambda forecast: forecast.wall_s), duration),
        Column("peak", "peak", "counted", of_forecast(lambda forecast: forecast.peak_bytes), units.size),
        Column("does", "does", "text", lambda line: line.does, note=lambda line: line.reason),
    )
    echo_tables([build("plan", (), columns, planned(request, workers))], "table")
