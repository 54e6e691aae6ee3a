"""Which attention kernel runs on a GPU under the name `flash`, and that decoding copies no keys."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchbench.models import build
from benchbench.models.transformer import FUSED, FlashCore, fused_kernels
from benchbench.specs import preset

TINY = preset("transformer-tiny")
HALF = (torch.bfloat16, torch.float16)


def heads(device: str, dtype: torch.dtype, new: int, keys: int, groups: int = 2, *, d_head: int = 64) -> list[Tensor]:
    """q, k and v of 4 key heads; the keys are the first `keys` of a longer cache."""
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4 * groups, new, d_head, generator=draw).to(device, dtype)
    cache = torch.randn(2, 2, 4, keys + 7, d_head, generator=draw).to(device, dtype)
    return [q, *cache[:, :, :, :keys].unbind()]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_the_cpu_may_run_either_kernel(dtype: torch.dtype):
    assert fused_kernels(torch.empty(1, 1, 1, 8, dtype=dtype), None) == FUSED


def test_on_cuda_one_kernel_is_allowed():
    # A meta tensor cannot say that it is on CUDA, so the device alone is stood in for.
    class OnCuda:
        device = torch.device("cuda")

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

    mask = torch.ones(2, 2, dtype=torch.bool)
    assert [fused_kernels(OnCuda(dtype), None) for dtype in HALF] == [[SDPBackend.FLASH_ATTENTION]] * 2
    assert fused_kernels(OnCuda(torch.float32), None) == [SDPBackend.EFFICIENT_ATTENTION]
    assert fused_kernels(OnCuda(torch.bfloat16), mask) == [SDPBackend.EFFICIENT_ATTENTION]


def ran(call: Callable[[], object]) -> list[str]:
    """The names of the kernels that one call runs, the second time it is made."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [event.key for event in profile.key_averages()]


def attention(names: list[str]) -> list[str]:
    return [name for name in names if any(part in name.lower() for part in ("flash", "fmha", "softmax", "attention"))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("new", "keys"), [(512, 512), (1, 512), (1, 65536)])
def test_in_half_precision_it_is_flash_and_nothing_else(dtype: torch.dtype, new: int, keys: int):
    q, k, v = heads("cuda", dtype, new, keys)
    with torch.inference_mode():
        names = attention(ran(lambda: FlashCore(0.0)(q, k, v, None)))

    assert names
    assert all("flash" in name for name in names), names


@pytest.mark.gpu
def test_a_long_cache_is_split_over_the_processors():
    # 8 heads fill 8 of a GPU's processors; behind 65,536 tokens the kernel that splits them over all must run.
    q, k, v = heads("cuda", torch.bfloat16, 1, 65536)
    with torch.inference_mode():
        names = attention(ran(lambda: FlashCore(0.0)(q, k, v, None)))

    assert any("splitkv" in name for name in names), names


@pytest.mark.gpu
def test_in_float32_it_is_the_memory_efficient_kernel():
    q, k, v = heads("cuda", torch.float32, 512, 512)
    with torch.inference_mode():
        names = attention(ran(lambda: FlashCore(0.0)(q, k, v, None)))

    assert names
    assert all("fmha" in name for name in names), names


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_decoding_copies_no_keys_and_is_right(dtype: torch.dtype, groups: int):
    q, k, v = heads("cuda", dtype, 1, 4096, groups)
    core = FlashCore(0.0)
    with torch.inference_mode():
        core(q, k, v, None)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = core(q, k, v, None)
        used = torch.cuda.max_memory_allocated() - before
        wide_q, wide_k, wide_v = (x.double() for x in (q, k, v))
        weights = (wide_q.unflatten(1, (4, groups)).squeeze(3) @ wide_k.mT / 8).softmax(-1)
        expected = (weights @ wide_v).flatten(1, 2)[:, :, None]

    assert used < k.nbytes / 4
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["flash", "eager"])
def test_a_decoding_step_never_waits_for_the_gpu(path: str):
    model = build(TINY.replace(n_heads=4, n_kv_heads=2), path=path, device="cuda", dtype=torch.bfloat16).eval()
    token = torch.zeros(2, dtype=torch.long, device="cuda")
    with torch.inference_mode():
        state = model.new_state(2, 64)
        state.fill_random(32)
        model.decode(token, state)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.decode(token, state)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("checkpoint", [False, True])
def test_training_runs_flash_in_backward_too(checkpoint: bool):
    model = build(preset("transformer-130m", n_layers=2), device="cuda", dtype=torch.bfloat16, checkpoint=checkpoint)
    tokens = torch.zeros(1, 256, dtype=torch.long, device="cuda")
    names = attention(ran(lambda: model.backbone(tokens).sum().backward()))

    assert any("flash" in name and "bwd" in name for name in names), names
    assert all("flash" in name for name in names), names
