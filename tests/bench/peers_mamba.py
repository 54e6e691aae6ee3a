"""Our Mamba paths beside the public pure-PyTorch ones: same weights, two threads, interleaved in one process.

    python tests/bench/peers_mamba.py [--tuned] [--lengths 1024,4096] [--mambapy-path DIR] [--cpu-time]

Prints one Markdown table: tokens per second (best of the rounds), the ratio to the fastest peer, bytes saved for
backward, and the error against float64. `no scan` is our model with the scan replaced by one addition: what is left
when the scan costs nothing. Peers are checked to agree in logits before anything is timed. The sequential peers are
not trained: each of their steps differentiates a slice by a full-size zero tensor, so that training is quadratic.

`--tuned` sets glibc's malloc thresholds to 16 GiB and starts again: large tensors then stay mapped between calls,
which speeds up the peers more than us. `--cpu-time` counts seconds of one thread's work instead of the clock on the
wall, for a machine that others use as well. `--mambapy-path` is a folder with the package `mambapy`, if not installed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from benchbench.models import build
from benchbench.models.base import LanguageModel
from benchbench.models.scan_inputs import Inputs
from benchbench.specs.mamba import MambaSpec

SPEC = MambaSpec(name="peers", d_model=256, n_layers=4, vocab_size=1024)
MALLOC = {name: str(16 * 2**30) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}


@dataclass
class Contender:
    """A model called as tokens -> logits, and `body`, its part without the head."""

    name: str
    logits: Callable[[Tensor], Tensor]
    body: Callable[[Tensor], Tensor]
    module: nn.Module
    peer: bool
    trains: bool = True


class NoScan(nn.Module):
    """In place of the scan: an addition, through which gradients still reach every projection."""

    def forward(self, x: Inputs, h: None) -> tuple[Tensor, Tensor]:
        return torch.addcmul(x.u + x.raw, x.u, x.D) * F.silu(x.z), x.A


class MambaPy(nn.Module):
    """mambapy's stack of blocks under our embedding and head."""

    def __init__(self, ours: LanguageModel, *, pscan: bool) -> None:
        super().__init__()
        from mambapy.mamba import Mamba, MambaConfig, RMSNorm  # pyright: ignore[reportMissingImports]

        self.embedding = nn.Embedding(SPEC.vocab_size, SPEC.d_model)
        stack = Mamba(MambaConfig(d_model=SPEC.d_model, n_layers=SPEC.n_layers, d_state=SPEC.d_state, pscan=pscan))
        self.layers = stack.layers
        self.norm_f = RMSNorm(SPEC.d_model, 1e-5)
        self.load_state_dict(ours.backbone.state_dict())

    def body(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.body(tokens), self.embedding.weight)


def hugging_face(ours: LanguageModel, *, use_mambapy: bool) -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=SPEC.vocab_size,
        hidden_size=SPEC.d_model,
        num_hidden_layers=SPEC.n_layers,
        state_size=SPEC.d_state,
        use_mambapy=use_mambapy,
        use_cache=False,
    )
    model = MambaForCausalLM(config)
    model.load_state_dict(
        {name.replace("backbone.embedding.", "backbone.embeddings."): w for name, w in ours.state_dict().items()}
    )
    return model


def contenders() -> list[Contender]:
    chunked, eager, ceiling = (build(SPEC, path=path) for path in ("chunked", "eager", "chunked"))
    for layer in ceiling.backbone.layers:  # pyright: ignore
        layer.mixer.scan = NoScan()

    def mine(name: str, model: LanguageModel) -> Contender:
        return Contender(name, model, model.backbone, model, peer=False)

    def hf(name: str, *, use_mambapy: bool) -> Contender:
        model = hugging_face(chunked, use_mambapy=use_mambapy)
        body = model.get_submodule("backbone")
        return Contender(name, lambda t: model(t).logits, lambda t: body(t)[0], model, peer=True, trains=use_mambapy)

    found = [mine("chunked", chunked), mine("eager", eager), mine("no scan", ceiling)]
    found.append(hf("transformers, sequential", use_mambapy=False))
    if find_spec("mambapy"):
        found.append(hf("transformers, mambapy", use_mambapy=True))
        for name, pscan in (("mambapy, pscan", True), ("mambapy, sequential", False)):
            model = MambaPy(chunked, pscan=pscan)
            found.append(Contender(name, model, model.body, model, peer=True, trains=pscan))
    return found


def tokens_of(length: int) -> Tensor:
    return torch.randint(SPEC.vocab_size, (1, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def errors(all_of_them: list[Contender]) -> dict[str, float]:
    """Rms error of the logits against float64, over their rms, at 256 tokens; asserts that all agree."""
    tokens = tokens_of(256)
    exact = build(SPEC, path="eager").double()(tokens)
    found = {
        c.name: ((c.logits(tokens) - exact).square().mean() / exact.square().mean()).sqrt().item()
        for c in all_of_them
        if c.name != "no scan"
    }
    assert max(found.values()) < 1e-5, found
    return found


def saved_bytes(contender: Contender) -> float:
    """Bytes autograd keeps a token and layer, distinct storages, without parameters, head and loss."""
    length = 256
    owned = {p.untyped_storage().data_ptr() for p in contender.module.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        contender.body(tokens_of(length))
    return sum(kept.values()) / length / SPEC.n_layers


def forward(contender: Contender, tokens: Tensor) -> None:
    with torch.no_grad():
        contender.logits(tokens)


def forward_backward(contender: Contender, tokens: Tensor) -> None:
    logits = contender.logits(tokens)
    F.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    contender.module.zero_grad()


def speeds(
    runs: list[Contender],
    work: Callable[[Contender, Tensor], None],
    length: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Tokens per second of each, best of `rounds` in which all take turns; the first round warms up."""
    tokens = tokens_of(length)
    best: dict[str, float] = {}
    for i in range(rounds + 1):
        for contender in runs:
            began = clock()
            work(contender, tokens)
            speed = length / (clock() - began)
            if i:
                best[contender.name] = max(best.get(contender.name, 0.0), speed)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--lengths", default="1024,4096")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--mambapy-path", type=Path)
    given = parser.parse_args()
    if given.tuned and any(name not in os.environ for name in MALLOC):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    if given.mambapy_path:
        sys.path.append(str(given.mambapy_path))
    threads, clock = (1, time.process_time) if given.cpu_time else (given.threads, time.perf_counter)
    torch.set_num_threads(threads)
    runs = contenders()
    wrong, kept = errors(runs), {c.name: saved_bytes(c) for c in runs}
    columns: dict[str, dict[str, float]] = {}
    for length in (int(text) for text in given.lengths.split(",")):
        columns[f"fwd {length}"] = speeds(runs, forward, length, given.rounds, clock)
        trained = [c for c in runs if c.trains]
        columns[f"f+b {length}"] = speeds(trained, forward_backward, length, given.rounds, clock)
    rows: list[list[str]] = []
    for c in runs:
        cells = [f"{column[c.name]:,.0f}" if c.name in column else "–" for column in columns.values()]
        error = f"{wrong[c.name]:.1e}" if c.name in wrong else "–"
        rows.append([("" if c.peer else "ours: ") + c.name, *cells, f"{kept[c.name]:,.0f}", error])
    peers = {c.name for c in runs if c.peer}
    for label, over in (("chunked / fastest peer", peers), ("no scan / chunked", None)):
        cells = []
        for column in columns.values():
            top = max((column[n] for n in over if n in column), default=None) if over else column["chunked"]
            cells.append(f"{column['chunked' if over else 'no scan'] / top:.2f}×" if top else "–")
        rows.append([label, *cells, "", ""])
    setting = f"{threads} threads, malloc {'tuned' if given.tuned else 'stock'}"
    print(f"torch {torch.__version__}, {setting}; tokens per {'CPU-second' if given.cpu_time else 'second'}\n")
    print(tabulate(rows, ["", *columns, "saved B/token/layer", "error"], tablefmt="github", stralign="right"))


if __name__ == "__main__":
    main()
