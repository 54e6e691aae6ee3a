"""Formulas of what training adds: the loss and the optimizer."""

from benchbench.counters.op import Formula, Work

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
