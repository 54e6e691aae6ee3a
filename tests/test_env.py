import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchbench import env


def leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, dict):
        for value in data.values():
            yield from leaves(value)
    else:
        yield data


def test_describes_what_can_change_a_number():
    torch.set_num_threads(1)
    described = env.describe("cpu")

    assert described == json.loads(json.dumps(described))
    assert described["device"] == "cpu"
    assert described["gpu"] is None
    assert described["packages"]["torch"] == torch.__version__
    assert set(described["packages"]) == {"torch", "triton", "mamba-ssm", "causal-conv1d", "fvcore", "numpy"}
    assert described["python"] == platform.python_version()
    assert described["cpu"]["threads"] == 1
    assert described["cpu"]["memory_bytes"] > 0
    assert described["flags"]["matmul_tf32"] is torch.backends.cuda.matmul.allow_tf32


def test_says_nothing_of_the_machines_name_or_its_paths():
    texts = [leaf for leaf in leaves(env.describe("cpu")) if isinstance(leaf, str)]

    assert platform.node() not in texts
    assert not [text for text in texts if text.startswith(("/", "~")) or str(Path.home()) in text]


def test_is_the_same_twice():
    assert env.describe("cpu") == env.describe("cpu")


def test_allocator_variables_are_kept_and_a_preloaded_library_is_named_without_its_folder():
    environment = {
        "MALLOC_ARENA_MAX": "2",
        "LD_PRELOAD": "/opt/lib/libjemalloc.so.2:/x/libother.so",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "HOME": "/home/somebody",
        "LD_LIBRARY_PATH": "/opt/lib",
    }

    assert env.variables(environment) == {
        "LD_PRELOAD": "libjemalloc.so.2 libother.so",
        "MALLOC_ARENA_MAX": "2",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    git("init", "--initial-branch", "work")
    (tmp_path / "file").write_text("one")
    (tmp_path / "folder").mkdir()
    git("add", "file")
    git("commit", "-m", "first")
    return tmp_path


def test_a_checkout_has_a_commit_a_branch_and_may_be_dirty(checkout: Path):
    clean = env.git(checkout)
    (checkout / "file").write_text("two")
    dirty = env.git(checkout)

    assert clean is not None
    assert len(clean["sha"]) == 40
    assert clean == {"sha": clean["sha"], "branch": "work", "dirty": False}
    assert dirty == {**clean, "dirty": True}


def test_a_detached_checkout_has_no_branch(checkout: Path):
    subprocess.run(["git", "-C", checkout, "checkout", "--detach"], check=True, capture_output=True)
    found = env.git(checkout)

    assert found is not None
    assert found["branch"] is None


def test_a_folder_inside_somebody_elses_checkout_is_not_ours(checkout: Path, tmp_path_factory: pytest.TempPathFactory):
    assert env.git(checkout / "folder") is None

    assert env.git(tmp_path_factory.mktemp("plain")) is None


def test_a_checkout_without_a_commit_has_no_identity(tmp_path: Path) -> None:
    subprocess.run(["git", "init", tmp_path], check=True, capture_output=True)
    assert env.git(tmp_path) is None


@pytest.mark.gpu
def test_describes_the_gpu():
    gpu = env.describe("cuda")["gpu"]
    properties = torch.cuda.get_device_properties(0)

    assert gpu["name"] == properties.name
    assert gpu["memory_bytes"] == properties.total_memory
    assert gpu["compute_capability"] == f"{properties.major}.{properties.minor}"
    assert gpu["driver"]
