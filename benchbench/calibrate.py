# pyright: standard
"""What a device does in a second, operation by operation: what the time model stands on.

Every curve is one operation of torch over a grid of sizes, and no case of a suite is run. On a GPU, what the host takes
to launch a model is measured on tiny ones. What fails is left out with its reason, and the rest is kept.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from benchbench.case import Case
from benchbench.clock import wake
from benchbench.cores import launching_core
from benchbench.devices import name_of
from benchbench.devices.calibration import Calibration, Curve, HostCost, Sizes, Timing
from benchbench.env import describe
from benchbench.microbench import modules
from benchbench.microbench.plan import PLAN
from benchbench.microbench.supplies import Make, Spec, Supplies

CLOCK_HZ = 2e9
"""About what a GPU counts in a second: how long it is kept busy while calls queue up behind."""

ROUND_S = {"cuda": 2e-3, "cpu": 5e-3}
"""Calls are repeated until a round takes about this long."""

ROUNDS = 5
WARM_S = 1.0
LONG_S = 0.02
"""A call longer than this is timed in two rounds, not five."""
BUDGET_S = {"cuda": 230.0, "cpu": 55.0}
MODULES_S = 60.0
"""Of a GPU's budget, what is kept for whole models."""

Report = Callable[[str], None]


@dataclass
class Stopwatch:
    """Times calls on one device. Each call is given its number, so that it can take turns with its weights."""

    device: torch.device
    entry_s: float = 0.0
    """What the host spends to begin a backward pass, whatever it holds."""

    def __call__(self, make: Make) -> Timing:
        timing = self._cuda(make.call) if self.device.type == "cuda" else self._cpu(make.call)
        if make.mode == "backward":
            return timing._replace(host_s=max(0.0, timing.host_s - self.entry_s))
        return timing

    def _cpu(self, call: Callable[[int], object]) -> Timing:
        call(0)
        start = perf_counter()
        call(1)
        rough = perf_counter() - start
        calls = max(1, int(ROUND_S["cpu"] / max(rough, 1e-7)))
        times: list[float] = []
        for turn in range(ROUNDS if rough < LONG_S else 2):
            start = perf_counter()
            for number in range(calls):
                call(turn * calls + number)
            times.append((perf_counter() - start) / calls)
        return Timing(median(times), min(times), max(times))

    def _cuda(self, call: Callable[[int], object]) -> Timing:
        """The device is put to sleep while the host queues the calls: it then does them without waiting for it."""
        for number in range(2):
            call(number)
        torch.cuda.synchronize()
        start = perf_counter()
        call(2)
        queued_s = perf_counter() - start
        torch.cuda.synchronize()
        rough = max(perf_counter() - start, 1e-6)
        calls = max(1, min(100, int(ROUND_S["cuda"] / rough)))
        long = queued_s > 0.02
        times, hosts = [], []
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with launching_core.held():
            for turn in range(ROUNDS if rough < LONG_S else 2):
                torch.cuda.synchronize()
                if not long:
                    torch.cuda._sleep(int(CLOCK_HZ * (1.5 * calls * queued_s + 5e-5)))
                first.record()
                begun = perf_counter()
                for number in range(calls):
                    call(turn * calls + number)
                hosts.append((perf_counter() - begun) / calls)
                last.record()
                last.synchronize()
                times.append(first.elapsed_time(last) / 1e3 / calls)
        # A sleeping device takes no more than its queue holds: of more launches than that, the host waits for it.
        return Timing(median(times), min(times), max(times), min(queued_s, median(hosts)))


@dataclass
class Calibrator:
    """Measures the curves of a plan until all are done or the budget is spent."""

    device: torch.device
    report: Report = lambda _: None
    budget_s: float = 0.0
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    modules: dict[str, HostCost] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False

    def run(self, plan: tuple[Spec, ...] = PLAN) -> Calibration:
        """What was measured, and what was not and why: about four minutes of a GPU, under one of a CPU.

        An interruption ends it as the end of the budget does.
        """
        begun, load = perf_counter(), os.getloadavg()[0]
        try:
            self._measure(plan, begun + (self.budget_s or BUDGET_S[self.device.type]))
        except KeyboardInterrupt:
            self.interrupted = True
            self.skipped["the rest"] = "interrupted"
        environment = describe(self.device)
        environment["load_average"] = load
        environment["calibrate_s"] = round(perf_counter() - begun, 1)
        return Calibration(name_of(environment), self.curves, self.host, environment, self.skipped, self.modules)

    def _measure(self, plan: tuple[Spec, ...], deadline: float) -> None:
        supplies = Supplies(self.device)
        watch = Stopwatch(self.device)
        wake(self.device, WARM_S)
        self._host(host_costs, supplies, watch)
        watch.entry_s = self.host.get("entry_s", 0.0)
        for spec in plan:
            for dtype in spec.dtypes(self.device.type):
                self._curve(spec, dtype, supplies, watch, deadline - (MODULES_S if supplies.cuda else 0.0))
                supplies.tidy()
        if self.device.type == "cuda":
            deadline = max(deadline, perf_counter() + MODULES_S)
            for name, pair in modules.cases():
                self._module(name, pair, deadline)
            # Last, since a capture that fails can leave the device unfit for more.
            self._host(graph_costs, supplies, watch)

    def _host(
        self, costs: Callable[[Supplies, Stopwatch], dict[str, float]], supplies: Supplies, watch: Stopwatch
    ) -> None:
        try:
            self.host |= costs(supplies, watch)
        except Exception as error:
            self.skipped[costs.__name__] = told(error)

    def _curve(self, spec: Spec, dtype: str, supplies: Supplies, watch: Stopwatch, deadline: float) -> None:
        points: dict[Sizes, Timing] = {}
        label = f"{spec.name}/{dtype}"
        begun = perf_counter()
        try:
            for sizes, make in spec.points(supplies, dtype):
                if perf_counter() > deadline:
                    self.skipped[label] = f"the time was over after {len(points)} points"
                    break
                with torch.inference_mode(make.mode == "inference"):
                    points[tuple(map(float, sizes))] = watch(make)
        except Exception as error:  # one operation that is missing or too large must not lose the others
            self.skipped[label] = told(error)
        if points:
            self.curves[spec.name, dtype] = Curve(spec.name, dtype, spec.axes, spec.how, points)
        failed = f"; {self.skipped[label]}" if label in self.skipped else ""
        self.report(f"{label}: {len(points)} points, {perf_counter() - begun:.1f} s{failed}")

    def _module(self, name: str, pair: tuple[Case, Case], deadline: float) -> None:
        begun = perf_counter()
        if begun > deadline:
            self.skipped[name] = "the time was over"
        else:
            try:
                self.modules[name] = modules.host_cost(pair, self.device)
            except Exception as error:  # a package that one family lacks must not lose the others
                self.skipped[name] = told(error)
        outcome = self.skipped.get(name) or "{:.3g} s a layer, {:.3g} s a call".format(*self.modules[name][:2])
        self.report(f"{name}: {outcome}; {perf_counter() - begun:.1f} s")


def told(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]


CHAIN = 64
"""Operations in the chains whose launching is timed."""


def chain(x: Tensor, length: int) -> Tensor:
    for _ in range(length):
        x = x * 0.5
    return x


def host_costs(supplies: Supplies, watch: Stopwatch) -> dict[str, float]:
    """Seconds the host takes, whatever the sizes: a view, a module's call, a taped operation, a node of backward.

    On a CPU they are part of every operation's own time, but for views and modules.
    """
    cuda = supplies.device.type == "cuda"
    small = supplies.tensor(64, 64)

    def each(call: Callable[[], object]) -> float:
        timing = watch(Make(lambda _: call()))
        return timing.host_s if cuda else timing.time_s

    identity = torch.nn.Identity()
    costs: dict[str, float] = {}
    with torch.inference_mode():
        views = each(lambda: [small.transpose(0, 1) for _ in range(CHAIN)])
        modules = each(lambda: [identity(small) for _ in range(CHAIN)])
        plain = each(lambda: chain(small, CHAIN))
        costs |= {"view_s": views / CHAIN, "module_s": modules / CHAIN, "kernel_s": plain / CHAIN}
    leaf = small.clone().requires_grad_()
    taped = each(lambda: chain(leaf, CHAIN))
    costs["tape_s"] = max(0.0, (taped - plain) / CHAIN)
    long, one = chain(leaf, CHAIN), chain(leaf, 1)
    ones = torch.ones_like(small)
    whole = each(lambda: torch.autograd.grad(long, leaf, ones, retain_graph=True))
    single = each(lambda: torch.autograd.grad(one, leaf, ones, retain_graph=True))
    costs["node_s"] = max(0.0, (whole - single) / (CHAIN - 1))
    costs["entry_s"] = max(0.0, single - costs["node_s"])
    return costs


def graph_costs(supplies: Supplies, watch: Stopwatch) -> dict[str, float]:
    """What a captured graph saves between two kernels on the device, and takes to launch."""
    small = supplies.tensor(64, 64)
    with torch.inference_mode():
        eager = watch(Make(lambda _: chain(small, CHAIN)))
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            chain(small, CHAIN)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = chain(small, CHAIN)
        replay = watch(Make(lambda _: graph.replay()))
    del kept
    return {"graph_gap_s": (eager.time_s - replay.time_s) / CHAIN, "graph_launch_s": replay.host_s}
