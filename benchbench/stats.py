"""Order statistics of a handful of timings. Nothing is assumed of their distribution, and no sample is dropped."""

from collections.abc import Sequence
from math import comb
from statistics import median, quantiles

from benchbench.value import Value

CONFIDENCE = 0.95


class Summary(Value, frozen=True):
    """What `n` samples say; `low95` and `high95` enclose the true median with 95 % confidence (absent below six)."""

    n: int
    median: float
    q1: float
    q3: float
    low95: float | None
    high95: float | None

    @property
    def half_ratio(self) -> float | None:
        """Half the interval's width over the median, or None without an interval."""
        if self.low95 is None or self.high95 is None or not self.median:
            return None
        return (self.high95 - self.low95) / 2 / self.median


def summarize(samples: Sequence[float]) -> Summary:
    """The median, quartiles and the order-statistic interval of the median."""
    ordered = sorted(samples)
    q1, _, q3 = quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    rank = interval_rank(len(ordered))
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (None, None)
    return Summary(n=len(ordered), median=median(ordered), q1=q1, q3=q3, low95=low, high95=high)


def interval_rank(n: int) -> int:
    """The largest r such that the r-th smallest and r-th largest of n samples enclose the median; 0 if none does.

    The number of samples below the median is Binomial(n, 1/2), so the interval misses it with probability
    2 · P(X < r). Six samples are the least with a 95 % interval: 2 · (1/2)^6 = 0.031.
    """
    missed = 0.0
    rank = 0
    while rank < n // 2:
        missed += 2 * comb(n, rank) / 2**n
        if missed > 1 - CONFIDENCE:
            break
        rank += 1
    return rank
