# pyright: standard
"""Expressions as people and programs read them."""

import re
from collections.abc import Iterable
from typing import Any

import sympy
from sympy.parsing.sympy_parser import parse_expr
from sympy.printing.str import StrPrinter

from benchbench.counters.symbolic import symbol

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class _Readable(StrPrinter):
    def _print_ceiling(self, expr: Any) -> str:
        return f"⌈{self._print(expr.args[0])}⌉"

    def _print_floor(self, expr: Any) -> str:
        return f"⌊{self._print(expr.args[0])}⌋"

    def _print_Mod(self, expr: Any) -> str:  # noqa: N802 - sympy's name for it
        return f"({self._print(expr.args[0])} mod {self._print(expr.args[1])})"

    def _print_Relational(self, expr: Any) -> str:  # noqa: N802
        sign = {"<=": "≤", ">=": "≥", "==": "=", "!=": "≠"}.get(expr.rel_op, expr.rel_op)
        return f"{self._print(expr.lhs)} {sign} {self._print(expr.rhs)}"


def readable(form: Any) -> str:
    """`18792*N**2 + ceiling(N/16)` as `18,792·N² + ⌈N/16⌉`."""
    text = _Readable().doprint(form)
    text = re.sub(r"\*\*(\d+)", lambda found: found[1].translate(_SUPERSCRIPT), text)
    return re.sub(r"(?<![\w.])\d{4,}", lambda found: f"{int(found[0]):,}", text.replace("*", "·"))


def latex(form: Any) -> str:
    r"""For a formula in LaTeX, with fields as `d_\text{model}`."""
    names = {one: _latex_name(str(one)) for one in form.free_symbols}
    return sympy.latex(form, symbol_names=names)


def parsed(text: str, names: Iterable[str]) -> Any:
    """The expression that was written with `str`; `names` are its symbols, which sympy would take for its own `N`."""
    return parse_expr(text, local_dict={name: symbol(name) for name in names})


def _latex_name(name: str) -> str:
    stem, _, rest = name.partition("_")
    return f"{stem}_\\text{{{rest.replace('_', ' ')}}}" if rest else stem
