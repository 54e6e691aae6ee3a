"""Audited claims as tables, as the page results/claims.md, and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from benchbench import units
from benchbench.case import Case
from benchbench.claims.audit import Audit, audit, tally
from benchbench.claims.written import Claim, Section
from benchbench.specs import ModelSpec
from benchbench.table import Column, Table, build, markdown

INTRODUCTION = """\
Numbers that others have published, each counted again. Made by `benchbench claims --out results`; the claims and their
sources are data, the verdicts are computed.

A published number stands for what its digits stand for: 2.04 for anything from 2.035 up to 2.045. Where a source says
"about", or rounds to a name, the band is stated with the claim. **confirmed**: the count is in that band. **refuted**:
it is not; the ratio says by how much. **undecided**: no count can tell, and the reason is given; a ratio beside it is
that of the nearest case that can be counted. FLOPs are 2 a multiply-add, with element-wise work and the visible half
of causal attention."""


@dataclass(frozen=True)
class Audited:
    """A section with its claims' verdicts."""

    section: Section
    audits: tuple[Audit, ...]


def audited(sections: Iterable[Section]) -> list[Audited]:
    return [Audited(section, tuple(audit(claim) for claim in section.claims)) for section in sections]


def verdicts_table(one: Audited) -> Table:
    """One row a claim."""
    columns: tuple[Column[Audit], ...] = (
        Column("id", "claim", "text", lambda row: row.claim.id),
        Column("says", "says", "text", lambda row: row.claim.says, detail=2),
        Column("published", "published", "text", lambda row: _published(row.claim)),
        Column("ours", "ours", "counted", lambda row: _plain(row.ours, row.claim.factor), number),
        Column("ratio", "ratio", "counted", lambda row: _plain(row.ratio), ratio),
        Column("verdict", "verdict", "text", lambda row: row.verdict),
        Column("why", "why", "text", _why, detail=1),
        Column("source", "source", "text", lambda row: f"{row.claim.source.cite}, {row.claim.at}", detail=3),
    )
    return build(one.section.title, (("claims", one.section.title),), columns, one.audits)


def counting_table(one: Audited) -> Table:
    """What was counted for each claim, in the words of `benchbench count`."""
    rows = [row.claim for row in one.audits if row.claim.case]
    columns: tuple[Column[Claim], ...] = (
        Column("id", "claim", "text", lambda claim: claim.id),
        Column("ours", "counted quantity", "text", lambda claim: f"`{claim.ours}`"),
        Column("case", "of", "text", lambda claim: _counted(claim.case, claim.device)),
        Column("base", "base", "text", lambda claim: _counted(claim.base, claim.device)),
    )
    return build(one.section.title, (), columns, rows)


def as_markdown(sections: Sequence[Audited]) -> str:
    """The page."""
    parts = ["# Claims", INTRODUCTION, sentence([row for one in sections for row in one.audits])]
    for one in sections:
        parts += [f"## {one.section.title}", one.section.about, sentence(one.audits), markdown(verdicts_table(one))]
        parts += ["How each was counted:", markdown(counting_table(one))] if counting_table(one).rows else []
        if one.section.models:
            parts += ["\n".join(f"- {described(spec)}" for spec in one.section.models.values())]
        sources = dict.fromkeys(row.claim.source for row in one.audits)
        parts += ["\n".join(f"- {source.cite}: [{source.title}]({source.address})" for source in sources)]
    return "\n\n".join(parts) + "\n"


def as_json(sections: Sequence[Audited]) -> list[dict[str, Any]]:
    """One object a claim; `published` and `ours` are in the claim's unit."""
    return [
        {
            "id": row.claim.id,
            "says": row.claim.says,
            "source": {**row.claim.source.model_dump(exclude_none=True), "at": row.claim.at},
            "published": row.claim.published,
            "unit": row.claim.unit,
            "quantity": row.claim.ours,
            "case": row.claim.case and row.claim.case.model_dump(mode="json"),
            "base": row.claim.base and row.claim.base.model_dump(mode="json"),
            "device": row.claim.device,
            "ours": _plain(row.ours, row.claim.factor),
            "ratio": _plain(row.ratio),
            "verdict": row.verdict,
            "why": _why(row),
        }
        for one in sections
        for row in one.audits
    ]


def sentence(audits: Sequence[Audit]) -> str:
    """How many there are, and how many of each verdict."""
    parts = [f"{number} {verdict}" for verdict, number in tally(audits).items()]
    return f"{units.plural(len(audits), 'claim')}: {', '.join(parts)}."


def described(spec: ModelSpec) -> str:
    """A model with the sizes that make it one."""
    sizes = ", ".join(
        f"{key} {value}" for key, value in spec.model_dump(exclude_defaults=True).items() if key != "name"
    )
    return f"{spec.name}: {spec.family}, {sizes}"


def number(value: float) -> str:
    """Whole numbers in full; others to four significant digits, beyond 10^15 as 3.214e+23."""
    if abs(value) >= 1e15:
        return f"{value:.3e}"
    return units.integer(int(value)) if value == int(value) else units.digits(value, 4)


def ratio(value: float) -> str:
    """Four digits behind the point near 1, so that a small difference shows; `1` where there is none."""
    if value == 1:
        return "1"
    near = f"{value:.4f}"
    if 0.5 < value < 2:
        return near if near != "1.0000" else f"{value:.7f}"
    return units.digits(value, 3)


def _counted(case: Case | None, device: str | None) -> str | None:
    """A case, and the device that it is counted on where one is given."""
    if case is None:
        return None
    return f"{case.id} on {device}" if device else case.id


def _published(claim: Claim) -> str:
    sign = {"equals": "", "at most": "≤ ", "at least": "≥ "}[claim.relation]
    about = f"± {units.percent(claim.within)}" if claim.within else ""
    return " ".join(filter(None, [f"{sign}{claim.published}", claim.unit, about]))


def _why(row: Audit) -> str:
    parts = [row.why, row.claim.why, row.claim.note]
    return "; ".join(part for part in parts if part)


def _plain(value: Fraction | None, factor: Fraction = Fraction(1)) -> int | float | None:
    """A number that JSON and tables take, in units of `factor`."""
    if value is None:
        return None
    scaled = value / factor
    return scaled.numerator if scaled.denominator == 1 else float(scaled)
