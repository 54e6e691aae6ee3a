"""Which source files a case runs, found without importing any: they change when the code does, and torch stays out."""

import ast
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("benchbench.models", "benchbench.tasks")
"""Where the code lives whose change makes a measurement another one."""


def fingerprint(family: str, task: str, path: str) -> str:
    """A digest of the modules that build and run such a case, and of those of `PACKAGES` that they import."""
    digest = sha256()
    for file in sources(family, task, path):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def sources(family: str, task: str, path: str) -> list[Path]:
    """The files, sorted by module name: the family's, the task's, what builds them, and the graph's where it is one."""
    found: dict[str, Path] = {}
    waiting = ["benchbench.models.base", f"benchbench.models.{family.replace('-', '_')}", f"benchbench.tasks.{task}"]
    waiting += ["benchbench.tasks.graph"] if path == "graph" else []
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if name not in found and file is not None:
            found[name] = file
            waiting.extend(_imported(file.read_text("utf-8")))
    return [found[name] for name in sorted(found)]


def _imported(source: str) -> Iterator[str]:
    """Modules of `PACKAGES` that `source` names; `from package import name` may name a module too.

    Kernels are imported where they are launched: `loaded(tensor, "a_module")` names them.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "loaded":
            names = [f"benchbench.models.{text.value}" for text in node.args if isinstance(text, ast.Constant)]
        else:
            continue
        yield from (name for name in names if name.startswith(PACKAGES))


def _file(module: str) -> Path | None:
    """The file of one of `PACKAGES`, or of a module directly inside one, or None."""
    if module in PACKAGES:
        return _folder(module) / "__init__.py"
    package, _, name = module.rpartition(".")
    path = _folder(package) / f"{name}.py" if package in PACKAGES else None
    return path if path is not None and path.is_file() else None


@cache
def _folder(package: str) -> Path:
    """The package's folder. Looking for a package imports only its parent, which is light."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))
