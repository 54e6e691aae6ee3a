"""What every implementation of the selective scan reads."""

from typing import NamedTuple

from torch import Tensor


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
