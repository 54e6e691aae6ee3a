"""Suites: named, versioned lists of cases and how to measure them, one TOML file each.

```toml
name = "prefill-2k"
version = 1
about = "Three families at two thousand tokens."

[protocol]                                   # fields of Protocol, and budget_s for the whole run
min_samples = 6
budget_s = { cpu = 240, cuda = 1800 }        # any value here may be given by device

[[cases]]
task = "prefill"
model = ["mamba-130m", "transformer-130m"]
seq_len = { from = 512, to = 2048, times = 2 }   # or a number, or a list
batch = 1                                    # or a list; or tokens = 2048, and batch = tokens / seq_len
dtype = { cpu = "float32", cuda = "bfloat16" }   # or one for all devices; so with any value
# path, optimizer, checkpoint, accumulate, autocast, each one or a list; seed
# path = { cuda = "graph" } leaves other devices the path that is the family's there
# set = { n_layers = 4 } changes sizes of the models
# device = "cuda": these cases are for GPUs alone
```
"""

import tomllib
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from benchbench.case import Case, Task, completed
from benchbench.errors import BenchError, unknown
from benchbench.reading import keys_of, read, unknown_key, written
from benchbench.record import Protocol
from benchbench.specs import ModelSpec, presets
from benchbench.toml_lines import TomlLines
from benchbench.value import Value

DEVICES = ("cpu", "cuda")


class Suite(Value, frozen=True):
    """Cases to measure on one kind of device. Results of different versions are not compared."""

    name: str
    version: PositiveInt
    about: str
    protocol: Protocol
    budget_s: float | None = None
    """For the whole run; None where nothing bounds it."""
    cases: tuple[Case, ...]

    @property
    def label(self) -> str:
        return f"'{self.name}' v{self.version}"


def _as_tuple(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else (value,)


Whole = Annotated[int, Field(strict=True, ge=1)]
Wholes = Annotated[tuple[Whole, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Text = Annotated[str, Field(strict=True)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Flags = Annotated[tuple[Annotated[bool, Field(strict=True)], ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class _Doubling(Value, frozen=True):
    """`{ from = 512, to = 4096, times = 2 }`: every length from the first, up to and with the last."""

    first: Whole = Field(alias="from")
    last: Whole = Field(alias="to")
    times: Annotated[int, Field(strict=True, ge=2)] = 2

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"to = {self.last} is less than from = {self.first}.")
        return self

    def lengths(self) -> list[int]:
        found = [self.first]
        while found[-1] * self.times <= self.last:
            found.append(found[-1] * self.times)
        return found


VARIED = ("dtype", "path", "optimizer", "checkpoint", "accumulate", "autocast")
"""Settings that may be lists: every combination is a case."""


class _CaseTable(Value, frozen=True):
    """One `[[cases]]` table, resolved for a device: the product of its models, lengths and batches."""

    task: Task
    model: Texts
    seq_len: Wholes
    batch: Wholes | None = None
    tokens: Whole | None = None
    dtype: Texts = ("float32",)
    path: Texts | None = None
    optimizer: Texts | None = None
    checkpoint: Flags = (False,)
    accumulate: Wholes = (1,)
    autocast: Texts | None = None
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    device: Literal["cpu", "cuda"] | None = None
    sizes: dict[str, Any] = Field(default_factory=dict, alias="set")

    def batches(self, seq_len: int) -> tuple[int, ...]:
        if self.tokens is None:
            return self.batch or (1,)
        if self.batch is not None:
            raise ValueError("batch and tokens are two ways to say the same: give one")
        if self.tokens % seq_len:
            raise ValueError(f"{self.tokens} is not a multiple of seq_len {seq_len}")
        return (self.tokens // seq_len,)

    def variations(self) -> Iterator[dict[str, Any]]:
        """Every way in which a model is to be run at a size."""
        ways = {key: getattr(self, key) or (None,) for key in VARIED}
        for values in product(*ways.values()):
            yield {"seed": self.seed, **dict(zip(ways, values, strict=True))}


class _SuiteTable(Value, frozen=True):
    """The top of a suite file."""

    name: Text
    version: Whole
    about: Text
    protocol: dict[str, Any] = Field(default_factory=dict)
    cases: list[dict[str, Any]]


def built_in() -> dict[str, Traversable]:
    """The files of the suites that come with benchbench, by name."""
    found = {file.name.removesuffix(".toml"): file for file in files("benchbench.suites").iterdir()}
    return {name: file for name, file in sorted(found.items()) if file.name.endswith(".toml")}


def load(name: str, device: str = "cpu") -> Suite:
    """The suite called `name`, or in the TOML file at that path, for `device` (`cpu`, `cuda`, `cuda:1`).

    Raises:
        BenchError: There is no such suite, or its file is wrong: the message names file, line and key.
    """
    if name in built_in():
        return parse(built_in()[name].read_text("utf-8"), f"{name}.toml", device)
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        hint = f"Suites: {', '.join(built_in())}. A path to a .toml file works too."
        raise unknown("suite", name, built_in(), hint)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BenchError(f"cannot read the suite file '{name}': {reason}.", "See: benchbench list suites") from None
    return parse(text, name, device)


def parse(text: str, file: str, device: str = "cpu") -> Suite:
    """The suite written in `text`, for `device`; `file` is named in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = f"{file}: not TOML: {error}"
        raise BenchError(message, "A suite file is TOML: key = value lines, [protocol], [[cases]].") from None
    return _Parser(text, file, device.split(":")[0]).suite(data)


def variant(name: str, sizes: dict[str, Any], where: Callable[[str], str]) -> ModelSpec:
    """The preset called `name` with some sizes changed; its new name says which, so that no row hides it."""
    if name not in presets():
        wrong = unknown("model", name, presets(), "See: benchbench list models")
        raise BenchError(f"{where('')}{wrong.message}", wrong.hint)
    spec = presets()[name]
    if not sizes:
        return spec
    kind = type(spec)
    if unknown_sizes := [key for key in sizes if key not in kind.model_fields]:
        key = unknown_sizes[0]
        raise unknown_key(key, keys_of(kind), where(key).removesuffix(": "), name)
    renamed = "+".join([name, *(f"{key}={value}" for key, value in sorted(sizes.items()) if key != "name")])
    data = {**spec.model_dump(), "name": renamed, **sizes}
    return read(kind, data, lambda loc: where(str(loc[0]) if loc else next(iter(sizes))).removesuffix(": "))


class _Parser:
    """One suite file on the way to a Suite: knows the file and its lines for every complaint."""

    def __init__(self, text: str, file: str, device: str) -> None:
        self.file = file
        self.device = device
        self.lines = TomlLines(text)

    def where(self, *path: str | int) -> str:
        return f"{self.file}:{self.lines.line(path)}"

    def suite(self, data: dict[str, Any]) -> Suite:
        top = read(_SuiteTable, data, lambda loc: self.where(*loc), "the file")
        protocol = {key: self.for_device(value, "protocol", key) for key, value in top.protocol.items()}
        budget = protocol.pop("budget_s", None)
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or budget <= 0):
            place = self.where("protocol", "budget_s")
            raise BenchError(f"{place}: budget_s = {written(budget)}: expected a number of seconds, more than 0.")
        cases = [case for index, table in enumerate(top.cases) for case in self.cases(index, table)]
        if not cases:
            raise BenchError(
                f"{self.file}: the suite has no cases.", "Add a [[cases]] table with task, model, seq_len."
            )
        return Suite(
            name=top.name,
            version=top.version,
            about=top.about,
            protocol=self.protocol(protocol),
            budget_s=budget,
            cases=tuple(dict.fromkeys(cases)),
        )

    def protocol(self, table: dict[str, Any]) -> Protocol:
        for key in table:
            if key not in Protocol.model_fields:
                keys = sorted([*Protocol.model_fields, "budget_s"])
                raise unknown_key(key, keys, self.where("protocol", key), "[protocol]")
        return read(Protocol, table, lambda loc: self.where("protocol", *loc))

    def cases(self, index: int, raw: dict[str, Any]) -> Iterator[Case]:
        """Every case of the `index`-th table."""
        if raw.get("device") in [kind for kind in DEVICES if kind != self.device]:
            return
        written_out = {key: self.for_device(value, "cases", index, key) for key, value in raw.items()}
        if isinstance(written_out.get("seq_len"), dict):
            given = written_out["seq_len"]
            doubling = read(_Doubling, given, lambda _: self.where("cases", index, "seq_len"), "seq_len")
            written_out["seq_len"] = doubling.lengths()
        table = read(_CaseTable, written_out, lambda loc: self.where("cases", index, *loc), "[[cases]]")
        for name in table.model:
            place = self.where("cases", index, "model")
            spec = variant(name, table.sizes, lambda key, at=place: f"{self._size_place(index, key, at)}: ")
            for seq_len in table.seq_len:
                for batch in self._batches(index, table, seq_len):
                    for ways in table.variations():
                        given = {"task": table.task, "seq_len": seq_len, "batch": batch, **ways}
                        data = completed(spec, given, self.device)
                        yield read(Case, data, lambda loc: self.where("cases", index, *loc))

    def _size_place(self, index: int, key: str, otherwise: str) -> str:
        return self.where("cases", index, "set", key) if key else otherwise

    def _batches(self, index: int, table: _CaseTable, seq_len: int) -> tuple[int, ...]:
        try:
            return table.batches(seq_len)
        except ValueError as error:
            raise BenchError(f"{self.where('cases', index, 'tokens')}: tokens: {error}.") from None

    def for_device(self, value: Any, *path: str | int) -> Any:
        """`value`, or its entry for the device where it is a table by device."""
        if not isinstance(value, dict) or path[-1] == "set":
            return cast("Any", value)
        table = cast("dict[str, Any]", value)
        if path[-1] == "seq_len" and not table.keys() & set(DEVICES):
            return cast("Any", table)
        for key in table:
            if key not in DEVICES:
                raise unknown_key(key, list(DEVICES), self.where(*path), str(path[-1]))
        if self.device not in table and path[-1] in ("path", "autocast"):
            return None
        if self.device not in table:
            given = ", ".join(table)
            message = f"{self.where(*path)}: {path[-1]} has no value for {self.device}, only for {given}."
            raise BenchError(message, f"Add {self.device} = ... to it.")
        return table[self.device]
