"""What a pre-norm decoder computes, in the order of its forward."""

from collections.abc import Iterator
from dataclasses import replace

from benchbench.counters import dense, pointwise
from benchbench.counters.core import Mixer, at
from benchbench.counters.op import Formula, Placed, Step, inside
from benchbench.specs.transformer import TransformerSpec

LAYER = "backbone.layers.*"


def backbone(spec: TransformerSpec, step: Step) -> Iterator[Placed]:
    """Every operation from tokens to final hidden states."""
    rows, s, d, layers = step.rows, step.width, spec.d_model, spec.n_layers
    n, d_kv = rows * d, spec.n_kv_heads * spec.d_head

    def norm() -> Formula:
        return (
            pointwise.layer_norm(rows, d, s, stream=step.stream, shift=spec.bias)
            if spec.norm == "layer"
            else pointwise.rms_norm(rows, d, s, stream=step.stream)
        )

    def layer(path: str, formula: Formula) -> Placed:
        return Placed(f"{LAYER}.{path}".rstrip("."), formula, layers)

    def linear(path: str, d_in: int, d_out: int, *, saves_input: bool = True) -> Iterator[Placed]:
        yield layer(path, dense.linear(rows, d_in, d_out, s, saves_input=saves_input))
        if spec.bias:
            yield layer(path, dense.bias(rows, d_out, s))

    def dropout() -> Iterator[Placed]:
        if step.training and spec.dropout:
            yield layer("dropout", pointwise.dropout(n, s))

    yield Placed("backbone.embedding", dense.embedding(rows, d, spec.vocab_size, step.stored))
    if spec.positions == "learned":
        assert spec.max_seq_len is not None
        yield Placed("backbone.positions", dense.embedding(step.new, d, spec.max_seq_len, step.stored))
        yield Placed("backbone", pointwise.add(n, s, stream=step.stream))
    else:
        yield Placed("backbone.rotary", pointwise.rotary_table(step.new, spec.d_head))
    if step.training and spec.dropout:
        yield Placed("backbone.dropout", pointwise.dropout(n, s))

    yield layer("norm1", norm())
    yield layer("attn", pointwise.fan_out(n, 3, s))
    yield from linear("attn.q_proj", d, d)
    yield from linear("attn.k_proj", d, d_kv, saves_input=False)
    yield from linear("attn.v_proj", d, d_kv, saves_input=False)
    if spec.positions == "rotary":
        yield layer("attn.rotary", pointwise.rotary(rows * (d + d_kv), s))
    kept = 2 * step.stored * step.batch * step.capacity * d_kv
    yield layer("attn.core", dense.attention(step, spec.n_heads, spec.n_kv_heads, spec.d_head, state_bytes=kept))
    if step.training and spec.dropout:
        heads = step.batch * spec.n_heads
        fused = step.path == "flash"
        masked = 0 if fused else heads * (step.square_pairs - step.pairs)
        drop = pointwise.dropout(heads * step.pairs, s, masked=masked)
        # The fused kernel draws the mask again from a seed.
        yield layer("attn.core", replace(inside(drop), saved_bytes=0)) if fused else layer("attn.core.dropout", drop)
    # Its input is the heads side by side again, a copy.
    yield from linear("attn.o_proj", d, d)
    yield from dropout()
    yield layer("", pointwise.add(n, s, stream=step.stream))

    yield layer("norm2", norm())
    if spec.activation == "swiglu":
        yield layer("mlp", pointwise.fan_out(n, 2, s))
        yield from linear("mlp.gate_proj", d, spec.d_ff)
        yield from linear("mlp.up_proj", d, spec.d_ff, saves_input=False)
        yield layer("mlp.act", pointwise.silu(rows * spec.d_ff, s))
        yield layer("mlp", pointwise.multiply(rows * spec.d_ff, s))
    else:
        yield from linear("mlp.up_proj", d, spec.d_ff)
        yield layer("mlp.act", pointwise.gelu_tanh(rows * spec.d_ff, s))
    yield from linear("mlp.down_proj", spec.d_ff, d)
    yield from dropout()
    yield layer("", pointwise.add(n, s, stream=step.stream))

    yield Placed("backbone.norm_f", norm())


def core(spec: TransformerSpec, step: Step) -> Mixer:
    """Attention of projected queries, keys and values.

    `flash` holds its output and a number a query and head; what a CPU's threads work in is not counted. `eager` reads a
    mask too, a byte a pair, and holds scaled queries, masked scores, weights and output, and of a batch its keys again.
    """
    ops = at("mixer", (op for op in backbone(spec, step) if op.formula.name == "attention"))
    q, kv = (step.width * step.rows * heads * spec.d_head for heads in (spec.n_heads, spec.n_kv_heads))
    queries = step.rows * spec.n_heads
    if step.path == "flash":
        return Mixer(ops, q + 2 * kv, q + 4 * queries)
    mask = step.square_pairs if step.new > 1 else 0
    scores = step.width * queries * step.new
    return Mixer(ops, q + 2 * kv + mask, 2 * q + 2 * scores + (kv if step.batch > 1 else 0))
