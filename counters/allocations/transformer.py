"""What the pre-norm decoder does to memory, operation by operation as models/transformer.py runs them."""

from collections.abc import Callable
from typing import NamedTuple

from benchbench.counters.allocations import lookups, norms, ops, views
from benchbench.counters.allocations.attention import fused, turns
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Parameter, Storage, Tensor
from benchbench.counters.op import Step
from benchbench.counters.timeline import Category
from benchbench.specs.transformer import TransformerSpec

Make = Callable[[int, str, Category], Storage]


class Layer(NamedTuple):
    norm1: tuple[Parameter, ...]
    q: tuple[Parameter, ...]
    k: tuple[Parameter, ...]
    v: tuple[Parameter, ...]
    o: tuple[Parameter, ...]
    norm2: tuple[Parameter, ...]
    mlp: tuple[tuple[Parameter, ...], ...]


class Shared(NamedTuple):
    """What all layers use in one pass."""

    rotation: tuple[Tensor, Tensor] | None
    visible: Tensor | None


class Memory:
    """Weights and forward of the backbone."""

    def __init__(self, t: Tape, spec: TransformerSpec, step: Step, table: Parameter) -> None:
        self.t = t
        self.spec = spec
        self.step = step
        self.table = table
        self.s = s = table.width
        self.caches: dict[int, tuple[Tensor, Tensor]] = {}
        self.positions = None
        if spec.positions == "learned":
            assert spec.max_seq_len is not None
            self.positions = t.parameter(spec.max_seq_len, spec.d_model, s, "positions")
        self.layers = {i: self._layer() for i in t.rounds(spec.n_layers)}
        self.norm_f = self._norm("norm_f")

    def _norm(self, name: str) -> tuple[Parameter, ...]:
        d, s = self.spec.d_model, self.s
        both = self.spec.norm == "layer" and self.spec.bias
        return tuple(self.t.parameter(1, d, s, name) for _ in range(1 + both))

    def _linear(self, name: str, d_in: int, d_out: int) -> tuple[Parameter, ...]:
        weight = self.t.parameter(d_out, d_in, self.s, name)
        return (weight, self.t.parameter(1, d_out, self.s, name)) if self.spec.bias else (weight,)

    def _layer(self) -> Layer:
        spec = self.spec
        d, kv, ff = spec.d_model, spec.n_kv_heads * spec.d_head, spec.d_ff
        swiglu = spec.activation == "swiglu"
        return Layer(
            self._norm("norm1"),
            self._linear("q_proj", d, d),
            self._linear("k_proj", d, kv),
            self._linear("v_proj", d, kv),
            self._linear("o_proj", d, d),
            self._norm("norm2"),
            (
                *((self._linear("gate_proj", d, ff),) if swiglu else ()),
                self._linear("up_proj", d, ff),
                self._linear("down_proj", ff, d),
            ),
        )

    def new_state(self, make: Make) -> None:
        """Keys and values of every layer, with room for all tokens."""
        spec, s = self.spec, self.s
        rows, width = self.step.batch * self.step.capacity, spec.n_kv_heads * spec.d_head
        self.t.place = "state"
        for i in self.t.rounds(spec.n_layers):
            keys, values = make(rows * width * s, "keys", "state"), make(rows * width * s, "values", "state")
            self.caches[i] = Tensor(keys, rows, width, s), Tensor(values, rows, width, s)

    def __call__(self) -> Tensor:
        """Final hidden states."""
        t, step = self.t, self.step
        t.place = "embedding"
        position = t.new(8 * step.new, "positions")
        x = lookups.embedding(t, step.rows, self.table)
        if self.positions is not None:
            x = ops.add_to_each(t, x, lookups.embedding(t, step.new, self.positions, position))
        x = self.dropped(x)
        shared = Shared(self._rotation(), self._visible())
        for i in t.rounds(self.spec.n_layers):
            x = t.through(self.layer, x, self.layers[i], self.caches.get(i), shared, random=self.spec.dropout > 0)
        t.place = "norm_f"
        return self.norm(x, self.norm_f)

    def _rotation(self) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine of every position and pair, in float32."""
        if self.spec.positions != "rotary":
            return None
        t, rows, pairs = self.t, self.step.new, self.spec.d_head // 2
        t.place = "rotary"
        wide = t.new(4 * rows, "positions")
        angle = t.new(4 * rows * pairs, "angle")
        del wide
        table = (
            Tensor(t.new(4 * rows * pairs, "cos"), rows, pairs, 4),
            Tensor(t.new(4 * rows * pairs, "sin"), rows, pairs, 4),
        )
        del angle
        return table

    def _visible(self) -> Tensor | None:
        """One byte a query and key."""
        new, context = self.step.new, self.step.context
        if self.step.new == 1 or (self.step.path == "flash" and not context):
            return None
        keys = self.t.new(8 * (context + new), "positions")
        visible = self.t.new(new * (context + new), "visible")
        del keys
        return Tensor(visible, new, context + new, 1)

    def layer(self, x: Tensor, w: Layer, cache: tuple[Tensor, Tensor] | None, shared: Shared) -> Tensor:
        t = self.t
        x = ops.add(t, x, self.dropped(self.attention(self.norm(x, w.norm1), w, cache, shared)))
        return ops.add(t, x, self.dropped(self.mlp(self.norm(x, w.norm2), w)))

    def dropped(self, x: Tensor) -> Tensor:
        return ops.dropout(self.t, x) if self.t.training and self.spec.dropout else x

    def norm(self, x: Tensor, weights: tuple[Parameter, ...]) -> Tensor:
        self.t.place = weights[0].name
        if self.spec.norm == "rms":
            return norms.rms_norm(self.t, x, weights[0])
        return norms.layer_norm(self.t, x, weights[0], weights[1] if self.spec.bias else None)

    def mlp(self, x: Tensor, w: Layer) -> Tensor:
        t = self.t
        t.place = "mlp"
        *_, up, down = w.mlp
        if self.spec.activation == "swiglu":
            hidden = ops.multiply(t, ops.function(t, ops.linear(t, x, *w.mlp[0]), "silu"), ops.linear(t, x, *up))
        else:
            hidden = ops.function(t, ops.linear(t, x, *up), "gelu")
        return ops.linear(t, hidden, *down)

    def attention(self, x: Tensor, w: Layer, cache: tuple[Tensor, Tensor] | None, shared: Shared) -> Tensor:
        t = self.t
        t.place = "attn"
        turned, eager = shared.rotation is not None, self.step.path == "eager"
        q, k = (self.heads(ops.linear(t, x, *weights), copied=turned or eager) for weights in (w.q, w.k))
        own = not turns(t, q)
        repeats = own and self.spec.n_kv_heads < self.spec.n_heads
        v = self.heads(ops.linear(t, x, *w.v), copied=eager or repeats)
        if shared.rotation is not None:
            q, k = self.both_rotated(q, k, shared.rotation)
        if cache is not None:
            k, v = cache
        y = self.eager(q, k, v, shared.visible) if eager else fused(t, self.spec, self.step, q, k, v)
        # Heads that do not lie side by side do so again in a copy.
        apart = (eager or (turned and not own)) and self.step.new > 1
        return ops.linear(t, ops.copy(t, y) if apart else y, *w.o)

    def heads(self, x: Tensor, *, copied: bool) -> Tensor:
        """(B, H, N, C) as a view; a gradient that lies that way is brought back by a copy."""
        return views.gradient_copied(self.t, x) if copied else x

    def eager(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        t, step = self.t, self.step
        rows, keys = step.rows * self.spec.n_heads, step.context + step.new
        plain = self.spec.positions == "learned"
        scaled = ops.scale_by(t, q, None)
        matrices = self.as_matrices(scaled, plain), self.as_matrices(k, plain and t.training)
        scores = ops.batched_product(t, *matrices, rows, keys)
        del matrices
        if visible is not None:
            scores = ops.masked(t, scores, visible)
        weights = self.dropped(ops.softmax(t, scores))
        y = ops.batched_product(t, weights, self.as_matrices(v, t.training), rows, self.spec.d_head)
        apart = step.batch > 1 or self.spec.n_kv_heads < self.spec.n_heads
        return (views.gradient_copied(t, y) if apart else y).viewed(step.rows, q.cols)

    def as_matrices(self, x: Tensor, transposed: bool) -> Tensor:
        """One matrix a sequence and head; `transposed` heads of several sequences are copied for that."""
        return ops.copy(self.t, x) if transposed and self.step.batch > 1 and self.step.new > 1 else x

    def both_rotated(self, q: Tensor, k: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.t.training or self.step.new > 1:
            return self.rotated(q, rotation), self.rotated(k, rotation)
        both = self.rotated(views.side_by_side(self.t, q, k), rotation)
        return both.viewed(q.rows, q.cols), both.viewed(k.rows, k.cols)

    def rotated(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        t, (cos, sin) = self.t, rotation
        a, b = views.split(t, x, x.cols // 2, x.cols // 2)
        turned = (
            ops.subtract(t, ops.scale_by(t, a, cos, 4), ops.scale_by(t, b, sin, 4)),
            ops.add(t, ops.scale_by(t, b, cos, 4), ops.scale_by(t, a, sin, 4)),
        )
        return ops.cast(t, views.side_by_side(t, *turned), x.width)
