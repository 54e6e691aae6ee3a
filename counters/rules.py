"""What each witness sees of an operation: the rules that predict a tracer's number from ours to the last FLOP.

A rule is named once, here. Where a tracer and the count agree there is no rule; a difference that no rule predicts
fails the check.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from benchbench.case import Case
from benchbench.counters import ssd
from benchbench.counters.cost import Cost
from benchbench.counters.op import Op
from benchbench.counters.resolvent import RESOLVENT_CHUNK, RESOLVENT_HALO
from benchbench.counters.scan_paths import SCAN_CHUNK, TRITON_BLOCK, TRITON_CHUNK
from benchbench.specs.resnet_bk import ResNetBKSpec

Witness = Literal["torch", "fvcore", "dispatch"]
WITNESSES: tuple[Witness, ...] = get_args(Witness)

ELEMENTWISE = "only matrix products and convolutions are counted; elementwise arithmetic is not"
SQUARE = "attention is the products of the full square, visible or not; scale and softmax are not counted"
FUSED_ZERO = "fused attention on the CPU counts 0"
FUSED_UNSUPPORTED = "fused attention is an unsupported operator and counts 0"
DENSE_CONV = "the weight gradient of a depthwise convolution is counted as if it were dense"
ONE_TOKEN = "the convolution of a single token is written as a product and a sum, and counts 0"
CHUNKED_HEAD = "the chunked loss computes its logits again in backward"
SCAN_READOUT = "of the scan, only products that are written as matrix products are counted"
SCAN_SHAPES = "without numbers the chunked scan gives shapes only and counts 0"
EINSUM_DIGITS = "an einsum's count is read from text printed with four digits"
MULTIPLY_ADD = "a multiply-add is 1"
NORM_FIVE = "a layer norm is 5 an element"


RMS_STEPS = "without a kernel torch differentiates an RMS norm step by step: 1 an element and 3 a row more"
KEPT_SCALE = "dropout on the CPU keeps its mask divided by 1 - p: one product in backward"
STEP_NUMBERS = "the optimizer keeps a step number for each tensor: one addition each"
SHAPES = "without numbers a recursion over tokens gives shapes only and counts 0"
SUM_OF_A = "the chunked scan sums dA over the tokens of a chunk once, at the end"
LONE_ROWS = "on the CPU an expert that is given one row alone computes it twice"
AGAIN = "activation checkpointing runs the layers' forward again in backward"
KERNELS = "kernels in Triton are not seen; what torch does around them is"
LANES = "the chunked resolvent runs whole chunks, short sequences as one, divides by the norm, and turns signs"


class Seen(NamedTuple):
    """FLOPs a witness must report for one repetition of an operation, and the rules that make them differ from ours."""

    flops: int
    rules: tuple[str, ...] = ()
    once: int = 0
    """Further FLOPs, over all repetitions together."""


class Setting(NamedTuple):
    """What a witness looked at."""

    witness: Witness
    device: str
    """'cpu', or 'meta', where tensors have no numbers."""
    case: Case
    tensors: int
    """Parameter tensors of the model."""
    lone_rows: Mapping[str, int]
    """How often, over all layers, an expert's linear map of this path was given one row among other experts' rows."""


def seen(op: Op, setting: Setting) -> Seen | None:
    """What the witness must report of `op`; None if it does not look at its phase."""
    if setting.witness != "dispatch" and op.phase == "optimizer":
        return None
    if setting.witness == "fvcore" and op.phase == "backward":
        return None
    found = _seen_once(op, setting)
    if op.again.extra_flops == 0:
        return found
    first = _seen_once(op.first, setting)
    if op.again.extra_flops == op.first.executed_flops:
        return Seen(found.flops + first.flops, (*found.rules, *first.rules, AGAIN), found.once + first.once)
    # Of the last operation that keeps something, only what comes before that.
    part = op.again.extra_flops if setting.witness == "dispatch" else 0
    return Seen(found.flops + part, (*found.rules, AGAIN), found.once)


def _seen_once(op: Op, setting: Setting) -> Seen:
    """What the witness reports of a phase that runs once a pass."""
    by = {"torch": _by_torch, "fvcore": _by_fvcore, "dispatch": _by_dispatch}[setting.witness]
    found = by(op, setting)
    if lone := setting.lone_rows.get(op.path):
        return Seen(found.flops, (*found.rules, LONE_ROWS), lone * _lone_row(op, setting.witness))
    return found


def _lone_row(op: Op, witness: Witness) -> int:
    """What one further row of an expert's linear map costs; backward also sums the two gradients of the input."""
    size, backward = op.formula.sizes, op.phase == "backward"
    if op.formula.name == "bias":
        return size["d"] if witness == "dispatch" else 0
    product = 2 * size["d_in"] * size["d_out"]
    if witness == "fvcore":
        return product // 2
    return product * (1 + backward) + (2 * size["d_in"] if backward and witness == "dispatch" else 0)


def absent(cost: Cost, witness: Witness, device: str) -> str | None:
    """Why a witness cannot see a case, or None."""
    if cost.case.autocast and device == "meta":
        return "autocast does not act on tensors without numbers"
    if witness == "fvcore" and device == "meta" and any(op.kind == "conv" for op in cost.ops):
        return "fvcore cannot trace a convolution of tensors without numbers"
    if witness == "dispatch" and device == "meta" and cost.case.path == "flash":
        return "without numbers torch takes fused attention apart, so that other operators run than on the path 'flash'"
    return None


def _by_torch(op: Op, setting: Setting) -> Seen:
    """torch.utils.flop_counter.FlopCounterMode: a table of formulas for matrix products, convolutions, attention."""
    device, path = setting.device, setting.case.implementation
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
        case "depthwise_conv" | "selective_scan" if path == "triton":
            return Seen(0, (KERNELS,))
        case "depthwise_conv" if backward:
            taps, channels = size["taps"], size["channels"]
            dense = 2 * size["rows"] * taps * channels * channels
            return Seen(op.flops // 2 + dense, (DENSE_CONV,))
        case "depthwise_conv" if size["rows"] == setting.case.batch:
            return Seen(0, (ONE_TOKEN,))
        case "depthwise_conv":
            return Seen(op.flops)
        case "selective_scan":
            return _scan_by_torch(op, device, path)
        case "ssd":
            return Seen(*ssd.by_torch(op, path))
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


def _by_dispatch(op: Op, setting: Setting) -> Seen:
    """Our own prices of every operator that runs: what the count says the path executes."""
    size, flops = op.formula.sizes, op.work.flops + op.work.extra_flops
    backward, shapes = op.phase == "backward", setting.device == "meta"
    chunked = setting.case.implementation == "chunked"
    match op.formula.name:
        case "rms_norm" if backward:
            return Seen(flops + size["rows"] * (size["d"] + 3), (RMS_STEPS,))
        case "dropout" if backward:
            return Seen(flops - size["n"] - size["masked"], (KEPT_SCALE,))
        case _ if setting.case.implementation == "triton" and op.path.endswith(("mixer.conv1d", "mixer.scan")):
            return Seen(_around_kernels(op), (KERNELS,) if flops else ())
        case "adam_step" | "adamw_step":
            return Seen(flops + setting.tensors, (STEP_NUMBERS,))
        case _ if shapes and chunked and op.path.endswith("mixer.scan") and _many(setting.case):
            return Seen(0, (SHAPES,))
        case "selective_scan" if chunked and backward:
            rows = size["batch"] * min(SCAN_CHUNK, size["new"])
            return Seen(flops + rows * size["channels"] * size["n_state"], (SUM_OF_A,))
        case "resolvent":
            return _resolvent_by_dispatch(op, setting)
        case "ssd":
            return Seen(*ssd.by_dispatch(op, setting.case.implementation, setting.device))
        case _:
            return Seen(flops)


def _around_kernels(op: Op) -> int:
    """A to base 2 where there are chunks, and in backward the sums over tiles, blocks of channels and chunks."""
    size = op.formula.sizes
    if op.formula.name == "depthwise_conv" and op.phase == "backward":
        return size["shares"]
    if op.formula.name != "selective_scan":
        return 0
    rows, channels, n_state = size["rows"], size["channels"], size["n_state"]
    parameters = channels * n_state
    if op.phase == "forward":
        return 0 if size["single"] else parameters
    chunks = size["batch"] * -(-size["new"] // TRITON_CHUNK)
    return parameters + 2 * -(-channels // TRITON_BLOCK) * rows * n_state + chunks * (parameters + channels)


def _many(case: Case) -> bool:
    """Whether a sequence has more than one token in a pass."""
    return case.task != "decode" and case.seq_len > 1


def _resolvent_by_dispatch(op: Op, setting: Setting) -> Seen:
    """What models/resolvent.py computes. A step of a lane is 7 forward and 8 backward; eager's are op's own."""
    size, spec = op.formula.sizes, setting.case.spec
    assert isinstance(spec, ResNetBKSpec)
    tokens, batch, new = size["tokens"], size["batch"], size["new"]
    if setting.case.implementation == "triton":
        return Seen(0, (KERNELS,))
    backward, chunked = op.phase == "backward", setting.case.implementation == "chunked"
    two_sided = spec.form == "bk-exact"
    meeting = 10 * tokens if two_sided else 0
    if setting.device == "meta" and not (backward and spec.form == "bk-compat"):
        if chunked or spec.form == "bk-compat":
            return Seen(0, (SHAPES,))
        # The shape is made of v twice, whose gradients add up.
        return Seen(tokens if backward else meeting, (SHAPES,))
    if spec.form == "bk-compat" or not chunked:
        return Seen(op.work.flops + op.work.extra_flops)
    batch *= 1 + two_sided
    alone = new <= RESOLVENT_CHUNK + RESOLVENT_HALO
    steps = new * batch if alone else (RESOLVENT_CHUNK + RESOLVENT_HALO) * -(-new // RESOLVENT_CHUNK) * batch
    if backward:
        # L², the conjugate, the product with L², the sign.
        return Seen(14 * tokens + 8 * steps, (LANES,))
    # The diagonal, what comes before the first, every other sign.
    return Seen(7 * steps + batch * (new + 2 + new // 2) + meeting, (LANES,))


def _by_fvcore(op: Op, setting: Setting) -> Seen:
    """fvcore's FlopCountAnalysis of the forward: a table of handles for traced operators, multiply-adds as one."""
    device, path = setting.device, setting.case.implementation
    size = op.formula.sizes
    match op.formula.name:
        case "depthwise_conv" if size["rows"] == setting.case.batch:
            return Seen(0, (ONE_TOKEN,))
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
        case "ssd":
            flops, rules = ssd.by_fvcore(op, path)
            return Seen(flops, (*rules, MULTIPLY_ADD))
        case _:
            return Seen(0, (ELEMENTWISE,) if op.flops else ())
