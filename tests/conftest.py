"""What holds for every test: a GPU only where it is asked for, and no more threads than small tensors can use."""

import os
import sys
from collections.abc import Sequence

import pytest

THREADS = min(4, os.cpu_count() or 1)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where there is none; torch is imported only if there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := _no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs an NVIDIA GPU: torch.cuda.is_available() is False"


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Before each test, for a test may change it; only once something has imported torch."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(THREADS)
