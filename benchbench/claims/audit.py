"""A claim beside its count, and the verdict that follows."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from benchbench.claims.arithmetic import evaluate
from benchbench.claims.quantities import AbsentError, lookup
from benchbench.claims.written import Claim
from benchbench.errors import BenchError

Verdict = Literal["confirmed", "refuted", "undecided"]

LACKING = {
    "configuration": "the source does not state the configuration",
    "measurement": "it needs a measurement, which a count cannot give",
    "architecture": "the count cannot express this architecture",
}


@dataclass(frozen=True)
class Audit:
    """What became of one claim. `ours` and `published` are in single units, not in the claim's."""

    claim: Claim
    verdict: Verdict
    published: Fraction
    ours: Fraction | None
    why: str

    @property
    def ratio(self) -> Fraction | None:
        return None if self.ours is None else self.ours / self.published


def audit(claim: Claim) -> Audit:
    """Counts the claim's quantity and compares; what nothing here can decide is undecided, with the reason.

    Raises:
        BenchError: The claim's arithmetic is wrong; file and line are named.
    """
    published = Fraction(claim.number) * claim.factor
    if claim.model_missing:
        return Audit(claim, "undecided", published, None, f"no model '{claim.model_missing}' is built here yet")
    ours, absent = _counted(claim)
    if claim.lacks:
        return Audit(claim, "undecided", published, ours, LACKING[claim.lacks])
    if ours is None:
        return Audit(claim, "refuted", published, None, absent)
    agrees = holds(claim, ours / claim.factor)
    return Audit(claim, "confirmed" if agrees else "refuted", published, ours, _because(claim, ours, published, agrees))


def holds(claim: Claim, ours: Fraction) -> bool:
    """Whether `ours`, in the claim's unit, is what was published."""
    low, high = band(claim)
    if claim.relation == "at most":
        return ours <= high
    if claim.relation == "at least":
        return ours >= low
    return low <= ours <= high if claim.within else low <= ours < high


def band(claim: Claim) -> tuple[Fraction, Fraction]:
    """What the published number stands for: half a unit of its last digit to either side, or the stated band."""
    number = Fraction(claim.number)
    if claim.relation != "equals":
        return number, number
    if claim.within:
        return number * (1 - Fraction(str(claim.within))), number * (1 + Fraction(str(claim.within)))
    exponent = claim.number.as_tuple().exponent
    assert isinstance(exponent, int)
    half = Fraction(Decimal((0, (5,), exponent - 1)))
    return number - half, number + half


def tally(audits: Iterable[Audit]) -> dict[Verdict, int]:
    """How many of each verdict."""
    verdicts = [one.verdict for one in audits]
    return {
        "confirmed": verdicts.count("confirmed"),
        "refuted": verdicts.count("refuted"),
        "undecided": verdicts.count("undecided"),
    }


def _counted(claim: Claim) -> tuple[Fraction | None, str]:
    """The claim's quantity, or None and why there is none."""
    if claim.case is None or claim.ours is None:
        return None, ""
    case = claim.case
    try:
        return evaluate(claim.ours, lambda name: lookup(name, case, claim.base, claim.device)), ""
    except AbsentError as absent:
        return None, str(absent)
    except BenchError as error:
        raise BenchError(f"{claim.place}: ours: {error.message}", error.hint) from None


def _because(claim: Claim, ours: Fraction, published: Fraction, agrees: bool) -> str:
    if ours == published:
        return "equal"
    if claim.relation != "equals":
        return f"{'' if agrees else 'not '}{claim.relation} {claim.published}"
    low, high = (decimal(end) for end in band(claim))
    bracket = "]" if claim.within else ")"
    return f"{'' if agrees else 'not '}in [{low}, {high}{bracket}"


def decimal(value: Fraction) -> str:
    """An end of a band, which has finitely many digits: 2.035."""
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return f"{exact:g}" if abs(exact) >= 10**15 else f"{exact:,f}"
