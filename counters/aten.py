"""What one torch operator costs: a price in FLOPs for each aten operator, from shapes, element kinds and flags alone.

The convention is op.py's, applied to single operators: n additions are n, a reduction of n elements is n, an output
that is a copy, a view, a comparison or a selection is 0. Complex arithmetic is priced as the real arithmetic it is.
No torch here: tensors are described by `Sized`.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Literal, NamedTuple

from benchbench.errors import BenchError

Elements = Literal["real", "complex", "integer"]


class Sized(NamedTuple):
    """A tensor, as far as its price goes."""

    shape: tuple[int, ...]
    elements: Elements = "real"

    @property
    def n(self) -> int:
        return prod(self.shape)


class Call(NamedTuple):
    """An operator with what it was given and what it returned; tensors are `Sized`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def result(self) -> Sized:
        """The output, the first of several."""
        return self.out if isinstance(self.out, Sized) else self.out[0]

    def given(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, by its position or its name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


Price = Callable[[Call], int]


def price(name: str, call: Call) -> int:
    """FLOPs of the operator `name`, as aten names it, without overload; `name_` is `name` in place.

    Operators on integers and truth values alone are free.

    Raises:
        BenchError: The operator computes with floating numbers and has no price.
    """
    if not any(tensor.elements != "integer" for tensor in tensors((call.args, call.kwargs, call.out))):
        return 0
    for known in (name, name.removesuffix("_")):
        if known in PRICES:
            return PRICES[known](call)
        if known in FREE:
            return 0
    raise BenchError(
        f"the operator 'aten::{name}' has no price.",
        "Add it to counters/aten.py, to PRICES with its derivation or FREE.",
    )


def tensors(value: Any) -> Iterator[Sized]:
    """Every tensor in arguments or outputs, however nested."""
    if isinstance(value, Sized):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))  # pyright: ignore[reportUnknownArgumentType]


def each(real: int, complex_: int | None = None) -> Price:
    """So many operations an element of the output; an operator without `complex_` refuses complex numbers."""

    def found(call: Call) -> int:
        if call.result.elements == "complex":
            assert complex_ is not None
            return complex_ * call.result.n
        return real * call.result.n

    return found


def each_input(flops: int) -> Price:
    """So many operations an element of the first input."""
    return lambda call: flops * call.args[0].n


def _signed_sum(call: Call) -> int:
    """x ± α·y: a sum, and a product unless α is 1 or -1."""
    return each(1 if abs(call.kwargs.get("alpha", 1)) == 1 else 2, 2)(call)


def _fused_sum(call: Call) -> int:
    """x ± α·a·b, or a/b: a product or quotient and a sum, and a further product unless α is 1 or -1."""
    return each(2 if abs(call.kwargs.get("value", 1)) == 1 else 3)(call)


def _list_fused_sum(call: Call) -> int:
    """x + a·b for each of a list: a product and a sum."""
    return 2 * sum(tensor.n for tensor in call.args[0])


def _power(call: Call) -> int:
    """x^k by k - 1 products for k = 1, 2, 3; otherwise one function."""
    exponent = call.args[1]
    return call.result.n * (int(exponent) - 1 if exponent in (1, 2, 3) else 1)


def _absolute(call: Call) -> int:
    """Drops a sign; of a complex number two squares, their sum and a root."""
    return 4 * call.result.n if call.args[0].elements == "complex" else 0


def _total(call: Call) -> int:
    """Every element added once."""
    return call.args[0].n


def _mean(call: Call) -> int:
    """Every element added once, a division an output."""
    return call.args[0].n + call.result.n


def _product(call: Call) -> int:
    """(…, m, k)·(…, k, n): m·n dot products of k multiply-adds."""
    return 2 * call.result.n * call.args[0].shape[-1]


def _added_product(call: Call) -> int:
    """b + x·y: the product, and a sum an element of the output."""
    return 2 * call.result.n * call.args[1].shape[-1] + call.result.n


def _convolution(call: Call) -> int:
    """Each output: a multiply-add for each weight of its channel, and the bias."""
    weight, bias = call.args[1], call.args[2]
    return call.result.n * (2 * prod(weight.shape[1:]) + (bias is not None))


def _convolution_backward(call: Call) -> int:
    """Input and weight gradients take the forward's products each; the bias's sums dy."""
    dy, weight, needed = call.args[0], call.args[2], call.args[10]
    return dy.n * (2 * prod(weight.shape[1:]) * (needed[0] + needed[1]) + needed[2])


def _layer_norm(call: Call) -> int:
    """Σ, subtract, square, Σ, normalise: 5; γ 1; β 1. A row: two divisions by d, + ε, rsqrt."""
    _, d, weight, bias, _ = call.args
    n = call.args[0].n
    return n * (5 + (weight is not None) + (bias is not None)) + 4 * (n // prod(d))


def _layer_norm_backward(call: Call) -> int:
    """x̂ 2; dγ 2; dβ 1; dx: ·γ 1, Σ dx̂ 1, Σ dx̂·x̂ 2, r·(dx̂ - mean - x̂·mean) 4. A row: two divisions by d."""
    dy, _, d, _, _, weight, _, needed = call.args
    dx = needed[0] * (7 + (weight is not None))
    return dy.n * (2 + dx + 2 * needed[1] + needed[2]) + 2 * (dy.n // prod(d)) * needed[0]


def _rms_norm(call: Call) -> int:
    """Square, Σ, normalise: 3; γ 1. A row: division by d, + ε, rsqrt."""
    x, d, weight, _ = call.args
    return x.n * (3 + (weight is not None)) + 3 * (x.n // prod(d))


def _rms_norm_backward(call: Call) -> int:
    """x̂ 1; dγ 2; dx: ·γ 1, Σ dx̂·x̂ 2, r·(dx̂ - x̂·mean) 3. A row: a division by d."""
    dy, _, d, _, weight, needed = call.args
    dx = needed[0] * (5 + (weight is not None))
    return dy.n * (1 + dx + 2 * needed[1]) + (dy.n // prod(d)) * needed[0]


def _log_softmax(call: Call) -> int:
    """Subtract the maximum, exp, Σ, subtract the logarithm: 4 an element; a row's logarithm."""
    x, dim = call.args[:2]
    return 4 * x.n + x.n // x.shape[dim]


def _nll_loss(call: Call) -> int:
    """The targets' log-probabilities subtracted from 0, one a row; a division where they are averaged."""
    return call.args[0].shape[0] + (call.args[3] == 1)


def _gelu(flops: int) -> Price:
    """The tanh form, as pointwise.gelu_tanh derives it."""

    def found(call: Call) -> int:
        assert call.kwargs.get("approximate") == "tanh"
        return flops * call.result.n

    return found


def _flash(products: int, others: int, *, q_at: int, causal_at: int) -> Price:
    """Fused attention on the visible pairs: so many products of d_head multiply-adds a pair, and other operations.

    `q_at` and `causal_at` are the positions of the queries, with the keys behind them, and of the causal flag.
    """

    def found(call: Call) -> int:
        q, k = call.args[q_at : q_at + 2]
        batch, heads, new, d_head = q.shape
        causal = call.given(causal_at, "is_causal", False)
        pairs = new * (new + 1) // 2 if causal else new * k.shape[2]
        return batch * heads * pairs * (2 * products * d_head + others)

    return found


PRICES: dict[str, Price] = {
    # One operation an element. Complex: a sum is 2, a product 4 + 2, a quotient 6 for the product with the conjugate,
    # 3 for the squared modulus and 2 divisions.
    "add": _signed_sum,
    "sub": _signed_sum,
    "rsub": _signed_sum,
    "mul": each(1, 6),
    "div": each(1, 11),
    "neg": each(1, 2),
    "reciprocal": each(1),
    "exp": each(1),
    "log": each(1),
    "cos": each(1),
    "sin": each(1),
    "tanh": each(1),
    "sqrt": each(1),
    "rsqrt": each(1),
    "pow": _power,
    "abs": _absolute,
    # x + w·(y - x).
    "lerp": each(3),
    "addcmul": _fused_sum,
    "addcdiv": _fused_sum,
    "_foreach_addcmul": _list_fused_sum,
    # Activations, as pointwise.py derives them: σ is negate, exp, add, divide; from their outputs, dy·σ·(1 - σ) and
    # dy·(1 - t²).
    "sigmoid": each(4),
    "sigmoid_backward": each(3),
    "tanh_backward": each(3),
    "silu": each(4),
    "silu_backward": each(9),
    "softplus": each(3),
    "softplus_backward": each(5),
    "gelu": _gelu(9),
    "gelu_backward": _gelu(18),
    # x·mask/(1 - p), and the same on dy.
    "native_dropout": each(2),
    "native_dropout_backward": each(2),
    # Reductions.
    "sum": _total,
    # Every element added once, as for a sum.
    "cumsum": _total,
    "mean": _mean,
    # Subtract the maximum, exp, Σ, divide. Backward p·(dp - Σ p·dp): product, Σ, subtract, product.
    "_softmax": each_input(4),
    "_softmax_backward_data": each_input(4),
    "_log_softmax": _log_softmax,
    # dy - p·Σ dy: Σ, exp, product, subtract.
    "_log_softmax_backward_data": each_input(4),
    "nll_loss_forward": _nll_loss,
    # The target's -dy, one a row.
    "nll_loss_backward": lambda call: call.args[1].shape[0],
    # Rows added into a table.
    "embedding_dense_backward": _total,
    "index_add": lambda call: call.args[3].n,
    # Products.
    "mm": _product,
    "bmm": _product,
    "addmm": _added_product,
    "baddbmm": _added_product,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "_fused_rms_norm": _rms_norm,
    "_fused_rms_norm_backward": _rms_norm_backward,
    # q·k and p·v; scale 1 and softmax 4. Backward: five products, as the scores are computed again; 8 = 5 + 3 others.
    "_scaled_dot_product_flash_attention_for_cpu": _flash(2, 5, q_at=0, causal_at=4),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _flash(5, 8, q_at=1, causal_at=7),
}

_CREATED = (
    "arange bernoulli empty empty_like empty_strided fill full full_like lift_fresh new_empty new_empty_strided "
    "new_full new_ones new_zeros normal ones ones_like scalar_tensor uniform zero zeros zeros_like"
)
_MOVED = (
    "_conj _local_scalar_dense _reshape_alias _to_copy _unsafe_view alias as_strided cat clone constant_pad_nd "
    "contiguous copy detach diagonal expand flip item permute promote_types real repeat reshape select slice split "
    "split_with_sizes squeeze stack t transpose unbind unsqueeze view view_as_complex view_as_real"
)
_INDEXED = "embedding gather index index_copy index_select scatter searchsorted select_backward slice_backward"
_COMPARED = (
    "clamp eq ge gt isfinite isnan le lt masked_fill maximum minimum ne relu sort threshold_backward topk tril where"
)

FREE = frozenset(" ".join((_CREATED, _MOVED, _INDEXED, _COMPARED)).split())
"""Without arithmetic: new tensors and random bits; copies, casts, views; indexing; comparisons and selections."""
