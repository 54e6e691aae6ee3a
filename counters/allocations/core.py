"""What a GPU's libraries and kernels take beside the tensors of a token mixer alone."""

from benchbench.counters.allocations.attention import OFFSET, SEED, split_bytes
from benchbench.counters.allocations.workspaces import CUBLAS
from benchbench.counters.op import Step
from benchbench.specs import ModelSpec
from benchbench.specs.resnet_bk import ResNetBKSpec
from benchbench.specs.transformer import TransformerSpec


def aside(spec: ModelSpec, step: Step) -> int:
    """Bytes at the fullest moment of a call.

    Paths in torch's operations multiply matrices, but for resolvents, so that cuBLAS has its workspace. Flash attention
    in half precision has a seed and an offset, and of each part of split keys an output and a number a query.
    """
    if isinstance(spec, ResNetBKSpec) or step.path in ("fused", "triton"):
        return 0
    if not isinstance(spec, TransformerSpec) or step.path != "flash":
        return CUBLAS
    if step.width == 4:
        return 0
    return SEED + OFFSET + sum(split_bytes(spec, step))
