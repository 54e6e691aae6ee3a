"""What Mamba does to memory, operation by operation as models/mamba.py and models/selective_scan.py run it."""

from collections.abc import Callable
from typing import NamedTuple

from benchbench.counters.allocations import convolution, lookups, norms, ops, views
from benchbench.counters.allocations.scan import Sizes, chunked, eager, one_step
from benchbench.counters.allocations.scan_triton import by_kernels
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Parameter, Storage, Tensor
from benchbench.counters.op import Step
from benchbench.counters.timeline import Category
from benchbench.specs.mamba import MambaSpec


class Layer(NamedTuple):
    norm: Parameter
    a_log: Parameter
    d: Parameter
    in_proj: Parameter
    conv: Parameter
    conv_bias: Parameter
    x_proj: Parameter
    dt_proj: Parameter
    dt_bias: Parameter
    out_proj: Parameter


class State(NamedTuple):
    conv: Storage
    ssm: Storage


class Memory:
    """Weights, states and forward of the backbone."""

    fused = False
    """Whether states have the weights' dtype, not float32."""
    first = 1
    """Layers at the start that are like no other."""

    def __init__(self, t: Tape, spec: MambaSpec, step: Step, table: Parameter) -> None:
        self.t = t
        self.spec = spec
        self.step = step
        self.table = table
        self.s = table.width
        self.states: dict[int, State] = {}
        self.layers = {i: self._layer() for i in t.rounds(spec.n_layers, first=self.first)}
        self.norm_f = t.parameter(1, spec.d_model, self.s, "norm_f")

    def _layer(self) -> Layer:
        spec, s = self.spec, self.s
        d, inner, rank, n = spec.d_model, spec.d_inner, spec.dt_rank, spec.d_state

        def weight(name: str, rows: int, cols: int) -> Parameter:
            return self.t.parameter(rows, cols, s, name)

        return Layer(
            weight("norm", 1, d),
            weight("A_log", inner, n),
            weight("D", 1, inner),
            weight("in_proj", 2 * inner, d),
            weight("conv1d", inner, spec.d_conv),
            weight("conv1d", 1, inner),
            weight("x_proj", rank + 2 * n, inner),
            weight("dt_proj", inner, rank),
            weight("dt_proj", 1, inner),
            weight("out_proj", d, inner),
        )

    def new_state(self, make: Callable[[int, str, Category], Storage]) -> None:
        """The last inputs of each convolution and the state of each scan."""
        width = self.s if self.fused else 4
        spec, channels = self.spec, width * self.step.batch * self.spec.d_inner
        self.t.place = "state"
        for i in self.t.rounds(spec.n_layers, first=self.first):
            self.states[i] = State(
                make(channels * spec.d_conv, "conv", "state"), make(channels * spec.d_state, "ssm", "state")
            )

    def __call__(self) -> Tensor:
        """Final hidden states."""
        t = self.t
        t.place = "embedding"
        x = ops.cast(t, lookups.embedding(t, self.step.rows, self.table), 4)
        for i in t.rounds(self.spec.n_layers, first=self.first):
            x = t.through(self.layer, x, self.layers[i], self.states.get(i))
        return self.norm(x, self.norm_f)

    def layer(self, x: Tensor, w: Layer, state: State | None) -> Tensor:
        return ops.add(self.t, x, self.mixer(self.norm(x, w.norm), w, state))

    def norm(self, x: Tensor, weight: Parameter) -> Tensor:
        self.t.place = weight.name
        return ops.cast(self.t, norms.rms_norm(self.t, x, ops.cast(self.t, weight, x.width)), weight.width)

    def mixer(self, x: Tensor, w: Layer, state: State | None) -> Tensor:
        t, spec = self.t, self.spec
        inner, n = spec.d_inner, spec.d_state
        t.place = "in_proj"
        before, z = views.split(t, ops.linear(t, x, w.in_proj), inner, inner)
        t.place = "conv1d"
        u = self.conv(before, w, state)
        t.place = "x_proj"
        low, b, c = views.split(t, ops.linear(t, u, w.x_proj), spec.dt_rank, n, n)
        t.place = "mixer"
        # From the chunked scan and the kernels its gradient comes state first.
        a_log = views.laid_out(t, w.a_log) if self.step.path in ("chunked", "triton") and self.s == 4 else w.a_log
        rates = ops.negative(t, ops.exponential(t, ops.cast(t, a_log, 4)))
        t.place = "dt_proj"
        raw = self.step_sizes(low, w)
        t.place = "scan"
        y, _after = self.scan([u, raw, z, b, c, rates, w.d], state)
        t.place = "out_proj"
        return ops.linear(t, ops.copy(t, y) if self.turned and self.step.new > 1 else y, w.out_proj)

    @property
    def turned(self) -> bool:
        """Whether the scan's tensors lie time first, in another order than the sequences'."""
        return self.step.path == "chunked" and self.step.batch > 1

    def step_sizes(self, low: Tensor, w: Layer) -> Tensor:
        """dt before its softplus: a product, and a bias added in place; its gradient comes time first."""
        t, bias = self.t, w.dt_bias
        if self.step.rows == 1:
            return ops.linear(t, low, w.dt_proj, bias)
        bias = ops.lowered(t, bias)
        made = ops.linear(t, low, w.dt_proj)
        if self.turned:
            made = views.gradient_copied(t, made)

        def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
            return [gradients[0], Gradient(ops.summed_rows(t, rows, cols, width))]

        rows, cols, width = made.rows, bias.cols, bias.width
        node = t.node((made, bias), (), backward)
        return Tensor(made.storage, made.rows, made.cols, made.width, node and (node, 0))

    def conv(self, x: Tensor, w: Layer, state: State | None) -> Tensor:
        """The convolution with its SiLU."""
        if self.step.path == "triton":
            moves = state is not None and 1 < self.step.new < self.spec.d_conv
            return convolution.by_kernels(self.t, x, self.step, w.conv, w.conv_bias, moves=moves)
        return ops.function(self.t, self.convolved(x, w, state), "silu")

    def convolved(self, x: Tensor, w: Layer, state: State | None) -> Tensor:
        """A depthwise convolution; before the first input lie zeros, or those that the state kept."""
        t, step, taps = self.t, self.step, self.spec.d_conv
        if state is None:
            seen = convolution.padded(t, x, step.batch * (step.new + taps - 1))
            return convolution.depthwise_conv(t, seen, step.new, x.rows, w.conv, w.conv_bias)
        # As rows a sequence behind each other.
        past = None if x.width == 4 else t.new(step.batch * taps * x.cols * x.width, "copy")
        seen = t.tensor(step.batch * (step.new + taps), x.cols, x.width, "concatenation")
        del past
        if step.new == 1:
            wide = max(seen.width, w.conv.width)
            product = t.tensor(step.batch * taps, x.cols, wide, "product")
            summed = t.tensor(x.rows, x.cols, wide, "sum")
            del product
            return t.tensor(x.rows, x.cols, summed.width, "sum")
        if step.batch > 1:
            read = t.tensor(step.batch * (step.new + taps - 1), x.cols, x.width, "copy")
            return convolution.depthwise_conv(t, read, step.new, x.rows, w.conv, w.conv_bias)
        return convolution.depthwise_conv(t, seen, step.new, x.rows, w.conv, w.conv_bias)

    def scan(self, inputs: list[Tensor], state: State | None) -> tuple[Tensor, Storage]:
        """Outputs and the last state."""
        t, step = self.t, self.step
        sizes = Sizes(step.batch, step.new, self.spec.d_inner, self.spec.d_state)
        before = t.new(sizes.state, "state") if state is None else state.ssm
        if step.path == "triton":
            return by_kernels(t, inputs, sizes, before)
        if step.path == "eager":
            return eager(t, inputs, sizes, before)
        if step.new == 1 and not t.training:
            return one_step(t, inputs, sizes)
        return chunked(t, inputs, sizes, before)
