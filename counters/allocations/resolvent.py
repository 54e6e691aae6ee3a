"""What the resolvent does to memory, as models/resolvent.py runs it: a few numbers a token."""

from dataclasses import replace

from benchbench.counters.allocations import ops, views
from benchbench.counters.allocations.tape import Tape
from benchbench.counters.allocations.tensors import Gradient, Gradients, Storage, Tensor
from benchbench.counters.op import Step
from benchbench.counters.resolvent import RESOLVENT_CHUNK, RESOLVENT_HALO


def resolvent(t: Tape, form: str, step: Step, v: Tensor) -> Tensor:
    """Real and imaginary part of every token, in float32."""
    if step.path == "triton":
        return by_kernel(t, form, v)
    v = ops.cast(t, v, 4)
    if form == "bk-compat":
        return published(t, step, v)
    plain = step.path == "eager"
    if form == "bk-exact":
        return two_sided(t, step, v, plain)
    initial = t.new(8 * step.batch, "initial")
    made = plain_left(t, step, v, initial) if plain else left(t, step, v)
    del initial
    return made


def by_kernel(t: Tape, form: str, v: Tensor) -> Tensor:
    """One kernel forward and one backward, from the result, or where it has two sides from v."""
    size = v.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        return [Gradient(t.new(size, "dv"))]

    node = t.node((v,), (v,) if form == "bk-exact" else (), backward)
    made = t.tensor(v.rows, 2, 4, "resolvent", node)
    if form != "bk-exact":
        t.save(node, made.storage)
    return made


def plain_left(t: Tape, step: Step, v: Tensor, initial: Storage) -> Tensor:
    """L token by token, as autograd differentiates it."""
    a = views.Slices(t, ops.shifted(t, v), step.new)
    p = q = Tensor(initial, step.batch, 1, 4)
    rows: list[Tensor] = []
    for _ in t.rounds(step.new):
        d, s = ops.subtract(t, a.next(), p), ops.shifted(t, q)
        norm = ops.add(t, ops.multiply(t, d, d), ops.multiply(t, s, s))
        p, q = ops.divide(t, d, norm), ops.divide(t, s, norm)
        rows.append(views.stack(t, [p, q], step.batch, 2))
    made = views.stack(t, rows, v.rows, 2)
    t.gather(*(one.storage for one in rows))
    return made


def two_sided(t: Tape, step: Step, v: Tensor, plain: bool) -> Tensor:
    """G from both ends; only forward, for nobody trains with it."""
    assert not t.training
    token = v.size
    if plain:
        zero = t.new(8 * step.batch, "zeros")
        first = plain_left(t, step, v, zero).storage
        flipped = t.new(token, "flip")
        second = plain_left(t, step, v, zero).storage
        del flipped
        second = t.new(2 * token, "flip")
        return Tensor(met(t, token), v.rows, 2, 4)
    flipped = t.new(token, "flip")
    both = t.new(2 * token, "concatenation")
    del flipped
    zero = t.new(16 * step.batch, "zeros")
    first = fraction(t, replace(step, batch=2 * step.batch), 2 * token)
    second = t.new(2 * token, "flip")
    made = Tensor(met(t, token), v.rows, 2, 4)
    del zero, both, first, second
    return made


def met(t: Tape, token: int) -> Storage:
    """G of both fractions."""
    before = t.new(2 * token, "delayed")
    flipped = t.new(2 * token, "flip")
    after = t.new(2 * token, "delayed")
    del flipped
    after = t.new(2 * token, "flip")
    joined = t.new(2 * token, "sum")
    del before, after
    shifted = t.new(token, "difference")
    d = t.new(token, "difference")
    del shifted
    s = t.new(token, "sum")
    pair = t.new(2 * token, "stack")
    squares = t.new(token, "product"), t.new(token, "product")
    norm = t.new(token, "sum")
    del squares
    made = t.new(2 * token, "quotient")
    del joined, d, s, pair, norm
    return made


def published(t: Tape, step: Step, v: Tensor) -> Tensor:
    """The determinants of both sides in complex128, sixteen bytes a number."""
    token, wide = v.size, 4 * v.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        inner = t.new(2 * token, "copy")
        square, modulus = t.new(2 * token, "square"), t.new(token, "modulus")
        large = t.new(token // 4, "test")
        part = t.new(token, "quotient")
        scaled = t.new(2 * token, "product")
        del part
        floored = t.new(2 * token, "floor")
        del large, scaled
        product = t.new(2 * token, "product")
        quotient = t.new(2 * token, "sum"), t.new(2 * token, "quotient")
        made = Gradient(t.new(token, "gradient"))
        del inner, square, modulus, floored, product, quotient
        return [made]

    node = t.node((v,), (), backward)
    x = t.new(wide, "x")
    flipped = t.new(wide, "flip")
    both = t.new(2 * wide, "concatenation")
    del flipped
    before, last = t.new(32 * step.batch, "minors"), t.new(32 * step.batch, "minors")
    minors = [last]
    for _ in t.rounds(step.new):
        product = t.new(32 * step.batch, "product")
        before, last = last, t.new(32 * step.batch, "minors")
        del product
        minors.append(last)
    stacked = t.new(32 * step.batch * (step.new + 1), "minors")
    t.gather(*minors)
    del minors, before, last, both
    theta = t.new(wide, "flip")
    product = t.new(wide, "product")
    del theta
    diagonal = t.new(wide, "quotient")
    del product
    tests = t.new(token // 4, "test"), t.new(token // 4, "test")
    finite = t.new(wide, "where")
    del tests, diagonal
    modulus = t.new(2 * token, "modulus")
    t.new(wide, "modulus")
    large = t.new(token // 4, "test")
    part = t.new(2 * token, "quotient")
    aside = t.new(wide, "widened")
    scaled = t.new(wide, "product")
    del aside, part
    bounded = t.new(wide, "where")
    del large, scaled, finite
    made = t.new(2 * token, "diagonal")
    del x, stacked, modulus, bounded
    t.save(node, made)
    return Tensor(made, v.rows, 2, 4, node and (node, 0))


def left(t: Tape, step: Step, v: Tensor) -> Tensor:
    """L, and the linear recursion of its gradient."""
    token = v.size

    def backward(gradients: Gradients, saved: list[Storage]) -> Gradients:
        squares = multiplied(t, token)
        flipped = t.new(2 * token, "flip")
        sign = t.new(token, "sign")
        conjugate = t.new(2 * token, "conjugate")
        del sign
        turned = t.new(2 * token, "flip")
        del conjugate
        swept = sweep(t, step, token)
        picked = t.new(token, "flip")
        made = Gradient(t.new(token, "sign"))
        del picked, swept, turned, flipped, squares
        return [made]

    node = t.node((v,), (), backward)
    made = fraction(t, step, token)
    t.save(node, made)
    return Tensor(made, v.rows, 2, 4, node and (node, 0))


def multiplied(t: Tape, token: int) -> Storage:
    """A product of complex numbers."""
    parts: list[Storage] = []
    for _ in range(2):
        first, second = t.new(token, "product"), t.new(token, "product")
        parts.append(t.new(token, "part"))
        del first, second
    return t.new(2 * token, "complex product")


def fraction(t: Tape, step: Step, token: int) -> Storage:
    x = t.new(2 * token, "x")
    made = lanes(t, step, token, 2)
    del x
    return made


def sweep(t: Tape, step: Step, token: int) -> Storage:
    product = multiplied(t, token)
    x = t.new(4 * token, "concatenation")
    del product
    made = lanes(t, step, token, 4)
    del x
    return made


def lanes(t: Tape, step: Step, token: int, numbers: int) -> Storage:
    """A recursion over (B, N, numbers), whose two results a token end in order."""
    short = step.new <= RESOLVENT_CHUNK + RESOLVENT_HALO
    chunk = step.new if short else RESOLVENT_CHUNK
    chunks = 1 if short else -(-step.new // RESOLVENT_CHUNK)
    front = 0 if short else -(-RESOLVENT_HALO // RESOLVENT_CHUNK) * RESOLVENT_CHUNK
    spread = t.new(4 * numbers * step.batch * (front + chunks * chunk), "padding")
    if step.batch > 1:
        spread = t.new(spread.block.size, "lanes")
    whole = 8 * step.batch * chunks * chunk
    y = t.new(whole, "y")
    ordered = t.new(whole, "y")
    made = t.new(2 * token, "y")
    del spread, y, ordered
    return made
