"""The allocations of single CUDA operations, forward and backward, in the format of cuda_recorder.py.

Every recording starts without cuBLAS workspaces and without cached blocks. Each probe runs twice; `cold` is the first
run, kept where it differs. `outputs` are the bytes of the tensors that a probe returns, which its events hold too.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from cuda_recorder import attempt, current, peaks, record, settle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Adam, AdamW

Call = Callable[..., Tensor | tuple[Tensor, ...]]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def probes() -> dict[str, Any]:
    """Every probe by name."""
    found: dict[str, Any] = {}
    attempt(found, "rounding", rounding)
    attempt(found, "reuse", reuse)
    for group in (products, attention, norms, losses, lookups, routing, reductions, convolutions, mamba, grouped):
        for name, tensors, call in safely(group, found):
            attempt(found, name, lambda tensors=tensors, call=call: one(tensors, call))
    for name, call in optimizers():
        attempt(found, name, call)
    for name, error in found.get("errors", {}).items():
        print(f"probe {name}: {error.splitlines()[0][:150]}", flush=True)
    return found


def safely(group: Callable[[], Iterator[Any]], found: dict[str, Any]) -> list[Any]:
    """The probes of a group, or none of them where the package it needs is not there."""
    kept: dict[str, Any] = {}
    attempt(kept, group.__name__, lambda: list(group()))
    found.setdefault("errors", {}).update(kept.pop("errors", {}))
    return kept.get(group.__name__, [])


def r(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, device="cuda").to(dtype).requires_grad_(grad)


def ints(high: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(high, shape, device="cuda")


def one(tensors: list[Callable[[], Tensor]], call: Call) -> dict[str, Any]:
    """Forward and backward, recorded apart, twice; then forward once more without gradients."""
    torch.manual_seed(0)
    inputs = [make() for make in tensors]
    wanted = [x for x in inputs if x.requires_grad]
    runs: list[dict[str, Any]] = []
    for _ in range(2):
        kept: list[Any] = []
        found: dict[str, Any] = {"forward": record(lambda kept=kept: kept.append(call(*inputs)))}
        outputs = [x for x in (kept[0] if isinstance(kept[0], tuple) else kept) if x is not None]
        found["outputs"] = [x.untyped_storage().nbytes() for x in outputs]
        ends = [x for x in outputs if x.requires_grad]
        if ends and wanted:
            seeds = [torch.randn_like(x) for x in ends]
            grads: list[Any] = []
            found["backward"] = record(
                lambda ends=ends, seeds=seeds, grads=grads: grads.extend(
                    torch.autograd.grad(ends, wanted, seeds, allow_unused=True)
                )
            )
            found["grads"] = [x.untyped_storage().nbytes() for x in grads if x is not None]
            del seeds, grads
        runs.append(found)
        del kept, outputs, ends
    cold, steady = runs
    if cold != steady:
        steady["cold"] = cold

    def plainly() -> None:
        with torch.inference_mode():
            call(*inputs)

    attempt(steady, "inference", lambda: record(plainly))
    return steady


def rounding() -> list[list[int]]:
    """[bytes asked for, allocated, reserved] of one block in an empty allocator."""
    found: list[list[int]] = []
    MiB = 2**20
    for size in (
        *(1, 511, 512, 513, 4000, 100_000, MiB - 1, MiB, MiB + 1, MiB + 512, 2 * MiB, 3 * MiB + 1, 5 * MiB),
        *(10 * MiB - 1, 10 * MiB, 10 * MiB + 1, 11 * MiB, 12 * MiB, 12 * MiB + 1, 19 * MiB, 20 * MiB - 1, 20 * MiB),
        *(20 * MiB + 1, 21 * MiB, 21 * MiB + 1, 22 * MiB, 33 * MiB + 5, 100 * MiB + 1, 1023 * MiB + 3),
    ):
        settle()
        before = current()
        block = torch.empty(size, dtype=torch.uint8, device="cuda")
        after = current()
        found.append([size, *(after[kind] - before[kind] for kind in ("allocated", "reserved"))])
        del block
    return found


def reuse() -> list[list[int]]:
    """[bytes freed, bytes asked for then, allocated, reserved]: what is handed out of a cached block."""
    found: list[list[int]] = []
    MiB = 2**20
    pairs = [(12 * MiB, 12 * MiB - d) for d in (512, 512 * 1024, MiB - 512, MiB, MiB + 512, 2 * MiB, 9 * MiB)]
    pairs += [(30 * MiB, 11 * MiB), (1000, 500), (MiB, 100_000), (8 * MiB, 3 * MiB), (300 * MiB, 2 * MiB)]
    for freed, size in pairs:
        settle()
        block = torch.empty(freed, dtype=torch.uint8, device="cuda")
        del block
        before = current()
        block = torch.empty(size, dtype=torch.uint8, device="cuda")
        after = current()
        found.append([freed, size, *(after[kind] - before[kind] for kind in ("allocated", "reserved"))])
        del block
    return found


def products() -> Iterator[tuple[str, list[Any], Call]]:
    """mm, addmm, bmm and linear: small, as in a model, one row, and not a multiple of 8 wide."""
    for dtype, (m, k, n) in product(FLOATS, ((64, 64, 64), (4096, 256, 1024), (1, 256, 1024), (512, 768, 50257))):
        at = f"{str(dtype)[6:]} {m}x{k}x{n}"
        made = partial(r, dtype=dtype)
        yield f"mm {at}", [made(m, k), made(k, n)], torch.mm
        yield f"linear {at}", [made(m, k), made(n, k)], F.linear
        yield f"linear bias {at}", [made(m, k), made(n, k), made(n)], F.linear
        yield f"linear 3d bias {at}", [made(1, m, k), made(n, k), made(n)], F.linear
        if n < 2000:
            yield f"bmm {at}", [made(8, m, k), made(8, k, n)], torch.bmm
            yield f"baddbmm {at}", [made(8, 1, n), made(8, m, k), made(8, k, n)], torch.baddbmm
            yield f"addmm out of rows {at}", [made(n), made(m, k), made(k, n)], torch.addmm
    yield (
        "linear autocast",
        [r(4096, 256), r(1024, 256), r(1024)],
        lambda x, w, b: torch.autocast("cuda", torch.bfloat16)(F.linear)(x, w, b),
    )


def attention() -> Iterator[tuple[str, list[Any], Call]]:
    """Flash and efficient attention, whole and in groups; one query; a mask."""

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
            causal = mask is None and q.shape[2] > 1
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
            )

    for dtype, (B, H, K, N, M, C) in product(
        FLOATS,
        (
            *((1, 4, 4, 2048, 2048, 64), (2, 4, 4, 2048, 2048, 64), (1, 4, 2, 2048, 2048, 64)),
            *((2, 4, 4, 1000, 1000, 64), (1, 4, 4, 1001, 1001, 64), (1, 12, 12, 4096, 4096, 128)),
            *((1, 4, 4, 1, 2049, 64), (2, 4, 2, 1, 2049, 64), (1, 4, 4, 8192, 8192, 64), (2, 8, 8, 512, 512, 80)),
        ),
    ):
        if dtype == torch.float32 and H != K:
            continue
        sizes = [r(B, H, N, C, dtype=dtype), r(B, K, M, C, dtype=dtype), r(B, K, M, C, dtype=dtype)]
        yield f"sdpa {str(dtype)[6:]} B{B} H{H} K{K} N{N} M{M} C{C}", sizes, fused
    for dtype in FLOATS:
        sizes = [r(2, 4, 256, 64, dtype=dtype) for _ in range(3)]

        def mask() -> Tensor:
            return torch.ones(256, 256, dtype=torch.bool, device="cuda").tril()

        yield f"sdpa masked {str(dtype)[6:]}", [*sizes, mask], fused
        turned = [r(2, 1024, 4, 64, dtype=dtype) for _ in range(3)]
        yield f"sdpa transposed {str(dtype)[6:]}", turned, lambda *qkv: fused(*(x.transpose(1, 2) for x in qkv))


def norms() -> Iterator[tuple[str, list[Any], Call]]:
    for dtype, (rows, width) in product(FLOATS, ((2048, 256), (4096, 256), (8192, 1024), (1, 256), (24, 64))):
        at = f"{str(dtype)[6:]} {rows}x{width}"
        x, w = r(1, rows, width, dtype=dtype), r(width, dtype=dtype)
        yield f"rms_norm {at}", [x, w], lambda x, w: F.rms_norm(x, w.shape, w, 1e-5)
        yield f"layer_norm {at}", [x, w, w], lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5)
        if dtype != torch.float32:
            wide = r(1, rows, width)
            yield f"rms_norm wide {at}", [wide, w], lambda x, w: F.rms_norm(x, w.shape, w.float(), 1e-5).to(w.dtype)


def losses() -> Iterator[tuple[str, list[Any], Call]]:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")

    for dtype, (rows, vocab) in product(FLOATS, ((512, 4096), (2048, 50280), (1000, 50257))):
        yield f"cross_entropy {str(dtype)[6:]} {rows}x{vocab}", [r(rows, vocab, dtype=dtype), ints(vocab, rows)], loss


def lookups() -> Iterator[tuple[str, list[Any], Call]]:
    """Embeddings; the backward of many rows sorts them."""
    sizes = ((512, 4096, 256), (3072, 4096, 256), (3073, 4096, 256), (8192, 4096, 256), (8192, 50280, 256))
    for dtype, (rows, vocab, width) in product(FLOATS, sizes):
        at = f"{str(dtype)[6:]} {rows} of {vocab}x{width}"
        yield f"embedding {at}", [ints(vocab, 1, rows), r(vocab, width, dtype=dtype)], F.embedding
    for rows in (10_000, 100_000, 1_000_000):
        yield f"embedding float32 {rows} of 4096x64", [ints(4096, 1, rows), r(4096, 64)], F.embedding


def routing() -> Iterator[tuple[str, list[Any], Call]]:
    """The mixture of experts, operation by operation."""
    for rows in (1, 512, 2048, 4096, 8192, 16384, 100_000):
        yield f"sort {rows}", [ints(4, rows)], lambda x: x.sort(stable=True)
        yield f"cumsum {rows}", [ints(4, rows)], lambda x: x.cumsum(0)
        yield f"arange {rows}", [], partial(torch.arange, rows, device="cuda")
        yield (
            f"searchsorted {rows}",
            [ints(4, rows)],
            lambda x: torch.searchsorted(x, torch.arange(4, device="cuda"), right=True),
        )
        for dtype in FLOATS[:2]:
            at = f"{str(dtype)[6:]} {rows}"
            table = r(rows, 256, dtype=dtype)
            yield f"topk {at}", [r(rows, 4, dtype=dtype)], lambda x: x.topk(2, dim=-1)
            yield f"index_select {at}", [table, ints(rows, rows)], lambda x, i: x.index_select(0, i)
            yield (
                f"index_select vector {at}",
                [r(rows, dtype=dtype), ints(rows, rows)],
                lambda x, i: x.index_select(0, i),
            )
            yield (
                f"index_copy {at}",
                [table, r(rows, 256, dtype=dtype), lambda rows=rows: torch.randperm(rows, device="cuda")],
                lambda x, y, i: x.detach().index_copy(0, i, y),
            )
        yield f"scatter {rows}", [ints(rows, rows)], lambda i: torch.empty_like(i).scatter_(0, i, i)
    for dtype, tiles in product(FLOATS[:2], (32, 36)):
        weight = r(4, 256, 512, dtype=dtype)
        yield f"weights of tiles {str(dtype)[6:]} {tiles}", [weight, ints(4, tiles)], lambda w, e: w[e]
        yield f"biases of tiles {str(dtype)[6:]} {tiles}", [r(4, 512, dtype=dtype), ints(4, tiles)], lambda w, e: w[e]


def reductions() -> Iterator[tuple[str, list[Any], Call]]:
    """Sums, whose kernels may take a buffer for what blocks hand over."""
    for dtype, shape in product(
        FLOATS[:2], ((100,), (100_000,), (10_000_000,), (4096, 256), (8192, 1024), (2, 4096, 4))
    ):
        x = [r(*shape, dtype=dtype)]
        yield f"sum {str(dtype)[6:]} {shape}", x, torch.sum
        if len(shape) > 1:
            yield f"sum of rows {str(dtype)[6:]} {shape}", x, lambda x: x.sum(tuple(range(x.ndim - 1)))
            yield f"sum of columns {str(dtype)[6:]} {shape}", x, lambda x: x.sum(-1, keepdim=True)
            yield f"softmax {str(dtype)[6:]} {shape}", x, lambda x: x.softmax(-1)
    for rows in (512, 4096, 16384, 1_000_000):
        yield f"count {rows}", [ints(100, rows)], lambda x: (x != -100).sum()
        yield f"isfinite {rows}", [r(rows)], lambda x: x.isfinite().all()


def convolutions() -> Iterator[tuple[str, list[Any], Call]]:
    """Depthwise, causal: one-dimensional, and two-dimensional with the channels innermost."""

    def inner(x_BLD: Tensor, w: Tensor, b: Tensor) -> Tensor:
        seen = F.pad(x_BLD, (0, 0, 3, 0))
        return F.conv2d(seen.mT[:, :, None], w[:, :, None], b, groups=len(b))[:, :, 0].mT

    for dtype, (B, L, D) in product(FLOATS, ((1, 512, 512), (2, 2048, 512), (1, 8192, 1536), (1, 2048, 512))):
        at = f"{str(dtype)[6:]} B{B} L{L} D{D}"
        w, b = r(D, 1, 4, dtype=dtype), r(D, dtype=dtype)
        yield f"conv2d {at}", [r(B, L, D, dtype=dtype), w, b], inner
        yield (
            f"conv1d {at}",
            [r(B, D, L, dtype=dtype), w, b],
            lambda x, w, b: F.conv1d(x, w, b, padding=3, groups=len(b))[..., : x.shape[-1]],
        )


def mamba() -> Iterator[tuple[str, list[Any], Call]]:
    """The published kernels."""
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportMissingImports]
    from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
        mamba_inner_fn,
        selective_scan_fn,
    )

    for dtype, (B, L, D) in product(FLOATS[:2], ((1, 2048, 512), (2, 2048, 512), (1, 8192, 512))):
        at = f"{str(dtype)[6:]} B{B} L{L} D{D}"
        made, R, N, E = partial(r, dtype=dtype), 16, 16, D // 2
        yield (
            f"causal_conv1d_fn {at}",
            [made(B, D, L), made(D, 4), made(D)],
            lambda x, w, b: causal_conv1d_fn(x, w, b, activation="silu"),
        )
        scan = [made(B, D, L), made(B, D, L), r(D, N), made(B, 1, N, L), made(B, 1, N, L), r(D), made(B, D, L), r(D)]

        def scanned(u: Tensor, dt: Tensor, A: Tensor, *rest: Tensor) -> Any:
            B_, C_, D_, z, bias = rest
            return selective_scan_fn(u, dt, -A.exp(), B_, C_, D_, z, bias, True, return_last_state=True)

        yield f"selective_scan_fn {at}", scan, scanned
        weights = [made(D, 1, 4), made(D), made(R + 2 * N, D), made(D, R), made(E, D), r(D, N), r(D), r(D)]

        def inner(xz: Tensor, *w: Tensor) -> Any:
            conv_w, conv_b, x_w, dt_w, out_w, A, skip, bias = w
            return mamba_inner_fn(
                *(xz, conv_w, conv_b, x_w, dt_w, out_w, None, -A.exp(), None, None, skip),
                delta_bias=bias,
                delta_softplus=True,
            )

        yield f"mamba_inner_fn {at}", [made(B, 2 * D, L), *weights], inner


def grouped() -> Iterator[tuple[str, list[Any], Call]]:
    for rows in (512, 4096, 16384):

        def ends(rows: int = rows) -> Tensor:
            return torch.tensor([rows // 4, rows // 2, rows - 7, rows], dtype=torch.int32, device="cuda")

        sizes = [r(rows, 256, dtype=torch.bfloat16), r(4, 256, 512, dtype=torch.bfloat16), ends]
        yield f"grouped_mm {rows}", sizes, lambda x, w, offs: F.grouped_mm(x, w, offs=offs)


def optimizers() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Peaks of the first two steps over parameters of several sizes, and the events of the second."""
    shapes = [(4096, 256), (1024, 256), (256,), (512, 256), (256, 256), ()]
    kinds: dict[str, Callable[..., Any]] = {
        "sgd": SGD,
        "momentum": partial(SGD, momentum=0.9),
        "adam": Adam,
        "adamw": AdamW,
    }
    ways: tuple[dict[str, bool], ...] = ({}, {"foreach": False}, {"foreach": True}, {"fused": True})
    for (name, kind), way, dtype in product(kinds.items(), ways, FLOATS[:2]):

        def call(kind: Any = kind, way: dict[str, bool] = way, dtype: torch.dtype = dtype) -> Any:
            parameters = [nn.Parameter(torch.randn(shape, device="cuda").to(dtype)) for shape in shapes]
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer = kind(parameters, lr=1e-4, **way)
            found: dict[str, Any] = {"params": [p.nbytes for p in parameters]}
            found["first"], found["second"] = peaks(optimizer.step), peaks(optimizer.step)
            found["events"] = record(optimizer.step)
            found["clip"] = record(lambda: nn.utils.clip_grad_norm_(parameters, 1.0))
            found["zero"] = record(optimizer.zero_grad)
            return found

        yield f"{name} {way} {str(dtype)[6:]}", call
