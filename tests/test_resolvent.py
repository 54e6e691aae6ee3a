"""The tridiagonal resolvent against dense inverses, hand values and an independent complex128 reference."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from benchbench.models.resolvent import Resolvent

REFERENCE = json.loads((Path(__file__).parent / "data" / "bk_reference.json").read_text())
PATHS = ("chunked", "eager")
FORMS = ("bk-causal", "bk-exact")
cases = pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: f"{case['N']}-{case['kind']}")
paths = pytest.mark.parametrize("path", PATHS)
forms = pytest.mark.parametrize("form", FORMS)


def resolvent(v_BN: torch.Tensor, form: str = "bk-causal", path: str = "chunked", **more: Any) -> torch.Tensor:
    return Resolvent(form, path, more.pop("blend", 0.5))(v_BN, **more)


def gradient(v_BN: torch.Tensor, cotangent: torch.Tensor, form: str, path: str, **more: Any) -> torch.Tensor:
    leaf = v_BN.clone().requires_grad_()
    (grad,) = torch.autograd.grad(resolvent(leaf, form, path, **more), leaf, cotangent)
    return grad


def pair(case: dict[str, Any], name: str) -> torch.Tensor:
    return torch.tensor([case[f"{name}_re"], case[f"{name}_im"]], dtype=torch.float64).T[None]


def row(case: dict[str, Any], name: str) -> torch.Tensor:
    return torch.tensor([case[name]], dtype=torch.float64)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 6 - 3


@paths
def test_hand_values(path: str):
    # v = 2 gives a = 0. L_1 = 1/(-i) = i; L_2 = 1/(-i - i) = i/2; L_3 = 1/(-i - i/2) = 2i/3.
    # By symmetry R_3 = i, R_2 = i/2: G_1 = 1/(-i - i/2) = 2i/3, G_2 = 1/(-i - i - i) = i/3, G_3 = G_1.
    v_BN = torch.full((1, 3), 2.0)
    left_NC = torch.tensor([[0, 1], [0, 1 / 2], [0, 2 / 3]])
    both_NC = torch.tensor([[0, 2 / 3], [0, 1 / 3], [0, 2 / 3]])
    torch.testing.assert_close(resolvent(v_BN, "bk-causal", path)[0], left_NC)
    torch.testing.assert_close(resolvent(v_BN, "bk-exact", path)[0], both_NC)


@paths
def test_is_the_diagonal_of_the_dense_inverse(path: str):
    v_BN = uniform(2, 90)
    eye = torch.eye(90, dtype=torch.complex128)
    beside = torch.diag(torch.ones(89, dtype=torch.complex128), 1)
    for v_N, left_N2, both_N2 in zip(v_BN, resolvent(v_BN, path=path), resolvent(v_BN, "bk-exact", path), strict=True):
        shifted = torch.diag((v_N - 2).to(torch.complex128)) + beside + beside.T - 1j * eye
        left_N = torch.stack([torch.linalg.inv(shifted[:i, :i])[-1, -1] for i in range(1, 91)])
        torch.testing.assert_close(torch.view_as_complex(left_N2), left_N, rtol=0, atol=1e-14)
        torch.testing.assert_close(
            torch.view_as_complex(both_N2), torch.linalg.inv(shifted).diagonal(), rtol=0, atol=1e-14
        )


@paths
@cases
def test_reference_values_and_gradient(case: dict[str, Any], path: str):
    v_BN, cotangent = row(case, "v"), pair(case, "cot")
    torch.testing.assert_close(resolvent(v_BN, "bk-causal", path), pair(case, "left"), rtol=0, atol=1e-15)
    torch.testing.assert_close(resolvent(v_BN, "bk-exact", path), pair(case, "G"), rtol=0, atol=1e-15)
    grad = gradient(v_BN, cotangent, "bk-exact", path)
    torch.testing.assert_close(grad, row(case, "grad_exact"), rtol=0, atol=3e-15)


@pytest.mark.parametrize("case", REFERENCE["large"], ids=lambda case: str(case["N"]))
def test_long_sequences_in_float32(case: dict[str, Any]):
    i_N = torch.arange(case["N"], dtype=torch.float64)
    v_BN = ((2 * (0.7 * i_N).sin() + (0.013 * i_N).cos()) * 65536).round()[None] / 65536
    for form, name in (("bk-causal", "left"), ("bk-exact", "G")):
        exact, single = resolvent(v_BN, form), resolvent(v_BN.float(), form)
        torch.testing.assert_close(exact[:, case["index"]], pair(case, name), rtol=0, atol=1e-14)
        assert (single - exact).abs().max() <= 5e-7
        assert single.isfinite().all()
        assert single.norm(dim=-1).max() <= 1 + 1e-6  # |L|, |G| <= 1/Im z = 1, to rounding
        assert single[..., 1].min() > 0
    assert exact[..., 0].mean().item() == pytest.approx(case["mean_G_re"], abs=1e-14)
    assert exact[..., 1].mean().item() == pytest.approx(case["mean_G_im"], abs=1e-14)


@forms
@pytest.mark.parametrize("length", [3, 65, 83])  # one lane to 64 in float64; five; six, the last not full
def test_gradcheck_of_chunks(form: str, length: int):
    v_BN = uniform(1, length).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: resolvent(v, form), (v_BN,))


@settings(max_examples=60, deadline=None)
@given(
    length=st.sampled_from([1, *range(15, 34), 40, 41, 64, 65, 100]),
    batch=st.integers(1, 3),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 2**31),
    same=st.none() | st.floats(-3, 3),
)
def test_chunked_equals_eager(length: int, batch: int, form: str, seed: int, same: float | None):
    v_BN = uniform(batch, length, seed=seed) if same is None else torch.full((batch, length), same).double()
    cotangent = uniform(batch, length, 2, seed=seed + 1)
    fast, plain = (resolvent(v_BN, form, path) for path in PATHS)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-15)
    fast, plain = (gradient(v_BN, cotangent, form, path) for path in PATHS)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-13)
    fast, plain = resolvent(v_BN.float(), form, "chunked"), resolvent(v_BN, form, "eager")
    torch.testing.assert_close(fast.double(), plain, rtol=0, atol=5e-7)


@paths
def test_constant_two_forgets_slowest_and_is_still_exact(path: str):
    # v = 2: L = i·q with q = 1/(1 + q), so q tends to (sqrt(5) - 1)/2, and q² = 0.382 is what the halo is sized for.
    left_BN2 = resolvent(torch.full((1, 200), 2.0).double(), path=path)
    assert left_BN2[0, -1].tolist() == [0, pytest.approx((5**0.5 - 1) / 2, abs=1e-15)]
    torch.testing.assert_close(left_BN2, resolvent(torch.full((1, 200), 2.0).double(), path="eager"), rtol=0, atol=0)


@paths
@pytest.mark.parametrize("first", [1, 7, 16, 70, 99])
def test_continues_from_a_state(path: str, first: int):
    v_BN = uniform(3, 100)
    state_B2 = torch.zeros(3, 2, dtype=torch.float64)
    parts = [resolvent(part, path=path, state_B2=state_B2) for part in v_BN.split([first, 100 - first], dim=1)]
    whole = resolvent(v_BN, path="eager")
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-15)
    torch.testing.assert_close(state_B2, whole[:, -1], rtol=0, atol=1e-15)


@paths
def test_later_values_leave_earlier_bits_alone(path: str):
    v_BN = uniform(2, 100, dtype=torch.float32)
    before = resolvent(v_BN, path=path)
    for j in (1, 15, 16, 40, 99):
        changed = v_BN.clone()
        changed[:, j:] = uniform(2, 100 - j, seed=1, dtype=torch.float32)
        assert torch.equal(resolvent(changed, path=path)[:, :j], before[:, :j])
        two_sided = resolvent(changed, "bk-exact", path)
        assert not torch.equal(two_sided[:, j - 1], resolvent(v_BN, "bk-exact", path)[:, j - 1])


@cases
@pytest.mark.parametrize(("blend", "key"), [(0.0, "0"), (0.5, "05"), (1.0, "1")])
def test_published_values_and_gradient(case: dict[str, Any], blend: float, key: str):
    v_BN, cotangent = row(case, "v"), pair(case, "cot")
    values = resolvent(v_BN, "bk-compat")
    torch.testing.assert_close(values, pair(case, "G"), rtol=0, atol=4e-8)  # complex64 rounds at 2^-24 = 6e-8 of |G|
    # The gradient starts from that rounded G, squared and inverted: its error is 1e-7 of the largest terms.
    grad = gradient(v_BN, cotangent, "bk-compat", "chunked", blend=blend)
    scale = row(case, f"grad_repo_alpha{key}").abs().max().item()
    torch.testing.assert_close(grad, row(case, f"grad_repo_alpha{key}"), rtol=0, atol=1e-6 * max(scale, 1))


@pytest.mark.parametrize(("value", "longest"), [(-3.0, 445), (0.0, 968), (2.0, 1475)])
def test_published_recursion_overflows_to_zero(value: float, longest: int):
    # |theta_N| ~ rho^N with rho + 1/rho = |a - i| passes 1.8e308: at a = 0, rho is the golden ratio, and
    # 308.25 / log10(1.618) = 1475.0; at a = -5, |rho| = 4.906 and 308.25 / 0.6908 = 446.2; at a = -2, 2.081 and 968.5.
    alive = resolvent(torch.full((1, longest), value), "bk-compat")
    torch.testing.assert_close(alive, resolvent(torch.full((1, longest), value), "bk-exact"), rtol=0, atol=1e-6)
    assert torch.count_nonzero(resolvent(torch.full((1, longest + 1), value), "bk-compat")) == 0
    assert torch.count_nonzero(resolvent(torch.full((1, 4096), value), "bk-compat")) == 0


def test_published_gradient_is_noise_after_the_overflow():
    # G = 0: only -0.5 · u / 1e-6 is left of it. u = 1e-4 gives -50; u = -1 gives 500,000, clamped to 1,000.
    cotangent = torch.zeros(1, 1500, 2)
    cotangent[0, :2, 0] = torch.tensor([1e-4, -1.0])
    grad = gradient(torch.zeros(1, 1500), cotangent, "bk-compat", "chunked")
    torch.testing.assert_close(grad[0, :3], torch.tensor([-50.0, 1000.0, 0.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    v_BN = uniform(1, 100).to(dtype)
    assert resolvent(v_BN).dtype == torch.float32
    assert torch.equal(resolvent(v_BN), resolvent(v_BN.float()))


class Dispatched(TorchDispatchMode):
    """Counts every operation that reaches a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@paths
@pytest.mark.parametrize("form", [*FORMS, "bk-compat"])
def test_meta_tensors_have_shapes_and_no_loop(form: str, path: str):
    v_BN = torch.empty(1, 1_048_576, device="meta", requires_grad=True)
    with Dispatched() as dispatched:
        out_BN2 = resolvent(v_BN, form, path)
        (grad_BN,) = torch.autograd.grad(out_BN2, v_BN, torch.empty_like(out_BN2))
    assert (out_BN2.shape, out_BN2.dtype) == ((1, 1_048_576, 2), torch.float32)
    assert grad_BN.shape == v_BN.shape
    assert dispatched.count < 100
