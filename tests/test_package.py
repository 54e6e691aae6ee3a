"""What is installed, and what importing it costs."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import benchbench

ROOT = Path(__file__).parent.parent
SOURCES = ("benchbench", "counters", "models", "suites")
TORCH_FREE = (
    "benchbench",
    "benchbench.__main__",
    "benchbench.case",
    "benchbench.counters",
    "benchbench.suites",
    *(f"benchbench.commands.{path.stem}" for path in sorted((ROOT / "benchbench/commands").glob("[a-z]*.py"))),
)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Files of a wheel built from a copy of the tree, results and tests included, without reaching for the network."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in (*SOURCES, "results", "tests"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "out"), str(tree)]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "out").glob("*.whl")
    return frozenset(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_installs_one_name(wheel_names: frozenset[str]):
    tops = {name.partition("/")[0] for name in wheel_names}
    assert tops == {"benchbench", f"benchbench-{benchbench.__version__}.dist-info"}


def test_the_wheel_holds_every_module_and_suite(wheel_names: frozenset[str]):
    """A folder that `packages` in pyproject.toml forgets would work in a checkout, and be missing once installed."""
    expected = {"benchbench/py.typed"}
    for folder in SOURCES:
        prefix = "benchbench" if folder == "benchbench" else f"benchbench/{folder}"
        files = [path for kind in ("*.py", "*.toml") for path in (ROOT / folder).rglob(kind)]
        expected |= {f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    assert any(name.startswith("benchbench/suites/") and name.endswith(".toml") for name in expected)
    installed = {name for name in wheel_names if name.startswith("benchbench/")}
    assert installed == expected


def test_the_version_is_stated_once():
    """The installed metadata, the module and the changelog name the same version."""
    assert version("benchbench") == benchbench.__version__
    assert f"## [{benchbench.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned():
    """constraints.txt holds what pyproject.toml asks for, each at one public version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["plot"], *extras["test"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert [name for line in asked if (name := line.partition(">")[0]) not in pins] == []
    assert [pin for pin in pins.values() if "+" in pin] == []
    assert list(pins) == sorted(pins)


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("folder", ["models", "counters", "suites"])
def test_ruff_bans_the_bare_folder_name(folder: str, tmp_path: Path):
    """`import models` works by accident in a checkout, and takes another project's package elsewhere."""
    source = tmp_path / "bare.py"
    source.write_text(f"import {folder}\n\nprint({folder})\n", encoding="utf-8")
    check = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", "--config"]
    done = subprocess.run([*check, str(ROOT / "pyproject.toml"), str(source)], capture_output=True, check=False)
    assert "TID251" in {found["code"] for found in json.loads(done.stdout)}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_leaves_torch_alone(module: str):
    """torch takes seconds to import; a verb that needs it imports it when it runs."""
    code = f"import sys, {module}; print([name for name in ('torch', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    [
        "list models",
        "list suites",
        "list cases --suite smoke",
        "count --model mamba-130m --task train --seq-len 1048576",
        "report --schema",
        "run --suite smoke --dry-run --device cpu",
    ],
)
def test_answering_without_a_measurement_leaves_torch_alone(words: str, tmp_path: Path):
    code = "import sys; from benchbench.__main__ import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words.split()], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout
