"""What a Mamba-1 language model computes, in the order of its forward."""

from collections.abc import Iterator

from benchbench.counters import dense, pointwise
from benchbench.counters.causal_conv import causal_conv
from benchbench.counters.core import Mixer, at
from benchbench.counters.fused_scan import fused_threads
from benchbench.counters.op import Formula, Placed, Step, inside, recomputed
from benchbench.counters.scan_paths import SCAN_CHUNK, TRITON_CHUNK
from benchbench.counters.selective_scan import decay_rates, selective_scan
from benchbench.specs.mamba import MambaSpec

LAYER = "backbone.layers.*"


def backbone(spec: MambaSpec, step: Step) -> Iterator[Placed]:
    """Every operation from tokens to final hidden states."""
    rows, s, d, inner = step.rows, step.width, spec.d_model, spec.d_inner
    rank, n_state = spec.dt_rank, spec.d_state
    n = rows * inner
    # The published kernels keep their state in the weights' dtype, ours in float32.
    kept = (step.stored if step.path == "fused" else 4) * step.batch * inner if step.capacity else 0

    def layer(path: str, formula: Formula) -> Placed:
        return Placed(f"{LAYER}.{path}".rstrip("."), formula, spec.n_layers)

    def remade(formula: Formula) -> Formula:
        # mamba_inner_fn keeps neither u nor Δ, but makes them again (its checkpoint level 1).
        return recomputed(formula) if step.path == "fused" else formula

    yield Placed("backbone.embedding", dense.embedding(rows, d, spec.vocab_size, step.stored))

    yield layer("norm", pointwise.rms_norm(rows, d, s, stream=step.stream))
    yield layer("mixer.in_proj", dense.linear(rows, d, 2 * inner, s))
    for formula in causal_conv(step, inner, spec.d_conv, state_bytes=kept * spec.d_conv):
        yield layer("mixer.conv1d", formula)
    yield layer("mixer", pointwise.fan_out(n, 2, s))
    yield layer("mixer.x_proj", dense.linear(rows, inner, rank + 2 * n_state, s))
    yield layer("mixer", decay_rates(inner, n_state))
    yield layer("mixer.dt_proj", remade(dense.linear(rows, rank, inner, s)))
    yield layer("mixer.dt_proj", remade(dense.bias(rows, inner, s)))
    # The softplus before and the gate behind are part of the scan: the chunked one keeps what they need itself.
    alone = step.path == "eager"
    softplus, gate = pointwise.softplus(n, s, saves=alone), pointwise.silu(n, s, saves=alone)
    product = pointwise.multiply(n, s, saves=2 if alone else 0)
    yield layer("mixer.scan", softplus if alone else inside(softplus))
    yield layer("mixer.scan", selective_scan(step, inner, n_state, state_bytes=kept * n_state))
    yield layer("mixer.scan", gate if alone else inside(gate))
    yield layer("mixer.scan", product if alone else inside(product))
    yield layer("mixer.out_proj", dense.linear(rows, inner, d, s))
    yield layer("", pointwise.add(rows * d, s, stream=step.stream))

    yield Placed("backbone.norm_f", pointwise.rms_norm(rows, d, s, stream=step.stream))


def core(spec: MambaSpec, step: Step) -> Mixer:
    """The scan of u, dt before its softplus, z, B and C, with the softplus, the skip and the gate."""
    ops = tuple(backbone(spec, step))
    rates = at("mixer", (op for op in ops if op.formula.name == "decay_rates"))
    scan = at("mixer.scan", (op for op in ops if op.path.endswith("mixer.scan")))
    inputs = step.width * step.rows * (3 * spec.d_inner + 2 * spec.d_state)
    return Mixer((*rates, *scan), inputs, _scan_holds(step, spec.d_inner, spec.d_state))


def _scan_holds(step: Step, channels: int, n_state: int) -> int:
    """Bytes of the scan's output and temporaries; n is a number a token and channel, in float32 but for the output.

    `eager`: the decays, what is added, the states one by one and together; Δ, and the read-out; A, and the first state.
    `chunked`: Δ, Δ·u, y and at the end the gate; of several sequences Δ, B and C in the order of the tokens again; the
    states and decays of a chunk; A twice, and the first state. Both: what is not float32, in float32.
    `fused`: y, y before its gate, and each chunk's pair of decay and state; A.
    `triton`: y; the states between chunks and the sums of Δ; B and C in float32; A twice, first and last state.
    Both: D in float32.
    """
    batch, n, output = step.batch, 4 * step.rows * channels, step.width * step.rows * channels
    shared, matrix = 4 * step.rows * n_state, 4 * channels * n_state
    state, wide = batch * matrix, 0 if step.width == 4 else 3 * n + 2 * shared
    skip = 4 * channels if wide else 0
    if step.path == "eager":
        return 4 * n * n_state + 2 * n + matrix + state + wide + skip
    if step.path == "fused":
        return 2 * output + 2 * state * fused_threads(step.new).chunks(step.new) + matrix + skip
    if step.path == "triton":
        chunks = -(-step.new // TRITON_CHUNK)
        between = (chunks + 1) * state + 4 * batch * chunks * channels
        return output + between + (2 * shared if wide else 0) + 2 * matrix + 2 * state + skip
    ordered = n + 2 * shared if batch > 1 else 0
    return 4 * n + ordered + (2 * min(SCAN_CHUNK, step.new) + 1) * state + 2 * matrix + state + wide
