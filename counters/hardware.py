# pyright: standard
"""The hardware witness: what an NVIDIA GPU's own counters saw of a case, kernel by kernel.

Cases run in a process under Nsight Compute (`ncu`), which reads the counters around every kernel that a kind names; it
takes 0.2 s for each, and a training step launches hundreds that only copy and add. One NVTX range is open at a time and
names the case, phase and module that launched the kernel.
"""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.cuda import nvtx

from benchbench.case import Case
from benchbench.counters.dispatch import graph
from benchbench.counters.kernels import KINDS, Kernel
from benchbench.counters.places import ModulePaths, starred
from benchbench.errors import BenchError, UnsupportedError
from benchbench.synthetic import tokens
from benchbench.tasks import built
from benchbench.tasks.train import OPTIMIZERS

INSTRUCTIONS = {
    "add": "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum",
    "multiply": "smsp__sass_thread_inst_executed_op_fmul_pred_on.sum",
    "multiply_add": "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum",
    "half_add": "smsp__sass_thread_inst_executed_op_hadd_pred_on.sum",
    "half_multiply": "smsp__sass_thread_inst_executed_op_hmul_pred_on.sum",
    "half_multiply_add": "smsp__sass_thread_inst_executed_op_hfma_pred_on.sum",
    "double_add": "smsp__sass_thread_inst_executed_op_dadd_pred_on.sum",
    "double_multiply": "smsp__sass_thread_inst_executed_op_dmul_pred_on.sum",
    "double_multiply_add": "smsp__sass_thread_inst_executed_op_dfma_pred_on.sum",
    "special": "smsp__thread_inst_executed_pipe_xu_pred_on.sum",
    "tensor": "sm__ops_path_tensor_src_bf16_dst_fp32.sum",
    "tensor_half": "sm__ops_path_tensor_src_fp16_dst_fp32.sum",
    "read_bytes": "dram__bytes_read.sum",
    "written_bytes": "dram__bytes_write.sum",
}
"""What is read of each kernel: thread instructions by kind, operations of the tensor cores, bytes of device memory."""

SEPARATOR = "|"
FAILED = "case failed: "


class Seen(NamedTuple):
    """The kernels of a case, or why there are none."""

    kernels: list[Kernel]
    error: str | None = None


def profile(cases: Sequence[Case]) -> list[Seen]:
    """The kernels of one call of each case on the GPU, in order, as ncu counted them.

    Raises:
        UnsupportedError: ncu is not installed, or may not read the counters here.
        BenchError: The process broke.
    """
    ncu = shutil.which("ncu")
    if ncu is None:
        raise UnsupportedError("ncu is not installed", "It comes with CUDA's toolkit, as Nsight Compute.")
    command = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--nvtx", "--profile-from-start", "off"]
    command += ["--kernel-name-base", "demangled", "--kernel-name", f"regex:{'|'.join(name for _, name in KINDS)}"]
    command += ["--clock-control", "none", "--metrics", ",".join(INSTRUCTIONS.values())]
    command += [sys.executable, "-m", __name__, json.dumps([case.model_dump(mode="json") for case in cases])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        hint = "NVIDIA's page ERR_NVGPUCTRPERM says how to allow it."
        raise UnsupportedError("ncu may not read the counters here", hint)
    if done.returncode != 0:
        names = ", ".join(case.id for case in cases)
        raise BenchError(f"ncu failed on {names}: {(done.stderr or done.stdout).strip()[-800:]}")
    return seen(done.stdout.splitlines(), len(cases))


def seen(lines: Sequence[str], cases: int) -> list[Seen]:
    """What the process printed, by case: ncu's page, and a line for each case that failed."""
    failed = dict(json.loads(line.removeprefix(FAILED)) for line in lines if line.startswith(FAILED))
    kernels: dict[int, list[Kernel]] = {}
    for number, kernel in map(kernel_of, read(lines)):
        kernels.setdefault(number, []).append(kernel)
    return [Seen([] if i in failed else kernels.get(i, []), failed.get(i)) for i in range(cases)]


def rows(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows of a page of ncu's, by column name, without what it says around them."""
    return csv.DictReader(line for line in lines if line.startswith('"'))


def read(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The kernels in ncu's raw page; its row of units is left out."""
    return islice(rows(lines), 1, None)


def kernel_of(row: dict[str, str]) -> tuple[int, Kernel]:
    """One launch, with the number of its case, placed by the NVTX range that it ran in."""
    counts = {kind: round(float((row.get(metric) or "0").replace(",", ""))) for kind, metric in INSTRUCTIONS.items()}
    number, phase, path = _place(row)
    layers = int(row["Grid Size"].strip("()").split(",")[2])
    return number, Kernel(row["Kernel Name"], path, phase, counts, layers)


def _place(row: dict[str, str]) -> tuple[int, str, str]:
    for column, text in row.items():
        if column and "Push/Pop" in column and text and SEPARATOR in text:
            number, phase, path = text.split(":")[1].strip('"').split(SEPARATOR)
            return int(number), phase, path
    return 0, "forward", ""


class Ranges(ModulePaths):
    """Names the running module and phase to NVTX: forward by module hooks, backward by hooks of the autograd nodes."""

    def __init__(self, root: nn.Module, number: int) -> None:
        super().__init__(root)
        self._number = number
        self._names_open: list[str] = []

    def opened(self, phase: str, path: str) -> None:
        """Exactly one range is open at a time: the outer one is closed meanwhile."""
        if self._names_open:
            nvtx.range_pop()
        self._names_open.append(SEPARATOR.join((str(self._number), phase, starred(path))))
        nvtx.range_push(self._names_open[-1])

    def closed(self) -> None:
        nvtx.range_pop()
        self._names_open.pop()
        if self._names_open:
            nvtx.range_push(self._names_open[-1])

    def watch(self, root: Node) -> list[Node]:
        """Follows the backward pass from `root`; the nodes must be kept while it runs."""
        nodes = list(graph(root))
        for node in nodes:
            path = self.made_by(node)
            node.register_prehook(lambda _, path=path: self.opened("backward", path))
            node.register_hook(lambda *_: self.closed())
        return nodes

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        super()._enter_module(module, _)
        if module in self._names and torch._C._current_autograd_node() is None:
            self.opened("forward", self._names[module])

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        super()._leave_module(module, *_)
        if module in self._names and torch._C._current_autograd_node() is None:
            self.closed()


def run(case: Case, number: int) -> None:
    """Two calls of `case`, the second of them between the profiler's start and stop."""
    from benchbench.counters.trace import forward, inputs, new_state

    device = torch.device("cuda")
    model = built(case, device)
    model.train(case.task == "train")
    new = 1 if case.task == "decode" else case.seq_len
    drawn = (tokens(case.spec.vocab_size, case.batch, new, case.seed, device),)
    given = inputs(case, model, "cuda") if case.task == "core" else drawn
    optimizer = OPTIMIZERS[case.optimizer](model.parameters()) if case.optimizer else None
    for watched in (False, True):
        state = new_state(case, model)
        torch.cuda.synchronize()
        if watched:
            torch.cuda.profiler.start()
        with Ranges(model, number) as ranges, torch.set_grad_enabled(optimizer is not None):
            ranges.opened("forward", "")
            result = forward(case, model, given, state)
            ranges.closed()
            if optimizer is not None:
                assert result.grad_fn is not None
                kept = ranges.watch(result.grad_fn)
                result.backward()
                del kept
                ranges.opened("optimizer", "optimizer")
                optimizer.step()
                ranges.closed()
                optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if watched:
            torch.cuda.profiler.stop()


def main(cases: Sequence[Case]) -> None:
    """Each case; one that fails is told on a line of its own."""
    for number, case in enumerate(cases):
        try:
            run(case, number)
        except Exception as error:
            torch.cuda.profiler.stop()
            print(f"\n{FAILED}{json.dumps([number, f'{type(error).__name__}: {error}'])}", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main([Case.model_validate(given) for given in json.loads(sys.argv[1])])
