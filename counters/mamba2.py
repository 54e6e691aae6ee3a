"""What a Mamba-2 language model computes, in the order of its forward."""

from collections.abc import Iterator
from dataclasses import replace

from benchbench.counters import dense, pointwise
from benchbench.counters.causal_conv import causal_conv
from benchbench.counters.core import Mixer, at
from benchbench.counters.op import Formula, Placed, Step
from benchbench.counters.selective_scan import decay_rates
from benchbench.counters.ssd import SSD_CHUNK, ssd
from benchbench.specs.mamba2 import Mamba2Spec

LAYER = "backbone.layers.*"


def backbone(spec: Mamba2Spec, step: Step) -> Iterator[Placed]:
    """Every operation from tokens to final hidden states."""
    rows, s, d, inner = step.rows, step.width, spec.d_model, spec.d_inner
    heads, groups, convolved = spec.n_heads, spec.n_groups, spec.d_conv_inner
    projected = inner + convolved + heads
    n = rows * inner
    kept = 4 * step.batch if step.capacity else 0

    def layer(path: str, formula: Formula) -> Placed:
        return Placed(f"{LAYER}.{path}".rstrip("."), formula, spec.n_layers)

    yield Placed("backbone.embedding", dense.embedding(rows, d, spec.vocab_size, step.stored))

    yield layer("norm", pointwise.rms_norm(rows, d, s, stream=step.stream))
    yield layer("mixer.in_proj", dense.linear(rows, d, projected, s))
    for formula in causal_conv(step, convolved, spec.d_conv, state_bytes=kept * convolved * spec.d_conv):
        yield layer("mixer.conv1d", formula)
    yield layer("mixer", dense.bias(rows, heads, 4))
    yield layer("mixer", pointwise.softplus(rows * heads, 4))
    yield layer("mixer", decay_rates(heads, 1))
    states = kept * inner * spec.d_state
    chunk = min(spec.chunk, SSD_CHUNK)
    yield layer("mixer.ssd", ssd(step, heads, spec.headdim, groups, spec.d_state, chunk, state_bytes=states))
    # The gate z holds on to the whole output of in_proj.
    yield layer("mixer.norm", replace(pointwise.silu(n, s), saved_bytes=s * rows * projected))
    yield layer("mixer.norm", pointwise.multiply(n, s))
    yield layer("mixer.norm", pointwise.rms_norm(rows, inner, s, stream=s, groups=groups))
    yield layer("mixer.out_proj", dense.linear(rows, inner, d, s))
    yield layer("", pointwise.add(rows * d, s, stream=step.stream))

    yield Placed("backbone.norm_f", pointwise.rms_norm(rows, d, s, stream=step.stream))


def core(spec: Mamba2Spec, step: Step) -> Mixer:
    """The dual form of x, B and C, and of dt behind its softplus, which is float32."""
    ops = tuple(backbone(spec, step))
    rates = at("mixer", (op for op in ops if op.formula.name == "decay_rates"))
    dual = at("mixer.ssd", (op for op in ops if op.formula.name == "ssd"))
    numbers = spec.d_inner + 2 * spec.n_groups * spec.d_state
    inputs = step.rows * (step.width * numbers + 4 * spec.n_heads)
    return Mixer((*rates, *dual), inputs, dual[0].formula.scratch_bytes)
