# pyright: standard
"""Which module the running operation belongs to."""

from typing import Any, Self

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

Place = tuple[str, str]
"""A module path, `*` for the layer's number, and a phase."""


class ModulePaths:
    """Which module the running operation belongs to, forward and backward.

    Forward, a stack kept by module hooks. Backward, every autograd node carries the sequence number it got when it was
    made, and each module call made an interval of them: the innermost interval around the node's number is its module.
    """

    def __init__(self, root: nn.Module) -> None:
        self._names = {module: name for name, module in root.named_modules()}
        self._stack: list[tuple[str, int]] = []
        self._intervals: list[tuple[int, int, str]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def place(self) -> Place:
        """The one place the running operation is charged to."""
        node = torch._C._current_autograd_node()
        phase = "forward" if node is None else "backward"
        if self._stack or node is None:
            return starred(self._stack[-1][0] if self._stack else ""), phase
        return starred(self.made_by(node)), phase

    @property
    def parents(self) -> set[Place]:
        """The same, as torch's FLOP counter asks for it."""
        return {self.place}

    def made_by(self, node: Node) -> str:
        """The innermost module whose forward made an autograd node."""
        number = node._sequence_nr()
        around = [interval for interval in self._intervals if interval[0] <= number < interval[1]]
        return min(around, key=lambda interval: interval[1] - interval[0])[2] if around else ""

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._stack.append((self._names[module], _sequence_number()))

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        if module in self._names:
            name, start = self._stack.pop()
            self._intervals.append((start, _sequence_number(), name))


def _sequence_number() -> int:
    """The number that the next autograd node gets."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def starred(name: str) -> str:
    """A module's path with `*` for the numbers in it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
