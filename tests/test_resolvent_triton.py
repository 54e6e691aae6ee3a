"""The resolvent's Triton kernels against the plain recursion: interpreted on a CPU, compiled on a GPU.

Run as a program, this file computes `CASES` with whatever Triton it gets and saves them. A process of its own does so
under the interpreter, which is chosen when Triton is imported, for all of a process.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from interpreted import saved_by
from machine_code import lane_flops
from torch import Tensor

from benchbench import models
from benchbench.counters.op import Step
from benchbench.counters.resolvent import TRITON_CUTS, WARP, resolvent
from benchbench.errors import UnsupportedError
from benchbench.models import build
from benchbench.models import resolvent_triton as rt
from benchbench.models.resolvent import Resolvent, plain_left, plain_two_sided
from benchbench.models.resolvent_triton import Tiling, TritonResolvent
from benchbench.specs import preset

FORMS = ("bk-causal", "bk-exact")
forms = pytest.mark.parametrize("form", FORMS)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")


class Cut(NamedTuple):
    """A shape, and how it is cut into chunks; None for the tilings that the models use."""

    batch: int
    length: int
    causal: Tiling | None = None
    two_sided: Tiling | None = None


SMALL = (Tiling(chunk=32, read=8), Tiling(chunk=8, read=8))
CUTS = [
    Cut(1, 1),
    *(Cut(3, length, *SMALL) for length in (1, 2, 15, 16, 17, 40)),
    Cut(1, 41, *SMALL),
    Cut(3, 77, *SMALL),
    Cut(1, 300),
    Cut(7, 150, *SMALL),  # 5 and 19 chunks a row, 42 and 140 lanes: several programs
    Cut(3, 50, Tiling(32, 4), Tiling(16, 4)),
]
cuts = pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut.batch}x{cut.length}")


def numbers(*shape: int, seed: int = 0, device: str = "cpu") -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(device) * 6 - 3


def inputs(batch: int, length: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """v, of which one row is the constant that forgets slowest; a cotangent; a state."""
    v_BN = numbers(batch, length, device=device)
    v_BN[-1] = 2
    return v_BN, numbers(batch, length, 2, seed=1, device=device), numbers(batch, 2, seed=2, device=device) / 6


def computed(cut: Cut, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What the kernels give for both forms."""
    v_BN, g_BN2, state_B2 = inputs(cut.batch, cut.length, device)
    v_BN = v_BN.to(dtype)
    causal = {} if cut.causal is None else {"tiling": cut.causal}
    two_sided = {} if cut.two_sided is None else {"tiling": cut.two_sided}
    left_BN2 = rt.left(v_BN, state_B2, **causal)
    return {
        "left": left_BN2,
        "state": state_B2,
        "left_grad": rt.left_gradient(left_BN2, g_BN2, dtype, **causal),
        "both": rt.two_sided(v_BN, **two_sided),
        "both_grad": rt.two_sided_gradient(v_BN, g_BN2, **two_sided),
    }


def expected(cut: Cut, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The plain recursions in float64, differentiated by autograd."""
    v_BN, g_BN2, state_B2 = (x.double() for x in inputs(cut.batch, cut.length))
    v_BN = v_BN.to(dtype).double().requires_grad_()
    left_BN2, both_BN2 = plain_left(v_BN, state_B2), plain_two_sided(v_BN)
    (left_grad_BN,) = torch.autograd.grad(left_BN2, v_BN, g_BN2)
    (both_grad_BN,) = torch.autograd.grad(both_BN2, v_BN, g_BN2)
    return {
        "left": left_BN2,
        "state": left_BN2[:, -1],
        "left_grad": left_grad_BN,
        "both": both_BN2,
        "both_grad": both_grad_BN,
    }


def module_values(form: str, v_BN: Tensor, g_BN2: Tensor) -> tuple[Tensor, Tensor]:
    leaf = v_BN.clone().requires_grad_()
    out_BN2 = TritonResolvent(form)(leaf)
    return out_BN2.detach(), torch.autograd.grad(out_BN2, leaf, g_BN2)[0]


def everything() -> dict[str, Any]:
    """All that the tests below compare."""
    found: dict[str, Any] = {str(cut): computed(cut) for cut in CUTS}
    v_BN, g_BN2, state_B2 = inputs(2, 90)
    core = TritonResolvent("bk-causal")
    found["parts"] = torch.cat([core(part, state_B2) for part in v_BN.split([1, 69, 20], dim=1)], dim=1)
    found["no state"] = core(v_BN)
    changed_BN = v_BN.clone()
    changed_BN[:, 66:] *= -0.5
    found["changed"] = core(changed_BN)
    found |= {form: module_values(form, v_BN[:, :20].bfloat16(), g_BN2[:, :20]) for form in FORMS}
    return found


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return saved_by(__file__, tmp_path_factory.mktemp("interpreted"))


def check(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    # float32 rounds at 6e-8 of values of at most 1, whose errors contract. A cotangent is at most 4.3 in modulus, each
    # side's sum s = 0.38 (4.3 + s) 2.7, all three together 9.7, times |G|² of at most 1: 6e-7, and a few roundings.
    for name, reference in wanted.items():
        atol = 2e-6 if name.endswith("grad") else 3e-7
        torch.testing.assert_close(found[name].cpu().double(), reference.detach(), rtol=0, atol=atol, msg=name)


@needs_triton
@cuts
def test_interpreted_kernels_equal_the_plain_recursion(interpreted: dict[str, Any], cut: Cut):
    check(interpreted[str(cut)], expected(cut))


@needs_triton
def test_continues_from_a_state_and_changes_nothing_earlier(interpreted: dict[str, Any]):
    v_BN, _, state_B2 = inputs(2, 90)
    whole_BN2 = plain_left(v_BN.double(), state_B2.double())
    torch.testing.assert_close(interpreted["parts"].double(), whole_BN2, rtol=0, atol=3e-7)
    assert torch.equal(interpreted["changed"][:, :66], interpreted["no state"][:, :66])
    assert not torch.equal(interpreted["changed"][:, 66], interpreted["no state"][:, 66])


@needs_triton
@forms
def test_module_reads_half_precision_and_writes_its_gradient(interpreted: dict[str, Any], form: str):
    v_BN, g_BN2, _ = (x[:, :20] for x in inputs(2, 90))
    leaf = v_BN.bfloat16().double().requires_grad_()
    reference_BN2 = Resolvent(form, "eager", 0.5)(leaf)
    (reference_BN,) = torch.autograd.grad(reference_BN2, leaf, g_BN2.double())
    out_BN2, grad_BN = interpreted[form]
    assert (out_BN2.dtype, grad_BN.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(out_BN2.double(), reference_BN2.detach(), rtol=0, atol=3e-7)
    # bfloat16 has 8 bits; the interpreter cuts the others off, where a GPU rounds.
    torch.testing.assert_close(grad_BN.double(), reference_BN, rtol=2**-7, atol=2e-6)


@needs_triton
@forms
def test_tensors_in_memory_of_the_cpu_are_refused(form: str):
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU, not the device 'cpu'"):
        TritonResolvent(form)(torch.zeros(1, 4))


def test_without_triton_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "benchbench.models.resolvent_kernels", raising=False)
    monkeypatch.delattr(models, "resolvent_kernels", raising=False)
    with pytest.raises(UnsupportedError, match="pip install triton"):
        TritonResolvent("bk-causal")(torch.zeros(1, 4))


def test_what_the_path_does_not_compute_is_refused():
    with pytest.raises(UnsupportedError, match="bk-compat has no path 'triton'"):
        TritonResolvent("bk-compat")
    with pytest.raises(ValueError, match="not in float64"):
        TritonResolvent("bk-causal")(torch.zeros(1, 4, dtype=torch.float64))


@forms
def test_meta_tensors_have_shapes(form: str):
    v_BN = torch.empty(2, 1_048_576, device="meta", dtype=torch.bfloat16, requires_grad=True)
    out_BN2 = TritonResolvent(form)(v_BN)
    assert (out_BN2.shape, out_BN2.dtype) == ((2, 1_048_576, 2), torch.float32)
    (grad_BN,) = torch.autograd.grad(out_BN2, v_BN, torch.empty_like(out_BN2))
    assert (grad_BN.shape, grad_BN.dtype) == (v_BN.shape, torch.bfloat16)


def test_lanes_of_a_row_are_even_in_number_or_one():
    # 5 chunks of 32 in 150 take 6 lanes, 7 rows 42; one chunk takes one lane; 19 chunks of 8 take 20, 7 rows 140.
    assert Tiling(32, 8).programs(7, 150) == 2
    assert Tiling(32, 8).programs(33, 32) == 2
    assert Tiling(8, 8).programs(7, 150) == 5
    assert [Tiling(64, read).halo(65) for read in (4, 8, 16, 32)] == [24, 24, 32, 32]
    assert Tiling(64, 16).halo(64) == 0


def test_the_count_cuts_as_the_kernels_do():
    tilings = {"bk-causal": (rt.LEFT, rt.LEFT_GRADIENT), "bk-exact": (rt.TWO_SIDED, rt.TWO_SIDED_GRADIENT)}
    assert {form: tuple((t.chunk, t.halo(10**6)) for t in each) for form, each in tilings.items()} == TRITON_CUTS
    assert {(t.lanes, t.warps) for each in tilings.values() for t in (*each, rt.TOKEN)} == {(WARP, 1)}


def executed(form: str, new: int, batch: int = 2, *, begun: bool = False) -> tuple[int, int]:
    """What the count says that the kernels run, forward and backward."""
    step = Step(batch=batch, new=new, context=0, capacity=0, width=2, path="triton", training=True, head_rows=0)
    counted = resolvent(step, form, state_bytes=8 * begun)
    ahead, back = counted.forward, counted.backward
    return ahead.flops + ahead.extra_flops, back.flops + back.extra_flops


@pytest.mark.parametrize(
    ("form", "new", "forward", "backward"),
    [
        # One position alone: v - 2, its square plus 1 in a multiply-add, and the reciprocal; one product with it, where
        # there is a row. Backward 4 sums, 3 products and 2 multiply-adds. Two-sided 3, 6 and 2, and 7, 7 and 4.
        ("bk-causal", 1, 32 * (1 + 2 + 1) + 2, 32 * (4 + 3 + 2 * 2)),
        ("bk-exact", 1, 32 * (3 + 6 + 2 * 2), 32 * (7 + 7 + 2 * 4)),
        # 130 in 5 chunks of 32, 6 lanes a row, with 32 before or 24 behind them. Of 64 positions all but the first
        # follow another, and 32 are written: 64 + 1 sums; 63 + 64 + 2·32 products; 63 + 62 + 64 multiply-adds.
        ("bk-causal", 130, 32 * (65 + 191 + 2 * 189), 32 * 56 * 14),
        # 130 in 9 chunks of 16, 10 lanes a row, 24 on either side in 6 rounds of 8 sums, 16 products, 24 multiply-adds;
        # in the chunk 3 sums, 3 squares, 3 reciprocals, 4 products, 7 multiply-adds a position: without what nothing
        # reads 48, 156 and 108. Backward in 17 chunks of 8, 18 lanes a row, 36 in two warps: 32, 64 and 48 a round.
        ("bk-exact", 130, 32 * (6 * (8 + 16 + 2 * 24) + 420), 64 * (6 * (32 + 64 + 2 * 48) + 480)),
        # One chunk, with nothing around it: two-sided, no round, and one multiply-add less, or two.
        ("bk-causal", 30, 32 * (33 + 126 + 2 * 93), 32 * 32 * 14),
        ("bk-exact", 8, 32 * (48 + 156 + 2 * 107), 32 * (92 + 168 + 2 * 108)),
    ],
)
def test_operations_of_every_lane_are_counted(form: str, new: int, forward: int, backward: int):
    assert executed(form, new) == (forward, backward)


@forms
def test_bytes_of_every_position_are_counted(form: str):
    """v is read and a complex float32 written; backward reads L, or v, and dl/dL, and writes dl/dv."""
    step = Step(batch=2, new=130, context=0, capacity=0, width=2, path="triton", training=True, head_rows=0)
    counted = resolvent(step, form)
    assert counted.forward.bytes_moved == 260 * (2 + 8)
    assert counted.backward.bytes_moved == 260 * (8 + 8 + 2 if form == "bk-causal" else 2 + 8 + 2)


@pytest.mark.parametrize(("batch", "new"), [(1, 1), (40, 1), (33, 32), (7, 150), (3, 17), (2, 4096), (1, 100_001)])
@forms
def test_lanes_are_those_of_the_programs(form: str, batch: int, new: int):
    tiling, phase = {"bk-causal": (rt.LEFT_GRADIENT, 1), "bk-exact": (rt.TWO_SIDED, 0)}[form]
    tiling = tiling if new > 1 else rt.TOKEN
    assert len({executed(form, new, rows)[phase] / tiling.programs(rows, new) for rows in (1, batch)}) == 1


def test_operations_are_those_that_an_h200_counted():
    """Float32 instructions, a multiply-add as 2: of two layers and rows of 2,048 tokens in training, one row behind a
    state; of one token behind a state, of which nothing is left out; two-sided, of a token, a chunk and 4,096 of them.
    """
    assert [2 * flops for flops in executed("bk-causal", 2048)] == [162_304, 200_704]
    assert 2 * executed("bk-causal", 2048, 1, begun=True)[0] == 81_152
    assert executed("bk-causal", 1, 1, begun=True)[0] == 32 * 9
    assert executed("bk-exact", 1) == (416, 704)
    assert executed("bk-exact", 8) == (13_376, 15_232)
    assert executed("bk-exact", 4096) == (436_224, 1_671_168)


MACHINE_CODE = [
    ("two_sided_forward", "*bf16", {"CHUNK": 16, "READ": 4}, (420, 4 * 18, 2)),
    ("two_sided_backward", "*fp32", {"CHUNK": 8, "READ": 4}, (480, 4 * 48, 4)),
    ("left_fraction_forward", "*fp32", {"state": None, "CHUNK": 32, "HALO": 32, "READ": 32}, (634, 0, 0)),
    ("left_fraction_forward", "*bf16", {"state": None, "CHUNK": 32, "HALO": 0, "READ": 32}, (345, 0, 0)),
    ("left_fraction_forward", "*bf16", {"CHUNK": 32, "HALO": 0, "READ": 32}, (350, 0, 0)),
    ("left_fraction_backward", "*bf16", {"CHUNK": 32, "HALO": 24, "READ": 8}, (0, 8 * 14, 0)),
]


@needs_triton
@pytest.mark.parametrize(("name", "kind", "constants", "wanted"), MACHINE_CODE)
def test_machine_code_computes_what_is_counted(
    name: str, kind: str, constants: dict[str, int | None], wanted: tuple[int, int, int], tmp_path: Path
):
    from benchbench.models import resolvent_kernels

    pointers = {"v": kind, "out": "*fp32", "state": "*fp32", "left": "*fp32", "g": "*fp32", "grad": kind}
    types = {**pointers, "rows": "i32", "N": "i32", "HALO": "i32"}
    constants = {**constants, "LANES": 32}
    kept = {key: value for key, value in types.items() if key not in constants}
    assert lane_flops(getattr(resolvent_kernels, name), kept, constants, tmp_path) == wanted


@pytest.mark.gpu
@cuts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_equal_the_plain_recursion(cut: Cut, dtype: torch.dtype):
    found, wanted = computed(cut, "cuda", dtype), expected(cut, dtype)
    if dtype == torch.bfloat16:
        for name in ("left_grad", "both_grad"):
            wanted[name] = torch.where(
                (found[name].cpu() - wanted[name]).abs() <= 2**-8 * wanted[name].abs(), found[name].cpu(), wanted[name]
            ).double()
    check(found, wanted)


@pytest.mark.gpu
@forms
@pytest.mark.parametrize(("batch", "length"), [(1, 1_048_576), (1, 1_000_003), (512, 2048), (4096, 3)])
def test_a_million_tokens_equal_the_chunked_form_in_float64(form: str, batch: int, length: int):
    v_BN, g_BN2, _ = inputs(batch, length, "cuda")
    leaf = v_BN.double().requires_grad_()
    wanted_BN2 = Resolvent(form, "chunked", 0.5)(leaf)
    (wanted_BN,) = torch.autograd.grad(wanted_BN2, leaf, g_BN2.double())
    out_BN2, grad_BN = module_values(form, v_BN, g_BN2)
    torch.testing.assert_close(out_BN2.double(), wanted_BN2, rtol=0, atol=5e-7)
    torch.testing.assert_close(grad_BN.double(), wanted_BN, rtol=0, atol=3e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_decodes_without_waiting_and_as_the_chunked_path(dtype: torch.dtype):
    spec = preset("resnet-bk-tiny")
    fast, chunked = (build(spec, path=path, device="cuda", dtype=dtype).eval() for path in ("triton", "chunked"))
    tokens_BN = torch.randint(256, (3, 200), device="cuda")
    rows = []
    with torch.no_grad():
        for model in (fast, chunked):
            state = model.new_state(batch=3, capacity=200)
            rows.append([model.prefill(tokens_BN[:, :190], state)])
            rows[-1].append(model.decode(tokens_BN[:, 190], state))
            torch.cuda.set_sync_debug_mode("error")
            try:
                rows[-1] += [model.decode(tokens_BN[:, i], state) for i in range(191, 200)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
    ours, reference = (torch.stack(each).double() for each in rows)
    # In bfloat16 a token may go to another expert where two logits nearly tie, so the bulk is held, not the worst case.
    worst = (ours - reference).abs()
    assert (worst.max() < 1e-4) if dtype == torch.float32 else (worst.median() < 0.02)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(everything(), Path(sys.argv[1]))
