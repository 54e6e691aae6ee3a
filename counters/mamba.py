"""What a Mamba-1 language model computes, in the order of its forward."""

from collections.abc import Iterator

from benchbench.counters import dense, pointwise
from benchbench.counters.op import Formula, Placed, Step
from benchbench.counters.selective_scan import decay_rates, selective_scan
from benchbench.specs.mamba import MambaSpec

LAYER = "backbone.layers.*"


def backbone(spec: MambaSpec, step: Step) -> Iterator[Placed]:
    """Every operation from tokens to final hidden states."""
    rows, s, d, inner = step.rows, step.width, spec.d_model, spec.d_inner
    rank, n_state = spec.dt_rank, spec.d_state
    n = rows * inner
    # The published kernels keep their state in the weights' dtype, ours in float32.
    kept = (s if step.path == "fused" else 4) * step.batch * inner if step.capacity else 0

    def layer(path: str, formula: Formula) -> Placed:
        return Placed(f"{LAYER}.{path}".rstrip("."), formula, spec.n_layers)

    yield Placed("backbone.embedding", dense.embedding(rows, d, spec.vocab_size, s))

    yield layer("norm", pointwise.rms_norm(rows, d, s, stream=step.stream))
    yield layer("mixer.in_proj", dense.linear(rows, d, 2 * inner, s))
    yield layer("mixer.conv1d", dense.depthwise_conv(rows, inner, spec.d_conv, s, state_bytes=kept * spec.d_conv))
    yield layer("mixer.conv1d", dense.bias(rows, inner, s))
    yield layer("mixer", pointwise.silu(n, s))
    yield layer("mixer", pointwise.fan_out(n, 2, s))
    yield layer("mixer.x_proj", dense.linear(rows, inner, rank + 2 * n_state, s))
    yield layer("mixer", decay_rates(inner, n_state))
    yield layer("mixer.dt_proj", dense.linear(rows, rank, inner, s))
    yield layer("mixer.dt_proj", dense.bias(rows, inner, s))
    # The softplus before and the gate behind are part of the scan: the chunked one keeps what they need itself.
    alone = step.path == "eager"
    yield layer("mixer.scan", pointwise.softplus(n, s, saves=alone))
    yield layer("mixer.scan", selective_scan(step, inner, n_state, state_bytes=kept * n_state))
    yield layer("mixer.scan", pointwise.silu(n, s, saves=alone))
    yield layer("mixer.scan", pointwise.multiply(n, s, saves=2 if alone else 0))
    yield layer("mixer.out_proj", dense.linear(rows, inner, d, s))
    yield layer("", pointwise.add(rows * d, s, stream=step.stream))

    yield Placed("backbone.norm_f", pointwise.rms_norm(rows, d, s, stream=step.stream))
