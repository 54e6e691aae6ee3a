# pyright: standard
"""The path `graph`: one call captured in a CUDA graph, and replayed.

What a replay does is fixed when it is captured: its kernels, their addresses, and every number that the host computed,
a state's `length` among them. Prefill and decode begin each call at the same length, so that is what they want; a
training step, whose optimizer may count on the host, is not captured.

The first call warms up, captures and replays: it is what a user waits for first. A replay allocates nothing, so a
peak read around one would miss what it works in. `release` therefore drops the graph with its memory, and the next
call captures again: its warm-up and capture allocate what the plain call does, and a peak read around it holds that.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchbench.case import Case
from benchbench.errors import UnsupportedError
from benchbench.models import LanguageModel
from benchbench.tasks.prepared import Pairs, Prepared, device_of, positions

WARMUP_CALLS = 3
"""Before capture: kernels are compiled and tuned in the first, and libraries allocate for the stream."""


def captured(plain: Prepared, device: torch.device) -> Prepared:
    """`plain`, whose calls replay one graph and return the tensor that it writes, the same one each time.

    Raises:
        UnsupportedError: At once, `device` is no GPU; at a call, the host would have to wait for the GPU within it.
    """
    if device.type != "cuda":
        raise UnsupportedError(
            f"the path 'graph' is a CUDA graph and needs an NVIDIA GPU, not the device '{device.type}'.",
            "Pass --device cuda, or use another path.",
        )
    held: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []

    def call() -> Tensor:
        if not held:
            held.append(capture(plain.call, device))
        graph, output = held[0]
        graph.replay()
        return output

    def release() -> None:
        held.clear()
        plain.release()

    return Prepared(call, tokens=plain.tokens, held=plain.held, release=release)


def capture(call: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of `call`, with a memory pool of its own, and the tensor that each replay writes."""
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    random = torch.cuda.default_generators[torch.cuda._utils._get_device_index(device, optional=True)]
    spare = random.clone_state()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_CALLS):
            call()
        # The workspaces of matrix products live as long as their stream's: captured outside the pool, they could be
        # freed under the graph.
        _clear_workspaces()
        try:
            with torch.cuda.graph(graph, stream=stream):
                output = call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # A capture that breaks leaves the random numbers waiting for its end: no later case could draw any.
            random.graphsafe_set_state(spare)
            # Ending a capture that was broken fails as well, and hides what broke it.
            reason = str(error.__context__ or error).partition("\n")[0].rstrip(".")
            raise UnsupportedError(
                f"the path 'graph' cannot capture this call: {reason}.", "Use the path that it captures."
            ) from error
        finally:
            _clear_workspaces()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph, output


def _clear_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()


@torch.inference_mode()
def compare(model: LanguageModel, case: Case, prepare: Callable[[LanguageModel, Case], Prepared]) -> Pairs:
    """What two replays return, and two plain calls of the same model from the same state."""
    plain = prepare(model, case)
    replayed = captured(plain, device_of(model))
    replayed.call()
    before = [tensor.clone() for tensor in plain.held()]
    expected = [plain.call().clone() for _ in range(2)]
    for tensor, value in zip(plain.held(), before, strict=True):
        tensor.copy_(value)
    found = [replayed.call().clone() for _ in range(2)]
    yield positions(torch.stack(found)), positions(torch.stack(expected))
