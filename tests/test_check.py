"""The count against fvcore and torch's counter on the real modules: no difference without a rule."""

import pytest

from benchbench.case import Case
from benchbench.counters import trace
from benchbench.counters.trace import check_case
from benchbench.errors import UnsupportedError
from benchbench.models import build
from benchbench.specs import preset, presets

TINY = [name for name in presets() if name.endswith("-tiny")]
FULL = [name for name in presets() if not name.endswith("-tiny")]


@pytest.mark.parametrize("witness", ["torch", "fvcore"])
@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", TINY)
def test_tiny_models_with_numbers(name: str, task: str, witness: str) -> None:
    spec = preset(name)
    for path in spec.paths:
        check = check_case(Case.of(spec, task=task, seq_len=37, batch=2, path=path), witness, "cpu")  # type: ignore[arg-type]
        assert check.unexplained == ()
        assert check.params == check.counted_params
        assert check.traced_flops > 0


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", FULL)
def test_full_models_as_shapes(name: str, task: str) -> None:
    spec = preset(name)
    case = Case.of(spec, task=task, seq_len=min(3000, (spec.longest or 3001) - 1))
    if reason := case.unsupported():
        with pytest.raises(UnsupportedError, match=reason):
            check_case(case)
        return
    check = check_case(case)
    assert check.unexplained == ()
    assert check.params == check.counted_params


def test_a_million_tokens_as_shapes() -> None:
    for name in ("transformer-130m", "mamba-130m", "resnet-bk-130m"):
        check = check_case(Case.of(preset(name), task="prefill", seq_len=2**20))
        assert check.unexplained == ()


def test_torch_by_hand_on_a_linear_model() -> None:
    # resnet-bk-tiny, 2 layers, 8 rows: v 64·1, o 2·64, router 64·4, two experts 2·64·96 each; head 1 row of 64·256.
    check = check_case(Case.of(preset("resnet-bk-tiny"), task="prefill", seq_len=8))
    assert check.traced_flops == 2 * 8 * 2 * (64 + 128 + 256 + 2 * 2 * 64 * 96) + 2 * 64 * 256


def test_the_depthwise_rule_is_the_published_overcount() -> None:
    # Torch prices the weight gradient as dense: 2·K·D² a position instead of 2·K·D.
    check = check_case(Case.of(preset("mamba-tiny"), task="train", seq_len=16))
    row = next(row for row in check.rows if row.path.endswith("conv1d") and row.phase == "backward")
    assert row.traced == 2 * (2 * 16 * 128 * 4 + 2 * 16 * 4 * 128 * 128)


def test_a_wrong_count_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = preset("mamba-tiny")
    wrong = build(spec.replace(d_conv=3))
    monkeypatch.setattr(trace, "_module", lambda *_: wrong)
    check = check_case(Case.of(spec, task="prefill", seq_len=16), "torch", "cpu")
    assert [row.path for row in check.unexplained] == ["backbone.layers.*.mixer.conv1d"]
    assert check.unexplained[0].unexplained == -2 * 2 * 16 * 128
    assert check.params != check.counted_params
    assert not check.passed


def test_fvcore_says_what_it_cannot_see() -> None:
    check = check_case(Case.of(preset("transformer-tiny"), task="prefill", seq_len=16), "fvcore", "cpu")
    assert check.blind["aten::scaled_dot_product_attention"] == 2
    with pytest.raises(UnsupportedError, match="without numbers"):
        check_case(Case.of(preset("mamba-tiny"), task="prefill", seq_len=16), "fvcore", "meta")
