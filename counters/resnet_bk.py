"""What a ResNet-BK language model computes, in the order of its forward."""

from collections.abc import Iterator

from benchbench.counters import dense, pointwise, routing
from benchbench.counters.core import Mixer, at
from benchbench.counters.op import Formula, Placed, Step
from benchbench.counters.resolvent import resolvent
from benchbench.specs.resnet_bk import ResNetBKSpec

LAYER = "backbone.layers.*"


def backbone(spec: ResNetBKSpec, step: Step) -> Iterator[Placed]:
    """Every operation from tokens to final hidden states."""
    rows, s, d, experts = step.rows, step.width, spec.d_model, spec.n_experts
    n, routed = rows * d, rows * spec.top_k
    kept = 8 * step.batch if step.capacity else 0

    def layer(path: str, formula: Formula) -> Placed:
        return Placed(f"{LAYER}.{path}".rstrip("."), formula, spec.n_layers)

    def expert(path: str, d_in: int, d_out: int) -> Iterator[Placed]:
        yield layer(path, dense.linear(routed, d_in, d_out, s, copies=experts))
        yield layer(path, dense.bias(routed, d_out, s, copies=experts))

    yield Placed("backbone.embedding", dense.embedding(rows, d, spec.vocab_size, step.stored))
    if spec.positions == "learned":
        assert spec.max_seq_len is not None
        yield Placed("backbone.positions", dense.embedding(step.new, d, spec.max_seq_len, step.stored))
        yield Placed("backbone", pointwise.add(n, s, stream=step.stream))

    yield layer("norm", pointwise.layer_norm(rows, d, s, stream=step.stream))
    # Read by v_proj and the mixture, and there by router and experts.
    yield layer("", pointwise.fan_out(n, 2, s))
    yield layer("moe", pointwise.fan_out(n, 2, s))
    yield layer("v_proj", dense.linear(rows, d, 1, s))
    yield layer("v_proj", dense.bias(rows, 1, s))
    yield layer("", pointwise.clamp(rows, s))
    yield layer("core", resolvent(step, spec.form, state_bytes=kept))
    yield layer("", pointwise.clamp(2 * rows, 4))
    yield layer("o_proj", dense.linear(rows, 2, d, s))
    yield layer("o_proj", dense.bias(rows, d, s))
    yield layer("", pointwise.learned_scale(n, s))

    yield layer("moe.router", dense.linear(rows, d, experts, s, saves_input=False))
    yield layer("moe.router", dense.bias(rows, experts, s))
    yield layer("moe", routing.top_k_gate(rows, experts, spec.top_k, s))
    yield layer("moe", routing.gather(rows, d, spec.top_k, s))
    yield from expert("moe.experts.up", d, spec.d_ff)
    yield layer("moe.experts.act", pointwise.relu(routed * spec.d_ff, s))
    if step.training and spec.dropout:
        yield layer("moe.experts.dropout", pointwise.dropout(routed * spec.d_ff, s))
    yield from expert("moe.experts.down", spec.d_ff, d)
    yield layer("moe", routing.combine(rows, d, spec.top_k, s))
    yield layer("", pointwise.add(n, s, stream=step.stream))
    yield layer("", pointwise.join(n, s))

    yield Placed("backbone.norm_f", pointwise.layer_norm(rows, d, s, stream=step.stream))


def core(spec: ResNetBKSpec, step: Step) -> Mixer:
    """The resolvent of one clamped number a token.

    It holds its output, eight bytes a token, and of the chunked fraction its terms, the same spread over lanes, their
    results, and what a lane works in; `eager` the diagonal and every result twice. Both sides hold twice as much, and
    then G; `bk-compat` determinants in complex128. What is not float32 is held in float32 too.
    """
    ops = at("mixer", (op for op in backbone(spec, step) if op.formula.name == "resolvent"))
    chunked, eager = {"bk-causal": (33, 20), "bk-exact": (75, 52), "bk-compat": (113, 113)}[spec.form]
    a_token = {"chunked": chunked, "eager": eager}.get(step.path, 8)
    cast = 4 if step.width < 4 and step.path != "triton" else 0
    return Mixer(ops, step.width * step.rows, (a_token + cast) * step.rows)
