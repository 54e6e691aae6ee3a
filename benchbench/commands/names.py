"""Parameter types whose values a shell can complete: names of suites and models."""

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem


class SuiteName(click.types.StringParamType):
    """A suite that comes with benchbench, or the path to a TOML file."""

    name = "suite"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from benchbench.suite import built_in

        return [*_starting(built_in(), incomplete), CompletionItem(incomplete, type="file")]


class ModelName(click.types.StringParamType):
    """A preset."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from benchbench.specs import presets

        return _starting(presets(), incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
