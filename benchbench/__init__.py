"""Honest cost numbers for sequence models: measured, counted or absent.

From Python: `benchbench.count("mamba-130m", "train", seq_len=128)` and `benchbench.check(module, *inputs)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchbench.api import Cost, check, count

__version__ = "0.1.0"
__all__ = ["Cost", "__version__", "check", "count"]


def __getattr__(name: str) -> Any:
    """What benchbench.api has, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'benchbench' has no attribute '{name}'")
    found = getattr(import_module("benchbench.api"), name)
    globals()[name] = found
    return found
