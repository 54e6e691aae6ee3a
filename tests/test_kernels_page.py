"""The page of our kernels: made from its JSON alone, its sentences by hand."""

import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/bench"))
page = importlib.import_module("kernels_page")


def test_the_committed_page_is_what_its_json_gives() -> None:
    """Made anew by: python tests/bench/kernels_page.py."""
    data = json.loads((ROOT / "results/kernels.json").read_text("utf-8"))
    assert page.as_markdown(data) == (ROOT / "results/kernels.md").read_text("utf-8")


def test_sentences_by_hand() -> None:
    def sized(kernel: str, length: int, time_s: float, ratio: float) -> dict[str, object]:
        return {"kernel": kernel, "batch": 1, "length": length, "time_s": time_s, "copy_ratio": ratio}

    lines = [
        sized("left_fraction_forward", 2**20, 1e-5, 0.7),
        sized("two_sided_forward", 2**20, 2e-5, 0.6),
        sized("left_fraction_forward", 2**24, 1e-4, 0.9),
        sized("two_sided_forward", 2**24, 1e-4, 0.55),
        sized("two_sided_backward", 2**24, 1e-4, 0.2),
    ]
    assert page.resolvent_sentences(lines) == [
        "- Forward, from 16,777,216 positions on: 55% to 90% of a copy.",
        "- Forward, 1,048,576 positions: 10.0 µs to 20.0 µs.",
    ]
    scans = [
        {"what": "forward", "batch": batch, "length": length, "ours": 1.0, "mamba_ssm": ratio}
        for batch, length, ratio in ((1, 2048, 0.5), (1, 2**17, 1.5), (8, 2**15, 2.0), (1, 2**18, 1.75))
    ]
    assert page.scan_sentences(scans) == [
        "- Forward, from 131,072 tokens on: 1.50 to 2.00 times as fast as mamba-ssm, median 1.75."
    ]
