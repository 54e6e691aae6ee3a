"""`benchbench completion`: the script that a shell sources to complete our command line."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command(help="Print a script that completes verbs, options, suites and models in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """bash: `eval "$(benchbench completion bash)"` in ~/.bashrc; fish: `benchbench completion fish | source`."""
    completion = get_completion_class(shell)
    assert completion is not None
    script = completion(ctx.find_root().command, {}, "benchbench", "_BENCHBENCH_COMPLETE")
    click.echo(script.source())
