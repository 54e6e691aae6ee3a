from dataclasses import replace

import pytest

from benchbench import devices
from benchbench.devices import device, here, reported, with_calibration
from benchbench.devices.calibration import Calibration, Curve, HostCost, Timing, dump, load
from benchbench.errors import BenchError

# What drivers report: nvidia-smi's and rocm-smi's product names.
REPORTED = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "Tesla T4": "t4",
    "NVIDIA T4": "t4",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA B200": "b200",
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI300X OAM": "mi300x",
}

# Other devices, or parts of one, whose peaks are not in the table.
OTHERS = (
    "NVIDIA H200 NVL",
    "NVIDIA H100 NVL",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA A100 80GB PCIe",
    "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
    "NVIDIA GH200 480GB",
    "NVIDIA GB200",
    "NVIDIA L40",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "Tesla V100-SXM2-16GB",
    "AMD Instinct MI300A",
    "Intel(R) Xeon(R) Processor",
    "",
)


@pytest.mark.parametrize("name", REPORTED)
def test_a_reported_name_is_recognised(name: str):
    found = reported(name)
    assert found is not None
    assert found.key == REPORTED[name]


def test_every_device_has_a_name_that_is_tested():
    assert set(REPORTED.values()) == set(devices.devices())


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_device_is_taken_for_one(name: str):
    assert reported(name) is None


@pytest.mark.parametrize("given", ["h200", "H200", "a100-80gb", "A100 80GB", "rtx_4090", "NVIDIA A100-SXM4-40GB"])
def test_a_user_may_write_a_key_or_a_reported_name(given: str):
    assert device(given).key in ("h200", "a100-80gb", "a100-40gb", "rtx-4090")


def test_an_unknown_device_is_an_error_with_the_nearest_key():
    with pytest.raises(BenchError, match=r"no device 'h20'\. Did you mean 'h200'\?"):
        device("h20")


def test_peaks_are_dense():
    """Peaks in FLOP/s that torchtitan's tools/utils.py lists for dense bfloat16, and llm-analysis for H100's memory."""
    expected = {"a100-80gb": 312e12, "h100-sxm": 989e12, "h100-pcie": 756e12, "h200": 989e12, "b200": 2.25e15}
    expected |= {"mi300x": 1.3e15, "l40s": 362e12}
    for key, peak in expected.items():
        assert devices.devices()[key].peak("bfloat16") == pytest.approx(peak, rel=0.01)
    assert devices.devices()["h100-sxm"].memory_bytes_per_s == 3350e9


@pytest.mark.parametrize("key", devices.devices())
def test_a_row_is_plausible_and_cites_its_source(key: str):
    row = devices.devices()[key]
    assert row.memory_bytes
    assert row.memory_bytes_per_s
    # Tensor cores multiply TF32 at half the rate of half precision; sparsity would double one of them.
    if tf32 := row.peak("tf32"):
        assert row.peak("bfloat16") == pytest.approx(2 * tf32, rel=0.03)
    assert (row.peak("float16") or 0) > (row.peak("float32") or 0)
    assert any(word in row.source for word in ("Datasheet", "Data Sheet", "whitepaper", "Technical Brief"))
    assert any(str(year) in row.source for year in range(2018, 2026))


def test_the_t4_has_no_bfloat16():
    assert devices.devices()["t4"].peak("bfloat16") is None


def calibration(name: str) -> Calibration:
    curve = Curve("add", "float32", ("n",), "x + y", {(1.0,): Timing(1e-6, 9e-7, 2e-6, 4e-6)})
    environment = {
        "device": "cuda",
        "gpu": {"name": name, "ecc": None},
        "variables": {},
        "packages": {"torch": '2 "b"'},
    }
    return Calibration(name, {("add", "float32"): curve}, {"view_s": 1.5e-6}, environment, {"scan": "no\nkernel"})


def test_a_calibration_survives_its_file(tmp_path):
    path = tmp_path / "h200.toml"
    path.write_text(dump(calibration("NVIDIA H200")))
    found = load(path)
    assert found.device == "NVIDIA H200"
    assert found.curves == calibration("NVIDIA H200").curves
    assert found.host == {"view_s": 1.5e-6}
    # What is unknown is left out; a line break would end a string of TOML.
    assert found.environment == {
        "device": "cuda",
        "gpu": {"name": "NVIDIA H200"},
        "variables": {},
        "packages": {"torch": '2 "b"'},
    }
    assert found.skipped == {"scan": "no kernel"}


def test_what_models_cost_the_host_survives_the_file_and_may_be_missing(tmp_path):
    path = tmp_path / "x.toml"
    plain = calibration("NVIDIA H200")
    path.write_text(dump(plain))
    assert load(path).modules == {}
    costs = {"mamba/train/fused": HostCost(1.5e-3, 2e-3, 1.25), "mamba/decode/fused": HostCost(1e-3, 0.0)}
    path.write_text(dump(replace(plain, modules=costs)))
    found = load(path)
    assert found.modules == costs
    assert found.environment["device"] == "cuda"
    assert '"mamba/train/fused" = { layer_s = 0.0015, call_s = 0.002, spread = 1.25 }' in path.read_text()
    # 2 ms, and 24 layers of 1.5 ms
    assert found.modules["mamba/train/fused"].of(24) == pytest.approx(0.038)


def test_a_device_finds_its_own_calibration_and_no_other(tmp_path):
    (tmp_path / "a.toml").write_text(dump(calibration("NVIDIA L4")))
    assert with_calibration(device("b200"), tmp_path).calibration is None
    assert with_calibration(device("l4"), tmp_path).calibration is not None


def test_a_calibration_of_a_device_without_peaks_is_named_by_its_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(dump(calibration("Some CPU, 2 threads")))
    found = device(str(path))
    assert (found.name, found.peak("float32")) == ("Some CPU, 2 threads", None)
    assert found.calibration is not None


def test_a_machine_finds_the_calibration_made_on_it_with_its_torch(tmp_path):
    (tmp_path / "a.toml").write_text(dump(calibration("NVIDIA L4")))
    machine = {"gpu": {"name": "NVIDIA L4"}, "cpu": {"model": "X", "threads": 2}, "packages": {"torch": '2 "b"'}}
    found = here(machine, tmp_path)
    assert found is not None
    assert found.key == "l4"
    assert here({**machine, "packages": {"torch": "3"}}, tmp_path) is None
    assert here({**machine, "gpu": None}, tmp_path) is None


@pytest.mark.parametrize(("text", "says"), [("schema = 99", "not a calibration"), ("a b", "not TOML")])
def test_a_file_that_is_no_calibration_is_refused(tmp_path, text, says):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match=says):
        load(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="cannot read"):
        load(tmp_path / "none.toml")
