"""What attention, convolutions, scans, resolvents and mixtures of experts launch."""

from benchbench.case import Case
from benchbench.counters.fused_scan import fused_threads
from benchbench.counters.launch import MEASURED_WIDTH, RAGGED, Launch, Launches, Parts, field, half, wider
from benchbench.counters.op import Op

MEASURED_STATES = 16
"""States a channel in the curves of a scan."""

MEASURED_DUAL = 64 * 128
"""Channels of a head times its states, in the curves of Mamba-2's layer."""


# Attention


def attention(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    batch, new, heads = size["batch"], size["new"], size["batch"] * size["n_heads"]
    width = 2 if half(case) else 4
    if cached := op.formula.state_bytes // (2 * width):
        # Keys and values are each written into a cache, which prefill makes anew.
        share = new / size["keys"]
        yield Launch("copy", (max(1, cached * share),), 2)
        if case.task == "prefill":
            yield Launch("fill", (cached,), 2)
    if case.implementation == "eager":
        yield from plain_attention(heads, new, size["keys"], size["d_head"])
    elif new > 1:
        yield Launch("flash", (heads, size["d_head"], new))
    else:
        yield Launch("flash_step", (batch * field(case, "n_kv_heads"), size["d_head"], size["keys"]))


def attention_back(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    heads, new = size["batch"] * size["n_heads"], size["new"]
    if case.implementation != "eager":
        yield Launch("flash_backward", (heads, size["d_head"], new))
        return
    for _ in range(2):
        yield from plain_attention(heads, new, size["keys"], size["d_head"])


def plain_attention(heads: int, new: int, keys: int, d_head: int) -> Launches:
    """Two products, the mask, the softmax."""
    yield Launch("copy", (heads * new * d_head,))
    yield Launch("linear", (heads * new, d_head, keys))
    yield Launch("multiply", (heads * new * keys,))
    yield Launch("silu", (heads * new * keys,), 2)
    yield Launch("linear", (heads * new, keys, d_head))


# Convolution, scan, resolvent


def conv(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        size = op.formula.sizes
        rows, channels = size["rows"], size["channels"]
        path = ":triton" if case.implementation == "triton" else ""
        if case.task == "decode":
            name = "fused_conv_step" if case.implementation == "fused" else "conv_step" + path
            yield Launch(name, (channels, rows))
        elif case.implementation == "fused":
            # mamba-ssm keeps no convolution: backward runs it again.
            sizes = (case.batch, channels, rows / case.batch)
            yield Launch("fused_conv" + suffix, sizes)
            if suffix:
                yield Launch("fused_conv", sizes)
        else:
            yield Launch(f"conv{path}{suffix}", (channels, rows))

    return found


def scan(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        size, path = op.formula.sizes, case.implementation
        batch, channels, share = size["batch"], size["channels"], size["n_state"] / MEASURED_STATES
        if case.task == "decode":
            yield Launch("fused_scan_step" if path == "fused" else f"scan_step:{path}", (channels, batch), share)
            yield Launch("copy", (batch * channels * size["n_state"],), 1, "float32")
        else:
            name = f"fused_scan{_ragged(size['new'])}" if path == "fused" else f"scan:{path}"
            yield Launch(name + suffix, (batch, channels, size["new"]), share)
            if path == "fused" and not suffix:
                yield from _beside_fused_scan(op, case)

    return found


def _beside_fused_scan(op: Op, case: Case) -> Launches:
    """B and C are made contiguous, D and the bias float32, and a prompt leaves its states behind."""
    size = op.formula.sizes
    yield Launch("copy", (size["rows"] * size["n_state"],), 2)
    if case.dtype != "float32":
        yield Launch("copy", (size["channels"],), 2, "float32")
    if case.task == "prefill":
        yield Launch("copy", (size["batch"] * size["channels"] * field(case, "d_conv"),))
        yield Launch("copy", (size["batch"] * size["channels"] * size["n_state"],), 1, "float32")


def _ragged(new: int) -> str:
    """What is added to the name of the fused scan's curve where its last chunk is not full."""
    return RAGGED if new % fused_threads(new).steps else ""


def ssd(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        size, path = op.formula.sizes, case.implementation
        share = field(case, "headdim") * field(case, "d_state") / MEASURED_DUAL
        if case.task == "decode":
            yield Launch(f"ssd_step:{path}", (size["heads"], case.batch), share)
            yield Launch("copy", (max(1, op.formula.state_bytes // 4),), 1, "float32")
        else:
            yield Launch(f"ssd:{path}{suffix}", (case.batch, size["heads"], size["rows"] / case.batch), share)

    return found


def decay_rates(op: Op, case: Case) -> Launches:
    """exp and sign, of a copy in float32."""
    parameters = op.formula.sizes["channels"] * op.formula.sizes["n_state"]
    yield Launch("copy", (parameters,), 2 if case.dtype == "float32" else 3, "float32")


def resolvent(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        form = field(case, "form")
        name = f"resolvent:{form}" if form == "bk-compat" else f"resolvent:{form}:{case.implementation}"
        yield Launch(name + suffix, (op.formula.sizes["batch"], op.formula.sizes["new"]), 1, "float32")

    return found


# Routing


def gate(suffix: str = "") -> Parts:
    def found(op: Op, case: Case) -> Launches:
        size = op.formula.sizes
        yield Launch("routing" + suffix, (size["n_experts"], size["top_k"], size["rows"]))

    return found


def gather(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    rows = size["rows"] * size["top_k"]
    yield from wider("embedding", (rows, size["d"]), (rows, MEASURED_WIDTH))


def combine(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    rows = size["rows"] * size["top_k"]
    yield from wider("copy", (rows * size["d"],), (rows * MEASURED_WIDTH,))
    yield from wider("embedding", (rows, size["d"]), (rows, MEASURED_WIDTH))
    if size["top_k"] > 1:
        yield from wider("add", (size["rows"] * size["d"],), (size["rows"] * MEASURED_WIDTH,))


def combine_back(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    rows = size["rows"] * size["top_k"]
    for curve, times in (("multiply", 2), ("fill", 1), ("add", 1)):
        for _ in range(times):
            yield from wider(curve, (rows * size["d"],), (rows * MEASURED_WIDTH,))


def gather_back(op: Op, case: Case) -> Launches:
    size = op.formula.sizes
    rows = size["rows"] * size["top_k"]
    for curve in ("fill", "add"):
        yield from wider(curve, (rows * size["d"],), (rows * MEASURED_WIDTH,))
