"""The architectures: one module a family, each with its spec class and its presets.

A family is added by adding a module here; nothing lists the modules by hand.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from benchbench.errors import unknown
from benchbench.reading import read
from benchbench.specs.base import ModelSpec


@cache
def presets() -> dict[str, ModelSpec]:
    """Every named architecture, by name."""
    modules = [module.name for module in iter_modules(__path__) if module.name != "base"]
    return {spec.name: spec for name in modules for spec in import_module(f"{__name__}.{name}").PRESETS}


@cache
def families() -> dict[str, type[ModelSpec]]:
    """Every family's spec class, by family name."""
    return {spec.family: type(spec) for spec in presets().values()}


def preset(name: str, **changes: Any) -> ModelSpec:
    """The architecture called `name`, with some of its fields changed.

    Raises:
        BenchError: There is no such name or field, or a value is of the wrong type or range.
    """
    if name not in presets():
        raise unknown("model", name, presets(), "See: benchbench list models")
    spec = presets()[name]
    return spec.replace(**changes) if changes else spec


def from_dict(data: dict[str, Any]) -> ModelSpec:
    """The architecture written in a record: its `family` says which class reads it."""
    family = data.get("family", "")
    if family not in families():
        raise unknown("family", str(family), families())
    return read(families()[family], data, f"spec of {data.get('name', family)}")


__all__ = ["ModelSpec", "families", "from_dict", "preset", "presets"]
