"""`benchbench doctor`: every finding from what a machine says, and the verb itself on this one."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchbench import gpu
from benchbench.commands import doctor
from benchbench.commands.doctor import GOOD, MISSING, NOTE, SPOILS, Finding
from benchbench.extras import PIECES
from benchbench.gpu import Reading

WITH_GPU = {"version": "2.11.0", "cuda": "13.0", "gpus": ["NVIDIA H200"], "capabilities": [[9, 0]]}
WITHOUT = {"version": "2.13.0", "cuda": None, "gpus": [], "capabilities": []}
CARD = dict(
    zip(
        gpu.CARD,
        ["GPU-1", "NVIDIA H200", "580", "143771", "Enabled", "Disabled", "Enabled", "1980", "700"],
        strict=True,
    )
)
CALM = Reading(sm_clock_mhz=345, memory_clock_mhz=3201, temperature_c=30, power_w=75.0, pstate="P0", clock_reasons=())


def pieces(*lacking: str, error: str | None = None) -> dict[str, Any]:
    """Every piece is there but those `lacking`, which raise `error`, or are not installed if it is None."""
    return {
        one.module: {"found": False, "error": error} if one.module in lacking else {"found": True} for one in PIECES
    }


def of(findings: list[Finding], what: str) -> Finding:
    return next(one for one in findings if one.what == what)


def software(torch: dict[str, Any], **found: Any) -> list[Finding]:
    return list(doctor.software({"torch": torch, "pieces": found}))


def files(root: Path, **texts: str) -> Path:
    """Files of the kernel's, by their path with `__` for `/`."""
    for name, text in texts.items():
        place = root / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


def test_a_complete_gpu_machine_lacks_nothing():
    found = software(WITH_GPU, **pieces())

    assert {one.verdict for one in found} == {GOOD}
    assert of(found, "fused").found == "can run"
    assert of(found, "GPU that torch can use").found == "NVIDIA H200, compute capability 9.0"


def test_a_missing_extension_is_named_with_what_to_type():
    found = software(WITH_GPU, **pieces("selective_scan_cuda"))
    extension = of(found, "the CUDA extension of mamba-ssm")

    assert (extension.found, extension.verdict) == ("not installed", MISSING)
    for words in ("MAMBA_FORCE_BUILD=TRUE", "--no-build-isolation", "--no-cache-dir", "mamba-ssm"):
        assert words in extension.advice
    assert of(found, "fused") == Finding(
        "paths", "fused", "cannot run without selective_scan_cuda", MISSING, f"First: {doctor.FIRST}"
    )
    assert of(found, "triton").verdict == GOOD


def test_an_extension_for_another_torch_says_so():
    found = software(WITH_GPU, **pieces("causal_conv1d_cuda", error="ImportError: undefined symbol"))

    assert of(found, "the CUDA extension of causal-conv1d").found == "ImportError: undefined symbol"


def test_without_a_gpu_nothing_is_asked_for():
    found = software(WITHOUT)

    assert MISSING not in {one.verdict for one in found}
    assert of(found, "GPUs that torch can use").verdict == NOTE
    assert "build of torch for CUDA" in of(found, "GPUs that torch can use").advice


def test_without_torch_counting_is_what_remains():
    found = software({"error": "ModuleNotFoundError: No module named 'torch'"})

    assert of(found, "torch").verdict == MISSING
    assert "Counting works without it" in of(found, "torch").advice


def test_a_probe_that_dies_is_an_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")

    assert "ended without an answer" in doctor.probed()["torch"]["error"]


def test_a_busy_machine_spoils_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    assert of(list(doctor.processor(tmp_path, {})), "load, last minute").verdict == SPOILS
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.49, 9.0, 9.0))
    assert of(list(doctor.processor(tmp_path, {})), "load, last minute").verdict == GOOD


def test_a_containers_quota_spoils_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    # 150,000 of every 100,000 µs are 1.5 cores.
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    place = tmp_path / "sys/fs/cgroup"
    place.mkdir(parents=True)
    (place / "cpu.max").write_text("150000 100000")
    found = of(list(doctor.processor(tmp_path, {})), "quota")
    assert (found.found, found.verdict) == ("1.5 cores' time", SPOILS)
    assert "--threads 1" in found.advice
    (place / "cpu.max").write_text("max 100000")
    assert "quota" not in {one.what for one in doctor.processor(tmp_path, {})}


def test_memory_and_swap_are_the_kernels(tmp_path: Path):
    text = "MemTotal: 4194304 kB\nMemAvailable: 2097152 kB\nSwapTotal: 1048576 kB\nSwapFree: 0 kB\nHugePages_Total: 0"
    found = list(doctor.processor(files(tmp_path, proc__meminfo=text), {}))

    assert of(found, "memory").found == "2.00 GiB free of 4.00 GiB"
    assert of(found, "swap in use").found == "1.00 GiB"


def test_a_governor_that_follows_the_load_is_told(tmp_path: Path):
    where = "sys__devices__system__cpu__cpu0__cpufreq__scaling_governor"
    found = of(list(doctor.processor(files(tmp_path, **{where: "powersave\n"}), {})), "frequency governor")

    assert (found.found, found.verdict) == ("powersave", NOTE)
    assert "cpupower" in found.advice


def test_allocator_settings_are_told(tmp_path: Path):
    stock = of(list(doctor.processor(tmp_path, {"HOME": "/x", "OMP_NUM_THREADS": "2"})), "allocator and threads")
    tuned = of(list(doctor.processor(tmp_path, {"MALLOC_ARENA_MAX": "1"})), "allocator and threads")

    assert stock.found == "OMP_NUM_THREADS=2, stock malloc"
    assert tuned.found == "MALLOC_ARENA_MAX=1"


def card(now: Reading | None = CALM, others: dict[int, int] | None = None, **changes: str) -> list[Finding]:
    return list(doctor.card_findings(0, {**CARD, **changes}, now, others))


def test_a_calm_gpu_of_our_own_is_good():
    found = card(others={})

    assert {one.verdict for one in found} == {GOOD}
    assert of(found, "clocks now").found == "SM 345 of 1980 MHz, memory 3201 MHz, P0"


def test_what_spoils_a_gpu():
    found = card(
        CALM.replace(clock_reasons=("idle", "software thermal slowdown")),
        {42: 2**30},
        **{"mig.mode.current": "Enabled", "persistence_mode": "Disabled"},
    )

    assert {one.what for one in found if one.verdict == SPOILS} == {"MIG", "throttled by", "other processes"}
    assert of(found, "throttled by").found.startswith("software thermal slowdown")
    assert of(found, "other processes").found == "1, with 1.00 GiB"
    assert of(found, "persistence mode").verdict == NOTE


def test_processes_that_cannot_be_told_apart():
    assert of(card(), "other processes").verdict == NOTE


@pytest.mark.parametrize(
    ("ncu", "parameters", "root", "verdict"),
    [
        (None, "", True, MISSING),
        ("/usr/bin/ncu", "RmProfilingAdminOnly: 1", False, MISSING),
        ("/usr/bin/ncu", "RmProfilingAdminOnly: 1", True, GOOD),
        ("/usr/bin/ncu", "RmProfilingAdminOnly: 0", False, GOOD),
    ],
)
def test_hardware_counters(ncu: str | None, parameters: str, root: bool, verdict: str):
    assert doctor.counters(ncu, parameters, root=root).verdict == verdict


def test_no_driver_is_said_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "inventory", list)

    assert [one.found for one in doctor.graphics()] == ["nvidia-smi shows none"]


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What the probe finds on this machine, once."""
    return doctor.probed()


@pytest.mark.parametrize("output", ["table", "md", "csv", "json"])
def test_the_verb_ends_well_on_this_machine(output: str, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "probed", lambda: facts)
    done = CliRunner().invoke(doctor.command, ["--format", output])

    assert done.exit_code == 0
    assert "Python" in done.output
    if output == "json":
        rows = json.loads(done.output)
        assert {row["verdict"] for row in rows} <= {GOOD, NOTE, MISSING, SPOILS}
        assert any(row["what"] == "torch" and row["verdict"] == GOOD for row in rows)
