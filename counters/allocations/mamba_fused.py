"""What Mamba on its published CUDA kernels does to memory, as models/mamba_fused.py and mamba-ssm 2.3 run it."""

from benchbench.counters.allocations import lookups, ops
from benchbench.counters.allocations.mamba import Layer, Memory, State
from benchbench.counters.allocations.tensors import Gradient, Gradients, Parameter, Storage, Tensor
from benchbench.counters.allocations.workspaces import CUBLAS, MULTIPROCESSORS
from benchbench.counters.fused_scan import fused_threads


class Fused(Memory):
    """Weights, states and forward of the backbone."""

    fused = True
    first = 2
    """The residual of the first is its input, and no sum."""

    def __call__(self) -> Tensor:
        t = self.t
        t.place = "embedding"
        x, residual = lookups.embedding(t, self.step.rows, self.table), None
        for i in t.rounds(self.spec.n_layers, first=self.first):
            x, residual = t.through(self.fused_layer, x, residual, self.layers[i], self.states.get(i))
        return self.add_norm(x, residual, self.norm_f)[0]

    def fused_layer(self, x: Tensor, residual: Tensor | None, w: Layer, state: State | None) -> tuple[Tensor, Tensor]:
        x, residual = self.add_norm(x, residual, w.norm)
        return self.fused_mixer(x, w, state), residual

    def add_norm(self, x: Tensor, residual: Tensor | None, weight: Parameter) -> tuple[Tensor, Tensor]:
        """The normalised sum, and the sum in float32."""
        t, rows, cols, narrow, wide = self.t, x.rows, x.cols, x.width, 4
        t.place = weight.name
        size, first, row, width = x.size, residual is None, weight.size, weight.width

        def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
            dx = Gradient(t.new(size, "dx"))
            both = dx if narrow == wide else None if first else Gradient(t.new(rows * cols * wide, "d residual"))
            partial = t.new(4 * MULTIPROCESSORS * cols, "partial dW")
            dw = t.new(4 * cols, "dW")
            if width != wide:
                dw = t.new(row, "dW")
            del partial
            return [dx, Gradient(dw), *(() if first else (both,))]

        inputs = [x, weight] if residual is None else [x, weight, residual]
        node = t.node(inputs, (weight,), backward)
        y = t.tensor(rows, cols, narrow, "norm", node)
        own = residual is not None or narrow != wide
        total = t.new(rows * cols * wide, "residual") if own else x.storage
        t.save(node, total, t.new(4 * rows, "statistics"))
        return y, Tensor(total, rows, cols, wide, node and (node, 1))

    def fused_mixer(self, x: Tensor, w: Layer, state: State | None) -> Tensor:
        t, step = self.t, self.step
        t.place = "mixer"
        rates = ops.negative(t, ops.exponential(t, ops.cast(t, w.a_log, 4)))
        if state is not None and step.new == 1:
            return self.one_step(x, w)
        xz = self.by_channel(w.in_proj, x)
        if state is not None:
            return self.prefill(xz, w)
        return self.inner(xz, w, rates, ops.cast(t, w.d, 4), ops.cast(t, w.dt_bias, 4))

    def by_channel(self, weight: Parameter, x: Tensor) -> Tensor:
        """W xᵀ: the tokens innermost."""
        t, x = self.t, ops.lowered(self.t, x)
        matrix = ops.lowered(t, weight)
        size, d_w = x.size, matrix.size

        def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
            dx = Gradient(t.new(size, "dx"), view=True)
            t.library("cuBLAS", CUBLAS)
            return [Gradient(t.new(d_w, "dW")), dx]

        made = t.tensor(x.rows, weight.rows, x.width, "product", t.node((matrix, x), (matrix, x), backward))
        t.library("cuBLAS", CUBLAS)
        return made

    def inner(self, xz: Tensor, w: Layer, rates: Tensor, d: Tensor, dt_bias: Tensor) -> Tensor:
        """From the convolution to the output projection; the convolution and dt are computed again in backward."""
        t, spec, s, rows = self.t, self.spec, xz.width, xz.rows
        channels, states, low = spec.d_inner * rows * s, spec.d_state * rows * s, spec.dt_rank * rows * s
        weights = [w.conv, w.conv_bias, w.x_proj, w.dt_proj, w.out_proj]
        inputs = [xz, *weights, rates, d, dt_bias]
        own = [t.new(one.size // 2, "cast") for one in weights[2:]] if t.casts is not None else []
        whole, conv, conv_bias = xz.size, w.conv.size, w.conv_bias.size
        x_proj, dt_proj, out_proj = (one.rows * one.cols * s for one in weights[2:])
        taps, inner, matrix = w.conv.cols, spec.d_inner, rates.size
        narrow, full = w.conv.width != 4, w.x_proj.width

        def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
            again = t.new(channels, "convolution"), t.new(channels, "dt")
            d_xz = Gradient(t.new(whole, "dxz"), view=True)
            dy = t.new(channels, "dy")
            t.library("cuBLAS", CUBLAS)
            outs = [t.new(channels, name) for name in ("du", "d dt", "y")]
            d_rates = Gradient(t.new(matrix, "dA"))
            d_b, d_c = t.new(4 * rows * spec.d_state, "dB"), t.new(4 * rows * spec.d_state, "dC")
            d_d, d_bias = Gradient(t.new(4 * inner, "dD")), Gradient(t.new(4 * inner, "db"))
            if s != 4:
                d_b, d_c = t.new(states, "dB"), t.new(states, "dC")
            d_out = Gradient(t.new(out_proj, "dW"))
            d_low = t.new(x_proj // spec.d_inner * rows, "d low")
            t.new(states, "dB")
            del d_b
            t.new(states, "dC")
            del d_c
            d_dt = Gradient(t.new(dt_proj, "dW"))
            t.new(low, "low")
            d_x = Gradient(t.new(x_proj, "dW"))
            d_conv, d_conv_bias = t.new(4 * taps * inner, "dW"), t.new(4 * inner, "db")
            if narrow:
                d_conv = t.new(conv, "dW")
                d_conv_bias = t.new(conv_bias, "db")
            del again, dy, outs, d_low
            saved.clear()
            if s != full:
                d_x, d_dt, d_out = (
                    Gradient(t.new(one.storage.block.size * full // s, "cast")) for one in (d_x, d_dt, d_out)
                )
            return [d_xz, Gradient(d_conv), Gradient(d_conv_bias), d_x, d_dt, d_out, d_rates, d_d, d_bias]

        node = t.node(inputs, inputs, backward)
        u = t.new(channels, "convolution")
        dbl = t.new(x_proj // spec.d_inner * rows, "low")
        dt = t.new(channels, "dt")
        b, c = t.new(states, "B"), t.new(states, "C")
        y, gated = t.new(channels, "y"), t.new(channels, "gated y")
        kept = t.new(self.kept(), "states")
        del u, dt
        out = t.tensor(rows, spec.d_model, s, "out_proj", node)
        t.save(node, dbl, b, c, kept, y, *own)
        del gated
        return out

    def kept(self) -> int:
        """The kernel's states, as pairs in float32."""
        spec, step = self.spec, self.step
        return 8 * step.batch * spec.d_inner * spec.d_state * fused_threads(step.new).chunks(step.new)

    def prefill(self, xz: Tensor, w: Layer) -> Tensor:
        t, spec, s, rows = self.t, self.spec, xz.width, xz.rows
        channels, states = spec.d_inner * rows * s, spec.d_state * rows * s
        u = t.new(channels, "convolution")
        low = t.new((spec.dt_rank + 2 * spec.d_state) * rows * s, "low")
        dt, b, c = t.new(channels, "dt"), t.new(states, "B"), t.new(states, "C")
        casts = [] if s == 4 else [t.new(4 * spec.d_inner, "D"), t.new(4 * spec.d_inner, "bias")]
        y, gated = t.new(channels, "y"), t.new(channels, "gated y")
        kept = t.new(self.kept(), "states")
        del y, dt, b, c, casts
        out = t.tensor(rows, spec.d_model, s, "out_proj")
        del u, low, gated, kept
        return out

    def one_step(self, x: Tensor, w: Layer) -> Tensor:
        t, spec, s, rows = self.t, self.spec, x.width, x.rows
        xz = t.new(2 * spec.d_inner * rows * s, "xz")
        t.library("cuBLAS", CUBLAS)
        u, low = (
            t.new(spec.d_inner * rows * s, "convolution"),
            t.new((spec.dt_rank + 2 * spec.d_state) * rows * s, "low"),
        )
        dt = t.new(spec.d_inner * rows * s, "dt")
        y = t.new(spec.d_inner * rows * s, "y")
        del dt
        out = t.tensor(rows, spec.d_model, s, "out_proj")
        del xz, u, low, y
        return out
