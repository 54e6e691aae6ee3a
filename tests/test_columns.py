import pytest
from records import ENVIRONMENT, counted, record, steady

from benchbench import table
from benchbench.axis import BATCH
from benchbench.columns import Group, agreement_text, case_table, current, grouped, model_table, peak_basis, reason
from benchbench.record import Checked, Measured
from benchbench.stats import summarize


def row(found, *records):
    """The cells of the first record, by column header."""
    drawn = case_table(found, records)
    return {column.header: cell for column, cell in zip(drawn.columns, drawn.rows[0], strict=True)}


def group(*records):
    return next(iter(grouped(records)))


def test_a_prefill_row():
    traced = Checked(traced_flops=2_000_000, explained_flops=2_000_000)
    # Six samples from 0.99 s to 1.01 s: the interval is their range, half of it 1 % of the median. 512 tokens a second.
    one = record("mamba-tiny", 512, steady(1.0), cost=counted(2_000_000, peak_bytes=3 * 2**20), checked=traced)
    cells = {header: cell.text for header, cell in row(group(one), one).items()}
    assert cells == {
        "N": "512",
        "model": "mamba-tiny",
        "MFLOP (counted)": "2.00",
        "peak MiB (counted)": "3.00",
        "traced = counted": "✓",
        "time (measured)": "1.00 s",
        "± (measured)": "1.0%",
        "tok/s (measured)": "512",
        "peak MiB (measured)": "1.00",
        "first call (measured)": "1.98 s",
        "path": "chunked",
        "status": "ok",
    }


def test_a_decode_row_adds_state_and_says_what_a_token_takes():
    one = record("mamba-tiny", 512, steady(0.004), task="decode", cost=counted(state_bytes=2**19))
    cells = row(group(one), one)
    assert cells["state MiB (counted)"].text == "0.500"
    assert cells["ms/token (measured)"].text == "4.00"
    assert cells["ms/token (measured)"].value == 0.004  # CSV keeps seconds


def test_what_was_not_measured_is_absent_and_never_zero():
    one = record("mamba-tiny", 512, status="skipped", reason="predicted 9 s", cost=counted())
    cells = row(group(one), one)
    measured = [cell for header, cell in cells.items() if "measured" in header]
    assert len(measured) == 5
    assert all(cell.value is None and cell.text == "—" for cell in measured)
    assert cells["path"].text == "—"
    assert (cells["status"].text, cells["status"].note) == ("skipped", "predicted 9 s")


def test_a_row_that_was_not_even_counted():
    one = record("gpt2", 2048, status="unsupported", reason="1024 positions")
    assert [cell.value for header, cell in row(group(one), one).items() if "counted" in header] == [None] * 3


def test_an_ok_row_says_why_a_cell_is_absent():
    few = record("mamba-tiny", 512, (1.0, 2.0), cost=counted(), checked=Checked(reason="too long to build"))
    assert reason(few) == "2 samples, six are needed for an interval; not traced: too long to build"
    bare = record("mamba-tiny", 512)
    assert reason(bare) == "not timed; first call not timed; peak memory not measured; not counted; not traced"
    timed = record(
        "mamba-tiny", measured=Measured(time_s=(1.0,)), summary={"time_s": summarize((1.0,))}, cost=counted()
    )
    assert reason(timed) == (
        "1 sample, six are needed for an interval; first call not timed; peak memory not measured; not traced"
    )


def test_the_trace_is_a_check_mark_with_the_difference_that_rules_explain():
    def text(**checked):
        return agreement_text(record(cost=counted(1000), checked=Checked(**checked)))

    assert text(traced_flops=1000, explained_flops=1000) == "✓"
    assert text(traced_flops=988, explained_flops=988) == "✓ -1.2%"
    assert text(traced_flops=1500, explained_flops=1400) == "✗ +50%"
    assert text(traced_flops=1500) == "✗ +50%"
    assert text(reason="not built") is None
    assert agreement_text(record(cost=counted(1000))) is None


def test_peaks_are_compared_alike():
    asked = record(measured=Measured(peak_requested_bytes=1))
    held = record(measured=Measured(peak_requested_bytes=1, peak_allocated_bytes=2))
    assert peak_basis([asked, record()]) == "requested"
    assert peak_basis([asked, held]) == "allocated"
    assert peak_basis([record()]) == "allocated"


def test_tables_are_split_by_task_dtype_optimizer_and_batch_and_sorted_by_length_then_model():
    records = [
        record("transformer-tiny", 512),
        record("mamba-tiny", 1024),
        record("mamba-tiny", 512),
        record("mamba-tiny", 512, task="train"),
        record("mamba-tiny", 512, case={"batch": 4}),
        record("mamba-tiny", 512, case={"dtype": "bfloat16"}),
    ]
    groups = grouped(records)
    assert list(groups) == [
        Group("prefill", "bfloat16", None, 1),
        Group("prefill", "float32", None, 1),
        Group("prefill", "float32", None, 4),
        Group("train", "float32", "adamw", 1),
    ]
    found = groups[Group("prefill", "float32", None, 1)]
    assert [(r.case.seq_len, r.case.model) for r in found] == [
        (512, "mamba-tiny"),
        (512, "transformer-tiny"),
        (1024, "mamba-tiny"),
    ]
    assert grouped(reversed(records)) == groups


def test_a_constant_number_of_tokens_is_one_table_with_a_column_for_the_batch():
    records = [record("mamba-tiny", n, case={"batch": 2048 // n}) for n in (512, 1024)]
    (found,) = grouped(records)
    assert found == Group("prefill", "float32", None, None, tokens=2048)
    assert found.title == "prefill · float32 · 2,048 tokens a call"
    assert row(found, *records)["B"].text == "4"


def test_one_length_at_several_batches_is_one_table_over_the_batch():
    records = [record("mamba-tiny", 512, case={"batch": batch}) for batch in (1, 8)]
    (found,) = grouped(records)
    assert found == Group("prefill", "float32", None, None, seq_len=512)
    assert (found.title, found.axis) == ("prefill · float32 · N=512", BATCH)
    assert row(found, *records)["B"].text == "1"


def test_the_last_outcome_of_a_case_is_shown():
    first = record(status="error", key="a", started_at="2026-11-22T04:00:00Z")
    second = record(key="b", started_at="2026-11-22T05:00:00Z")
    assert current([second, first]) == [second]


def test_parameters_stand_once_a_model():
    # mamba-tiny ties its head: 256 x 64 embedding parameters lie outside the layers. gpt2-like heads would count twice.
    built = Checked(params=100_000)
    records = [
        record("mamba-tiny", 512, cost=counted(params=100_000)),
        record("mamba-tiny", 1024, cost=counted(params=100_000), checked=built),
        record("resnet-bk-baseline", 64, cost=counted(params=10_000_000)),
    ]
    drawn = model_table(records)
    assert [[cell.text for cell in line] for line in drawn.rows] == [
        ["mamba-tiny", "mamba", "100,000", "83,616", "100,000"],  # 100,000 - 16,384
        # 10,000,000 - 2 x 30,000 x 64 - 30,000: an untied head with a bias
        ["resnet-bk-baseline", "resnet-bk", "10,000,000", "6,130,000", "—"],
    ]
    assert "parameters (counted)" in table.markdown(drawn)


# Utilisations

H200 = {**ENVIRONMENT, "device": "cuda", "gpu": {"name": "NVIDIA H200"}, "flags": {"matmul_tf32": False}}


def utilised(one, environment=H200):
    drawn = case_table(group(one), [one], environments={"e1": environment})
    return {
        column.title: cell
        for column, cell in zip(drawn.columns, drawn.rows[0], strict=True)
        if column.title in ("MFU", "HFU", "bandwidth")
    }


def test_a_known_gpu_has_model_and_hardware_utilisation():
    # 989.5e12 FLOP/s dense in bfloat16: a tenth of it in one second, and a fifth with what runs again.
    cost = counted(98_950_000_000_000, executed_flops=197_900_000_000_000)
    cells = utilised(record("mamba-tiny", times=steady(1.0), cost=cost, case={"dtype": "bfloat16"}))
    assert list(cells) == ["MFU", "HFU"]
    assert cells["MFU"].value == pytest.approx(0.1)
    assert (cells["MFU"].text, cells["HFU"].text) == ("10%", "20%")


def test_float32_is_measured_against_what_it_is_rounded_to():
    # 67e12 FLOP/s without tensor cores, 494.5e12 where torch may round to TF32.
    one = record("mamba-tiny", times=steady(1.0), cost=counted(6_700_000_000_000))
    assert utilised(one)["MFU"].value == pytest.approx(0.1)
    rounded = utilised(one, {**H200, "flags": {"matmul_tf32": True}})
    assert rounded["MFU"].value == pytest.approx(6.7 / 494.5)


def test_autocast_is_measured_against_its_dtype():
    case = {"autocast": "bfloat16"}
    one = record("mamba-tiny", times=steady(1.0), task="train", cost=counted(98_950_000_000_000), case=case)
    assert utilised(one)["MFU"].value == pytest.approx(0.1)


def test_decode_shows_the_share_of_the_memory_bandwidth():
    # 4.8e12 B/s: 1.2e9 bytes in a millisecond are a quarter.
    one = record("mamba-tiny", times=steady(1e-3), task="decode", cost=counted(bytes_moved=1_200_000_000))
    cells = utilised(one)
    assert list(cells) == ["bandwidth"]
    assert cells["bandwidth"].text == "25%"


@pytest.mark.parametrize("gpu", [None, {"name": "NVIDIA H200 NVL"}, {"name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb"}])
def test_an_unknown_device_has_no_utilisation(gpu):
    assert not utilised(record(times=steady(1.0), cost=counted()), {**H200, "gpu": gpu})


def test_a_dtype_without_a_peak_has_no_utilisation():
    t4 = {**H200, "gpu": {"name": "Tesla T4"}}
    assert not utilised(record(times=steady(1.0), cost=counted(), case={"dtype": "bfloat16"}), t4)


def test_what_was_not_timed_is_absent_beside_what_was():
    timed = record("mamba-tiny", 512, steady(1.0), cost=counted())
    skipped = record("mamba-tiny", 1024, status="skipped", reason="no time", cost=counted())
    drawn = case_table(group(timed), [timed, skipped], environments={"e1": H200})
    place = [column.title for column in drawn.columns].index("MFU")
    assert drawn.rows[1][place].text == "—"
    assert drawn.rows[0][place].value is not None
