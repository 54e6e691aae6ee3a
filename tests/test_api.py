"""benchbench from Python."""

import json
import subprocess
import sys
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import benchbench
from benchbench import Cost, check, count, counters
from benchbench.__main__ import main
from benchbench.case import Case
from benchbench.errors import BenchError, UnsupportedError
from benchbench.specs import preset


def test_importing_benchbench_imports_nothing_heavy():
    code = (
        "import sys, benchbench; print([m for m in ('torch', 'pydantic', 'pandas', 'rich') if m in sys.modules]);"
        "benchbench.count; print([m for m in ('torch', 'pandas', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="module 'benchbench' has no attribute 'cuont'"):
        _ = benchbench.cuont


def test_a_path_that_needs_a_gpu_is_counted_on_one():
    case = Case.of(preset("mamba-tiny"), task="train", seq_len=16, path="fused")
    cost = count("mamba-tiny", "train", seq_len=16, path="fused")
    assert cost.device == "cuda"
    assert cost.counted == counters.count(case, "cuda").counted != counters.count(case, "cpu").counted


def test_sums_as_attributes():
    """AdamW takes 14 operations a parameter; its two states are twice the weights, and a step number a tensor."""
    cost = count("mamba-tiny", task="train", seq_len=16, batch=2, optimizer="adamw")
    assert isinstance(cost, Cost)
    assert cost.flops.optimizer == 14 * cost.params
    assert cost.flops.total == cost.flops.forward + cost.flops.backward + cost.flops.optimizer
    assert cost.memory.params == 4 * cost.params
    assert cost.memory.optimizer == 2 * 4 * cost.params + 4 * (2 * 10 + 2)
    assert cost.memory.peak >= cost.memory.peak_requested > cost.memory.params


def test_a_spec_counts_as_its_name_does():
    assert count(preset("gpt2"), seq_len=64).counted == count("gpt2", seq_len=64).counted
    assert count("gpt2", seq_len=64).params == 124_439_808  # as published


def test_what_is_wrong_is_said():
    with pytest.raises(BenchError, match=r"no model 'mamba-130'. Did you mean 'mamba-130m'?"):
        count("mamba-130", seq_len=8)
    with pytest.raises(BenchError, match="mamba-tiny: batch = 0: expected more than 0"):
        count("mamba-tiny", seq_len=8, batch=0)
    with pytest.raises(BenchError, match="mamba-tiny: no key 'sequence'"):
        count("mamba-tiny", seq_len=8, sequence=3)
    with pytest.raises(UnsupportedError, match="learned positions for 1024 tokens"):
        count("gpt2", seq_len=2048)


def test_json_is_that_of_the_command_line(tmp_path, capsys):
    cost = count("mamba-tiny", task="train", seq_len=16)
    place = tmp_path / "x.json"
    cost.save(place)
    words = ["count", "--model", "mamba-tiny", "--task", "train", "--seq-len", "16", "--format", "json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(place.read_text()) == printed == cost.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"):
        count("mamba-tiny", seq_len=16).save(tmp_path / "x")
    assert (tmp_path / "x").is_dir()


def test_rows_and_frame():
    cost = count("transformer-tiny", seq_len=16)
    frame = cost.frame()
    assert len(frame) == len(cost.rows()) == len(cost.ops)
    assert (frame["repeat"] * frame["flops"]).sum() == cost.flops.total


def test_rich_prints_the_tables_of_count():
    console = Console(width=120, record=True, file=StringIO())
    console.print(count("mamba-tiny", seq_len=16))
    shown = console.export_text()
    assert "mamba-tiny/prefill/N16/B1/float32/chunked: memory" in shown
    assert "matmul" in shown


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Mine(nn.Module):
    """Three layers of 8 x 8 with a ReLU and a square behind each, and a head of 8 x 5."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        for layer in self.layers:
            x = Square.apply(torch.relu(layer(x)))
        return {"logits": self.head(x)}


def test_a_module_of_ones_own_forward():
    """4 rows: 2·4·8·8 = 512 a layer, 2·4·8·5 = 320 in the head."""
    found = check(Mine(), torch.randn(4, 8))
    assert {(row.path, row.phase): row.flops for row in found.rows} == {
        ("layers.*", "forward"): 3 * 512,
        ("head", "forward"): 320,
    }
    assert (found.forward, found.backward, found.total) == (1856, 0, 1856)
    assert found.params == 3 * 72 + 45


def test_inputs_may_be_one_tuple():
    """5 rows of 3 outputs, 2·4 FLOPs each; attention takes three inputs."""
    assert check(nn.Linear(4, 3), (torch.randn(5, 4),)).total == 5 * 3 * 2 * 4
    x = torch.randn(1, 5, 4)
    attention = nn.MultiheadAttention(4, 1, batch_first=True)
    assert check(attention, (x, x, x)).total == check(attention, x, x, x).total > 0


def test_a_module_of_ones_own_backward():
    """dW and dx cost a forward each; the first layer needs no dx, for its input has no gradient."""
    found = check(Mine(), torch.randn(4, 8), backward=True)
    assert {row.path: row.flops for row in found.rows if row.phase == "backward"} == {
        "layers.*": (2 + 2 + 1) * 512,
        "head": 2 * 320,
    }


def test_what_the_counter_cannot_see_is_listed():
    """Three ReLUs and three squares forward, 3·2 products backward; addmm has a formula, and a transpose is a view."""
    found = check(Mine(), torch.randn(4, 8))
    assert found.unseen == {"aten.relu.default": 3, "aten.mul.Tensor": 3}
    assert found.custom == {"SquareBackward": 3}
    assert check(Mine(), torch.randn(4, 8), backward=True).unseen["aten.mul.Tensor"] == 3 + 3 * 2
    with torch.no_grad():
        assert check(Mine(), torch.randn(4, 8)).custom == {}


def test_shapes_without_numbers_are_enough():
    with torch.device("meta"):
        found = check(Mine(), torch.empty(4, 8))
    assert found.total == 1856


def test_a_backward_without_a_gradient_is_refused():
    with pytest.raises(BenchError, match="Identity returns nothing that has a gradient"):
        check(nn.Identity(), torch.ones(2), backward=True)


def test_rich_prints_a_check():
    console = Console(width=120, record=True, file=StringIO())
    console.print(check(Mine(), torch.randn(4, 8)))
    shown = console.export_text()
    assert "layers.*" in shown
    assert "No formula, counted as 0: aten.relu.default (3)" in shown


def test_what_is_no_model_is_said():
    with pytest.raises(BenchError, match="5 is no model"):
        count(5)


def test_a_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    assert check(module, torch.ones(3, 4), backward=True).backward > 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)
