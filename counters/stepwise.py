# pyright: standard
"""Polynomials in N with rounded parts, like 3·N² + 5·⌈N/16⌉: exact values, bounds, and where their sign changes."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from typing import Any

import sympy

N = sympy.Symbol("N", integer=True, positive=True)

Bounds = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class Stepwise:
    """A function of N ≥ 1 alone, evaluated in exact arithmetic."""

    expression: Any

    @cached_property
    def _terms(self) -> tuple[tuple[Fraction, tuple[tuple["_Factor", int], ...]], ...]:
        """Coefficients, each with its factors and their powers."""
        return tuple(
            (
                Fraction(int(coefficient.p), int(coefficient.q)),
                tuple((_Factor(base), int(power)) for base, power in monomial.as_powers_dict().items() if base != 1),
            )
            for monomial, coefficient in sympy.expand(self.expression).as_coefficients_dict().items()
        )

    def at(self, n: int) -> Fraction:
        return self.bounds(n, n)[0]

    def bounds(self, low: int, high: int) -> Bounds:
        """Between which values it stays for low ≤ N ≤ high: those of its terms, added. One value where they are equal.

        Factors are never negative, so that a product lies between those of its factors' ends.
        """
        least = most = Fraction()
        for coefficient, factors in self._terms:
            small = large = Fraction(1)
            for factor, power in factors:
                ends = [end**power for end in factor.bounds(low, high)]
                small *= min(ends)
                large *= max(ends)
            ends = (coefficient * small, coefficient * large)
            least += min(ends)
            most += max(ends)
        return least, most

    def sign(self, n: int) -> int:
        value = self.at(n)
        return (value > 0) - (value < 0)

    def first_outside(self, signs: frozenset[int], low: int, high: int) -> int | None:
        """The least N of low..high whose sign is not among `signs`; None is a proof that there is none.

        A stretch is cut in half for as long as its bounds leave the question open.
        """
        stretches = [(low, high)]
        while stretches:
            a, b = stretches.pop()
            if a > b:
                continue
            least, most = self.bounds(a, b)
            possible = {sign for sign, open_ in ((-1, least < 0), (0, least <= 0 <= most), (1, most > 0)) if open_}
            if possible <= signs:
                continue
            if not possible & signs:
                return a
            middle = (a + b) // 2
            stretches += [(middle + 1, b), (a, middle)]
        return None


class _Factor:
    """N itself, or a rounded part."""

    def __init__(self, base: Any) -> None:
        assert base == N or isinstance(base, sympy.ceiling | sympy.floor), f"{base} is no part of a count in N alone"
        self._round = ceil if isinstance(base, sympy.ceiling) else floor
        self._inner = None if base == N else Stepwise(base.args[0])

    def bounds(self, low: int, high: int) -> Bounds:
        if self._inner is None:
            return Fraction(low), Fraction(high)
        least, most = self._inner.bounds(low, high)
        assert least >= 0
        return Fraction(self._round(least)), Fraction(self._round(most))
