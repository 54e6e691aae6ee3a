"""The command line: `benchbench VERB ...`. Each verb is a file in commands/, imported when it runs."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from benchbench import __version__
from benchbench.errors import BenchError, unknown

SUMMARIES = {
    "run": "Measure a suite's cases, and print and write their tables.",
    "count": "Count what a case costs: parameters, FLOPs, bytes and memory.",
    "crossover": "Solve for the context lengths where two models cost the same.",
    "fit": "Say what fits: the longest context, the largest batch, or the smallest device.",
    "check": "Line up the count with what tracers, and a GPU's own counters, say of the real modules.",
    "claims": "Recompute published numbers by the count: confirmed, refuted or undecided.",
    "report": "Print the tables of RUN: a run folder, or a JSON file of results.",
    "list": "List models, families, suites, cases, runs or devices.",
    "show": "Show one case with its counted cost, or one record of a run.",
    "calibrate": "Measure this device's ceilings, which counted times then stand on.",
    "doctor": "Say what this machine can measure, and what would spoil it.",
    "completion": "Print a script that completes verbs, options, suites and models in a shell.",
}
"""What `-h` says of each verb, without importing any; a test holds them to the verbs' own help."""

INTERRUPTED, BROKEN_PIPE, DEFECT = 130, 141, 70
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says of writing to no file that it names."""


class Verbs(click.Group):
    """Verbs found by name and imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        command = import_module(f"benchbench.commands.{cmd_name}").command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in SUMMARIES:
            raise unknown("verb", args[0], SUMMARIES, f"Verbs: {', '.join(SUMMARIES)}. See: benchbench -h")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except (BrokenPipeError, SystemExit) as end:
            # Whoever read our output has gone. rich makes an exit with 1 of that, which would say that a gate failed.
            if not isinstance(end, BrokenPipeError) and not isinstance(end.__context__, BrokenPipeError):
                raise
            _drop_output()
            raise click.exceptions.Exit(BROKEN_PIPE) from None
        return code

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(
    cls=Verbs,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="See `benchbench VERB -h` for the options of a verb.",
)
@click.version_option(__version__, message="benchbench %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error, too.")
def cli(verbose: bool) -> None:
    """Honest cost numbers for sequence models: counted, traced and measured, each checked against the others."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; errors are two lines on stderr."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        code = cli.main(words, prog_name="benchbench", standalone_mode=False)
    except BenchError as error:
        if _verbose(words):
            traceback.print_exc()
        return _fail(error.message, error.hint, error.exit_code)
    except click.NoSuchOption as error:
        known = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
        return _fail(unknown("option", error.option_name, known).message, _see(error.ctx), 2)
    except click.UsageError as error:
        return _fail(error.format_message(), _see(error.ctx), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), "", 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted.", "", INTERRUPTED)
    except OSError as error:
        return _refused(error, words)
    except Exception as error:  # a defect of ours, told without a traceback unless -v asks for it
        return _defect(error, words)
    return code if isinstance(code, int) else 0


def _refused(error: OSError, words: Sequence[str]) -> int:
    """The system did not let a file be used, or our output be written; what else it refuses is a defect of ours."""
    if error.filename is None and error.errno not in NO_ROOM:
        return _defect(error, words)
    if _verbose(words):
        traceback.print_exc()
    if error.filename is not None:
        return _fail(f"cannot use '{error.filename}': {error.strerror}.", "", 2)
    _drop_output()
    return _fail(f"cannot write: {error.strerror}.", "Make room, or write elsewhere.", 2)


def _defect(error: Exception, words: Sequence[str]) -> int:
    if _verbose(words):
        traceback.print_exc()
    hint = "" if _verbose(words) else "For the traceback: benchbench -v ..."
    return _fail(f"a defect in benchbench: {type(error).__name__}: {error}", hint, DEFECT)


def _drop_output() -> None:
    """Lets what is left of our output go nowhere: the interpreter's own flush at exit must not complain."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _see(ctx: click.Context | None) -> str:
    return f"See: {ctx.command_path if ctx else 'benchbench'} -h"


def _verbose(words: Sequence[str]) -> bool:
    return any(word in ("-v", "-vv", "--verbose") for word in words)


def _fail(message: str, hint: str, code: int) -> int:
    print(f"benchbench: {message}", file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
