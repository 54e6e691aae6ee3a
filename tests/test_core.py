"""The task core: a token mixer alone, built, counted, checked and held against its reference."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchbench import memory
from benchbench.case import TASKS, Case
from benchbench.counters import count
from benchbench.counters.core import timeline
from benchbench.counters.trace import check_case
from benchbench.errors import BenchError, UnsupportedError
from benchbench.gate import gate
from benchbench.models import build
from benchbench.models.core import Core
from benchbench.specs import ModelSpec, preset, presets
from benchbench.suite import load
from benchbench.tasks import DTYPES, Prepared, prepare

TINY = [name for name in presets() if name.endswith("-tiny")]
FULL = ["transformer-130m", "gpt2", "mamba-130m", "mamba2-130m", "resnet-bk-130m", "resnet-bk-baseline"]
FORMS = [preset("resnet-bk-tiny", form=form) for form in ("bk-exact", "bk-compat")]
RUNNABLE = [(spec, path) for spec in (*map(preset, TINY), *FORMS) for path in spec.paths]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def core_of(case: Case, device: str = "cpu") -> Core:
    built = build(case.spec, path=case.path, device=device, dtype=DTYPES[case.dtype], seed=case.seed)
    assert isinstance(built, Core)
    return built


def case_of(spec: ModelSpec, **sizes: object) -> Case:
    return Case.of(spec, **{"task": "core", "seq_len": 37, "batch": 2, **sizes})  # type: ignore[arg-type]


def prepared(case: Case, device: str = "cpu") -> Prepared:
    return prepare(core_of(case, device), case)


# A case and its spec


def test_a_case_says_of_its_spec_that_the_mixer_alone_is_meant():
    whole = preset("mamba-tiny")
    case = case_of(whole)

    assert "core" in TASKS
    assert case.spec.mixer_alone
    assert not whole.mixer_alone
    assert case.spec != whole  # so that a model kept for the one is not taken for the other
    assert case.spec.model_dump() == whole.model_dump()
    assert case.id == "mamba-tiny/core/N37/B2/float32/chunked"


def test_it_survives_being_written_read_and_changed_and_goes_with_the_task():
    case = case_of(preset("mamba-tiny"))

    assert Case.model_validate_json(case.model_dump_json()) == case
    assert case.replace(seq_len=8).spec.mixer_alone
    assert case.replace(spec=case.spec.replace(n_layers=1)).spec.mixer_alone
    assert not Case.of(case.spec, task="prefill", seq_len=4).spec.mixer_alone


@pytest.mark.parametrize("name", presets())
def test_every_architecture_has_a_core_at_any_length(name: str):
    # gpt2 has learned positions for 1,024 tokens, and the published resolvent sees later ones: no matter here.
    assert case_of(preset(name), seq_len=2**20).unsupported() is None


def test_autocast_and_training_are_refused():
    with pytest.raises(ValueError, match="autocast"):
        case_of(preset("mamba-tiny"), autocast="bfloat16")
    with pytest.raises(ValueError, match="optimizer"):
        case_of(preset("mamba-tiny"), optimizer="adamw")


# What is built and run


@pytest.mark.parametrize(("spec", "path"), RUNNABLE, ids=lambda one: getattr(one, "form", getattr(one, "name", one)))
def test_a_call_mixes_the_same_inputs_every_time(spec: ModelSpec, path: str):
    unit = prepared(case_of(spec, path=path))
    first = unit.call()

    assert torch.isfinite(first).all()
    assert torch.equal(first, unit.call())
    assert unit.tokens == 74


def test_attention_is_softmax_of_the_visible_scores():
    case = case_of(preset("transformer-tiny"), seq_len=9)
    core = core_of(case)
    q, k, v = core.inputs(2, 9)
    scores = q @ k.repeat_interleave(2, dim=1).mT / math.sqrt(16)  # 4 query heads share 2 of 16 numbers
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(2, dim=1)

    torch.testing.assert_close(core(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_the_scan_is_the_recurrence_with_softplus_skip_and_gate():
    case = case_of(preset("mamba-tiny"), seq_len=5)
    core = core_of(case)
    u, raw, z, B, C = core.inputs(2, 5)
    A = -torch.arange(1.0, 9.0)  # of each channel, where training starts; D is 1
    h = torch.zeros(2, 128, 8)
    expected = torch.empty(2, 5, 128)
    for t in range(5):
        dt = F.softplus(raw[:, t])[..., None]
        h = torch.exp(dt * A) * h + dt * u[:, t, :, None] * B[:, t, None]
        expected[:, t] = ((h * C[:, t, None]).sum(-1) + u[:, t]) * F.silu(z[:, t])

    torch.testing.assert_close(core(u, raw, z, B, C), expected, rtol=1e-4, atol=1e-5)


def test_steps_are_drawn_between_those_of_a_fresh_model():
    _, raw, *_ = core_of(case_of(preset("mamba-tiny"))).inputs(4, 200)
    dt = F.softplus(raw.double())

    assert 0.99e-3 < float(dt.min()) < 1.1e-3
    assert 0.09 < float(dt.max()) < 0.101
    assert float(dt.log().mean()) == pytest.approx(math.log(1e-2), abs=0.02)  # halfway, on a logarithmic scale


@pytest.mark.parametrize(("spec", "path"), RUNNABLE, ids=lambda one: getattr(one, "form", getattr(one, "name", one)))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_path_passes_the_gate(spec: ModelSpec, path: str, dtype: str):
    assert gate(case_of(spec, path=path, dtype=dtype), torch.device("cpu")).passed


def test_the_gate_finds_a_mixer_that_is_off(monkeypatch: pytest.MonkeyPatch):
    from benchbench.models import selective_scan

    case = case_of(preset("mamba-tiny"), seq_len=41)
    scan = selective_scan.chunked_scan
    monkeypatch.setattr(selective_scan, "chunked_scan", lambda inputs, h: (1.01 * scan(inputs, h)[0], h))

    verdict = gate(case, torch.device("cpu"))
    assert verdict.error == pytest.approx(0.01, rel=1e-3)
    assert not verdict.passed


def test_paths_for_a_gpu_say_so_without_one():
    for path in ("fused", "triton"):
        with pytest.raises(UnsupportedError, match=path):
            prepared(case_of(preset("mamba-tiny"), path=path)).call()
    for name in ("mamba-tiny", "transformer-tiny", "resnet-bk-tiny"):
        with pytest.raises(UnsupportedError, match="graph"):
            prepared(case_of(preset(name), path="graph"))


# What is counted


def test_attention_by_hand():
    # Visible pairs of 37 tokens: 37·38/2 = 703, in 2 sequences x 4 heads of 16. A pair is 4·16 + 5 FLOPs.
    cost = count(case_of(preset("transformer-tiny")))

    assert cost.counted.flops == 2 * 4 * 703 * 69
    assert cost.counted.flops_by_kind == {"attention": 2 * 4 * 703 * 69}
    assert cost.counted.params == 0
    assert [(op.path, op.repeat) for op in cost.ops] == [("mixer", 1)]
    # q and the output 74 rows of 64, k and v of 32, in float32; a float32 log-sum-exp a row and head.
    assert cost.counted.peak_requested_bytes == 4 * 74 * (64 + 64 + 32 + 32) + 4 * 74 * 4


def test_the_scan_by_hand():
    # 74 tokens x 128 channels x 8 states: 7 a state; a channel: dt·u and the skip 3, softplus 3, SiLU 4, gate 1.
    # A = -exp(A_log): 2 for each of 128 x 8. Parameters: A_log and D.
    counted = count(case_of(preset("mamba-tiny"))).counted

    assert counted.flops == 74 * 128 * (7 * 8 + 11) + 2 * 1024
    assert counted.params == 1024 + 128
    assert counted.state_bytes == counted.memory.state == 0


def test_the_resolvent_by_hand():
    # 9 a token; one number in and a complex one out. The model's width does not matter.
    small, large = (count(case_of(preset(name), batch=1)).counted for name in ("resnet-bk-tiny", "resnet-bk-130m"))

    assert small == large
    assert small.flops == 9 * 37
    assert small.params == 0


def test_layers_and_vocabulary_do_not_matter():
    base = preset("mamba2-tiny")
    other = base.replace(n_layers=7, vocab_size=1000)

    assert count(case_of(base)).counted == count(case_of(other)).counted
    parameters = [sum(p.numel() for p in core_of(case_of(spec)).parameters()) for spec in (base, other)]
    assert parameters == [8 + 8] * 2  # A and D of 128 / 16 heads


@pytest.mark.parametrize("name", TINY)
def test_it_is_one_layers_share_of_a_prefill(name: str):
    # The operations of the mixer in a model of one layer, one for one.
    spec = preset(name, n_layers=1)
    mixers = ("attn.core", "mixer.scan", "mixer.ssd", "layers.*.core")
    whole = count(case_of(spec, task="prefill", path=spec.paths[0])).ops
    expected = [op.work for op in whole if op.path.endswith(mixers) or op.formula.name == "decay_rates"]

    assert [op.work for op in count(case_of(spec)).ops] == expected


@pytest.mark.parametrize("witness", ["torch", "fvcore", "dispatch"])
@pytest.mark.parametrize(("spec", "path"), RUNNABLE, ids=lambda one: getattr(one, "form", getattr(one, "name", one)))
@pytest.mark.parametrize("seq_len", [1, 37])
def test_witnesses_agree_with_numbers(spec: ModelSpec, path: str, seq_len: int, witness: str):
    check = check_case(case_of(spec, path=path, seq_len=seq_len), witness, "cpu")  # type: ignore[arg-type]

    assert check.unexplained == ()
    assert check.params == check.counted_params


@pytest.mark.parametrize("witness", ["torch", "fvcore", "dispatch"])
@pytest.mark.parametrize("name", FULL)
def test_witnesses_agree_on_shapes_of_a_million_tokens(name: str, witness: str):
    case = case_of(preset(name), seq_len=2**20, batch=1)
    if witness == "dispatch" and case.path == "flash":
        with pytest.raises(UnsupportedError, match="takes fused attention apart"):
            check_case(case, witness)
        return
    check = check_case(case, witness)  # type: ignore[arg-type]

    assert check.unexplained == ()
    assert check.params == check.counted_params


# What is held


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("path", ["chunked", "eager"])
def test_the_scans_peak_is_measured_to_the_byte(path: str, batch: int, dtype: str):
    case = case_of(preset("mamba-tiny"), seq_len=100, batch=batch, path=path, dtype=dtype)
    unit = prepared(case)
    unit.call()
    peak = memory.peaks(unit.call, unit.held(), torch.device("cpu")).requested_bytes

    assert count(case).counted.peak_requested_bytes == peak


@pytest.mark.parametrize("batch", [1, 2])
def test_eager_attentions_peak_is_measured_to_the_byte(batch: int):
    spec = preset("transformer-tiny", n_kv_heads=4)
    case = case_of(spec, seq_len=100, batch=batch, path="eager")
    unit = prepared(case)
    unit.call()
    peak = memory.peaks(unit.call, unit.held(), torch.device("cpu")).requested_bytes

    assert count(case).counted.peak_requested_bytes == peak


@pytest.mark.parametrize("name", TINY)
def test_only_weights_and_inputs_are_held(name: str):
    case = case_of(preset(name))
    core = core_of(case)
    given = sum(tensor.untyped_storage().nbytes() for tensor in core.inputs(2, 37))
    weights = sum(parameter.nbytes for parameter in core.parameters())

    assert memory.held_bytes(prepare(core, case).held()) == given + weights
    cost = count(case)
    held = cost.counted.memory
    assert held.params == weights
    assert held.workspace > given
    assert timeline(case, cost.step).peak() == cost.counted.peak_requested_bytes


@pytest.mark.parametrize(
    ("model", "given", "path", "measured"),
    [
        ("mamba-130m", {"d_model": 512}, "eager", {512: 181_671_936, 16384: 4_768_045_056}),
        ("mamba-130m", {"d_model": 512}, "fused", {512: 5_511_168, 524288: 5_435_922_432}),
        ("mamba-130m", {"d_model": 512}, "triton", {1024: 9_508_864, 524288: 4_681_209_856}),
        # At 512 tokens its kernel splits the keys.
        (
            "transformer-130m",
            {"d_model": 1024, "n_heads": 16, "n_kv_heads": 16},
            "flash",
            {512: 8_486_936, 1024: 8_454_168},
        ),
    ],
)
def test_what_an_h200_was_asked_for(model: str, given: dict[str, int], path: str, measured: dict[int, int]):
    """torch 2.11's peak of requested bytes, by length: bfloat16, batch 1."""
    case = case_of(preset(model, **given), batch=1, path=path, dtype="bfloat16")
    found = {n: count(case.replace(seq_len=n), "cuda").counted.peak_requested_bytes for n in measured}
    assert found == measured


# The paper's figure


def test_the_suite_has_the_scan_of_the_paper():
    # Appendix E.5: batch 1, D = 1024, 16 states, bfloat16, 2^9 to 2^19 tokens; attention of the same width.
    cases = [case for case in load("mamba-paper", "cuda").cases if case.task == "core"]
    by_path = {path: [case for case in cases if case.path == path] for path in ("fused", "triton", "flash", "eager")}

    assert sum(map(len, by_path.values())) == len(cases)
    for path in ("fused", "triton", "flash"):
        assert [case.seq_len for case in by_path[path]] == [2**power for power in range(9, 20)]
    for case in cases:
        assert (case.batch, case.dtype) == (1, "bfloat16")
        spec = case.spec.model_dump()
        mamba = case.family == "mamba"
        assert (2 * spec["d_model"] if mamba else spec["d_model"]) == 1024
        assert spec["d_state"] == 16 if mamba else spec["n_heads"] == spec["n_kv_heads"] == 16
        assert "+d_model=" in case.model


def test_a_suite_cannot_set_it_as_a_size():
    with pytest.raises(BenchError, match="mixer_alone"):
        preset("mamba-tiny", mixer_alone=True)


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_path_passes_the_gate_on_a_gpu(name: str, dtype: str):
    spec = preset(name)
    for path in spec.every_path():
        case = case_of(spec, path=path, dtype=dtype)
        assert gate(case, torch.device("cuda")).passed, path
        unit = prepared(case, "cuda")
        assert torch.isfinite(unit.call()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["fused", "triton"])
def test_the_scans_kernels_hold_what_is_counted(path: str):
    case = case_of(preset("mamba-130m", d_model=512), seq_len=8192, batch=1, path=path, dtype="bfloat16")
    unit = prepared(case, "cuda")
    unit.call()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"] - memory.held_bytes(unit.held())
    peak = memory.peaks(unit.call, unit.held(), torch.device("cuda")).requested_bytes

    assert count(case, "cuda").counted.peak_requested_bytes == peak - before
