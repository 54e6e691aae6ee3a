"""Formulas of what training adds: the loss and the optimizer."""

from collections.abc import Sequence

from benchbench.counters.op import Formula, Placed, Work

LAYER = "backbone.layers."

OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}
"""Numbers an optimizer keeps for each parameter."""

_UPDATE = {"sgd": (2, 0), "momentum": (4, 0), "adam": (13, 3), "adamw": (14, 3)}


def cross_entropy(rows: int, vocab_size: int, s: int, chunks: int = 1) -> Formula:
    """-log softmax(x)[target], averaged: (rows, vocab_size) logits to one number.

    Forward, an element: subtract the maximum, exp, sum: 3. A row: log, subtract it from the target's logit, sum over
    rows: 3. Backward, an element: p = exp(x - max - log Σ) from the saved log-probability 1, times dy/rows 1; a row:
    subtract the one of the target 1.

    Torch writes every log-probability, an element one subtraction more, where the targets' would do, a row one less.
    Backward it takes dy - p·Σ dy, as if dy were not zero but at the target: Σ, exp, product, subtract: 4 an element,
    and a sign a row. Forward and backward divide once by the number of rows. In several `chunks` the logarithms are
    computed again in backward, and the chunks' losses are summed.
    """
    n = rows * vocab_size
    logs = 4 * n + 2 * rows
    pieces = chunks if chunks > 1 else 0
    return Formula(
        "cross_entropy",
        "loss",
        forward=Work(3 * n + 3 * rows, n + rows, extra_flops=n - rows + 1 + pieces, bytes_moved=s * n + 8 * rows),
        backward=Work(
            2 * n + rows,
            n,
            extra_flops=2 * n + 1 + (logs if chunks > 1 else 0),
            bytes_moved=2 * s * n + 8 * rows,
        ),
        sizes={"rows": rows, "vocab_size": vocab_size, "chunks": chunks},
    )


def optimizer_step(name: str, params: int, s: int) -> Formula:
    """The update of one parameter p with gradient g, a parameter at a time; bias corrections are once a step.

    sgd      p -= lr·g                                                                                            2
    momentum b = μ·b + g; p -= lr·b                                                                               4
    adam     m += (1-β₁)(g - m) 3; v = β₂·v + (1-β₂)·g·g 4; √v/√c₂ + ε 3; p -= lr/c₁·m/that 3 (1412.6980)        13
    adamw    the same, after p *= 1 - lr·λ (1711.05101)                                                          14

    Bytes: p and each state are read and written, g is read.
    """
    flops, transcendental = _UPDATE[name]
    return Formula(
        f"{name}_step",
        "optimizer",
        forward=Work(
            flops * params,
            transcendental * params,
            bytes_moved=s * params * (3 + 2 * OPTIMIZER_STATES[name]),
        ),
        sizes={"params": params},
    )


def accumulation(params: int, s: int, passes: int) -> Formula:
    """Gradients of several passes, added up: every pass divides its loss, and all but the first add to what is there.

    One batch of all the sequences would add the same numbers inside its products, so none of it is the model's.
    """
    added = (passes - 1) * params
    return Formula(
        "accumulation",
        "elementwise",
        forward=Work(extra_flops=passes),
        backward=Work(extra_flops=passes + added, bytes_moved=3 * s * added),
        sizes={"params": params, "passes": passes},
    )


def run_again(placed: Sequence[Placed]) -> dict[int, Work]:
    """What activation checkpointing runs once more, by the operation's index: forward work as extra work of backward.

    Torch begins a layer's forward anew when backward first needs something of it, and stops at the last tensor that
    backward needs: for most layers that is the input of its last linear map, which therefore does not run again, nor
    does what follows it.
    """
    layer = [i for i, op in enumerate(placed) if op.path.startswith(LAYER)]
    last = max((i for i in layer if placed[i].formula.saved_bytes), default=-1)
    found = {i: _as_extra(placed[i].formula.forward) for i in layer if i < last}
    if last >= 0 and (until := placed[last].formula.flops_until_kept):
        found[last] = Work(extra_flops=until)
    return found


def _as_extra(work: Work) -> Work:
    return Work(extra_flops=work.flops + work.extra_flops, bytes_moved=work.bytes_moved)
