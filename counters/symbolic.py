# pyright: standard
"""Closed forms: what a case costs as expressions in its sizes, from the formulas that count it.

The sizes asked for are replaced by `Sized` numbers, and the case is counted. What comes out holds wherever the count
would take the same branches; in N alone, all branches are walked, so that the forms together hold at every length.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy

from benchbench.case import Case
from benchbench.counters.cost import count
from benchbench.counters.sized import Condition, Sized, expression
from benchbench.counters.stepwise import N, Stepwise
from benchbench.errors import UnsupportedError, unknown
from benchbench.specs import ModelSpec

LIMIT = 2**40
"""The longest context that the forms in N are walked to."""

CHOSEN = ("peak_bytes", "peak_reserved_bytes")
"""What the caching allocator of a GPU comes to, piece by piece: no form says it."""

SYMBOL_OF = {"seq_len": "N", "batch": "B"}
"""Every other size is called as its field is."""

Forms = dict[str, Any]
"""Expressions by dotted name: `flops`, `flops_by_kind.scan`, `memory.params`."""


@dataclass(frozen=True)
class Piece:
    """Forms that hold for low ≤ N ≤ high."""

    low: int
    high: int
    forms: Forms


@dataclass(frozen=True)
class ClosedForm:
    """A case's cost in several symbols; `conditions` say for which sizes."""

    case: Case
    symbols: dict[str, str]
    forms: Forms
    conditions: tuple[Condition, ...]

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether every condition is met when symbols have these values."""
        return all(sympy.sign(put(one.difference, sizes)) in one.signs for one in self.conditions)

    def at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Every form at these sizes."""
        return {name: put(form, sizes) for name, form in self.forms.items()}


@dataclass(frozen=True)
class InLength:
    """A case's cost in N alone: every length from the first piece's to the last one's."""

    case: Case
    pieces: tuple[Piece, ...]
    end: str | None
    """Why no length beyond is accepted; None where the walk stopped at its limit."""

    @property
    def low(self) -> int:
        return self.pieces[0].low

    @property
    def high(self) -> int:
        return self.pieces[-1].high

    def of(self, name: str) -> tuple[tuple[int, int, Any], ...]:
        """(low, high, expression) of one quantity, neighbours that are equal joined."""
        joined: list[tuple[int, int, Any]] = []
        for piece in self.pieces:
            form = piece.forms.get(name, sympy.Integer(0))
            if joined and joined[-1][2] == form:
                joined[-1] = (joined[-1][0], piece.high, form)
            else:
                joined.append((piece.low, piece.high, form))
        return tuple(joined)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every quantity that any piece has."""
        return tuple(dict.fromkeys(name for piece in self.pieces for name in piece.forms))

    def at(self, name: str, n: int) -> int:
        """The quantity at a length."""
        form = next(form for low, high, form in self.of(name) if low <= n <= high)
        value = Stepwise(form).at(n)
        assert value.denominator == 1
        return int(value)


def symbol(name: str) -> sympy.Symbol:
    return N if name == "N" else sympy.Symbol(name, integer=True, positive=True)


def put(form: Any, sizes: Mapping[str, int]) -> Any:
    """`form` with values for its symbols."""
    return form.subs([(symbol(name), value) for name, value in sizes.items()])


def sizes_of(case: Case) -> dict[str, tuple[str, int]]:
    """What may become a symbol: its symbol, with its field and its value in this case."""
    spec = {
        field: value
        for field, value in dict(case.spec).items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    fields = {"seq_len": case.seq_len, "batch": case.batch, **spec}
    return {SYMBOL_OF.get(field, field): (field, value) for field, value in fields.items()}


def closed_form(case: Case, names: Iterable[str] = ("N",)) -> ClosedForm:
    """The cost of `case` with the sizes called `names` (`N` or `seq_len`, `d_model`, ...) as symbols.

    Raises:
        BenchError: The model has no such size, or cannot do this.
    """
    known = sizes_of(case)
    chosen = [SYMBOL_OF.get(name, name) for name in names]
    for name in chosen:
        if name not in known:
            raise unknown("size", name, known)
    trail: dict[Condition, None] = {}
    sized = {known[name][0]: Sized(known[name][1], symbol(name), trail) for name in chosen}
    forms = _forms(with_sizes(case, sized))
    open_ = tuple(one for condition in trail if (one := reduced(condition)))
    return ClosedForm(case, {name: known[name][0] for name in chosen}, forms, tuple(dict.fromkeys(open_)))


def in_length(case: Case, limit: int = LIMIT) -> InLength:
    """The cost of `case` as a function of its length, whatever its own, for every length up to `limit`.

    A count at the first length says which branches the formulas took and on what conditions; the first length that
    breaks one begins the next piece.

    Raises:
        BenchError: The model cannot do this at any length.
    """
    low = 2 if case.task == "train" else 1
    pieces: list[Piece] = []
    while low <= limit:
        try:
            form = closed_form(case.model_copy(update={"seq_len": low}))
        except UnsupportedError as error:
            if not pieces:
                raise
            return InLength(case, tuple(pieces), error.message)
        breaks = (Stepwise(one.difference).first_outside(one.signs, low + 1, limit) for one in form.conditions)
        following = min((n for n in breaks if n is not None), default=limit + 1)
        pieces.append(Piece(low, following - 1, form.forms))
        low = following
    return InLength(case, tuple(pieces), None)


def with_sizes(case: Case, sized: dict[str, Sized]) -> Case:
    """The case with some sizes replaced, unvalidated: validation would make plain numbers of them."""
    spec: ModelSpec = case.spec.model_copy(update={k: v for k, v in sized.items() if k in type(case.spec).model_fields})
    return case.model_copy(update={"spec": spec, **{k: v for k, v in sized.items() if k in SYMBOL_OF}})


def _forms(case: Case) -> Forms:
    """Every whole number of the count, zeros left out, collected by powers of N."""
    cost = count(case)
    values: dict[str, int] = {}
    for name, value in dict(cost.counted).items():
        if name in CHOSEN and cost.fullest.caching:
            continue
        if isinstance(value, int):
            values[name] = value
        elif value is not None and not isinstance(value, str):
            values |= {f"{name}.{part}": size for part, size in dict(value).items()}
    return {name: form for name, value in values.items() if (form := collected(expression(value))) != 0}


def collected(form: Any) -> Any:
    """Expanded, then collected by powers of N; coefficients in other symbols are factored."""
    expanded = sympy.expand(form)
    return expanded if expanded.free_symbols <= {N} else sympy.collect(expanded, N, func=sympy.factor)


def reduced(condition: Condition) -> Condition | None:
    """The condition without its positive factors; None where all sizes of 1 and more meet it."""
    factored: Any = sympy.factor(condition.difference)
    rest, signs = sympy.Integer(1), condition.signs
    for factor in sympy.Mul.make_args(factored):
        if factor.is_negative and factor.is_number:
            signs = frozenset(-sign for sign in signs)
        elif not factor.is_positive:
            rest *= factor
    rest = sympy.expand(rest)
    return None if _signs(rest) <= signs else Condition(rest, signs)


def _signs(difference: Any) -> frozenset[int]:
    """The signs that it can have where every symbol is at least 1: all three, if its coefficients do not tell.

    With x + 1 for each x, coefficients of one sign do.
    """
    rounded = {part: sympy.Dummy() + int(bool(part.is_positive)) for part in difference.atoms(sympy.Function)}
    opened = difference.xreplace(rounded)
    shifted = sympy.expand(opened.xreplace({part: part + 1 for part in difference.free_symbols}))
    terms = shifted.as_coefficients_dict()
    for sign in (1, -1):
        if all(sign * coefficient > 0 for coefficient in terms.values()):
            return frozenset({sign} if 1 in terms else {0, sign})
    return frozenset({-1, 0, 1})
