"""A test file run under Triton's interpreter, which is chosen when Triton is imported, for all of a process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def saved_by(file: str, folder: Path) -> Any:
    """What `file` saves, run with the name of a file in `folder`."""
    path = folder / "found.pt"
    command = [sys.executable, "-W", "ignore", file, str(path)]
    subprocess.run(command, check=True, env=os.environ | {"TRITON_INTERPRET": "1"}, timeout=300)
    return torch.load(path)
