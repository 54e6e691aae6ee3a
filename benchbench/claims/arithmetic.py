"""Arithmetic on named quantities, `flops / base.flops` say, exact but for logarithms."""

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction

from benchbench.errors import BenchError

Lookup = Callable[[str], Fraction]

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: left / right,
}


def evaluate(text: str, lookup: Lookup) -> Fraction:
    """The value of `text`: numbers, quantities with dots in their names, + - * /, brackets and log().

    Raises:
        BenchError: `text` is anything else, divides by zero, or `lookup` knows no such quantity.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, lookup)
    except SyntaxError:
        raise _wrong(text) from None
    except (ZeroDivisionError, ValueError):
        raise BenchError(f"'{text}' divides by zero, or takes the logarithm of no positive number.") from None


def _value(node: ast.expr, lookup: Lookup) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.Name() | ast.Attribute():
            return lookup(ast.unparse(node))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left, lookup), _value(right, lookup))
        case ast.Call(func=ast.Name(id="log"), args=[argument], keywords=[]):
            return Fraction(math.log(_value(argument, lookup)))
        case _:
            raise _wrong(ast.unparse(node))


def _wrong(text: str) -> BenchError:
    return BenchError(f"'{text}' is no arithmetic.", "It takes quantities, numbers, + - * /, brackets and log().")
