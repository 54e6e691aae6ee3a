"""What public FLOP counters report of our models, operation by operation: rules that predict each to the last FLOP.

`counters/rules.py` has them for torch's FLOP counter and fvcore; here are those of the others, for a forward pass. A
number is in the counter's own unit. A counter whose forward calls are patched sees `torch.mul(a, b)` and not `a * b`,
so that the rules speak of how our modules are written: they hold for these models, on the CPU, with numbers.
"""

from collections.abc import Callable

from benchbench.case import Case
from benchbench.counters.op import Op
from benchbench.counters.resolvent import RESOLVENT_CHUNK, RESOLVENT_HALO
from benchbench.counters.rules import EINSUM_DIGITS, NORM_FIVE, SCAN_READOUT, SQUARE, Seen
from benchbench.counters.scan_paths import SCAN_CHUNK
from benchbench.specs.resnet_bk import ResNetBKSpec

NO_ATTENTION = "attention, written as `q @ k` or as one fused call, counts 0"
FUSED_ATTENTION = "fused attention counts 0"
NO_SCAN = "the scan counts 0"
NO_CONV = "a subclass of Conv1d counts 0"
NO_EXPERTS = "the experts' product is no nn.Linear and counts 0"
ONE_EACH = "an activation is 1 an element"
TWICE = "a ReLU module counts twice, as a module and as a function"
NORM_ONE = "a layer norm is 1 an element, as a multiply-add"
NORM_FOUR = "a layer norm is 4 an element, as multiply-adds"
BIAS_MAC = "a bias is a multiply-add an element"
BIAS_ONCE = "the bias of an addmm is counted once, not for each row"
WRITTEN_OUT = "torch.mul and torch.add are counted, `*` and `+` are not"
FROM_LEFT = "shapes that broadcast are lined up from the left"
FIRST_INPUT = "mul and add are the size of their first input, and neither in place"
PER_SEQUENCE = "a parameter is one multiply-add for each entry of its output's first axis"
CONV_AXES = "of a convolution's output the second axis is left out, here the tokens' and not the channels'"
REST = "other elementwise arithmetic counts 0"
TRUTH = "what runs is more or less than the algorithm, which is what is counted"
DOUBLED = "backward is twice the forward"

Rule = Callable[[Op, Case], Seen]

SUMMED = frozenset({"add", "join"})
ACTIVATIONS = frozenset({"silu", "relu", "gelu_tanh"})


def square(op: Op) -> int:
    """Both products of attention on the full square, 2 a multiply-add."""
    size = op.formula.sizes
    return 4 * size["d_head"] * size["batch"] * size["n_heads"] * size["new"] * size["keys"]


def states(op: Op) -> int:
    size = op.formula.sizes
    return size["rows"] * size["channels"] * size["n_state"]


def elements(op: Op) -> int:
    size = op.formula.sizes
    return size["n"] if "n" in size else size["rows"] * size["d"]


def is_expert(op: Op) -> bool:
    return ".experts." in op.path


def resolvent_steps(op: Op) -> int:
    """Lane steps of the chunked resolvent; each is a sum of 2 numbers, a product of 2 and a sum of 1."""
    batch, new = op.formula.sizes["batch"], op.formula.sizes["new"]
    if new <= RESOLVENT_CHUNK + RESOLVENT_HALO:
        return new * batch
    return (RESOLVENT_CHUNK + RESOLVENT_HALO) * -(-new // RESOLVENT_CHUNK) * batch


def nothing(op: Op) -> Seen:
    return Seen(0, (REST,) if op.work.flops else ())


def written_out(op: Op, case: Case) -> Seen | None:
    """What is a call of torch.mul or torch.add, beside the scan; None for what is neither."""
    size = op.formula.sizes
    match op.formula.name:
        case "combine":
            return Seen((size["top_k"] - 1) * elements(op), (WRITTEN_OUT,))
        case "resolvent":
            return Seen(5 * resolvent_steps(op) if case.path == "chunked" else 0, (WRITTEN_OUT,))
        case _:
            return None


def broadcast_from_left(op: Op) -> int:
    """dt (R, 1, D) times A (N, D), chunk by chunk, as if the axes met from the left: max(R, N)·D·D."""
    size = op.formula.sizes
    whole, rest = divmod(size["new"], SCAN_CHUNK)
    rows = [SCAN_CHUNK * size["batch"]] * whole + [rest * size["batch"]] * bool(rest)
    return sum(max(row, size["n_state"]) for row in rows) * size["channels"] ** 2


def by_patched_functions(op: Op, case: Case, *, fused: bool, batched: bool, from_left: bool) -> Seen:
    """FLOPs of patched torch functions: F.linear, F.conv2d, torch.mul, torch.add, torch.einsum, activations."""
    size, chunked = op.formula.sizes, case.path == "chunked"
    match op.formula.name:
        case "linear" | "head" | "depthwise_conv":
            return Seen(op.work.flops)
        case "bias" if is_expert(op):
            assert isinstance(case.spec, ResNetBKSpec)
            return Seen(case.spec.n_experts * size["d"], (BIAS_ONCE,))
        case "bias" if op.path.endswith("conv1d"):
            return Seen(op.work.flops)
        case "attention":
            return Seen(square(op), (SQUARE,)) if fused else Seen(0, (NO_ATTENTION,))
        case "layer_norm":
            return Seen(5 * elements(op), (NORM_FIVE,))
        case name if name in ACTIVATIONS:
            return Seen(elements(op), (ONE_EACH,))
        case "selective_scan" if chunked:
            dt = broadcast_from_left(op) if from_left else states(op)
            rules = (SCAN_READOUT, FROM_LEFT) if from_left else (SCAN_READOUT, WRITTEN_OUT)
            return Seen(dt + states(op) + 2 * states(op) * batched, rules)
        case "selective_scan":
            return Seen(int(float(f"{2 * states(op):.3e}")), (SCAN_READOUT, EINSUM_DIGITS))
        case _:
            return written_out(op, case) or nothing(op)


def deepspeed(op: Op, case: Case) -> Seen:
    return by_patched_functions(op, case, fused=True, batched=True, from_left=False)


def calflops(op: Op, case: Case) -> Seen:
    return by_patched_functions(op, case, fused=False, batched=False, from_left=True)


def ptflops(op: Op, case: Case) -> Seen:
    """Multiply-adds: hooks of nn.Linear, nn.LayerNorm and nn.ReLU, and patched functions."""
    size = op.formula.sizes
    match op.formula.name:
        case "linear" | "head":
            return Seen(op.work.flops // 2)
        case "bias" if is_expert(op):
            assert isinstance(case.spec, ResNetBKSpec)
            return Seen(case.spec.n_experts * size["d"], (BIAS_ONCE,))
        case "bias" if not op.path.endswith("conv1d"):
            return Seen(op.work.flops, (BIAS_MAC,))
        case "attention":
            return Seen(0, (NO_ATTENTION,))
        case "depthwise_conv":
            return Seen(0, (NO_CONV,))
        case "layer_norm":
            return Seen(elements(op), (NORM_ONE,))
        case "relu":
            return Seen(2 * elements(op), (TWICE,))
        case name if name in ACTIVATIONS:
            return Seen(elements(op), (ONE_EACH,))
        case "selective_scan" if case.path == "chunked":
            return Seen(broadcast_from_left(op) + 2 * states(op), (SCAN_READOUT, FROM_LEFT))
        case "selective_scan":
            return Seen(0, (NO_SCAN,))
        case _:
            return written_out(op, case) or nothing(op)


def ptflops_aten(op: Op, case: Case) -> Seen:
    """Multiply-adds of the operators mm, addmm, bmm and convolution, with their biases."""
    match op.formula.name:
        case "linear" | "head" | "depthwise_conv":
            return Seen(op.work.flops // 2)
        # This one is given a slice, for which torch multiplies and adds apart.
        case "bias" if not op.path.endswith("dt_proj"):
            return Seen(op.work.flops, (BIAS_MAC,))
        case "attention" if case.path == "eager":
            return Seen(square(op) // 2, (SQUARE,))
        case "attention":
            return Seen(0, (FUSED_ATTENTION,))
        case "selective_scan":
            return Seen(states(op), (SCAN_READOUT,))
        case _:
            return nothing(op)


def thop(op: Op, case: Case) -> Seen:
    """Multiply-adds of nn.Linear and nn.LayerNorm modules."""
    match op.formula.name:
        case "linear" if is_expert(op):
            return Seen(0, (NO_EXPERTS,))
        case "linear" | "head":
            return Seen(op.work.flops // 2)
        case "attention":
            return Seen(0, (NO_ATTENTION,))
        case "depthwise_conv":
            return Seen(0, (NO_CONV,))
        case "layer_norm":
            return Seen(4 * elements(op), (NORM_FOUR,))
        case "selective_scan":
            return Seen(0, (NO_SCAN,))
        case _:
            return nothing(op)


def torchinfo(op: Op, case: Case) -> Seen:
    """Multiply-adds, one a parameter called weight or bias for each entry of the output's first axis."""
    size = op.formula.sizes
    # The mixture sees its tokens as rows; elsewhere the first axis is the batch.
    first = size.get("rows", 0) if ".moe." in op.path else case.batch
    match op.formula.name:
        case "head":
            return Seen(case.batch * size["d_in"] * size["d_out"], (PER_SEQUENCE,))
        case "depthwise_conv" | "bias" if op.path.endswith("conv1d"):
            channels = size["channels"] if op.formula.name == "depthwise_conv" else size["d"]
            return Seen(op.formula.params * case.batch * channels, (CONV_AXES,))
        case "linear" | "bias" | "layer_norm" | "rms_norm" | "embedding":
            return Seen(op.formula.params * first, (PER_SEQUENCE,))
        case "attention":
            return Seen(0, (NO_ATTENTION,))
        case "selective_scan":
            return Seen(0, (NO_SCAN,))
        case _:
            return nothing(op)


def profiler(op: Op, case: Case) -> Seen:
    """FLOPs of the operators mm, addmm, bmm and conv2d, and of mul and add by their first input."""
    size, chunked = op.formula.sizes, case.path == "chunked"
    match op.formula.name:
        case "linear" | "head" | "depthwise_conv":
            return Seen(op.work.flops)
        case "attention" if case.path == "eager":
            return Seen(
                square(op) + size["batch"] * size["new"] * size["n_heads"] * size["d_head"], (SQUARE, FIRST_INPUT)
            )
        case "attention":
            return Seen(0, (FUSED_ATTENTION,))
        case "rms_norm":
            return Seen(2 * elements(op), (FIRST_INPUT,))
        case "rotary":
            # Four products and one sum of half the elements; differences are not counted.
            return Seen(5 * elements(op) // 2, (FIRST_INPUT,))
        case "rotary_table":
            return Seen(size["tokens"], (FIRST_INPUT,))
        case name if name in SUMMED:
            return Seen(elements(op), (FIRST_INPUT,))
        case "multiply":
            # The chunked scan multiplies in place, which is another operator.
            return Seen(0 if chunked else elements(op), (FIRST_INPUT,))
        case "selective_scan" if chunked:
            return Seen(2 * states(op) + 3 * size["rows"] * size["channels"], (SCAN_READOUT, FIRST_INPUT))
        case "selective_scan":
            n = size["rows"] * size["channels"]
            return Seen(4 * states(op) + 4 * n + size["channels"], (SCAN_READOUT, FIRST_INPUT))
        case "learned_scale":
            return Seen(1, (FIRST_INPUT,))
        case "combine":
            return Seen((2 * size["top_k"] - 1) * elements(op), (FIRST_INPUT,))
        case "resolvent":
            return Seen(5 * resolvent_steps(op) if chunked else 4 * size["tokens"], (FIRST_INPUT,))
        case _:
            return nothing(op)
