"""Claims as their files hold them, read strictly: every complaint names file, line and key."""

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from benchbench.case import Case, Dtype, Optimizer, Task, completed
from benchbench.counters.cost import Kind
from benchbench.errors import BenchError, unknown
from benchbench.reading import keys_of, read, unknown_key
from benchbench.specs import ModelSpec, families, presets
from benchbench.toml_lines import TomlLines
from benchbench.value import Value

Text = Annotated[str, Field(strict=True, min_length=1)]
Whole = Annotated[int, Field(strict=True, ge=1)]
Unit = Literal["", "parameters", "M parameters", "G parameters", "FLOP", "GFLOP", "TFLOP", "B", "MB", "GB", "tokens"]
Lacks = Literal["configuration", "measurement", "architecture", "family"]

FACTORS = {"M parameters": 10**6, "G parameters": 10**9, "MB": 10**6, "GB": 10**9, "GFLOP": 10**9, "TFLOP": 10**12}


def _printed(text: str) -> str:
    if not re.fullmatch(r"(\d+|\d{1,3}(,\d{3})+)(\.\d+)?(e[+-]?\d+)?", text):
        raise ValueError(f"'{text}' is no number as printed, like 2.04, 124,439,808 or 3.14e23")
    if not Decimal(text.replace(",", "")):
        raise ValueError("a published 0 has no ratio")
    return text


Number = Annotated[str, Field(strict=True), AfterValidator(_printed)]


class Source(Value, frozen=True):
    """Where a number was published: how it is cited, and its arXiv number or address."""

    cite: Text
    title: Text
    arxiv: Annotated[str, StringConstraints(strict=True, pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    url: Text | None = None

    @model_validator(mode="after")
    def _found_somewhere(self) -> "Source":
        if (self.arxiv is None) == (self.url is None):
            raise ValueError("a source has arxiv or url, one of them")
        return self

    @property
    def address(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url or ""


class _CaseTable(Value, frozen=True):
    """What is counted."""

    model: Text | None = None
    task: Task | None = None
    seq_len: Whole | None = None
    batch: Whole | None = None
    dtype: Dtype | None = None
    autocast: Dtype | None = None
    path: Text | None = None
    optimizer: Optimizer | None = None

    def given(self) -> dict[str, Any]:
        return {key: value for key in _CaseTable.model_fields if (value := getattr(self, key)) is not None}


class _ClaimTable(_CaseTable, frozen=True):
    """One `[[claims]]` table."""

    id: Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    says: Text
    source: Text
    at: Text
    ours: Text | None = None
    base: _CaseTable | None = None
    device: Kind | None = None
    published: Number
    unit: Unit = ""
    within: Annotated[float, Field(gt=0, lt=1)] | None = None
    relation: Literal["equals", "at most", "at least"] = "equals"
    lacks: Lacks | None = None
    why: Text | None = None
    note: Text | None = None

    @model_validator(mode="after")
    def _decidable(self) -> "_ClaimTable":
        if self.lacks is None and (self.ours is None or self.model is None):
            raise ValueError("a claim needs model and ours, or lacks: why it cannot be decided")
        if (self.ours is None) != (self.model is None):
            raise ValueError("model and ours go together")
        if self.lacks == "family" and self.model is None:
            raise ValueError("a claim that lacks a family names the model that it waits for")
        if (self.lacks is None) != (self.why is None):
            raise ValueError("lacks and why go together")
        if self.within is not None and self.relation != "equals":
            raise ValueError(f"'{self.relation}' is exact: within goes with relation 'equals'")
        return self


class _FileTable(Value, frozen=True):
    """The top of a file of claims."""

    title: Text
    about: Text
    sources: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    claims: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Claim:
    """A published number and how to count it. `place` is its file and line."""

    id: str
    says: str
    source: Source
    at: str
    published: str
    unit: str
    within: float | None
    relation: Literal["equals", "at most", "at least"]
    ours: str | None
    case: Case | None
    base: Case | None
    device: Kind | None
    """Whose kernels and allocator the memory is that of; None for the one that the path runs on."""
    lacks: Lacks | None
    model_missing: str | None
    """The model that a claim that lacks a family waits for; None once it is there."""
    why: str | None
    note: str | None
    place: str

    @property
    def number(self) -> Decimal:
        return Decimal(self.published.replace(",", ""))

    @property
    def factor(self) -> Fraction:
        return Fraction(FACTORS.get(self.unit, 1))


@dataclass(frozen=True)
class Section:
    """One file: claims that belong together, and the models that it brings."""

    title: str
    about: str
    claims: tuple[Claim, ...]
    models: dict[str, ModelSpec]


def built_in() -> list[Section]:
    """The claims that come with benchbench, by file name."""
    folder = files("benchbench.suites") / "claims"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    sections = [parse(file.read_text("utf-8"), file.name) for file in found]
    _distinct(sections)
    return sections


def load(path: Path) -> Section:
    """The claims of a file of one's own.

    Raises:
        BenchError: It cannot be read, or it is wrong.
    """
    try:
        return parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BenchError(f"cannot read the claims file '{path}': {reason}.") from None


def parse(text: str, file: str) -> Section:
    """The claims written in `text`; `file` is named in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BenchError(
            f"{file}: not TOML: {error}", "A claims file is TOML: key = value lines, [[claims]]."
        ) from None
    return _Parser(text, file).section(data)


def _distinct(sections: list[Section]) -> None:
    seen: dict[str, str] = {}
    for claim in (claim for section in sections for claim in section.claims):
        if claim.id in seen:
            raise BenchError(f'{claim.place}: id = "{claim.id}" stands at {seen[claim.id]} already.')
        seen[claim.id] = claim.place


class _Parser:
    """One file on the way to a Section."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = TomlLines(text)

    def where(self, *path: str | int) -> str:
        return f"{self.file}:{self.lines.line(path)}"

    def section(self, data: dict[str, Any]) -> Section:
        top = read(_FileTable, data, lambda loc: self.where(*loc), "the file")
        sources = {
            key: read(Source, raw, lambda loc, key=key: self.where("sources", key, *loc), f"[sources.{key}]")
            for key, raw in top.sources.items()
        }
        models = {name: self.model(name, raw) for name, raw in top.models.items()}
        claims = [self.claim(index, raw, sources, models) for index, raw in enumerate(top.claims)]
        section = Section(top.title, top.about, tuple(claims), models)
        _distinct([section])
        return section

    def model(self, name: str, raw: dict[str, Any]) -> ModelSpec:
        """`like` a preset with other sizes, or of a `family` with all of them."""
        sizes, place = dict(raw), self.where("models", name)
        like = sizes.pop("like", None)
        if name in presets():
            raise BenchError(f"{place}: '{name}' is a preset already.", "Give the model another name.")
        if like is not None:
            if like not in presets():
                raise self._at(unknown("model", str(like), presets()), "models", name, "like")
            kind, known = type(presets()[like]), presets()[like].model_dump()
        else:
            family = sizes.get("family", "")
            if family not in families():
                raise self._at(unknown("family", str(family), families()), "models", name, "family")
            kind, known = families()[family], {}
        for key in sizes:
            if key not in kind.model_fields:
                raise unknown_key(key, keys_of(kind), self.where("models", name, key), f"[models.{name}]")
        return read(kind, {**known, **sizes, "name": name}, lambda loc: self.where("models", name, *loc))

    def claim(self, index: int, raw: dict[str, Any], sources: dict[str, Source], models: dict[str, ModelSpec]) -> Claim:
        table = read(_ClaimTable, raw, lambda loc: self.where("claims", index, *loc), "[[claims]]")
        if table.source not in sources:
            raise self._at(unknown("source", table.source, sources), "claims", index, "source")
        known = {**presets(), **models}
        waits = table.model if table.lacks == "family" and table.model not in known else None
        given, changed = table.given(), table.base.given() if table.base else {}
        dropped = {"model": "path", "task": "optimizer"}
        stale = {dropped[key] for key in changed if key in dropped}
        inherited = {key: value for key, value in given.items() if key not in stale}
        counted = table.model is not None and waits is None
        return Claim(
            id=table.id,
            says=table.says,
            source=sources[table.source],
            at=table.at,
            published=table.published,
            unit=table.unit,
            within=table.within,
            relation=table.relation,
            ours=table.ours,
            case=self.case(index, given, known) if counted else None,
            base=self.case(index, {**inherited, **changed}, known, "base") if counted and table.base else None,
            device=table.device,
            lacks=None if table.lacks == "family" else table.lacks,
            model_missing=waits,
            why=table.why if waits or table.lacks != "family" else None,
            note=table.note,
            place=self.where("claims", index),
        )

    def case(self, index: int, given: dict[str, Any], known: dict[str, ModelSpec], *inside: str) -> Case:
        """The case with its defaults: prefill of one token where nothing else is said, AdamW where it trains."""
        name = given["model"]
        if name not in known:
            raise self._at(unknown("model", name, known), "claims", index, *inside, "model")
        spec = known[name]
        sizes = {"task": "prefill", "seq_len": 1, **given}
        del sizes["model"]
        case = read(Case, completed(spec, sizes), lambda loc: self.where("claims", index, *inside, *loc))
        if reason := case.unsupported():
            raise BenchError(f"{self.where('claims', index, *inside)}: {reason}.")
        return case

    def _at(self, error: BenchError, *path: str | int) -> BenchError:
        return BenchError(f"{self.where(*path)}: {error.message}", error.hint)
