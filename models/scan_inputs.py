"""What every implementation of the selective scan reads."""

from typing import NamedTuple

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Inputs(NamedTuple):
    """What the scan reads besides a state. `raw` is dt before its softplus, `z` the gate before its SiLU.

    u, raw, z: (B, L, D); B, C: (B, L, N); A: (D, N), negative; D: (D).
    """

    u: Tensor
    raw: Tensor
    z: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    D: Tensor


def has_numbers(tensor: Tensor) -> bool:
    """False for a tensor that is all shape: a million tokens are then traced without a loop."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)
