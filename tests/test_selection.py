"""What `--model` makes of a suite that lacks the model."""

import pytest

from benchbench.selection import Wishes, select
from benchbench.specs import preset
from benchbench.suite import load, parse

TEXT = """
name = "mine"
version = 1
about = "?"
[[cases]]
task = "decode"
model = "transformer-tiny"
seq_len = 64
path = { cuda = ["graph", "eager"] }
[[cases]]
task = "prefill"
model = "transformer-tiny"
seq_len = [64, 128]
"""


@pytest.mark.parametrize("model", ["mamba-tiny", "resnet-bk-tiny"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_model_that_the_suite_lacks_takes_its_own_path_on_a_gpu(device, model):
    suite = parse(TEXT, "mine.toml", device)
    (chosen,) = select([suite], Wishes(models=(model,), device=device))
    own = preset(model).cuda_path
    assert own != preset(model).paths[0]
    # The graph that the suite asks for, and the family's own path for any other.
    assert [(case.task, case.seq_len, case.path) for case in chosen.cases] == [
        ("decode", 64, "graph"),
        ("decode", 64, own),
        ("prefill", 64, own),
        ("prefill", 128, own),
    ]


def test_a_model_that_the_suite_lacks_takes_its_first_path_on_a_cpu():
    (chosen,) = select([parse(TEXT, "mine.toml")], Wishes(models=("mamba-tiny",)))
    assert {case.path for case in chosen.cases} == {"chunked"}


def test_a_model_that_the_suite_has_stays_as_it_is():
    suite = parse(TEXT, "mine.toml", "cuda")
    (chosen,) = select([suite], Wishes(models=("transformer-tiny",), device="cuda"))
    assert chosen.cases == suite.cases


def test_a_size_is_set_beside_those_that_the_suite_has_set():
    (suite,) = select([load("mamba-paper")], Wishes(settings=(("n_layers", "2"),)))
    changed = {case.spec.name: case.spec for case in suite.cases}
    spec = changed["mamba-130m+d_model=512+n_layers=2"]
    assert (spec.d_model, spec.n_layers) == (512, 2)
