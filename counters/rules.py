"""What each witness sees of an operation: the rules that predict a tracer's number from ours to the last FLOP.

A rule is named once, here. Where a tracer and the count agree there is no rule; a difference that no rule predicts
fails the check.
"""

from typing import Literal, NamedTuple, get_args

from benchbench.counters.op import Op

Witness = Literal["torch", "fvcore"]
WITNESSES: tuple[Witness, ...] = get_args(Witness)

ELEMENTWISE = "only matrix products and convolutions are counted; elementwise arithmetic is not"
SQUARE = "attention is the products of the full square, visible or not; scale and softmax are not counted"
FUSED_ZERO = "fused attention on the CPU counts 0"
FUSED_UNSUPPORTED = "fused attention is an unsupported operator and counts 0"
DENSE_CONV = "the weight gradient of a depthwise convolution is counted as if it were dense"
CHUNKED_HEAD = "the chunked loss computes its logits again in backward"
SCAN_READOUT = "of the scan, only products that are written as matrix products are counted"
SCAN_SHAPES = "without numbers the chunked scan gives shapes only and counts 0"
EINSUM_DIGITS = "an einsum's count is read from text printed with four digits"
MULTIPLY_ADD = "a multiply-add is 1"
NORM_FIVE = "a layer norm is 5 an element"


class Seen(NamedTuple):
    """FLOPs a witness must report for one repetition of an operation, and the rules that make them differ from ours."""

    flops: int
    rules: tuple[str, ...] = ()


def seen(op: Op, witness: Witness, device: str, path: str) -> Seen:
    """What `witness` must report of `op`, run on `device` ('cpu', or 'meta', where tensors have no numbers)."""
    return _by_torch(op, device, path) if witness == "torch" else _by_fvcore(op, device, path)


def _by_torch(op: Op, device: str, path: str) -> Seen:
    """torch.utils.flop_counter.FlopCounterMode: a table of formulas for matrix products, convolutions, attention."""
    size = op.formula.sizes
    backward = op.phase == "backward"
    match op.formula.name:
        case "linear":
            return Seen(op.flops)
        case "head" if backward and size["chunks"] > 1:
            return Seen(op.flops + 2 * size["rows"] * size["d_in"] * size["d_out"], (CHUNKED_HEAD,))
        case "head":
            return Seen(op.flops)
        case "attention" if path == "flash" and device == "cpu":
            return Seen(0, (FUSED_ZERO,))
        case "attention":
            pairs = size["batch"] * size["n_heads"] * size["new"] * size["keys"]
            return Seen((8 if backward else 4) * size["d_head"] * pairs, (SQUARE,))
        case "depthwise_conv" if backward:
            taps, channels = size["taps"], size["channels"]
            dense = 2 * size["rows"] * taps * channels * channels
            return Seen(op.flops // 2 + dense, (DENSE_CONV,))
        case "depthwise_conv":
            return Seen(op.flops)
        case "selective_scan":
            return _scan_by_torch(op, device, path)
        case _:
            return Seen(0, (ELEMENTWISE,) if op.flops else ())


def _scan_by_torch(op: Op, device: str, path: str) -> Seen:
    """The read-out is a batched product: 2 a state. In backward the eager loop has two, for h and for C.

    The chunked backward has five: the read-out again, dC, dB, d(Δ·u), and the sum of w·A for dΔ.
    """
    size = op.formula.sizes
    states = size["rows"] * size["channels"] * size["n_state"]
    if path == "chunked" and device == "meta" and not size["single"]:
        return Seen(0, (SCAN_SHAPES,))
    products = 1 if op.phase == "forward" else 2 if path == "eager" else 5
    return Seen(2 * products * states, (SCAN_READOUT,))


def _by_fvcore(op: Op, device: str, path: str) -> Seen:
    """fvcore's FlopCountAnalysis of the forward: a table of handles for traced operators, multiply-adds as one."""
    size = op.formula.sizes
    match op.formula.name:
        case "linear" | "head" | "depthwise_conv":
            return Seen(op.flops // 2, (MULTIPLY_ADD,))
        case "layer_norm":
            return Seen(5 * size["rows"] * size["d"], (NORM_FIVE,))
        case "attention" if path == "flash":
            return Seen(0, (FUSED_UNSUPPORTED,))
        case "attention":
            pairs = size["batch"] * size["n_heads"] * size["new"] * size["keys"]
            return Seen(2 * size["d_head"] * pairs, (SQUARE, MULTIPLY_ADD))
        case "selective_scan":
            states = size["rows"] * size["channels"] * size["n_state"]
            if path == "eager":
                return Seen(int(float(f"{2 * states:.3e}") // 2), (SCAN_READOUT, MULTIPLY_ADD, EINSUM_DIGITS))
            if device == "meta" and not size["single"]:
                return Seen(0, (SCAN_SHAPES,))
            return Seen(states, (SCAN_READOUT, MULTIPLY_ADD))
        case _:
            return Seen(0, (ELEMENTWISE,) if op.flops else ())
