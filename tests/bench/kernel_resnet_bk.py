"""ResNet-BK's kernels on an NVIDIA GPU: the resolvent against a copy of its bytes, the experts against a dense product.

    python tests/bench/kernel_resnet_bk.py [--only sweep,sizes,decode,model,experts]

Prints JSON lines. Times are medians over CUDA events, each after 256 MB of zeros have been written, so that nothing is
left in the L2 cache (`triton.testing.do_bench`). `copy_ratio` is the time in which torch copies as many bytes as the
kernel must read and write, over the kernel's: 1 is as fast as a copy. `sweep` tries tilings at one and 16 million
positions, compiled by several processes first; the best of each kernel, by the product of its times, is what `sizes`
then measures, beside the tiling that is set in models/resolvent_triton.py.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchbench.models import build
from benchbench.models import resolvent_triton as rt
from benchbench.models.moe import MoE
from benchbench.models.resolvent_triton import Tiling
from benchbench.specs.resnet_bk import ResNetBKSpec

SECTIONS = ("sweep", "sizes", "decode", "model", "experts")
SET = {
    "left_fraction_forward": rt.LEFT,
    "left_fraction_backward": rt.LEFT_GRADIENT,
    "two_sided_forward": rt.TWO_SIDED,
    "two_sided_backward": rt.TWO_SIDED_GRADIENT,
}
WIDE = [(64, 1), (64, 2), (128, 4)]
SWEEP = {
    "left_fraction_forward": [
        *(Tiling(chunk, read) for chunk in (32, 64, 128) for read in (4, 8, 16)),
        Tiling(32, 32),
        *(Tiling(64, 8, *wide) for wide in WIDE),
    ],
    "left_fraction_backward": [
        *(Tiling(chunk, read) for chunk in (32, 64, 128) for read in (4, 8)),
        *(Tiling(64, 4, *wide) for wide in WIDE),
    ],
    "two_sided_forward": [
        *(Tiling(chunk, read) for chunk in (8, 16, 32) for read in (4, 8)),
        Tiling(16, 16),
        Tiling(16, 8, 128, 4),
    ],
    "two_sided_backward": [
        *(Tiling(chunk, read) for chunk in (8, 16) for read in (4, 8)),
        Tiling(32, 4),
        Tiling(16, 4, 128, 4),
    ],
}
ANCHOR = ResNetBKSpec(name="anchor", n_layers=6, d_model=256, d_ff=512, vocab_size=30_000, tied_head=False)
ANCHOR_TOKENS_PER_S = 2035.0
"""The published core's stored forward throughput at d_model 256, 6 layers, 2,048 tokens, batch 2."""


def emit(section: str, **values: Any) -> None:
    print(json.dumps({"section": section} | values), flush=True)


def seconds(run: Callable[[], object], rep_ms: int = 30) -> float:
    from triton.testing import do_bench

    found_ms = do_bench(run, warmup=5, rep=rep_ms, return_mode="median")
    assert isinstance(found_ms, float)
    return found_ms / 1e3


def call(kernel: str, batch: int, length: int, dtype: torch.dtype) -> tuple[Callable[[Tiling], Tensor], int]:
    """A kernel on random numbers, to be given a tiling, and the bytes it must move."""
    v_BN = (torch.rand(batch, length, device="cuda") * 6 - 3).to(dtype)
    g_BN2 = torch.randn(batch, length, 2, device="cuda")
    size = v_BN.element_size()
    match kernel:
        case "left_fraction_forward":
            return partial(rt.left, v_BN, None), (size + 8) * v_BN.numel()
        case "left_fraction_backward":
            return partial(rt.left_gradient, rt.left(v_BN), g_BN2, dtype), (16 + size) * v_BN.numel()
        case "two_sided_forward":
            return partial(rt.two_sided, v_BN), (size + 8) * v_BN.numel()
        case _:
            return partial(rt.two_sided_gradient, v_BN, g_BN2), (2 * size + 8) * v_BN.numel()


def copying(size: int) -> float:
    """Seconds to read and write `size` bytes together."""
    source = torch.empty(size // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source))


def compile_one(kernel: str, tiling: Tiling, dtype: torch.dtype) -> None:
    run, _ = call(kernel, 1, 4096, dtype)
    run(tiling)


def sweep() -> dict[str, Tiling]:
    """Measures every tiling; the best of each kernel."""
    pairs = [(kernel, tiling) for kernel, tilings in SWEEP.items() for tiling in tilings]
    jobs = [(*pair, torch.float32) for pair in pairs] + [(*pair, torch.bfloat16) for pair in SET.items()]
    with ProcessPoolExecutor(12, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_one, *zip(*jobs, strict=True)))
    times = dict.fromkeys(pairs, 1.0)
    for length in (2**20, 2**24):
        for kernel, tilings in SWEEP.items():
            run, size = call(kernel, 1, length, torch.float32)
            copy_s = copying(size)
            for tiling in tilings:
                time_s = seconds(partial(run, tiling))
                times[kernel, tiling] *= time_s
                emit(
                    "sweep", kernel=kernel, length=length, **tiling._asdict(), time_s=time_s, copy_ratio=copy_s / time_s
                )
    best = {kernel: min(tilings, key=lambda tiling: times[kernel, tiling]) for kernel, tilings in SWEEP.items()}
    for kernel, tiling in best.items():
        emit("best", kernel=kernel, **tiling._asdict())
    return best


def sizes(best: dict[str, Tiling]) -> None:
    shapes = [(1, 2**i) for i in (11, 13, 15, 17, 20, 22, 24, 26)] + [(32, 2048)]
    for dtype in (torch.float32, torch.bfloat16):
        for batch, length in shapes if dtype == torch.float32 else shapes[4:5] + shapes[7:8]:
            for kernel in SET:
                run, size = call(kernel, batch, length, dtype)
                copy_s = copying(size)
                for tiling, name in {best[kernel]: "best", SET[kernel]: "set"}.items():
                    time_s = seconds(partial(run, tiling))
                    emit(
                        "sizes",
                        kernel=kernel,
                        dtype=str(dtype).removeprefix("torch."),
                        batch=batch,
                        length=length,
                        tiling=name,
                        time_s=time_s,
                        bytes_per_s=size / time_s,
                        copy_ratio=copy_s / time_s,
                    )


def decode() -> None:
    """The left fraction with a state: of one position, what decoding asks of the core a layer, and of many."""
    for batch, length in ((1, 1), (64, 1), (1024, 1), (1, 2**20), (1, 2**24)):
        v_BN = torch.zeros(batch, length, device="cuda")
        state_B2 = torch.zeros(batch, 2, device="cuda")
        emit("decode", batch=batch, length=length, time_s=seconds(partial(rt.left, v_BN, state_B2)))


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@torch.no_grad()
def model() -> None:
    """The whole model's forward, head included, at the size of the published figure."""
    for dtype in (torch.float32, torch.bfloat16):
        for path in ("triton", "chunked"):
            built = build(ANCHOR, path=path, device="cuda", dtype=dtype).eval()
            tokens_BN = torch.randint(ANCHOR.vocab_size, (2, 2048), device="cuda")
            runs = {"model": partial(built, tokens_BN), "backbone": partial(built.backbone, tokens_BN)}
            if path == "triton":
                runs |= {f"{name}, graph": captured(run) for name, run in runs.items()}
            for name, run in runs.items():
                rate = tokens_BN.numel() / seconds(run)
                emit(
                    "model",
                    what=name,
                    path=path,
                    dtype=str(dtype).removeprefix("torch."),
                    tokens_per_s=rate,
                    published_ratio=rate / ANCHOR_TOKENS_PER_S,
                )


def experts() -> None:
    """The mixture at resnet-bk-130m's sizes beside one dense feed-forward of the same products."""
    d, d_ff, n_experts = 768, 1216, 4
    for dtype in (torch.bfloat16, torch.float32):
        moe = MoE(d, d_ff, n_experts, 1, 0.0).to("cuda", dtype)
        up, down = (torch.randn(*shape, device="cuda", dtype=dtype) / d for shape in ((d, d_ff), (d_ff, d)))
        up.requires_grad_()
        down.requires_grad_()
        for rows in (1, 64, 2048, 2**16, 2**20):
            x_BND = torch.randn(1, rows, d, device="cuda", dtype=dtype, requires_grad=True)

            def dense(x: Tensor, up: Tensor = up, down: Tensor = down) -> Tensor:
                return F.relu(x @ up) @ down

            for name, layer in (("mixture", moe), ("dense", dense)):
                for phase, run in phases(layer, x_BND, [*moe.parameters(), up, down]):
                    passes = 3 if phase == "train" else 1
                    time_s = seconds(run)
                    flops_per_s = passes * 4 * rows * d * d_ff / time_s
                    emit(
                        "experts",
                        what=name,
                        phase=phase,
                        dtype=str(dtype).removeprefix("torch."),
                        rows=rows,
                        time_s=time_s,
                        flops_per_s=flops_per_s,
                    )


def phases(
    layer: Callable[[Tensor], Tensor], x_BND: Tensor, parameters: Iterable[Tensor]
) -> Iterator[tuple[str, Callable[[], object]]]:
    gradient = torch.ones_like(x_BND)

    @torch.no_grad()
    def forward() -> Tensor:
        return layer(x_BND)

    def train() -> None:
        for each in (x_BND, *parameters):
            each.grad = None
        layer(x_BND).backward(gradient)

    parameters = list(parameters)
    yield "forward", forward
    yield "train", train
    yield "forward, graph", captured(forward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    chosen = parser.parse_args().only.split(",")
    emit("device", name=torch.cuda.get_device_name(), torch=torch.__version__)
    best = sweep() if "sweep" in chosen else SET
    if "sizes" in chosen:
        sizes(best)
    for name, section in (("decode", decode), ("model", model), ("experts", experts)):
        if name in chosen:
            section()


if __name__ == "__main__":
    main()
