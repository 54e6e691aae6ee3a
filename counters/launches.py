"""Which measured operations an operation of the count is made of: the kernels that each path launches, and how many.

A composite is its parts. `times` may be a fraction, where a curve was measured with more or fewer states, and negative,
where a curve already holds a small version of the part.
"""

from benchbench.case import Case
from benchbench.counters import launches_mixers as mixers
from benchbench.counters.launch import MEASURED_WIDTH, Launch, Launches, Parts, field, wide, wider
from benchbench.counters.op import Op


def launches(op: Op, case: Case) -> tuple[Launch, ...] | None:
    """What one repetition of `op` launches, its forward again included; None where no curve speaks of it."""
    found = _parts(op, case)
    if found is None or not op.again.bytes_moved:
        return found
    return (*(_parts(op.first, case) or ()), *found)


def _parts(op: Op, case: Case) -> tuple[Launch, ...] | None:
    if op.path.endswith("mixer.scan") and op.formula.name != "selective_scan":
        return ()  # the softplus before the scan and the gate behind it are parts of its curve
    if op.phase == "optimizer":
        return ()  # its tensors are the case's: see `update`
    if op.formula.name not in _TABLE:
        return None
    return tuple(_TABLE[op.formula.name][op.phase == "backward"](op, case))


def _silent(op: Op, case: Case) -> Launches:
    yield from ()


def _named(*axes: str, suffix: str = "") -> Parts:
    """The curve of the operation's own name, along its sizes."""

    def found(op: Op, case: Case) -> Launches:
        size = op.formula.sizes
        yield Launch(op.formula.name + suffix, tuple(size[axis] for axis in axes))

    return found


def _elements(op: Op) -> int:
    size = op.formula.sizes
    return size.get("n") or size["rows"] * size.get("d", 1)


# Products


def _linear(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    rows, d_in, d_out = size["rows"], size["d_in"], size["d_out"]
    if "experts" in op.path:
        experts = field(case, "n_experts")
        yield from wider("grouped_linear", (experts, rows, d_in, d_out), (experts, rows, *2 * (MEASURED_WIDTH,)))
    elif op.path.endswith("router"):
        yield from wider("linear", (rows, d_in, d_out), (rows, MEASURED_WIDTH, d_out))
    else:
        yield Launch("linear", (rows, d_in, d_out))


def _linear_back(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    rows, d_in, d_out = size["rows"], size["d_in"], size["d_out"]
    if "experts" in op.path:
        experts = field(case, "n_experts")
        yield from wider(
            "grouped_linear_backward", (experts, rows, d_in, d_out), (experts, rows, *2 * (MEASURED_WIDTH,))
        )
        return
    yield Launch("linear", (rows, d_out, d_in))
    yield Launch("weight_gradient", (rows, d_in, d_out))
    if op.path.endswith("router"):
        yield Launch("linear", (rows, d_out, MEASURED_WIDTH), -1)
        yield Launch("weight_gradient", (rows, MEASURED_WIDTH, d_out), -1)


def _head(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    chunks = size["chunks"]
    yield Launch("linear", (size["rows"] / chunks, size["d_in"], size["d_out"]), chunks)


def _head_back(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    chunks, d_in, d_out = size["chunks"], size["d_in"], size["d_out"]
    rows = size["rows"] / chunks
    yield Launch("linear", (rows, d_out, d_in), chunks)
    yield Launch("weight_gradient", (rows, d_in, d_out), chunks)
    if chunks > 1:
        yield Launch("linear", (rows, d_in, d_out), chunks)
        yield Launch("add", (d_in * d_out,), chunks - 1)


def _in_conv(op: Op, case: Case) -> bool:
    """Whether the kernel of a convolution does it."""
    return op.path.endswith("mixer.conv1d") and case.implementation in ("fused", "triton")


def _bias_back(op: Op, case: Case) -> Launches:
    if "moe" not in op.path and not _in_conv(op, case):
        yield Launch("row_sum", (op.formula.sizes["rows"], op.formula.sizes["d"]))


# Each element or row


def _rotary_table(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    pairs = size["d_head"] // 2
    yield Launch("copy", (size["tokens"] * pairs,), 3, "float32")
    yield Launch("copy", (pairs,), 4, "float32")


def _rotary(suffix: str = "") -> Parts:
    """Queries and keys apart; in decoding they are turned at once, which takes a copy."""

    def found(op: Op, case: Case) -> Launches:
        n = op.formula.sizes["n"]
        if case.task == "decode":
            yield Launch("copy", (n,))
            yield Launch("rotary" + suffix, (n,))
        else:
            yield Launch("rotary" + suffix, (n / 2,), 2)

    return found


def _norm(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        size, name = op.formula.sizes, op.formula.name + suffix
        rows, d = size["rows"], size["d"]
        if case.family == "mamba" and case.implementation == "fused":
            yield Launch("add_norm" + suffix, (rows, d))
        elif wide(case):
            yield Launch(name, (rows, d), 1, "float32")
            yield Launch("widen" if suffix else "narrow", (rows * d,), 1, None if suffix else "float32")
            yield Launch("widen", (d,))
        else:
            yield Launch(name, (rows, d))

    return found


def _add(op: Op, case: Case) -> Launches:
    if not (case.family == "mamba" and case.implementation == "fused"):
        yield Launch("add", (_elements(op),), 1, "float32" if wide(case) else None)


def _fan_out_back(op: Op, case: Case) -> Launches:
    if op.path.endswith("mixer") and case.implementation == "fused":
        return
    yield Launch("add", (op.formula.sizes["n"],), op.formula.sizes["uses"] - 1)


def _act(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        n, name = op.formula.sizes["n"], op.formula.name + suffix
        if "experts" in op.path:
            small = n / field(case, "d_ff") * MEASURED_WIDTH
            yield from wider(name, (n,), (small,))
        elif not _in_conv(op, case):
            yield Launch(name, (n,))

    return found


def _dropout(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        if not (op.path.endswith("attn.core") and case.implementation == "flash"):
            yield Launch("dropout" + suffix, (op.formula.sizes["n"] + op.formula.sizes["masked"],))

    return found


def _clamp(op: Op, case: Case) -> Launches:
    yield Launch("relu", (op.formula.sizes["n"],))


def _learned_scale(op: Op, case: Case) -> Launches:
    yield Launch("copy", (op.formula.sizes["n"],))


def _learned_scale_back(op: Op, case: Case) -> Launches:
    n = op.formula.sizes["n"]
    yield Launch("copy", (n,))
    yield Launch("multiply", (n,))
    yield Launch("row_sum", (max(1, n // 640), 640))


def _cast(op: Op, case: Case) -> Launches:
    weights = (op.formula.sizes["weights_cast"],)
    yield Launch("narrow", weights, 1, "float32") if op.phase == "forward" else Launch("widen", weights)


def _accumulation_back(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    yield Launch("add", (size["params"],), size["passes"] - 1)


# Embedding, loss


def _embedding_back(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    yield Launch("embedding_backward", (size["entries"], size["rows"], size["d"]))


def _cross_entropy(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        size = op.formula.sizes
        chunks = size["chunks"]
        sizes = (size["vocab_size"], size["rows"] / chunks)
        yield Launch("cross_entropy" + suffix, sizes, chunks)
        if suffix and chunks > 1:
            yield Launch("cross_entropy", sizes, chunks)

    return found


def _shared_weight_back(op: Op, case: Case) -> Launches:
    yield Launch("add", (op.formula.sizes["params"],), 1, case.dtype)


def update(case: Case, tensors: int, params: int) -> Launch:
    """The optimizer's step."""
    return Launch(str(case.optimizer), (tensors, params), 1, case.dtype)


_TABLE: dict[str, tuple[Parts, Parts]] = {
    "linear": (_linear, _linear_back),
    "head": (_head, _head_back),
    "bias": (_silent, _bias_back),
    "fan_out": (_silent, _fan_out_back),
    "shared_weight": (_silent, _shared_weight_back),
    "accumulation": (_silent, _accumulation_back),
    "cast": (_cast, _cast),
    "embedding": (_named("rows", "d"), _embedding_back),
    "attention": (mixers.attention, mixers.attention_back),
    "rotary_table": (_rotary_table, _silent),
    "rotary": (_rotary(), _rotary("_backward")),
    "rms_norm": (_norm(), _norm("_backward")),
    "layer_norm": (_norm(), _norm("_backward")),
    "add": (_add, _add),
    "join": (_add, _silent),
    "silu": (_act(), _act("_backward")),
    "gelu_tanh": (_act(), _act("_backward")),
    "softplus": (_act(), _act("_backward")),
    "relu": (_act(), _act("_backward")),
    "clamp": (_clamp, _clamp),
    "multiply": (_named("n"), _named("n", suffix="_backward")),
    "learned_scale": (_learned_scale, _learned_scale_back),
    "depthwise_conv": (mixers.conv(), mixers.conv("_backward")),
    "selective_scan": (mixers.scan(), mixers.scan("_backward")),
    "decay_rates": (mixers.decay_rates, mixers.decay_rates),
    "resolvent": (mixers.resolvent(), mixers.resolvent("_backward")),
    "top_k_gate": (mixers.gate(), mixers.gate("_backward")),
    "gather": (mixers.gather, mixers.gather_back),
    "combine": (mixers.combine, mixers.combine_back),
    "cross_entropy": (_cross_entropy(), _cross_entropy("_backward")),
    "dropout": (_dropout(), _dropout("_backward")),
    "ssd": (mixers.ssd(), mixers.ssd("_backward")),
}
"""Forward and backward, by the formula's name."""
