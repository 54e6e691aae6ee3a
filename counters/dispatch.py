# pyright: standard
"""Every operator that torch runs, priced and charged to a module: arithmetic of every kind, forward and backward."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchbench.counters.aten import Call, Sized, price
from benchbench.counters.places import ModulePaths, Place, starred


class Prices(TorchDispatchMode):
    """Adds up the price of every operator while it is open, in `flops`, by the module and phase that runs it.

    Raises:
        BenchError: From inside the operator, when it has no price.
    """

    def __init__(self, paths: ModulePaths) -> None:
        super().__init__()
        self.paths = paths
        self.sums = GradientSums(paths)
        self.flops: dict[Place, int] = defaultdict(int)
        self.optimizer = False

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Open, while an optimizer runs."""
        self.optimizer = True
        with self:
            yield
        self.optimizer = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        paid = price(name, Call(*tree_map_only(Tensor, sized, (args, kwargs, out))))
        if paid:
            self.flops[self._place(name)] += paid
        return out

    def _place(self, name: str) -> Place:
        if self.optimizer:
            return "optimizer", "optimizer"
        if name == "add" and (module := self.sums.next()) is not None:
            return starred(module), "backward"
        return self.paths.place


class GradientSums:
    """Where autograd adds the gradients of a tensor that several operations read.

    It adds them as they arrive, after the node that brings one; such a sum belongs to no operation of its own. Here it
    is charged to the innermost module in which both terms arose: the one that reads the tensor more than once.
    """

    def __init__(self, paths: ModulePaths) -> None:
        self._paths = paths
        self._terms: dict[tuple[Node | None, int], list[str]] = defaultdict(list)
        self._pending: list[str] = []
        self._after: Node | None = None
        self._nodes: list[Node] = []

    def watch(self, root: Node) -> None:
        """Follows the backward pass that starts at `root`."""
        self._terms.clear()
        # Kept, so that a node is the same Python object each time.
        self._nodes = list(graph(root))
        for node in self._nodes:
            node.register_hook(self._arrived(node))

    def next(self) -> str | None:
        """The module of the sum that runs now; None where what runs is not a sum of gradients."""
        if not self._pending or torch._C._current_autograd_node() is not self._after:
            return None
        return self._pending.pop(0)

    def _arrived(self, node: Node) -> Any:
        def hook(gradients: Sequence[Tensor | None], _: Any) -> None:
            assert not self._pending
            self._after = node
            module = self._paths.made_by(node)
            for reader, gradient in zip(node.next_functions, gradients, strict=True):
                if reader[0] is None or gradient is None:
                    continue
                terms = self._terms[reader]
                if terms:
                    self._pending.append(max((common(term, module) for term in terms), key=len))
                terms.append(module)

        return hook


def common(first: str, second: str) -> str:
    """The innermost module that holds both: 'a.b.c' and 'a.b.d' meet in 'a.b'."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first.split("."), second.split("."), strict=False))
    return ".".join(part for part, _ in same)


def graph(*roots: Node) -> Iterator[Node]:
    """Every node of a backward pass from these, once."""
    found, pending = set(roots), list(dict.fromkeys(roots))
    while pending:
        node = pending.pop()
        yield node
        new = {parent for parent, _ in node.next_functions if parent is not None} - found
        found |= new
        pending += new


def sized(tensor: Tensor) -> Sized:
    if tensor.is_complex():
        return Sized(tuple(tensor.shape), "complex")
    return Sized(tuple(tensor.shape), "real" if tensor.is_floating_point() else "integer")
