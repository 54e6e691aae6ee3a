"""A module imports only from its own group and from those it is allowed here: the architecture, read from the imports.

Each group names its modules, the groups it may use anywhere (`uses`), those it may import only once a function runs
(`lazily`), and the same for packages of others. A module without a group is an error, so that the table stays whole.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "benchbench": "benchbench",
    "counters": "benchbench.counters",
    "models": "benchbench.models",
    "suites": "benchbench.suites",
}


class Group(NamedTuple):
    name: str
    modules: str
    """Names under `benchbench.`; `.` is the package itself."""
    uses: str = ""
    lazily: str = ""
    others: str = ""
    others_lazily: str = ""


# The first match places a module.
GROUPS = (
    Group(
        "values",
        "errors files value stats units expression toml_lines reading specs specs.* case gpu extras devices devices.*"
        " record",
        others="pydantic pydantic_core",
    ),
    Group(
        "trace",
        "counters.trace counters.dispatch counters.places counters.aten counters.module_check counters.hardware"
        " counters.storages counters.fake_cuda followed",
        uses="values counters timelines models machine tasks",
        others="torch",
        others_lazily="fvcore rich",
    ),
    Group("timelines", "counters.timeline", uses="values"),
    Group("sizes", "counters.sized counters.fullest", uses="values timelines", others="sympy"),
    Group(
        "symbolic",
        "counters.symbolic counters.notation counters.stepwise counters.crossover counters.op_forms",
        uses="values counters timelines sizes",
        others="sympy",
    ),
    Group("counters", "counters counters.*", uses="values timelines", lazily="sizes"),
    Group("kernels", "models.*_kernels models.*_kernels_*", others="triton"),
    Group(
        "models",
        "models models.*",
        uses="values",
        lazily="kernels",
        others="torch",
        others_lazily="causal_conv1d mamba_ssm triton",
    ),
    Group("suites", "suites suite selection store run_folder fingerprint", uses="values", others="pydantic"),
    Group("cores", "cores", others="psutil"),
    Group("machine", "clock memory env synthetic probe", uses="values cores", others="torch psutil"),
    Group("tasks", "tasks tasks.* gate", uses="values models machine", others="torch"),
    Group(
        "worker",
        "measure worker calibrate microbench microbench.*",
        uses="values models cores machine tasks",
        lazily="trace",
        others="torch",
        others_lazily="causal_conv1d mamba_ssm",
    ),
    Group("pictures", "timeline_plot", uses="values counters timelines tables", others_lazily="matplotlib"),
    Group(
        "tables",
        "axis table cost_tables formula_tables columns scaling findings lead plot report publish recount",
        uses="values suites cores",
        lazily="counters symbolic",
        others="rich",
        others_lazily="matplotlib pandas pydantic tabulate",
    ),
    Group(
        "running",
        "process plan launch progress job runner",
        uses="values suites counters cores",
        others="psutil rich",
    ),
    Group(
        "claims",
        "claims claims.*",
        uses="values counters tables",
        lazily="symbolic",
        others="pydantic",
    ),
    Group("times", "time_crossover", uses="values counters tables"),
    Group("fit", "fit", uses="values counters timelines"),
    Group(
        "commands",
        "commands commands.*",
        uses="values suites counters timelines tables running claims fit times",
        lazily="symbolic trace worker pictures tasks models machine",
        others="click",
        others_lazily="rich torch",
    ),
    Group("entry", "__main__", uses="values", others="click"),
    Group("api", "api", uses="values counters tables", lazily="trace", others_lazily="pandas rich torch"),
    Group("package", ".", lazily="api"),
)

PART_OF = {"pydantic_core": "pydantic"}
"""Packages that another one brings at the exact version it needs."""


class Import(NamedTuple):
    target: str
    lazy: bool
    """Inside a function, or for the type checker alone."""
    line: int


def _modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(source: str) -> Iterator[Import]:
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while pending:
        node, lazy = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            names = (f"{package}.{alias.name}" for alias in node.names)
            yield from (Import(name if name in MODULES else package, lazy, node.lineno) for name in names)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        pending += [(child, lazy or deferred or typing_only) for child in ast.iter_child_nodes(node)]


def _group(module: str) -> Group | None:
    name = module.removeprefix("benchbench").removeprefix(".") or "."
    return next((g for g in GROUPS if any(fnmatchcase(name, pattern) for pattern in g.modules.split())), None)


def _is_ours(target: str) -> bool:
    return target.partition(".")[0] == "benchbench"


def _violations(module: str, source: str) -> list[str]:
    group = _group(module)
    assert group is not None, f"{module} has no group: give it one in GROUPS"
    found: list[str] = []
    for target, lazy, line in _imports(source):
        top = target.partition(".")[0]
        if _is_ours(target):
            other = _group(target)
            name = other.name if other else target
            groups = {group.name, *group.uses.split(), *(group.lazily.split() if lazy else ())}
            # The package itself has a version, and no more until it is asked for more.
            fits = target == "benchbench" or name in groups
        else:
            allowed = {*group.others.split(), *(group.others_lazily.split() if lazy else ())}
            fits = top in sys.stdlib_module_names or top in allowed
        if not fits:
            found.append(f"line {line}: {group.name} may not import {target}{'' if lazy else ' at module level'}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_group_may(module: str):
    assert _violations(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("benchbench.table", "import torch"),
        ("benchbench.table", "def show():\n    from torch import nn"),
        ("benchbench.table", "import pandas as pd"),
        ("benchbench.counters.mamba", "from benchbench.models.mamba import build"),
        ("benchbench.counters.mamba", "from benchbench import models"),
        ("benchbench.models.mamba", "def cost():\n    import benchbench.counters"),
        ("benchbench.commands.count", "from benchbench.counters.trace import check_case"),
        ("benchbench.case", "if True:\n    from benchbench.runner import run"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, source: str):
    assert len(_violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("benchbench.table", "def frame():\n    import pandas"),
        ("benchbench.table", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas"),
        ("benchbench.commands.check", "def command():\n    from benchbench.counters.trace import check_case"),
        ("benchbench.counters.trace", "from benchbench.models import build"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str):
    assert _violations(module, source) == []


def test_groups_use_only_groups_above_them_in_no_circle():
    names = {group.name for group in GROUPS}
    uses = {group.name: {*group.uses.split(), *group.lazily.split()} for group in GROUPS}
    assert set().union(*uses.values()) <= names
    assert len(list(TopologicalSorter(uses).static_order())) == len(GROUPS)


def test_no_module_waits_for_itself():
    graph = {
        module: {i.target for i in _imports(path.read_text(encoding="utf-8")) if _is_ours(i.target) and not i.lazy}
        for module, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_package_of_others_is_declared():
    """A module-level import needs a dependency; a lazy one, and those of what is imported lazily, may be an extra's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    always = {_distribution(line) for line in project["dependencies"]}
    extras = {_distribution(line) for lines in project["optional-dependencies"].values() for line in lines}
    distributions = packages_distributions()
    missing: list[str] = []
    for module, path in MODULES.items():
        for target, lazy, line in _imports(path.read_text(encoding="utf-8")):
            top = target.partition(".")[0]
            if top in sys.stdlib_module_names or top == "benchbench":
                continue
            provided = {_distribution(name) for name in distributions.get(PART_OF.get(top, top), [top])}
            group = _group(module)
            assert group is not None
            if not provided & (always | extras if lazy or group.name == "kernels" else always):
                missing.append(f"{module}, line {line}: {top}")
    assert missing == []


def _distribution(requirement: str) -> str:
    """The normalised name at the head of a requirement: `Pandas_Stubs>=2` is pandas-stubs."""
    name = requirement
    for mark in "<>=!~[; ":
        name = name.partition(mark)[0]
    return name.lower().replace("_", "-")
