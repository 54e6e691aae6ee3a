"""What ResNet-BK does to memory, operation by operation as models/resnet_bk.py and models/moe.py run it."""

from collections.abc import Callable
from typing import NamedTuple

from benchbench.counters.allocations import lookups, norms, ops
from benchbench.counters.allocations.moe import Linear, mixture
from benchbench.counters.allocations.resolvent import resolvent
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Parameter, Storage, Tensor
from benchbench.counters.op import Step
from benchbench.counters.timeline import Category
from benchbench.specs.resnet_bk import ResNetBKSpec


class Layer(NamedTuple):
    scale: Parameter
    norm: Linear
    v: Linear
    o: Linear
    router: Linear
    up: Linear
    down: Linear


class Memory:
    """Weights, states and forward of the backbone."""

    def __init__(self, t: Tape, spec: ResNetBKSpec, step: Step, table: Parameter) -> None:
        self.t = t
        self.spec = spec
        self.step = step
        self.table = table
        self.s = table.width
        self.states: dict[int, Storage] = {}
        self.positions = None
        if spec.positions == "learned":
            assert spec.max_seq_len is not None
            self.positions = t.parameter(spec.max_seq_len, spec.d_model, self.s, "positions")
        self.layers = {i: self._layer() for i in t.rounds(spec.n_layers)}
        self.norm_f = self._linear("norm_f", 1, spec.d_model)

    def _linear(self, name: str, d_in: int, d_out: int, copies: int = 1) -> Linear:
        """Weights of d_in × d_out, which lie the other way where there are `copies`: as an expert's do."""
        rows, cols = (d_out, d_in) if copies == 1 else (copies * d_in, d_out)
        weight = self.t.parameter(rows, cols, self.s, name)
        return Linear(weight, self.t.parameter(copies, d_out, self.s, name))

    def _layer(self) -> Layer:
        spec = self.spec
        d, experts = spec.d_model, spec.n_experts
        return Layer(
            self.t.parameter(1, 1, self.s, "bk_scale"),
            self._linear("norm", 1, d),
            self._linear("v_proj", d, 1),
            self._linear("o_proj", 2, d),
            self._linear("router", d, experts),
            self._linear("up", d, spec.d_ff, experts),
            self._linear("down", spec.d_ff, d, experts),
        )

    def new_state(self, make: Callable[[int, str, Category], Storage]) -> None:
        """The left fraction, one complex number a layer and sequence; the forms that look ahead have none."""
        self.t.place = "state"
        if self.spec.causal:
            for i in self.t.rounds(self.spec.n_layers):
                self.states[i] = make(8 * self.step.batch, "fraction", "state")

    def __call__(self) -> Tensor:
        """Final hidden states."""
        t, step = self.t, self.step
        t.place = "embedding"
        x = lookups.embedding(t, step.rows, self.table)
        if self.positions is not None:
            position = t.new(8 * step.new, "positions")
            x = ops.add_to_each(t, x, lookups.embedding(t, step.new, self.positions, position))
            del position
        for i in t.rounds(self.spec.n_layers):
            x = t.through(self.layer, x, self.layers[i], self.states.get(i), random=self.spec.dropout > 0)
        t.place = "norm_f"
        return norms.layer_norm(t, x, *self.norm_f)

    def layer(self, x: Tensor, w: Layer, state: Storage | None) -> Tensor:
        t = self.t
        t.place = "norm"
        h = norms.layer_norm(t, x, *w.norm)
        t.place = "core"
        v = ops.clamp(t, ops.linear(t, h, *w.v))
        f = ops.clamp(t, resolvent(t, self.spec.form, self.step, v))
        mixed = ops.learned_scale(t, ops.linear(t, ops.cast(t, f, h.width), *w.o), w.scale)
        return ops.add(t, ops.add(t, x, mixture(t, self.spec, h, w.router, w.up, w.down)), mixed)
