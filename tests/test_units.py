import pytest

from benchbench import units


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1.234, "1.23"),
        (25, "25.0"),
        (345.4, "345"),
        (21_149, "21,100"),
        (0.012345, "0.0123"),
        (9.996, "10.0"),  # rounds up into the next power of ten: still three digits
        (999.6, "1,000"),
        (0.0001234, "0.000123"),
        (0.00001234, "1.23e-05"),
        (-1.234, "-1.23"),
    ],
)
def test_three_significant_digits(value, shown):
    assert units.digits(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0114, "11.4 ms"),
        (0.9996, "1.00 s"),  # never "1,000 ms"
        (1310.0, "1,310 s"),
        (8.2e-7, "820 ns"),
        (3e-12, "0.00300 ns"),
        (0, "0 ns"),
    ],
)
def test_seconds(value, shown):
    assert units.seconds(value) == shown


def test_bytes_are_binary():
    assert units.size(2**31) == "2.00 GiB"
    assert units.size(1000) == "1,000 B"
    assert units.size(1024) == "1.00 KiB"
    assert units.size(2**50) == "1,050,000 GiB"  # 2**20 GiB, to three digits: GiB is the largest unit


def test_flops_counts_and_rates():
    assert units.flops(36.9e12) == "36.9 TFLOP"
    assert units.flops(21.1e15) == "21,100 TFLOP"
    assert units.count(129_135_360) == "129M"
    assert units.rate(718_400) == "718k tok/s"
    assert units.rate(12.5) == "12.5 tok/s"


def test_percent():
    assert units.percent(0.00634) == "0.63%"
    assert units.percent(-0.0121, signed=True) == "-1.2%"
    assert units.percent(0.5, signed=True) == "+50%"


def test_a_column_takes_the_largest_unit_that_keeps_its_smallest_value_at_a_hundredth():
    # 0.13 TFLOP is shown as 0.13; 0.0013 TFLOP would need four decimals, so the column is in GFLOP.
    assert units.common_unit([0.13e12, 21e15], units.FLOPS) == (1e12, "TFLOP")
    assert units.common_unit([0.0013e12, 21e15], units.FLOPS) == (1e9, "GFLOP")
    assert units.common_unit([0, 2**31], units.BYTES) == (2**30, "GiB")  # zeros do not choose
    assert units.common_unit([], units.BYTES) == (2**30, "GiB")


def test_listing():
    assert units.listing([]) == ""
    assert units.listing(["a"]) == "a"
    assert units.listing(["a", "b"]) == "a and b"
    assert units.listing(["a", "b", "c"]) == "a, b and c"
