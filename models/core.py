"""A token mixer alone: what a layer does to its projected inputs, as the task `core` measures it.

No projection, convolution, norm or vocabulary is built, so that any length needs its inputs and little else.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from benchbench.specs import ModelSpec


class Core(nn.Module, ABC):
    """The mixer of one layer with the parameters that act in it, and how to draw what it reads.

    `path` names the implementation that runs, as in a language model.
    """

    mixer: nn.Module

    def __init__(self, spec: ModelSpec, path: str) -> None:
        super().__init__()
        self.spec = spec
        self.path = path
        # Many mixers have no parameters: this one has no numbers, and says where and in which dtype inputs are drawn.
        self.like = nn.Parameter(torch.empty(0), requires_grad=False)

    @abstractmethod
    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Random inputs of `forward`, laid out in memory as the model's projections leave them, or the kernel wants.

        They are drawn with torch's generator of the device, on the core's device and in its dtype.
        """

    def normal(self, *shape: int) -> Tensor:
        """Independent N(0, 1)."""
        return self.like.new_empty(shape, requires_grad=False).normal_()


def log_uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    """Numbers in float32 whose logarithms are uniform between those of `low` and `high`."""
    drawn = like.new_empty(shape, dtype=torch.float32, requires_grad=False)
    return drawn.uniform_(math.log(low), math.log(high)).exp_()
