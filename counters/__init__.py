"""The cost model: what a case costs, counted from its sizes alone. No torch, except where modules are traced."""

from benchbench.counters.cost import Cost, count
from benchbench.counters.op import Op

__all__ = ["Cost", "Op", "count"]
