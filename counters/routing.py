"""Formulas of a top-k mixture of experts around its matrix products (1701.06538)."""

from benchbench.counters.op import Formula, Work


def top_k_gate(rows: int, n_experts: int, top_k: int, s: int) -> Formula:
    """A softmax over the top_k largest router logits of a row: 4 an element; picking them is comparisons.

    Backward p·(dp - Σ p·dp): product and sum 2, difference 1, product 1: 4.
    """
    n = rows * top_k
    return Formula(
        "top_k_gate",
        "routing",
        forward=Work(4 * n, 2 * n, bytes_moved=s * rows * n_experts + (s + 8) * n),
        backward=Work(4 * n, bytes_moved=s * rows * n_experts + (2 * s + 8) * n),
        saved_bytes=(s + 8) * n,
        scratch_bytes=(s + 8) * n,
        sizes={"rows": rows, "n_experts": n_experts, "top_k": top_k},
    )


def gather(rows: int, d: int, top_k: int, s: int) -> Formula:
    """Rows handed to their experts: copies. Backward adds the gradients of a row's top_k copies together.

    It adds all top_k to zero, one addition more than the sum needs.
    """
    n = rows * top_k * d
    return Formula(
        "gather",
        "routing",
        forward=Work(bytes_moved=2 * s * n),
        backward=Work((top_k - 1) * rows * d, extra_flops=rows * d, bytes_moved=2 * s * n),
        saved_bytes=8 * rows * top_k,
        scratch_bytes=s * n,
        sizes={"rows": rows, "d": d, "top_k": top_k},
    )


def combine(rows: int, d: int, top_k: int, s: int) -> Formula:
    """y = Σ gate·expert(h) over a row's top_k: a product each and top_k - 1 sums an element.

    Backward: d expert = gate·dy 1 and d gate = Σ dy·expert 2, for each of the top_k. The gradients of rows and gates go
    back to their order by additions into zeros: 1 each.
    """
    n = rows * d
    return Formula(
        "combine",
        "routing",
        forward=Work((2 * top_k - 1) * n, bytes_moved=s * (top_k + 1) * n),
        backward=Work(3 * top_k * n, extra_flops=top_k * (n + rows), bytes_moved=s * (2 * top_k + 1) * n),
        saved_bytes=s * top_k * n,
        scratch_bytes=s * (top_k + 1) * n,
        flops_until_kept=top_k * n,
        sizes={"rows": rows, "d": d, "top_k": top_k},
    )
