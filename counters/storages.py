# pyright: standard
"""The `fake` witness of memory: a case's real module run on fake tensors, and every storage followed.

A fake tensor has a shape, a device and a storage without bytes, so any model at any length runs in no memory. A storage
is noticed when an operator first returns it and is gone with its last reference. What a kernel takes and gives back
while it runs is not seen: those are the temporaries that rules name.

A program that is watched must stay the program that is measured. Three things differ while a dispatch mode is active,
and are put right here:

- torch adds out of place where it would add in place, for gradients that meet, a linear's bias, and rows that a
  gradient is scattered to;
- inference mode hides the operators that others are made of;
- without inference mode, autocast keeps the weights that it casts.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchbench.case import Case
from benchbench.counters.fake_cuda import fake_cuda
from benchbench.counters.places import ModulePaths
from benchbench.counters.timeline import Block, Category, Items, Timeline
from benchbench.errors import UnsupportedError
from benchbench.models import LanguageModel, State
from benchbench.tasks import built, prepare
from benchbench.tasks.prepared import weights

IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.add.Tensor: torch.ops.aten.add_.Tensor,
    torch.ops.aten.index_add.default: torch.ops.aten.index_add_.default,
}
"""What runs instead of an operator where no mode is active, and the result has no other owner."""
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
)
WORKSPACES = {"cuBLAS workspace": 2**25, "cuBLASLt workspace": 2**20}
"""Bytes on Hopper, found on an H200 with torch 2.11; Lt fuses the bias of a linear layer."""
SEEDLESS: dict[Any, int] = {torch.ops.aten._scaled_dot_product_efficient_attention.default: 2}
"""Outputs before those that a kernel fills for dropout alone, and on the host where there is none."""
HELD: dict[str, tuple[Category, str]] = {
    "prefill": ("workspace", "input"),
    "core": ("workspace", "input"),
    "decode": ("state", "state"),
    "train": ("optimizer", "state"),
}
"""What else a task's tensors are that stay from call to call."""
ALONE = 2
"""References to a storage that one tensor has: the tensor's, and that of the storage's own Python object."""


def follow(case: Case, device: str = "cpu") -> Timeline:
    """Every allocation and release of a call of `case` on `device`, in the steady state: after other calls.

    Raises:
        UnsupportedError: The architecture cannot do this, or fake tensors cannot show it.
    """
    case.require_supported()
    if case.path == "graph":
        raise UnsupportedError("a CUDA graph is captured on a GPU alone, and its memory is a pool of its own")
    if case.autocast and device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("autocast leaves fake CUDA tensors as they are where there is no GPU")
    model = built(case, "meta")
    with FakeTensorMode(), as_without_modes(case), fake_cuda() if device == "cuda" else nullcontext():
        materialize(model, device)
        prepared = prepare(model, case)
        if case.task == "train":  # whose first step makes the optimizer's states
            prepared.call()
            prepared.release()
        storages = Storages(model, case, device)
        storages.hold(weights(model), "params", "weight")
        for tensor in prepared.held():
            tokens = tensor.dtype == torch.int64
            storages.hold([tensor], *("workspace", "tokens") if tokens else HELD[case.task])
        with storages.paths, storages, storages.seeing_states():
            prepared.call()
        return storages.timeline()


@contextmanager
def as_without_modes(case: Case) -> Iterator[None]:
    """While open, what is prepared runs without gradients where it would run in inference mode, and casts as there."""

    def no_grad(mode: bool = True) -> Any:
        return torch.no_grad() if mode else nullcontext()

    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(caches and case.task == "train")
    try:
        with patch.object(torch, "inference_mode", no_grad):
            yield
    finally:
        torch.set_autocast_cache_enabled(caches)


def materialize(model: nn.Module, device: str) -> None:
    """Puts empty parameters on `device` in the place of those on `meta`; tied ones stay tied.

    `Module.to` cannot: it swaps the data of a parameter, which a fake tensor does not let go of.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                if old not in made:
                    made[old] = nn.Parameter(torch.empty(old.shape, dtype=old.dtype, device=device))
                module._parameters[name] = made[old]


class Storages(TorchDispatchMode):
    """Follows the storages that operators make while it is active."""

    def __init__(self, model: nn.Module, case: Case, device: str) -> None:
        super().__init__()
        self._case = case
        self._device = device
        self.paths = ModulePaths(model)
        self._model = model
        self._held: list[Block] = []
        self._items: Items = []
        self._blocks: dict[int, Block] = {}
        """What is alive, by the address of its storage."""
        self._ends: dict[int, weakref.finalize[Any, Any]] = {}
        self._backward = self._again = False
        self._multiplied: set[tuple[str, bool]] = set()

    def hold(self, tensors: Iterable[Tensor], category: Category, name: str) -> None:
        """Notes what is alive before a call."""
        self._held += self._watch(tensors, category, name)

    @contextmanager
    def seeing_states(self) -> Iterator[None]:
        """While open, the decoding states that a language model makes are known as such."""
        if not isinstance(self._model, LanguageModel):
            yield
            return
        new_state = self._model.new_state

        def seen(batch: int, capacity: int) -> State:
            state = new_state(batch, capacity)
            for tensor in state.tensors():
                self._blocks[tensor.untyped_storage()._cdata].category = "state"
            return state

        with patch.object(self._model, "new_state", seen):
            yield

    def timeline(self) -> Timeline:
        """What was seen. Nothing is followed any more."""
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                self._blocks[parameter.grad.untyped_storage()._cdata].category = "grads"
        for end in self._ends.values():
            end.detach()
        return Timeline(tuple(self._held), self._items)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._turn()
        in_place = IN_PLACE.get(func)
        if in_place and self._has_no_other_owner(func, args[0]):
            in_place(*args, **(kwargs or {}))
            return args[0].detach()
        found = func(*args, **(kwargs or {}))
        made = found if isinstance(found, (tuple, list)) else (found,)
        tensors = [one for one in made[: SEEDLESS.get(func)] if isinstance(one, Tensor)]
        for block in self._watch(tensors, "workspace", func.__name__.partition(".")[0]):
            self._items.append((block, 1))
        if self._device == "cuda":
            self._multiply(func, args)
        return found

    def _multiply(self, func: Any, args: tuple[Any, ...]) -> None:
        """A thread's first product takes a workspace for good; backward runs on a thread of its own."""
        needed = ["cuBLAS workspace"] if func in PRODUCTS else []
        if func is torch.ops.aten.addmm.default and args[0].ndim == 1 and min(args[2].shape) > 1:
            needed.append("cuBLASLt workspace")
        for name in needed:
            if (name, self._backward) not in self._multiplied:
                self._multiplied.add((name, self._backward))
                self._items.append((Block(WORKSPACES[name], name, "workspace"), 1))

    def _watch(self, tensors: Iterable[Tensor], category: Category, name: str) -> list[Block]:
        """Blocks of the storages that are new, each watched until it goes."""
        found: list[Block] = []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address in self._blocks or not storage.nbytes() or tensor.device.type != self._device:
                continue
            block = Block(storage.nbytes(), name, category, " ".join(self.paths.place).strip())
            if category == "workspace" and tensor.shape[-1:] == (self._case.spec.vocab_size,):
                block.category = "logits"
            self._blocks[address] = block
            self._ends[address] = weakref.finalize(storage, self._gone, address)
            found.append(block)
        return found

    def _gone(self, address: int) -> None:
        del self._ends[address]
        self._items.append((self._blocks.pop(address), -1))

    def _turn(self) -> None:
        """Where backward begins, what is still alive was saved for it; so where a checkpointed layer has run again."""
        backward = torch._C._current_autograd_node() is not None
        again = backward and bool(self.paths._stack)
        if (backward and not self._backward) or (self._again and not again):
            for block in self._blocks.values():
                if block.category == "workspace":
                    block.category = "activations"
        self._backward, self._again = backward, again

    def _has_no_other_owner(self, func: Any, into: Tensor) -> bool:
        if stack := self.paths._stack:
            return isinstance(self._model.get_submodule(stack[-1][0]), nn.Linear)
        if torch._C._current_autograd_node() is None or not _called_by_the_engine(sys._getframe(2)):
            return False
        owners = torch._C._storage_Use_Count(into.untyped_storage()._cdata)  # pyright: ignore[reportAttributeAccessIssue]
        return owners <= ALONE and is_dense(into)


def _called_by_the_engine(frame: FrameType | None) -> bool:
    """Whether autograd's own code is the first above `frame`, apart from what calls a mode; its threads have none."""
    while frame is not None and frame.f_code.co_name in ("_fn", "inner", "__torch_dispatch__"):
        frame = frame.f_back
    return frame is None or frame.f_code.co_name == "_engine_run_backward"


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each at a place of its own."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
