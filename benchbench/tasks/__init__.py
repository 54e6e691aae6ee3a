"""What is done with a model: one module a task, found by the task's name.

A task's module has `prepare(model, case) -> Prepared`, and `compare(timed, reference, case)`, which yields what the
gate holds against each other: groups of rows, found and expected.
"""

from importlib import import_module
from types import ModuleType

from benchbench.case import Case
from benchbench.models import LanguageModel
from benchbench.tasks import graph
from benchbench.tasks.prepared import DTYPES, Pairs, Prepared, built, device_of


def task_module(case: Case) -> ModuleType:
    return import_module(f"{__name__}.{case.task}")


def prepare(model: LanguageModel, case: Case) -> Prepared:
    """One measured unit of `case` on `model`, whose device and dtype it takes."""
    plain = task_module(case).prepare(model, case)
    return graph.captured(plain, device_of(model)) if case.path == "graph" else plain


__all__ = ["DTYPES", "Pairs", "Prepared", "built", "prepare", "task_module"]
