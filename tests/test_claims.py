"""Audited claims: verdicts by hand, complaints by line, and the committed page."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from benchbench.__main__ import main
from benchbench.claims import page, written
from benchbench.claims.arithmetic import evaluate
from benchbench.claims.audit import audit, band
from benchbench.claims.quantities import crossing, quantities, saved_bytes
from benchbench.counters import count
from benchbench.errors import BenchError
from benchbench.specs import families, presets
from benchbench.suite import built_in

ROOT = Path(__file__).parent.parent

# mamba-tiny is d_model 64, 2 layers, 256 entries, so d_inner 128, rank 4, 8 states, 4 taps. A layer: norm 64,
# in_proj 64·256 = 16384, conv 128·4 + 128 = 640, x_proj 128·(4 + 16) = 2560, dt_proj 4·128 + 128 = 640,
# A 128·8 = 1024, D 128, out_proj 128·64 = 8192: 29632. Two layers 59264, last norm 64: 59328 inside.
# Embedding, shared with the head: 256·64 = 16384. All: 75712.
INSIDE, ALL = 59_328, 75_712

TOP = """title = "T"
about = "A."

[sources.s]
cite = "S"
title = "A source"
arxiv = "2312.00752"
"""

CLAIM = """
[[claims]]
id = "one"
says = "It has as many."
source = "s"
at = "Table 1"
model = "mamba-tiny"
ours = "params"
published = "75,712"
"""


def only(**changes: str):
    """The audit of CLAIM with some lines replaced; an empty value drops the line."""
    return audit(section(**changes).claims[0])


def section(**changes: str) -> written.Section:
    return written.parse(TOP + with_lines(CLAIM, changes), "mine.toml")


def with_lines(text: str, changes: dict[str, str]) -> str:
    lines = [line for line in text.splitlines() if line.partition(" =")[0] not in changes]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in changes.items() if value)]) + "\n"


# Verdicts


def test_a_number_that_the_count_finds_is_confirmed():
    found = only()
    assert (found.verdict, found.ours, found.ratio, found.why) == ("confirmed", ALL, 1, "equal")


def test_a_number_that_the_count_does_not_find_is_refuted_with_its_ratio():
    found = only(published='"37,856"')
    assert (found.verdict, found.ours, found.ratio) == ("refuted", ALL, 2)
    assert found.why == "not in [37,855.5, 37,856.5)"


def test_what_lacks_something_is_undecided_and_says_what():
    found = only(lacks='"measurement"', why='"no clock"')
    assert (found.verdict, found.ours, found.ratio) == ("undecided", ALL, 1)
    assert found.why == "it needs a measurement, which a count cannot give"
    bare = only(model="", ours="", lacks='"configuration"', why='"no sizes"')
    assert (bare.verdict, bare.ours, bare.ratio) == ("undecided", None, None)


def test_a_claim_that_waits_for_a_family_is_decided_once_its_model_is_there():
    waiting = only(model='"no-such-model"', lacks='"family"', why='"not yet"')
    assert (waiting.verdict, waiting.why) == ("undecided", "no model 'no-such-model' is built here yet")
    there = only(lacks='"family"', why='"not yet"')
    assert (there.verdict, there.claim.why) == ("confirmed", None)


@pytest.mark.parametrize(
    ("published", "low", "high"),
    [
        ('"2.04"', Fraction("2.035"), Fraction("2.045")),
        ('"2.10"', Fraction("2.095"), Fraction("2.105")),
        ('"6"', Fraction("5.5"), Fraction("6.5")),
        ('"3.14e23"', Fraction("3.135e23"), Fraction("3.145e23")),
        ('"1,000"', Fraction("999.5"), Fraction("1000.5")),
    ],
)
def test_printed_digits_stand_for_half_a_unit_of_the_last(published, low, high):
    assert band(section(published=published).claims[0]) == (low, high)


def test_the_upper_end_of_the_digits_is_not_in_the_band_and_the_lower_is():
    """2 as printed is 1.5 up to 2.5: the ends themselves."""
    assert only(ours='"params - params + 2.5"', published='"2"').verdict == "refuted"
    assert only(ours='"params - params + 1.5"', published='"2"').verdict == "confirmed"


def test_about_is_a_stated_band_with_both_ends():
    """75,712 is 0.9464 of 80,000: within 6 %, not within 5 %."""
    assert only(published='"80,000"', within="0.06").verdict == "confirmed"
    assert only(published='"80,000"', within="0.05").verdict == "refuted"
    assert only(ours='"params / params * 11"', published='"10"', within="0.1").verdict == "confirmed"


def test_a_bound_is_exact():
    assert only(published='"75,712"', relation='"at most"').verdict == "confirmed"
    assert only(published='"75,711"', relation='"at most"').verdict == "refuted"
    assert only(published='"75,712"', relation='"at least"').verdict == "confirmed"
    assert only(published='"75,713"', relation='"at least"').verdict == "refuted"


def test_a_unit_scales_the_published_number():
    """75,712 float32 parameters are 302,848 bytes: 0.302848 MB."""
    found = only(ours='"memory.params"', published='"0.303"', unit='"MB"')
    assert (found.verdict, found.ours, found.published) == ("confirmed", 302_848, 303_000)


def test_costs_that_never_cross_refute_a_crossing():
    """A layer keeps 8 bytes in resnet-bk-tiny, 256 a token in transformer-tiny: the latter is never less."""
    found = only(model='"transformer-tiny"', base='{ model = "resnet-bk-tiny" }', ours='"crossing.state"')
    assert (found.verdict, found.ours) == ("refuted", None)
    assert "costs more than resnet-bk-tiny at every length" in found.why


# Quantities


def test_a_crossing_is_the_length_from_which_no_more_is_paid():
    """Keys and values of 24 tokens fill mamba-tiny's state: (4 + 8)·128·4 = 6144 a layer, 2·4·2·16 = 256 a token."""
    mamba, attention = (section(model=f'"{name}"').claims[0].case for name in ("mamba-tiny", "transformer-tiny"))
    assert crossing(mamba, attention, "state") == 24


def test_parameters_inside_are_without_embedding_and_head():
    claim = section().claims[0]
    assert quantities(claim.case)["params_inside"] == INSIDE


def test_scores_are_what_eager_attention_keeps_beyond_flash():
    """transformer-tiny has 4 heads: 4·8² probabilities of 4 bytes, 1024, less flash's 4·8 row statistics of 4, 128."""
    changes = {"task": '"train"', "seq_len": "8", "path": '"eager"', "model": '"transformer-tiny"'}
    ours = '"layer.attention.saved_bytes - base.layer.attention.saved_bytes"'
    assert only(**changes, base='{ path = "flash" }', ours=ours).ours == 1024 - 128


def test_saved_bytes_are_what_the_forward_leaves_for_the_backward():
    """One more sequence of 8 tokens in mamba-tiny on its kernels, under autocast: widths 64 and 128, 4 and 8 states.

    A layer keeps, a token: the residual 4·64 and a statistic 4, the normalised row 2·64, the projected row and gate
    2·256, the low-rank row 2·(4 + 2·8), B and C 2·2·8, and the scan's output 2·128: 1228. Its states, 8·128·8 = 8192,
    are kept once a sequence. The last norm keeps 4·64 + 4, the head its input 2·64: 388.
    8·(2·1228 + 388) + 2·8192 = 39136.
    """
    changes = {"task": '"train"', "seq_len": "8", "autocast": '"bfloat16"', "path": '"fused"', "device": '"cuda"'}
    ours = '"saved_bytes - base.saved_bytes"'
    assert only(**changes, batch="2", base="{ batch = 1 }", ours=ours).ours == 39_136


def test_a_device_picks_the_memory_of_its_kernels():
    """mamba-tiny's fast path runs anywhere: without a device it is counted on the CPU."""
    here, there = (section(task='"train"', seq_len="64", device=device).claims[0] for device in ("", '"cuda"'))
    assert (here.device, there.device) == (None, "cuda")
    found = {kind: count(here.case, kind).counted.peak_bytes for kind in ("cpu", "cuda")}
    assert found["cpu"] != found["cuda"]
    assert audit(replace(here, ours="peak_bytes")).ours == found["cpu"]
    assert audit(replace(there, ours="peak_bytes")).ours == found["cuda"]
    assert saved_bytes(here.case, "cpu") != saved_bytes(here.case, "cuda")


@pytest.mark.parametrize("task", ["prefill", "decode", "train"])
@pytest.mark.parametrize("name", ["mamba-tiny", "transformer-tiny", "resnet-bk-tiny"])
def test_the_parts_of_flops_are_flops(name, task):
    claim = section(model=f'"{name}"', task=f'"{task}"', seq_len="16").claims[0]
    found, counted = quantities(claim.case), count(claim.case).counted
    assert {phase: found[f"flops.{phase}"] for phase in counted.flops_by_phase} == counted.flops_by_phase
    assert {kind: found[f"flops.{kind}"] for kind in counted.flops_by_kind} == counted.flops_by_kind
    parts = [value for key, value in found.items() if key.startswith("flops.") and key.count(".") == 2]
    assert sum(parts) == counted.flops


def test_a_base_takes_over_what_it_does_not_change():
    claim = section(task='"train"', seq_len="64", batch="4", base="{ seq_len = 32 }").claims[0]
    assert (claim.base.seq_len, claim.base.batch, claim.base.optimizer) == (32, 4, "adamw")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a + b * 2", Fraction(13)),
        ("(a + b.c) / 2", Fraction(5, 1)),
        ("a / b", Fraction(3, 5)),
        ("300e9", Fraction(3 * 10**11)),
        ("log(1)", Fraction(0)),
    ],
)
def test_arithmetic_is_exact(text, value):
    assert evaluate(text, {"a": Fraction(3), "b": Fraction(5), "b.c": Fraction(7)}.__getitem__) == value


@pytest.mark.parametrize("text", ["a ** 2", "a if a else a", "__import__('os')", "a +", "exp(a)", "'a'", "True"])
def test_nothing_but_arithmetic_is_evaluated(text):
    with pytest.raises(BenchError, match="is no arithmetic"):
        evaluate(text, lambda _: Fraction(1))


def test_dividing_by_zero_is_said():
    with pytest.raises(BenchError, match="divides by zero"):
        evaluate("a / (a - a)", lambda _: Fraction(1))


# Complaints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"publishd": '"1"'}, "mine.toml:17: [[claims]] has no key 'publishd'. Did you mean 'published'?"),
        ({"source": '"t"'}, "mine.toml:16: no source 't'."),
        ({"model": '"mamba-tin"'}, "mine.toml:16: no model 'mamba-tin'. Did you mean 'mamba-tiny'?"),
        ({"published": "75712"}, "mine.toml:16: published = 75712: expected text in quotes."),
        ({"published": '"about 2"'}, "mine.toml:16: published: 'about 2' is no number as printed, like 2.04"),
        ({"published": '"0.0"'}, "mine.toml:16: published: a published 0 has no ratio"),
        ({"unit": '"miles"'}, 'mine.toml:17: unit = "miles": expected'),
        ({"lacks": '"time"', "why": '"?"'}, 'mine.toml:17: lacks = "time": expected'),
        ({"lacks": '"measurement"'}, "mine.toml:9: lacks and why go together"),
        ({"model": "", "ours": ""}, "mine.toml:9: a claim needs model and ours, or lacks: why it cannot be decided"),
        ({"within": "0.1", "relation": '"at most"'}, "mine.toml:9: 'at most' is exact: within goes with"),
        ({"at": ""}, "mine.toml:9: [[claims]] needs 'at'."),
        ({"task": '"decode"', "model": '"resnet-bk-baseline"'}, "mine.toml:9: resnet-bk-baseline sees later tokens"),
        ({"base": '{ model = "x" }'}, "mine.toml:17: no model 'x'."),
        ({"device": '"tpu"'}, 'mine.toml:17: device = "tpu": expected'),
        ({"path": '"fast"'}, "mine.toml:9: mamba-tiny has no path 'fast'; it has chunked, eager"),
    ],
)
def test_a_wrong_claim_is_named_with_its_line(changes, message):
    with pytest.raises(BenchError) as error:
        section(**changes)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ('"parms"', "mine.toml:9: ours: no quantity 'parms'. Did you mean 'params'?"),
        ('"base.params"', "mine.toml:9: ours: 'base.params' needs a second case."),
    ],
)
def test_a_wrong_quantity_is_named_with_the_line_of_its_claim(ours, message):
    with pytest.raises(BenchError) as error:
        only(ours=ours)
    assert error.value.message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOP.replace('arxiv = "2312.00752"', "") + CLAIM, "mine.toml:4: a source has arxiv or url, one of them"),
        (TOP + '[models.m]\nlike = "mamba"\n' + CLAIM, "mine.toml:9: no model 'mamba'."),
        (TOP + '[models.m]\nfamily = "mambo"\n' + CLAIM, "mine.toml:9: no family 'mambo'. Did you mean 'mamba'?"),
        (TOP + '[models.m]\nlike = "gpt2"\nd_modl = 3\n' + CLAIM, "mine.toml:10: [models.m] has no key 'd_modl'."),
        (TOP + '[models.m]\nlike = "gpt2"\nd_model = 0\n' + CLAIM, "mine.toml:10: d_model = 0: expected more than 0."),
        (TOP + '[models.gpt2]\nlike = "gpt2"\n' + CLAIM, "mine.toml:8: 'gpt2' is a preset already."),
        (TOP + CLAIM + CLAIM, 'mine.toml:18: id = "one" stands at mine.toml:9 already.'),
        (TOP + "claims = 3 = 4", "mine.toml: not TOML: "),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text, message):
    with pytest.raises(BenchError) as error:
        written.parse(text, "mine.toml")
    assert error.value.message.startswith(message)


# The claims that come with benchbench


@pytest.fixture(scope="module")
def shipped() -> list[page.Audited]:
    return page.audited(written.built_in())


def test_the_committed_page_is_what_the_claims_give(shipped):
    """Made anew by: benchbench claims --out results."""
    assert page.as_markdown(shipped) == (ROOT / "results/claims.md").read_text("utf-8")


def test_every_claim_has_a_source_and_every_source_an_address(shipped):
    for row in (row for one in shipped for row in one.audits):
        assert row.claim.at
        assert row.claim.source.address.startswith("https://")


def test_every_undecided_claim_says_why_and_no_other_does(shipped):
    for row in (row for one in shipped for row in one.audits):
        assert (row.verdict == "undecided") == (row.claim.lacks is not None or row.claim.model_missing is not None)
        assert (row.claim.why is not None) == (row.verdict == "undecided")


def test_claims_are_no_suites_and_models_no_presets(shipped):
    assert "claims" not in built_in()
    assert not {name for one in shipped for name in one.section.models} & set(presets())
    assert {spec.family for one in shipped for spec in one.section.models.values()} <= set(families())


# The verb


def test_a_file_of_ones_own_is_audited(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(TOP + CLAIM)
    assert main(["claims", str(tmp_path / "mine.toml"), "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["id"], found["ours"], found["ratio"], found["verdict"]) == ("one", ALL, 1, "confirmed")


def test_out_writes_the_page_and_twice_the_same(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(TOP + CLAIM)
    pages = []
    for _ in range(2):
        assert main(["claims", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out")]) == 0
        pages.append((tmp_path / "out/claims.md").read_bytes())
    assert pages[0] == pages[1]
    assert b"1 claim: 1 confirmed, 0 refuted, 0 undecided." in pages[0]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out/claims.md")] * 2


def test_a_missing_file_is_said(capsys):
    assert main(["claims", "no.toml"]) == 2
    assert capsys.readouterr().err.startswith("benchbench: cannot read the claims file 'no.toml': No such file")
