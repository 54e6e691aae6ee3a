"""The rules of the hardware witness: by hand, and on what an H200 counted."""

import json
from itertools import product
from pathlib import Path

import pytest

from benchbench.case import TASKS, Case
from benchbench.counters import count
from benchbench.counters.hardware import INSTRUCTIONS
from benchbench.counters.kernels import Kernel, block_pairs, lines, matched
from benchbench.counters.op import Op
from benchbench.counters.products import Product, products, routed, tiled
from benchbench.specs import families, preset

RECORDED = json.loads((Path(__file__).parent / "data" / "kernels_h200.json").read_text())


def recorded(name: str) -> tuple[Case, list[Kernel]]:
    """A case, and what an H200 counted of its products, attention, scans, resolvents and convolutions."""
    run = RECORDED["runs"][name]
    sizes = dict(run["case"])
    spec = preset(sizes.pop("model"), n_layers=sizes.pop("n_layers"))
    empty = dict.fromkeys(INSTRUCTIONS, 0)
    kernels = [
        Kernel(RECORDED["names"][number], path, phase, {**empty, **counts}, layers)
        for times, number, path, phase, counts, layers in run["kernels"]
        for _ in range(times)
    ]
    return Case.of(spec, **sizes), kernels


def test_tiles_by_hand() -> None:
    # 50,280 outputs in tiles of 384 are 131, and clusters of two make them 132; one row fills a tile's side of 8.
    product = Product(1, 50280, 768)
    assert 2 * (132 * 384) * 8 * 768 in tiled(product, "nvjet_sm90_tst_384x8_64x4_2x1_v_bz_TNT")


def test_split_k_rounds_the_depth_up_to_parts() -> None:
    # 4096 in steps of 64 are 64, which three parts make 66.
    product = Product(80, 1536, 4096)
    assert 2 * 96 * 1536 * (66 * 64) in tiled(product, "nvjet_sm90_tst_128x32_64x10_4x1_v_bz_splitK_TTT")


@pytest.mark.parametrize(
    ("name", "layers", "product", "counted"),
    [
        # 512 in 11 layers are 48 each, of which 2 tiles of 32 are run, and a last of 32: 10 · 64 + 32 = 672.
        ("bf16_64x64_32x6_nt_align2", 11, Product(768, 2, 512), 2 * 768 * 64 * 672),
        # 373 each, aligned 376, are 12 tiles of 32; the last 336 are 11: 131 tiles.
        ("bf16_64x64_32x6_nt_align2", 11, Product(768, 2, 4096), 2 * 768 * 64 * 131 * 32),
        # 376 each are 6 tiles of 64; of 22 layers the last has 296, which are 5.
        ("bf16_64x128_64x3_nt_align2", 22, Product(768, 2, 8192), 2 * 768 * 64 * 131 * 64),
        # No depth in the name.
        ("bf16_64x64_nn_align1", 1, Product(4096, 768, 1), 2 * 4096 * 768 * 32),
    ],
)
def test_layers_that_share_a_depth(name: str, layers: int, product: Product, counted: int) -> None:
    """The numbers are those that an H200 counted for these products."""
    assert counted in (66_060_288, 412_090_368, 824_180_736, 201_326_592)
    assert counted in tiled(product, f"void cutlass::Kernel2<cutlass_80_tensorop_s16816gemm_{name}>", layers)


def test_a_kernel_without_tiles_in_its_name_runs_what_is_asked() -> None:
    assert list(tiled(Product(3, 5, 7), "gemm")) == [2 * 3 * 5 * 7]


@pytest.mark.parametrize(
    ("new", "keys", "pairs"),
    [
        (2048, 2048, 136 * 128 * 128),  # 16 rows of blocks, of 1 to 16: 136
        (100, 100, 128 * 128),  # one block, whole
        (130, 130, 3 * 128 * 128),  # two rows of blocks, of 1 and 2
        (1, 300, 128 * 384),  # one query sees 300 keys: three blocks
    ],
)
def test_blocks_of_causal_attention(new: int, keys: int, pairs: int) -> None:
    assert block_pairs(new, keys, 128, 128) == pairs


def test_matching_gives_way_where_it_must() -> None:
    # 0 would take a; only then is nothing left for 1, which has no other.
    assert matched([[10, 11], [10]]) == {10: 1, 11: 0}
    assert matched([[10], [10]]) == {10: 0}


def test_products_of_a_linear_map() -> None:
    cost = count(Case.of(preset("mamba-tiny"), task="train", seq_len=32))
    forward, backward = (
        next(op for op in cost.ops if op.path.endswith("in_proj") and op.phase == phase)
        for phase in ("forward", "backward")
    )
    # 32 rows of 64 to 256, in two layers.
    assert list(products(forward)) == [(Product(32, 256, 64), 2)]
    assert list(products(backward)) == [(Product(32, 64, 256), 2), (Product(256, 64, 32), 2)]


@pytest.mark.parametrize("name", RECORDED["runs"])
def test_everything_that_a_gpu_counted_is_explained(name: str) -> None:
    case, kernels = recorded(name)
    found = lines(count(case), kernels)
    held = {line.kind for line in found if line.rules}
    assert "matmul" in held or case.task == "core"
    assert ("attention" in held) == (case.path == "flash")
    assert ("resolvent" in held) == (case.path == "triton")
    assert ("scan" in held) == (case.path == "fused" and case.task != "decode")
    for line in found:
        assert line.unexplained == ()
        assert line.expected == line.found


def test_every_family_and_task_was_counted_by_a_gpu() -> None:
    cases = [recorded(name)[0] for name in RECORDED["runs"]]
    assert {(case.spec.family, case.task) for case in cases} == set(product(families(), TASKS))


def test_products_with_a_vector_by_hand() -> None:
    # 254 rows of 64 numbers, one output each, scaled: 254 · 65 multiply-adds. Two sequences of 1536 by 128.
    name = "internal::kernel<float, 7, 0, cublasGemvParamsEx<int>>"
    assert list(tiled(Product(254, 1, 64), name)) == [2 * 254 * 65]
    assert list(tiled(Product(1536, 1, 128, 2), name)) == [2 * 2 * 1536 * 129]
    assert list(tiled(Product(254, 2, 64), name)) == []
    # By a few, or finished by a second kernel: the multiply-adds alone.
    assert list(tiled(Product(2, 50257, 768), "gemmSN_TN_kernel<float, cublasGemmSmallNParams<>>")) == [154_389_504]


def test_products_in_float32_by_hand() -> None:
    # 16 of 128 x 16 by 64 x 128: 16 outputs fill a tile's side of 32, and the depth of 64 has one more for the scale.
    name = "sm80_xmma_gemm_f32f32_f32f32_f32_nt_n_tilesize32x32x8_stage3_warpsize1x2x1_ffma_aligna4_alignc4"
    assert set(tiled(Product(16, 128, 64, 16), name)) == {2 * 16 * 32 * 128 * 65}
    # CUTLASS's scale by products; their layers are the batch, not parts of the depth.
    assert 2 * 16 * 128 * 1536 * 64 in tiled(
        Product(128, 1536, 64, 16), "cutlass_80_simt_sgemm_128x128_8x4_nt_align1", 16
    )


def test_products_of_the_dual_form_by_hand() -> None:
    """130 tokens of two sequences are three chunks of 64; all heads of the one group share B and C."""
    cost = count(Case.of(preset("mamba2-tiny"), task="train", seq_len=130, batch=2))
    spec = cost.case.spec
    heads, states = spec.n_heads, spec.d_state
    width = heads * spec.headdim
    forward, backward = (
        list(products(op))
        for phase in ("forward", "backward")
        for op in cost.ops
        if op.formula.name == "ssd" and op.phase == phase
    )
    assert forward == [
        (Product(states, width, 64, 6), 2),
        (Product(64, width, states, 6), 2),
        (Product(64, 64, states, 6), 2),
        (Product(64, spec.headdim, 64, 6 * heads), 2),
    ]
    # As many as the formula executes: 12 with states, 6 of scores and 4 within a chunk, 2 of them a multiply-add each.
    tokens = 6 * 64
    assert sum(one.flops * times for one, times in backward) == 2 * tokens * (
        12 * width * states + 64 * (6 * states + 4 * width)
    )


def test_rows_of_few_tokens_have_their_experts_weights_to_themselves() -> None:
    def up(batch: int) -> Op:
        cost = count(Case.of(preset("resnet-bk-tiny"), task="decode", seq_len=8, batch=batch, path="triton"))
        return next(op for op in cost.ops if op.path.endswith("experts.up"))

    # Two tokens of two experts each, four experts: 4 rows of 64 to 96. Three tokens are sorted by expert.
    assert list(products(up(2))) == [(Product(1, 96, 64, 4), 2)]
    assert not routed(up(2))
    assert routed(up(3))


def test_a_product_that_is_not_the_models_is_found_out() -> None:
    case, kernels = recorded("transformer-130m/prefill/1-layer")
    i, kernel = next((i, kernel) for i, kernel in enumerate(kernels) if kernel.path.endswith("up_proj"))
    kernels[i] = Kernel(kernel.name, kernel.path, kernel.phase, {**kernel.counts, "tensor": 12345})
    line = next(line for line in lines(count(case), kernels) if line.kind == "matmul")
    assert line.unexplained == (
        f"{kernel.name} in backbone.layers.*.mlp.up_proj: 12,345",
        "backbone.layers.*.mlp.up_proj: 2048x768 by 768x2240 did not run",
    )


@pytest.mark.parametrize(
    ("batch", "seq_len", "wide", "forward", "backward"),
    [
        (1, 100, 128, (65_536, 1_247_232, 1_294_336), (755_968, 3_952_640, 2_834_432)),
        (1, 200, 128, (131_072, 2_164_736, 2_260_992), (1_149_184, 7_311_360, 5_144_576)),
        (1, 400, 128, (262_144, 3_999_744, 4_194_304), (1_935_616, 14_356_480, 9_764_864)),
        (1, 800, 128, (524_288, 8_065_024, 8_519_680), (3_873_536, 28_508_160, 19_070_976)),
        (1, 1500, 128, (1_048_576, 16_779_264, 17_563_648), (7_749_376, 55_246_848, 37_683_200)),
        (1, 2100, 128, (2_097_152, 33_558_528, 35_127_296), (15_367_936, 110_493_696, 75_366_400)),
        (3, 100, 1536, (2_359_296, 44_900_352, 46_596_096), (27_214_848, 142_295_040, 102_039_552)),
        (1, 5000, 1536, (37_748_736, 604_053_504, 632_291_328), (275_837_952, 1_988_886_528, 1_356_595_200)),
    ],
)
def test_every_instruction_of_the_fused_scan(
    batch: int, seq_len: int, wide: int, forward: tuple, backward: tuple
) -> None:
    """Sums, products and multiply-adds that an H200 counted in one layer with so many channels, of every cut."""
    case = Case.of(
        preset("mamba-130m", n_layers=1, d_model=wide // 2),
        task="train",
        batch=batch,
        seq_len=seq_len,
        dtype="bfloat16",
        path="fused",
        optimizer="sgd",
    )
    empty = dict.fromkeys(("special", "read_bytes", "written_bytes"), 0)
    kernels = [
        Kernel(
            f"void selective_scan_{short}_kernel<Selective_Scan_{short}_kernel_traits<...>>(SSMParams)",
            "backbone.layers.*.mixer",
            phase,
            {**empty, **dict(zip(("add", "multiply", "multiply_add"), found, strict=True))},
        )
        for short, phase, found in (("fwd", "forward", forward), ("bwd", "backward", backward))
    ]
    scans = [line for line in lines(count(case), kernels) if line.kind == "scan"]
    for line, (adds, multiplies, multiply_adds) in zip(scans, (forward, backward), strict=True):
        assert line.unexplained == ()
        assert line.expected == line.found == adds + multiplies + 2 * multiply_adds

    kernels[0].counts["add"] += 1
    forward_line = lines(count(case), kernels)[0]
    assert forward_line.unexplained == (f"scan: {forward_line.found:,}, not {forward_line.found - 1:,}",)


def test_a_scan_of_another_path_is_not_held() -> None:
    case = Case.of(preset("mamba-130m", n_layers=1), task="decode", seq_len=64, dtype="bfloat16", path="fused")
    counts = dict.fromkeys(("add", "multiply", "multiply_add", "special", "read_bytes", "written_bytes"), 0)
    line, *_ = lines(count(case), [Kernel("_selective_scan_update_kernel", "mixer", "forward", counts)])
    assert line.expected is None
