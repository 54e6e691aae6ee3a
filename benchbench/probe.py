# pyright: standard
"""What torch and the extra `cuda` can do here, as JSON on stdout: `python -m benchbench.probe`.

A process of its own, for an extension built for another torch can end the one that imports it.
"""

import json
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchbench.extras import PIECES


def torch_facts() -> dict[str, Any]:
    """Version, the CUDA it is built for, and the GPUs it can use; or why it cannot be imported."""
    try:
        import torch
    except Exception as error:  # a broken installation can raise anything
        return {"error": f"{type(error).__name__}: {error}"}
    available = torch.cuda.is_available()
    count = torch.cuda.device_count() if available else 0
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(count)],
        "capabilities": [list(torch.cuda.get_device_capability(i)) for i in range(count)],
    }


def piece_facts(module: str) -> dict[str, Any]:
    """Whether `module` can be imported, its version if it has one, and the error if not."""
    try:
        import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        return {"error": None if missing else f"{type(error).__name__}: {error}", "found": False}
    try:
        return {"found": True, "version": version(module.replace("_", "-"))}
    except PackageNotFoundError:
        return {"found": True}


def main() -> None:
    found = {"torch": torch_facts()}
    # Without a GPU nothing here is ever imported, and some of it cannot be.
    wanted = PIECES if found["torch"].get("gpus") else ()
    found["pieces"] = {one.module: piece_facts(one.module) for one in wanted}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
