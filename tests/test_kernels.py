"""The rules of the hardware witness: by hand, and on what an H200 counted."""

import json
from pathlib import Path

import pytest

from benchbench.case import Case
from benchbench.counters import count
from benchbench.counters.kernels import Kernel, Product, block_pairs, lines, matched, products, tiled
from benchbench.specs import preset

RECORDED = json.loads((Path(__file__).parent / "data" / "kernels_h200.json").read_text())


def recorded(name: str) -> tuple[Case, list[Kernel]]:
    run = RECORDED["runs"][name]
    sizes = dict(run["case"])
    spec = preset(sizes.pop("model"), n_layers=sizes.pop("n_layers"))
    keys = ("add", "multiply", "multiply_add", "special", "read_bytes", "written_bytes")
    empty = dict.fromkeys(keys, 0)
    return Case.of(spec, **sizes), [Kernel(n, path, phase, {**empty, **c}) for n, path, phase, c in run["kernels"]]


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


@pytest.mark.parametrize("name", ["t_prefill", "t_train"])
def test_every_product_and_block_that_a_gpu_ran(name: str) -> None:
    case, kernels = recorded(name)
    held = [line for line in lines(count(case), kernels) if line.rules]
    assert {line.kind for line in held} == {"matmul", "attention"}
    for line in held:
        assert line.unexplained == ()
        assert line.expected == line.found == line.tensor_flops > line.counted_flops // 2


def test_a_product_that_is_not_the_models_is_found_out() -> None:
    case, kernels = recorded("t_prefill")
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
    for line, (adds, multiplies, multiply_adds) in zip(lines(count(case), kernels), (forward, backward), strict=True):
        assert line.unexplained == ()
        assert line.expected == line.found == adds + multiplies + 2 * multiply_adds

    kernels[0].counts["add"] += 1
    (forward_line, _) = lines(count(case), kernels)
    assert forward_line.unexplained == (f"scan: {forward_line.found:,}, not {forward_line.found - 1:,}",)


def test_a_scan_of_another_path_is_not_held() -> None:
    case = Case.of(preset("mamba-130m", n_layers=1), task="decode", seq_len=64, dtype="bfloat16", path="fused")
    counts = dict.fromkeys(("add", "multiply", "multiply_add", "special", "read_bytes", "written_bytes"), 0)
    (line,) = lines(count(case), [Kernel("_selective_scan_update_kernel", "mixer", "forward", counts)])
    assert line.expected is None
