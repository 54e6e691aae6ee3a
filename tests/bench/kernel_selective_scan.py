"""Our selective scan in Triton beside mamba-ssm's, on a GPU: which launch is fastest, and who wins where.

    python tests/bench/kernel_selective_scan.py [--sweep] [--compare] [--profile] [--budget SECONDS] > lines.jsonl

Prints one JSON line a measurement; without options, the first two, the second under the launches that won the first.

--sweep    each kernel at D = 1536, N = 16, L = 131072, batch 1, bfloat16, under every launch of a small table, with its
           registers and spills, and at several chunk lengths. Compiled beforehand by several processes.
--compare  forward, and forward with backward, against selective_scan_fn at L from 2k to 512k, batch 1 and 8, each in
           its own layout: ours (B, L, D), theirs (B, D, L). The two take turns; medians of CUDA events. First the
           error of both against float64 at L = 512. Lengths that do not fit are reported as such.
--profile  what Nsight Compute says of each kernel, ours and mamba-ssm's, at the sizes of the sweep: how busy the units
           are, what warps wait for. Nobody else may use the GPU's counters meanwhile.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from benchbench.counters import hardware
from benchbench.models import selective_scan_triton as ours
from benchbench.models.kernels import loaded
from benchbench.models.scan_inputs import Inputs
from benchbench.models.selective_scan import sequential_scan
from benchbench.models.selective_scan_triton import Launch

D, N = 1536, 16
KERNELS = {
    "STATES": "selective_scan_states",
    "OUTPUTS": "selective_scan_outputs",
    "UP": "selective_scan_up",
    "DOWN": "selective_scan_down",
}
FORWARD = (
    Launch(32, unroll=1),
    Launch(64),
    Launch(64, unroll=2, registers=96),
    Launch(64, unroll=1),
    Launch(64, unroll=1, registers=112),
    Launch(64, unroll=1, registers=120),
    Launch(64, unroll=1, registers=128),
    Launch(64, unroll=1, registers=144),
    Launch(256, warps=4, unroll=1, registers=128),
)
BACKWARD = (
    Launch(32),
    Launch(32, unroll=1),
    Launch(32, unroll=2),
    Launch(32, unroll=8),
    Launch(32, unroll=1, registers=144),
    Launch(32, unroll=2, registers=128),
    Launch(32, unroll=2, registers=168),
    Launch(64, unroll=1),
    Launch(128, warps=4),
)
TABLE = {"STATES": FORWARD, "OUTPUTS": FORWARD, "UP": BACKWARD, "DOWN": BACKWARD}
CHUNKS = (64, 256, 512)


class Timed:
    """In the place of a kernel: launches it between two events, and keeps what was compiled."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.events, self.compiled = kernel, [], None

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.compiled = self.kernel[grid](*args, **options)
            end.record()
            self.events.append((start, end))

        return launch

    def milliseconds(self) -> float:
        """Median of the launches since the last call."""
        torch.cuda.synchronize()
        times = [start.elapsed_time(end) for start, end in self.events]
        self.events.clear()
        return statistics.median(times)


def draw(batch: int, length: int, dtype: torch.dtype, channels: int = D) -> list[Tensor]:
    """The scan's inputs and a zero state: dt as a model has it at its start, log-uniform in [0.001, 0.1] by channel."""
    generator = torch.Generator("cuda").manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype, device="cuda")

    dt_D = 10 ** (-3 + 2 * torch.rand(channels, generator=generator, device="cuda"))
    raw = 0.5 * normal(batch, length, channels) + torch.log(torch.expm1(dt_D)).to(dtype)
    A = -torch.arange(1.0, N + 1, device="cuda").repeat(channels, 1)
    rest = (normal(batch, length, N), normal(batch, length, N), A, torch.ones(channels, device="cuda"))
    state = torch.zeros(batch, channels, N, device="cuda")
    return [normal(batch, length, channels), raw, normal(batch, length, channels), *rest, state]


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def both_ways(tensors: list[Tensor]) -> None:
    """One forward and backward of ours, from leaves."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:-1]]
    y, _ = ours.triton_scan(Inputs(*leaves), tensors[-1])
    y.backward(torch.ones_like(y))


def under(name: str, launch: Launch, tensors: list[Tensor]) -> None:
    """Runs what contains the kernel that `name` launches."""
    setattr(ours, name, launch)
    if name in ("UP", "DOWN"):
        both_ways(tensors)
    else:
        ours.triton_scan(Inputs(*tensors[:-1]), tensors[-1])


def compiled_ahead(job: tuple[str, Launch, int]) -> str:
    """Fills Triton's cache on disk: two chunks are enough, for lengths are no part of a kernel."""
    name, launch, ours.CHUNK = job
    default = getattr(ours, name)
    try:
        under(name, launch, draw(1, 2 * ours.CHUNK, torch.bfloat16))
        torch.cuda.synchronize()
    except Exception as error:
        return repr(error)[:200]
    finally:
        setattr(ours, name, default)
    return ""


def sweep() -> None:
    defaults = {name: getattr(ours, name) for name in KERNELS}
    whole = ours.CHUNK
    jobs = [(name, launch, whole) for name, launches in TABLE.items() for launch in launches]
    jobs += [(name, defaults[name], chunk) for chunk in CHUNKS for name in KERNELS]
    began = time.time()
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        failures = dict(zip(jobs, pool.map(compiled_ahead, jobs), strict=True))
    say(kind="compiled", kernels=len(jobs), seconds=round(time.time() - began, 1))
    tensors = draw(1, 131072, torch.bfloat16)
    modules = loaded(tensors[0], "selective_scan_kernels", "selective_scan_kernels_backward")
    timed: dict[str, Timed] = {}
    for module, kernel in zip((*modules[:1] * 2, *modules[1:] * 2), KERNELS.values(), strict=True):
        timed[kernel] = Timed(getattr(module, kernel))
        setattr(module, kernel, timed[kernel])
    timed["carry"] = modules[0].selective_scan_carry = Timed(modules[0].selective_scan_carry)

    def measure(name: str, launch: Launch) -> float:
        for _ in range(2):
            under(name, launch, tensors)
        for kernel in timed.values():
            torch.cuda.synchronize()
            kernel.events.clear()
        for _ in range(5):
            under(name, launch, tensors)
        kernel = timed[KERNELS[name]]
        line = {"kernel": KERNELS[name], "chunk": ours.CHUNK, **launch._asdict(), "ms": kernel.milliseconds()}
        facts = {"registers_used": kernel.compiled.n_regs, "spills": kernel.compiled.n_spills}
        say(kind="sweep", **line, **facts, carry_ms=timed["carry"].milliseconds())
        setattr(ours, name, defaults[name])
        return line["ms"]

    best: dict[str, tuple[float, Launch]] = {}
    for job in jobs:
        name, launch, ours.CHUNK = job
        if failures[job]:
            say(kind="sweep", kernel=KERNELS[name], chunk=ours.CHUNK, **launch._asdict(), error=failures[job])
            continue
        ms = measure(name, launch)
        if whole == ours.CHUNK and ms < best.get(name, (float("inf"), launch))[0]:
            best[name] = ms, launch
    ours.CHUNK = whole
    for module, kernel in zip((*modules[:1] * 2, *modules[1:] * 2), KERNELS.values(), strict=True):
        setattr(module, kernel, timed[kernel].kernel)
    modules[0].selective_scan_carry = timed["carry"].kernel
    for name, (ms, launch) in best.items():
        say(kind="best", name=name, **launch._asdict(), ms=ms)
        setattr(ours, name, launch)


def turned(tensors: list[Tensor]) -> list[Tensor]:
    """u, dt, A, B, C, D, z as selective_scan_fn takes them."""
    u, raw, z, B, C, A, skip, _ = (tensor.detach() for tensor in tensors)
    u, raw, z, B, C = (tensor.mT.contiguous() for tensor in (u, raw, z, B, C))
    return [u, raw, A, B, C, skip, z]


def median_ms(calls: dict[str, Callable[[], Any]], budget: float) -> dict[str, float]:
    """Medians of calls that take turns, after two rounds of warm-up, within about `budget` seconds or 20 rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.time()
    for done in range(22):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if done > 1:
                times[name].append(start.elapsed_time(end))
        if done > 4 and time.time() - began > budget:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def rms_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).square().mean() / exact.square().mean()).sqrt().item()


def errors(theirs: Callable[..., Tensor] | None) -> None:
    """Rms error over rms of the output and of every gradient, against the loop in float64, from bfloat16 inputs."""
    tensors = draw(2, 512, torch.bfloat16, channels=96)
    weight = torch.randn(2, 512, 96, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).bfloat16()
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    y, _ = sequential_scan(Inputs(*exact[:-1]), exact[-1])
    wanted = [y, *torch.autograd.grad((y * weight.double()).sum(), exact[:-1])]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:-1]]
    y, _ = ours.triton_scan(Inputs(*leaves), tensors[-1])
    got = [y, *torch.autograd.grad(y, leaves, weight)]
    names = ("y", *Inputs._fields)
    say(kind="error", who="ours", **{n: rms_error(g, w) for n, g, w in zip(names, got, wanted, strict=True)})
    if theirs:
        given = [tensor.requires_grad_() for tensor in turned(tensors)]
        y = theirs(*given, delta_softplus=True)
        u, raw, A, B, C, skip, z = torch.autograd.grad(y, given, weight.mT.contiguous())
        got = [y.mT, u.mT, raw.mT, z.mT, B.mT, C.mT, A, skip]
        say(kind="error", who="mamba-ssm", **{n: rms_error(g, w) for n, g, w in zip(names, got, wanted, strict=True)})


def compare(budget: float) -> None:
    try:
        from mamba_ssm.ops import selective_scan_interface  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"mamba-ssm is not compared: {error}", file=sys.stderr)
        theirs = None
    else:
        theirs = selective_scan_interface.selective_scan_fn
    errors(theirs)
    sizes = [(1, 2**i, 1536) for i in range(11, 20)] + [(8, 2**i, 1536) for i in (11, 13, 15, 16)]
    sizes += [(1, 2**17, 1024), (8, 2**13, 1024)]
    for batch, length, channels in sizes:
        size = {"batch": batch, "length": length, "channels": channels}
        try:
            tensors = draw(batch, length, torch.bfloat16, channels)
            given = turned(tensors) if theirs else []
            inputs, state = Inputs(*tensors[:-1]), tensors[-1]
            calls: dict[str, Callable[[], Any]] = {"ours": lambda i=inputs, s=state: ours.triton_scan(i, s)}
            if theirs:
                calls["mamba_ssm"] = lambda g=given: theirs(*g, delta_softplus=True)
            say(kind="compare", what="forward", **size, **median_ms(calls, budget))
            leaves = [tensor.requires_grad_() for tensor in inputs]
            gradient = torch.ones_like(inputs.u)

            def train(i: Inputs = inputs, s: Tensor = state, ls: Any = leaves, g: Tensor = gradient) -> None:
                torch.autograd.grad(ours.triton_scan(i, s)[0], ls, g)

            calls = {"ours": train}
            if theirs:
                other = [tensor.requires_grad_() for tensor in given]
                turn = gradient.mT.contiguous()
                calls["mamba_ssm"] = lambda g=other, t=turn: torch.autograd.grad(theirs(*g, delta_softplus=True), g, t)
            say(kind="compare", what="forward+backward", **size, **median_ms(calls, budget))
        except torch.OutOfMemoryError:
            say(kind="compare", **size, error="out of memory")


SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "Occupancy", "LaunchStats")


def profile() -> None:
    if shutil.which("ncu") is None:
        sys.exit("--profile needs ncu, which comes with CUDA's toolkit.")
    command = ["ncu", "--csv", "--page", "details", "--print-details", "all", "--print-units", "base"]
    command += ["--kernel-name", "regex:selective_scan", "--profile-from-start", "off"]
    command += [part for section in SECTIONS for part in ("--section", section)]
    done = subprocess.run([*command, sys.executable, __file__, "--once"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"ncu failed: {(done.stderr or done.stdout).strip()[-800:]}")
    found: dict[str, dict[str, str]] = {}
    for row in hardware.rows(done.stdout.splitlines()):
        if row["Metric Name"]:
            named = found.setdefault(f"{row['ID']} {row['Kernel Name']}", {})
            named[f"{row['Metric Name']} [{row['Metric Unit']}]"] = row["Metric Value"]
    for kernel, metrics in found.items():
        say(kind="profile", kernel=kernel.partition(" ")[2][:80], **metrics)


def once() -> None:
    """What `profile` watches: the second of two calls of ours, and of mamba-ssm's."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    tensors = draw(1, 131072, torch.bfloat16)
    given = turned(tensors)
    for watched in (False, True):
        torch.cuda.synchronize()
        if watched:
            torch.cuda.profiler.start()
        both_ways(tensors)
        selective_scan_fn(*(tensor.requires_grad_() for tensor in given), delta_softplus=True).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds a comparison")
    given = parser.parse_args()
    if given.once or given.profile:
        once() if given.once else profile()
        return
    say(kind="device", name=torch.cuda.get_device_name(), torch=torch.__version__)
    if given.sweep or not given.compare:
        sweep()
    if given.compare or not given.sweep:
        compare(given.budget)


if __name__ == "__main__":
    main()
