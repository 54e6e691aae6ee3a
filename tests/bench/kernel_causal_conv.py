"""Our causal convolution with its SiLU in Triton beside causal-conv1d's and torch's own, on a GPU.

    python tests/bench/kernel_causal_conv.py [--sweep] [--budget SECONDS] > lines.jsonl

Prints one JSON line a measurement: forward, and forward with backward, at D = 1536, 4 taps, bfloat16, from 2k tokens to
512k at batch 1, each in its own layout: ours and torch's (B, L, D), half of a wider tensor, causal-conv1d's (B, D, L).
They take turns; medians of CUDA events, with the share of the time that the bytes alone would take by a copy. With
--sweep, before that, ours at L = 131072 in every tile of a small table, and the best ones are kept.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from kernel_selective_scan import median_ms, say
from torch import Tensor

from benchbench.models import causal_conv_triton as ours
from benchbench.models.mamba import CausalConv1d

D, K = 1536, 4
TILES = [
    ours.Tile(tokens, channels, warps, unroll)
    for (channels, warps), tokens, unroll in product(((64, 1), (128, 1), (256, 1), (256, 2)), (32, 64, 128), (4, 8))
]


def drawn(length: int, module: CausalConv1d) -> list[Tensor]:
    """x as half of a wider tensor, the weight and the bias, as leaves."""
    x = torch.randn(1, length, 2 * D, device="cuda", dtype=torch.bfloat16).chunk(2, dim=-1)[0]
    return [x.detach().requires_grad_(), module.weight, module.bias]  # pyright: ignore[reportReturnType]


def both_ways(call: Callable[..., Tensor], leaves: list[Tensor], gradient: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(call(*leaves), leaves, gradient)


def forward(call: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], Any]:
    def run() -> Tensor:
        with torch.inference_mode():
            return call(*leaves)

    return run


def theirs() -> Callable[..., Tensor] | None:
    """The published kernel, of channels before tokens."""
    try:
        from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"causal-conv1d is not compared: {error}", file=sys.stderr)
        return None
    return lambda x, w, b: causal_conv1d_fn(x, w[:, 0], b, activation="silu")


def sweep(module: CausalConv1d, budget: float) -> None:
    """Tries the tiles at L = 131072 on forward alone, then on both ways, and keeps the best of each."""
    leaves = drawn(131072, module)
    gradient = torch.randn(1, 131072, D, device="cuda", dtype=torch.bfloat16)
    ways = {"FORWARD": forward(ours.triton_conv, leaves), "BACKWARD": both_ways(ours.triton_conv, leaves, gradient)}
    for name, call in ways.items():
        times: dict[ours.Tile, float] = {}
        for tile in TILES:
            setattr(ours, name, tile)
            times[tile] = median_ms({name: call}, budget)[name]
            say(kind=name, **tile._asdict(), ms=times[tile])
        setattr(ours, name, min(times, key=lambda tile: times[tile]))
        say(kind=f"best {name}", **getattr(ours, name)._asdict())


def copy_ms(budget: float) -> float:
    """Milliseconds a byte, read or written, of a large copy."""
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return median_ms({"copy": lambda: target.copy_(source)}, budget)["copy"] / (2 * source.nbytes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds a comparison")
    given = parser.parse_args()
    say(kind="device", name=torch.cuda.get_device_name(), torch=torch.__version__)
    module = CausalConv1d(D, K, "chunked").to("cuda", torch.bfloat16)
    if given.sweep:
        sweep(module, given.budget)
    byte_ms, other = copy_ms(given.budget), theirs()
    for length in (2**i for i in range(11, 20)):
        leaves = drawn(length, module)
        gradient = torch.randn(1, length, D, device="cuda", dtype=torch.bfloat16)
        calls = {"ours": (ours.triton_conv, leaves, gradient)}
        calls["torch"] = (lambda x, w, b: module(x), leaves, gradient)
        if other is not None:
            turned = [leaves[0].detach().mT.contiguous().requires_grad_(), *leaves[1:]]
            calls["causal_conv1d"] = (other, turned, gradient.mT.contiguous())
        # Of 2 bytes each: x read, u written; backward x and du read, dx written.
        for what, way, times in (("forward", forward, 2), ("forward+backward", both_ways, 5)):
            found = median_ms(
                {who: way(*args[: 2 if way is forward else 3]) for who, args in calls.items()}, given.budget
            )
            say(what=what, length=length, **found, of_copy=times * 2 * length * D * byte_ms / found["ours"])


if __name__ == "__main__":
    main()
