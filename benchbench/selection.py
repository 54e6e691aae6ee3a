"""Which cases of a suite are asked for (`--model`, `--seq-len`, `--task`, `-k`), and what is changed (`--set`)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from benchbench import expression
from benchbench.case import SETTINGS, TASKS, TRAINING, Case
from benchbench.errors import BenchError, unknown
from benchbench.reading import read
from benchbench.record import Protocol
from benchbench.specs import presets
from benchbench.store import canonical
from benchbench.suite import Suite, variant


@dataclass(frozen=True)
class Wishes:
    """What a user asked for. Empty means all."""

    models: tuple[str, ...] = ()
    seq_lens: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    expression: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    shard: tuple[int, int] | None = None
    """(I, N): the I-th of N parts, counted from 1."""
    require: str | None = None
    """The path that every case must run."""
    device: str = "cpu"
    """Where they will run: `cpu`, `cuda`, `cuda:1`."""


@dataclass
class _Settings:
    """`--set` taken apart by what it changes; the text of each is kept to be quoted."""

    protocol: dict[str, Any] = field(default_factory=dict[str, Any])
    case: dict[str, Any] = field(default_factory=dict[str, Any])
    sizes: dict[str, Any] = field(default_factory=dict[str, Any])
    said: dict[str, str] = field(default_factory=dict[str, str])


def select(suites: Sequence[Suite], wishes: Wishes) -> list[Suite]:
    """The suites with their protocol as set and with the cases asked for, as set.

    Raises:
        BenchError: A name, a number or a setting is wrong, or a filter lets nothing through.
    """
    settings = _settings(wishes.settings)
    cases = [case for suite in suites for case in suite.cases]
    for what, asked, has in (
        ("task", wishes.tasks, {case.task for case in cases}),
        ("seq_len", [str(n) for n in wishes.seq_lens], {str(case.seq_len) for case in cases}),
    ):
        _require_known(what, asked, has, TASKS if what == "task" else ())
    chosen = [_selected(suite, wishes, settings) for suite in suites]
    if not any(suite.cases for suite in chosen):
        examples = ", ".join(case.id for case in cases[:2])
        raise BenchError(f"no case is left by {_asked(wishes)}.", f"Cases have names like {examples}.")
    if wishes.require:
        _require_path(wishes.require, [case for suite in chosen for case in suite.cases])
    return [suite.model_copy(update={"cases": _sharded(suite, wishes.shard)}) for suite in chosen]


def _selected(suite: Suite, wishes: Wishes, settings: _Settings) -> Suite:
    keeps = expression.parse(wishes.expression) if wishes.expression else _all
    cases = [
        case
        for case in _of_models(suite.cases, wishes)
        if (not wishes.tasks or case.task in wishes.tasks) and (not wishes.seq_lens or case.seq_len in wishes.seq_lens)
    ]
    changed = dict.fromkeys(_changed(case, settings) for case in cases)
    protocol = suite.protocol
    if settings.protocol:
        data = {**protocol.model_dump(), **settings.protocol}
        protocol = read(Protocol, data, lambda loc: settings.said.get(f"protocol.{loc[0]}", "--set"))
    return suite.model_copy(update={"cases": tuple(c for c in changed if keeps(c.id)), "protocol": protocol})


def _all(_: str) -> bool:
    return True


def _of_models(cases: Sequence[Case], wishes: Wishes) -> list[Case]:
    """The cases of these models; those of a model that the suite lacks are made anew from the suite's sizes."""
    if not wishes.models:
        return list(cases)
    found: list[Case] = []
    for name in wishes.models:
        own = [case for case in cases if case.model == name]
        found += own or _remade(cases, name, wishes.device)
    return list(dict.fromkeys(found))


def _remade(cases: Sequence[Case], model: str, device: str) -> list[Case]:
    """On the model's path for the device; where the suite asks for a CUDA graph, on that."""
    if model not in presets():
        raise unknown("model", model, presets(), "See: benchbench list models")
    spec = presets()[model]
    own = spec.cuda_path if device.startswith("cuda") else spec.paths[0]
    paths = ["graph" if case.path == "graph" and "graph" in spec.every_path() else own for case in cases]
    return [
        Case.model_validate({"spec": spec, **_sizes(case), "path": path})
        for case, path in zip(cases, paths, strict=True)
    ]


def _sizes(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("task", *SETTINGS)}


def _settings(pairs: Iterable[tuple[str, str]]) -> _Settings:
    settings = _Settings()
    for key, text in pairs:
        value = _value(text)
        settings.said[key] = f"--set {key}={text}"
        if key.startswith("protocol."):
            name = key.removeprefix("protocol.")
            if name not in Protocol.model_fields:
                raise _unknown_setting(key, text)
            settings.protocol[name] = value
        elif key in SETTINGS:
            settings.case[key] = value
        elif any(key in type(spec).model_fields and key not in ("name", "family") for spec in presets().values()):
            settings.sizes[key] = value
        else:
            raise _unknown_setting(key, text)
    return settings


def _value(text: str) -> Any:
    """`3`, `true` and `null` as what they say; all else as text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | None) else text


def _unknown_setting(key: str, text: str) -> BenchError:
    sizes = {name for spec in presets().values() for name in type(spec).model_fields} - {"name", "family"}
    known = {*SETTINGS, *sizes, *(f"protocol.{name}" for name in Protocol.model_fields)}
    error = unknown("setting", key, known)
    return BenchError(f"--set {key}={text}: {error.message}", error.hint)


def _changed(case: Case, settings: _Settings) -> Case:
    """`case` with what was set. What only training has is set where a case trains, and nowhere else."""
    sizes = settings.sizes
    spec = case.spec
    if sizes:
        preset = presets().get(spec.name.partition("+")[0], spec)
        own = {name: value for name, value in spec.model_dump().items() if value != getattr(preset, name)}
        own.pop("name", None)
        spec = variant(preset.name, {**own, **sizes}, lambda key: f"{settings.said.get(key, '--set')}: ")
    train = case.task == "train"
    changes = {name: value for name, value in settings.case.items() if train or name not in TRAINING}
    if not changes and spec is case.spec:
        return case
    data = {"spec": spec, **_sizes(case), **changes}
    return read(Case, data, lambda loc: settings.said.get(str(loc[0]) if loc else "", _any_said(settings)))


def _any_said(settings: _Settings) -> str:
    return next(said for key, said in settings.said.items() if not key.startswith("protocol."))


def _require_known(what: str, asked: Iterable[str], has: set[str], names: Sequence[str]) -> None:
    for given in asked:
        if names and given not in names:
            raise unknown(what, given, names)
        if given not in has:
            known = ", ".join(sorted(has, key=lambda name: (len(name), name)))
            raise BenchError(f"no case with {what} {given} in what was asked for.", f"There is {known}.")


def _asked(wishes: Wishes) -> str:
    said = [
        *(f"--model {name}" for name in wishes.models),
        *(f"--task {name}" for name in wishes.tasks),
        *(f"--seq-len {n}" for n in wishes.seq_lens),
        *([f"-k '{wishes.expression}'"] if wishes.expression else []),
    ]
    return " ".join(said) or "this suite"


def _require_path(path: str, cases: Sequence[Case]) -> None:
    other = next((case for case in cases if case.path != path), None)
    if other is None:
        return
    paths = other.spec.every_path()
    if path in paths:
        hint = f"Add --set path={path}, or leave such cases out with -k {path}."
    else:
        hint = f"{other.family} has the paths {', '.join(paths)}. Leave such cases out with -k {path}."
    raise BenchError(f"--require {path}: {other.model} would run path={other.path} in {other.id}.", hint)


def _sharded(suite: Suite, shard: tuple[int, int] | None) -> tuple[Case, ...]:
    """The cases of one part. A case's part depends on nothing but the case: not on its machine, nor on its fellows."""
    if shard is None:
        return suite.cases
    part, parts = shard
    return tuple(case for case in suite.cases if _number(suite, case) % parts == part - 1)


def _number(suite: Suite, case: Case) -> int:
    return int(sha256(canonical([suite.name, case.model_dump(mode="json")]).encode()).hexdigest()[:12], 16)
