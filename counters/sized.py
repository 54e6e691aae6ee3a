# pyright: standard
"""Whole numbers that remember how they were computed, so that the formulas that count also state their closed form.

A `Sized` is an int, and computes as one: what it decides, how the formulas branch on it and which limits it breaks is
what the number itself would do. Beside its value it carries the expression in the symbols it came from, and each
comparison leaves a `Condition` on a trail: the expression holds for all sizes that meet the trail's conditions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy

LESS, EQUAL, MORE = -1, 0, 1


@dataclass(frozen=True)
class Condition:
    """`difference` has one of `signs`."""

    difference: sympy.Expr
    signs: frozenset[int]

    @property
    def relation(self) -> Any:
        """As sympy writes it, with nothing subtracted on either side."""
        terms = sympy.Add.make_args(self.difference)
        subtracted = [-term for term in terms if term.could_extract_minus_sign()]
        added = [term for term in terms if not term.could_extract_minus_sign()]
        left, right, signs = sympy.Add(*added), sympy.Add(*subtracted), self.signs
        if left.is_number and not right.is_number:
            left, right, signs = right, left, frozenset(-sign for sign in signs)
        return _RELATIONS[signs](left, right, evaluate=False)


_RELATIONS: dict[frozenset[int], Callable[..., Any]] = {
    frozenset({LESS}): sympy.Lt,
    frozenset({EQUAL}): sympy.Eq,
    frozenset({MORE}): sympy.Gt,
    frozenset({LESS, EQUAL}): sympy.Le,
    frozenset({EQUAL, MORE}): sympy.Ge,
    frozenset({LESS, MORE}): sympy.Ne,
}


class Sized(int):
    """A positive whole number with its expression. What has no closed form here raises TypeError."""

    expression: sympy.Expr
    trail: dict[Condition, None]
    """Conditions in the order they were met, shared by all that came from the same symbols."""

    def __new__(cls, value: int, expression: Any, trail: dict[Condition, None]) -> "Sized":
        made = super().__new__(cls, value)
        made.expression = expression
        made.trail = trail
        return made

    def _with(self, value: int, expression: Any) -> "Sized":
        return Sized(value, expression, self.trail)

    def __add__(self, other: int) -> "Sized":
        return self._with(plain(self) + plain(other), self.expression + expression(other))

    def __mul__(self, other: int) -> "Sized":
        return self._with(plain(self) * plain(other), self.expression * expression(other))

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other: int) -> "Sized":
        return self + -other

    def __rsub__(self, other: int) -> "Sized":
        return -self + other

    def __neg__(self) -> "Sized":
        return self._with(-plain(self), -self.expression)

    def __floordiv__(self, other: int) -> "Sized":
        return self._with(plain(self) // plain(other), self._quotient(other))

    def __rfloordiv__(self, other: int) -> "Sized":
        return Sized(other, sympy.Integer(other), self.trail) // self

    def __mod__(self, other: int) -> "Sized":
        return self - other * (self // other)

    def _quotient(self, other: int) -> Any:
        """`self // other`: exact where it is known to be, else a floor; of a negative number minus a ceiling."""
        divisor = expression(other)
        quotient = self.expression / divisor
        if quotient.is_integer or (divisor == 2 and self.expression.is_even):
            return quotient
        if plain(self) < 0:
            return -sympy.ceiling(-quotient)
        # Widths divide each other because specs say so; lengths and batches do so by chance.
        if plain(self) % plain(other) == 0 and not {"N", "B"} & {str(symbol) for symbol in quotient.free_symbols}:
            self.trail[Condition(sympy.Mod(self.expression, divisor), frozenset({EQUAL}))] = None
            return quotient
        return sympy.floor(quotient)

    def _decide(self, other: object, signs: frozenset[int]) -> bool:
        """Whether the sign of `self - other` is among `signs`; the trail learns the answer."""
        assert isinstance(other, int)
        sign = (plain(self) > plain(other)) - (plain(self) < plain(other))
        decided = sign in signs
        held = signs if decided else frozenset({LESS, EQUAL, MORE}) - signs
        difference = self.expression - expression(other)
        if not difference.is_number:
            self.trail[Condition(difference, held)] = None
        return decided

    def __lt__(self, other: int) -> bool:
        return self._decide(other, frozenset({LESS}))

    def __le__(self, other: int) -> bool:
        return self._decide(other, frozenset({LESS, EQUAL}))

    def __gt__(self, other: int) -> bool:
        return self._decide(other, frozenset({MORE}))

    def __ge__(self, other: int) -> bool:
        return self._decide(other, frozenset({EQUAL, MORE}))

    def __eq__(self, other: object) -> bool:
        return self._decide(other, frozenset({EQUAL}))

    def __ne__(self, other: object) -> bool:
        return self._decide(other, frozenset({LESS, MORE}))

    def __bool__(self) -> bool:
        return self._decide(0, frozenset({LESS, MORE}))

    def __hash__(self) -> int:
        return hash(plain(self))

    def bit_length(self) -> int:
        """A plain number, on the condition that `self` lies between the powers of two that give it."""
        bits = plain(self).bit_length()
        self._decide(1 << (bits - 1), frozenset({EQUAL, MORE}))
        self._decide(1 << bits, frozenset({LESS}))
        return bits


def plain(number: int) -> int:
    """The value alone."""
    return int.__int__(number)


def expression(number: int) -> Any:
    """What `number` was computed by; a plain number is its own expression."""
    return number.expression if isinstance(number, Sized) else sympy.Integer(number)


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(self: Sized, *_: object) -> Any:
        raise TypeError(f"no closed form: {name} of {self.expression}")

    return refuse


# An int's other operations would forget the expression without a word.
for _name in (
    *("int", "float", "abs", "invert", "truediv", "rtruediv", "rmod", "divmod", "rdivmod", "pow", "rpow"),
    *("lshift", "rlshift", "rshift", "rrshift", "and", "rand", "or", "ror", "xor", "rxor"),
):
    setattr(Sized, f"__{_name}__", _refusal(_name))
