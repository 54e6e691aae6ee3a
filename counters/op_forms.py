# pyright: standard
"""Closed forms op by op: every operation of a case with its numbers as expressions in the case's sizes."""

from dataclasses import dataclass
from typing import Any, Literal

import sympy

from benchbench.case import Case
from benchbench.counters.cost import count
from benchbench.counters.op import Op
from benchbench.counters.sized import Condition, Sized, expression
from benchbench.counters.symbolic import reduced, sizes_of, symbol, with_sizes

Quantity = Literal["repeat", "flops", "executed_flops", "bytes_moved", "saved_bytes"]


@dataclass(frozen=True)
class OpForms:
    """A case's operations in the order of `Cost.ops`; `conditions` say for which sizes their forms hold."""

    ops: tuple[Op, ...]
    conditions: tuple[Condition, ...]

    def of(self, quantity: Quantity) -> tuple[Any, ...]:
        """One factored expression an operation, of one repetition."""
        return tuple(sympy.factor(expression(getattr(op, quantity))) for op in self.ops)


def op_forms(case: Case) -> OpForms:
    """The operations of `case` with N, B and every size of the model as symbols.

    Raises:
        UnsupportedError: The architecture cannot do this.
    """
    trail: dict[Condition, None] = {}
    sized = {field: Sized(value, symbol(name), trail) for name, (field, value) in sizes_of(case).items()}
    ops = count(with_sizes(case, sized)).ops
    met = dict.fromkeys(one for condition in trail if (one := reduced(condition)))
    return OpForms(ops, tuple(met))
