"""The cost model against sums done by hand, from the equations and not from the code."""

import subprocess
import sys

import pytest

from benchbench.case import Case
from benchbench.counters import count, pointwise
from benchbench.counters.op import Step
from benchbench.counters.selective_scan import selective_scan
from benchbench.errors import UnsupportedError
from benchbench.specs import preset, presets
from benchbench.specs.mamba import MambaSpec
from benchbench.specs.resnet_bk import ResNetBKSpec
from benchbench.specs.transformer import TransformerSpec

TRANSFORMER = TransformerSpec(name="t", n_layers=3, d_model=8, n_heads=4, n_kv_heads=2, d_ff=10, vocab_size=32)
MAMBA = MambaSpec(name="m", n_layers=3, d_model=16, d_state=5, d_conv=4, vocab_size=32)
RESNET_BK = ResNetBKSpec(name="r", n_layers=3, d_model=8, d_ff=10, n_experts=4, top_k=2, vocab_size=32)


def test_a_transformer_by_hand() -> None:
    # B=2 sequences of N=6: 12 rows; d=8, four heads of 2, two key heads: keys and values are 4 wide.
    counted = count(Case.of(TRANSFORMER, task="prefill", seq_len=6, batch=2)).counted
    # A layer's matrices: q 8·8, k and v 8·4 each, o 8·8, gate, up and down 8·10 each: 432 weights, 12 rows, 2 each.
    # The head projects one position of each sequence: 2 rows of 8·32.
    assert counted.flops_by_kind["matmul"] == 3 * 12 * 2 * (64 + 32 + 32 + 64 + 3 * 80) + 2 * 2 * 8 * 32
    # 21 visible pairs (6·7/2), 2·4 heads, 3 layers: 2·2 score, 1 scale, 4 softmax, 2·2 value.
    assert counted.flops_by_kind["attention"] == 3 * 8 * 21 * (4 + 1 + 4 + 4)
    # The square has 36 pairs.
    assert counted.full_square_flops - counted.flops == 3 * 8 * (36 - 21) * 13
    # RMSNorm, two a layer and one at the end: 4 an element and 3 a row.
    assert counted.flops_by_kind["norm"] == 7 * (4 * 12 * 8 + 3 * 12)
    # Rotary table: 6 tokens, 1 angle each, 3 operations. A layer: turning q and k 3·12·(8+4), two residual sums
    # 2·12·8, SiLU 4·12·10, gate 12·10.
    assert counted.flops_by_kind["elementwise"] == 6 * 3 + 3 * (3 * 12 * 12 + 2 * 96 + 4 * 120 + 120)
    assert sum(counted.flops_by_kind.values()) == counted.flops
    # Keys and values of 6 tokens, 4 wide, 2 sequences, 3 layers, 4 bytes.
    assert counted.state_bytes == 2 * 6 * 4 * 2 * 3 * 4


def test_attention_in_training_by_hand() -> None:
    counted = count(Case.of(TRANSFORMER, task="train", seq_len=6, batch=2)).counted
    # Backward: four products of 2·2 and five operations a pair, beside the forward's 13.
    assert counted.flops_by_kind["attention"] == 3 * 8 * 21 * (13 + 4 * 4 + 5)
    # The head sees all 12 rows now; backward is twice the forward.
    assert counted.flops_by_kind["matmul"] == 3 * (3 * 12 * 2 * 432 + 2 * 12 * 8 * 32)
    # Flash computes the scores again: 2·2 + 3 a pair. Each norm rebuilds its normalised input: 1 an element. Turning
    # back takes a sign a pair of numbers; one rotary frequency takes 3.
    again = 3 * 8 * 21 * 7 + 7 * 96 + 3 * (12 * 12 // 2) + 3
    assert counted.executed_flops - counted.flops == again + logarithms(12, 32)


def logarithms(rows: int, vocab_size: int) -> int:
    """What torch's loss runs beyond the formula: all log-probabilities, and a gradient that takes any dy.

    Forward all V are subtracted their logarithm, 1 each, where the target's is 1 a row; backward Σ dy and its
    subtraction, 2 each. The mean divides once forward and once backward.
    """
    return (rows * vocab_size - rows + 1) + (2 * rows * vocab_size + 1)


def test_eager_attention_executes_the_full_square() -> None:
    counted = count(Case.of(TRANSFORMER, task="prefill", seq_len=6, batch=2, path="eager")).counted
    # It scales the queries, 12·8 in each of 3 layers, and not the scores, 36 in each of 8 heads.
    assert counted.executed_flops == counted.full_square_flops - 3 * 8 * 36 + 3 * 12 * 8 + 3


def test_decoding_sees_the_context_and_itself() -> None:
    counted = count(Case.of(TRANSFORMER, task="decode", seq_len=6, batch=2)).counted
    assert counted.flops_by_kind["attention"] == 3 * 8 * 7 * 13
    assert counted.state_bytes == 2 * 7 * 4 * 2 * 3 * 4


def test_a_mamba_by_hand() -> None:
    # d=16, inner 32, rank 1, 5 states, 4 taps; 12 rows.
    counted = count(Case.of(MAMBA, task="prefill", seq_len=6, batch=2)).counted
    matrices = 16 * 64 + 32 * (1 + 10) + 1 * 32 + 32 * 16
    assert counted.flops_by_kind["matmul"] == 3 * 12 * 2 * matrices + 2 * 2 * 16 * 32
    assert counted.flops_by_kind["conv"] == 3 * 12 * 32 * 4 * 2
    # 7 a state, 3 a channel; A = -exp(A_log): 2 a parameter, once.
    assert counted.flops_by_kind["scan"] == 3 * (7 * 12 * 32 * 5 + 3 * 12 * 32 + 2 * 32 * 5)
    # A row and channel: conv bias 1, SiLU 4, dt bias 1, softplus 3, gate SiLU 4 and product 1; residual 12·16.
    assert counted.flops_by_kind["elementwise"] == 3 * (14 * 12 * 32 + 12 * 16)
    # Convolution columns and states: 32·(4 + 5) float32 a sequence and layer, whatever the length.
    assert counted.state_bytes == 3 * 2 * 32 * 9 * 4
    assert count(Case.of(MAMBA, task="decode", seq_len=10**6, batch=2)).counted.state_bytes == counted.state_bytes


def test_a_mamba_in_training_by_hand() -> None:
    counted = count(Case.of(MAMBA, task="train", seq_len=6, batch=2)).counted
    states, channels, parameters = 12 * 32 * 5, 12 * 32, 32 * 5
    assert counted.flops_by_kind["scan"] == 3 * ((7 + 15) * states + (3 + 7) * channels + (2 + 1) * parameters)
    assert counted.flops_by_kind["conv"] == 3 * 3 * (12 * 32 * 4 * 2)
    # The chunked path runs its forward again: 7 a state, 3 a channel, softplus 3, SiLU 4. Σ ·A is 3 a state and not 2.
    # A's sign goes back on its own. Norms rebuild their input.
    again = 3 * (8 * states + 10 * channels + parameters) + 4 * 12 * 16
    assert counted.executed_flops - counted.flops == again + logarithms(12, 32)


def test_a_resnet_bk_by_hand() -> None:
    # 12 rows, d=8, 2 of 4 experts of width 10.
    counted = count(Case.of(RESNET_BK, task="prefill", seq_len=6, batch=2)).counted
    layer = 8 * 1 + 2 * 8 + 8 * 4 + 2 * (8 * 10 + 10 * 8)
    assert counted.flops_by_kind["matmul"] == 3 * 12 * 2 * layer + 2 * 2 * 8 * 32
    # The left continued fraction: diagonal 1, difference and sum 2, two squares, sum, reciprocal 4, two products.
    assert counted.flops_by_kind["resolvent"] == 3 * 12 * 9
    # Gates: a softmax of 2, 4 each; two products and one sum an element of the output.
    assert counted.flops_by_kind["routing"] == 3 * (4 * 24 + 3 * 96)
    assert counted.flops_by_kind["norm"] == 4 * (7 * 96 + 4 * 12)
    # One complex float32 a layer and sequence.
    assert counted.state_bytes == 3 * 2 * 8


def test_the_two_sided_form_joins_two_fractions() -> None:
    exact = RESNET_BK.replace(form="bk-exact")
    counted = count(Case.of(exact, task="prefill", seq_len=6, batch=2)).counted
    assert counted.flops_by_kind["resolvent"] == 3 * 12 * (9 + 8 + 10)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        # GPT-2 small: Radford et al. 2019 as released. Mamba: the published checkpoints (state-spaces/mamba-*).
        ("gpt2", 124_439_808),
        ("mamba-130m", 129_135_360),
        ("mamba-370m", 371_516_416),
        ("mamba-790m", 793_204_224),
        ("mamba-1.4b", 1_372_178_432),
        ("mamba-2.8b", 2_768_345_600),
        # ResNet-BK's BASELINE: VD + ND + L[2D + E(4D²+3D) + (DE+E) + (D+1) + 3D + 1] + 2D + DV + V
        ("resnet-bk-baseline", 4_146_120),
    ],
)
def test_published_parameter_counts(name: str, params: int) -> None:
    assert count(Case.of(preset(name), task="prefill", seq_len=2)).params == params


def test_the_compared_models_match_outside_the_embedding() -> None:
    def inside(name: str) -> int:
        spec = preset(name)
        return count(Case.of(spec, task="prefill", seq_len=2)).params - spec.vocab_size * spec.d_model

    mamba = inside("mamba-130m")
    assert mamba == 90_520_320
    for name in ("transformer-130m", "resnet-bk-130m"):
        assert abs(inside(name) / mamba - 1) < 0.02


@pytest.mark.parametrize(
    ("optimizer", "flops", "states"), [("sgd", 2, 0), ("momentum", 4, 1), ("adam", 13, 2), ("adamw", 14, 2)]
)
def test_optimizers_are_counted_a_parameter(optimizer: str, flops: int, states: int) -> None:
    cost = count(Case.of(MAMBA, task="train", seq_len=6, optimizer=optimizer))
    assert cost.counted.flops_by_phase["optimizer"] == flops * cost.params
    # Adam counts the steps of each of the 3·10 + 2 tensors, in a float32.
    steps = 4 * 32 if optimizer.startswith("adam") else 0
    assert cost.counted.memory.optimizer == states * 4 * cost.params + steps


def test_the_batch_factor_is_never_forgotten() -> None:
    for name in ("transformer-tiny", "mamba-tiny", "resnet-bk-tiny"):
        one, four = (count(Case.of(preset(name), task="prefill", seq_len=64, batch=batch)).counted for batch in (1, 4))
        # Once a call, whatever the batch: the rotary table and A = -exp(A_log).
        once = {"transformer-tiny": 64 * 8 * 3, "mamba-tiny": 2 * 2 * 128 * 8, "resnet-bk-tiny": 0}[name]
        assert four.flops - once == 4 * (one.flops - once)


def test_a_chunked_loss_executes_its_logits_again() -> None:
    spec = preset("mamba-130m")
    # 2^27 // 50280 = 2669 rows fit: chunks of 2048, so 4096 tokens need two.
    cost = count(Case.of(spec, task="train", seq_len=4096))
    again = {op.formula.name: op.work.extra_flops for op in cost.ops if op.phase == "backward"}
    weights = 50280 * 768
    assert again["head"] == 2 * 4096 * weights + weights
    # Log-probabilities: subtract the maximum, exp, sum, subtract the logarithm; a row: the logarithm, the sum. And 2 an
    # element for a gradient that takes any dy, 1 for the mean.
    assert again["cross_entropy"] == (4 * 4096 * 50280 + 2 * 4096) + 2 * 4096 * 50280 + 1
    assert cost.counted.memory.logits == 3 * 4 * 2048 * 50280


def test_operations_sum_to_the_totals() -> None:
    for spec in presets().values():
        for task in ("prefill", "train"):
            cost = count(Case.of(spec, task=task, seq_len=100))
            rows = cost.rows()
            assert sum(row["flops"] * row["repeat"] for row in rows) == cost.counted.flops
            assert sum(row["executed_flops"] * row["repeat"] for row in rows) == cost.counted.executed_flops
            assert sum(row["bytes_moved"] * row["repeat"] for row in rows) == cost.counted.bytes_moved
            assert sum(row["params"] * row["repeat"] for row in rows) == cost.counted.params
            assert sum(cost.counted.flops_by_phase.values()) == cost.counted.flops


def test_the_fused_scan_runs_what_an_h200_counted() -> None:
    """Its kernel's float32 instructions, a multiply-add as 2, special functions not among them. It had no gate: of the
    61 + 1/128 products a channel and 16 states, 56 + 1/128 are the states', 3 softplus's and 2 Δ·u and D·u.
    """
    n = 1536 * 4096
    scan = selective_scan(Step(1, 4096, 0, 0, 2, "fused", False, 1), 1536, 16).forward
    softplus, gate = 3 * n, 5 * n
    special, gated = (16 + 3) * n, 4 * n  # the states' exps, softplus's, two of the gate; the gate's sum and products
    ran = scan.flops + scan.extra_flops + softplus + gate - special - gated
    assert ran == 2 * 421_527_552 + 383_827_968 + 18_874_368


def test_the_fused_scans_backward_runs_its_machine_code() -> None:
    """2,048 tokens are one chunk: 128 threads of 16, in 4 warps of which one scans over threads."""
    n, states, threads = 1536 * 2048, 1536 * 2048 * 16, 1536 * 16 * 128
    lanes = 31 + 30 + 28 + 24 + 16
    scans = (13 * 3) * 32 + 3 * 2 * (lanes + 31)  # in one warp: a multiply-add and a product each
    chunk = 128 * (192 + 2 * 125 + 17) + scans + 4 * lanes + 3
    channel = 8 + 13 + 2 * 13 + 5
    scan = selective_scan(Step(1, 2048, 0, 0, 2, "fused", True, 1), 1536, 16).backward
    ran = scan.flops + scan.extra_flops + (5 + 9 + 2) * n
    assert ran == 1536 * 16 * chunk + (16 + 32) * threads + channel * n + 1536 * 2 * (4 * lanes + 3)
    assert threads * 16 == states


def test_one_token_of_the_fused_scan_is_its_own_kernel() -> None:
    # 9 a state, of which the formula has 7; Δ·u is not made, and three exps and logs go to base 2.
    scan = selective_scan(Step(2, 1, 0, 64, 2, "fused", False, 1), 1536, 16).forward
    assert scan.flops + scan.extra_flops == 2 * 1536 * (9 * 16 + 3 + 2)


def test_what_an_architecture_cannot_do_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="positions for 1024 tokens, not 1025"):
        count(Case.of(preset("gpt2"), task="decode", seq_len=1024))
    with pytest.raises(UnsupportedError, match="sees later tokens"):
        count(Case.of(RESNET_BK.replace(form="bk-exact"), task="train", seq_len=8))


def test_counting_imports_no_torch() -> None:
    code = (
        "import sys; from benchbench.case import Case; from benchbench.counters import count;"
        "from benchbench.specs import preset;"
        "count(Case.of(preset('mamba-2.8b'), task='train', seq_len=1048576)).counted;"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checkpointing_runs_all_of_a_layer_again_but_its_last_product() -> None:
    # mamba-tiny: out_proj needs its input alone, so backward has all it needs before out_proj runs again.
    plain, again = (
        count(Case.of(preset("mamba-tiny"), task="train", seq_len=32, checkpoint=flag)) for flag in (False, True)
    )
    layer = sum(
        op.repeat * op.executed_flops
        for op in plain.ops
        if op.phase == "forward" and op.path.startswith("backbone.layers.*.")
    )
    out_proj = 2 * (2 * 32 * 128 * 64)

    assert again.counted.flops == plain.counted.flops
    assert again.counted.executed_flops - plain.counted.executed_flops == layer - out_proj


def test_passes_cost_as_much_as_their_sequences_in_one_batch_but_for_adding_gradients() -> None:
    # 3 passes of 2 against 1 of 6: everything is linear in the sequences, but A = -exp(A_log), once a pass (2 forward,
    # 1 and a sign backward, 128·8 numbers in 2 layers), the tied weight's sum (256·64), the gradients of all parameters
    # added to those before, three losses divided by 3, forward and backward, and by the rows, likewise.
    one, three = (
        count(Case.of(preset("mamba-tiny"), task="train", seq_len=32, batch=batch, accumulate=passes)).counted
        for batch, passes in ((6, 1), (2, 3))
    )
    rates = 2 * 128 * 8

    assert three.flops - one.flops == 2 * (3 * rates + 256 * 64)
    assert three.executed_flops - one.executed_flops == 2 * (4 * rates + 256 * 64 + three.params) + 2 * 3 + 2 * 2


def test_autocast_casts_the_weights_of_products_once_a_pass() -> None:
    cast, half = (
        count(Case.of(preset("mamba-tiny"), task="prefill", seq_len=32, **way))
        for way in ({"autocast": "bfloat16"}, {"dtype": "bfloat16"})
    )
    # in_proj, conv, x_proj, dt_proj, out_proj in two layers, and the head: read in 4 bytes, written in 2.
    weights = 2 * (64 * 256 + 4 * 128 + 128 * (4 + 16) + 4 * 128 + 128 * 64) + 256 * 64

    assert cast.counted.flops == half.counted.flops
    # The embedding's rows, read and written, stay in 4 bytes.
    assert cast.counted.bytes_moved - half.counted.bytes_moved == 6 * weights + 2 * 2 * 32 * 64


def decoded(name: str, batch: int, path: str) -> int:
    """Bytes that one decoded token of each sequence moves."""
    case = Case.of(preset(name), task="decode", seq_len=64, batch=batch, path=path)
    return sum(
        op.repeat * op.bytes_moved for op in count(case).ops if op.path.endswith(("scan", "ssd", "conv1d", "core"))
    )


@pytest.mark.parametrize(
    ("name", "path", "state", "rows"),
    [
        # Of each layer 128 channels: 4 tokens of the convolution, 8 states. A token's rows: the convolution's input and
        # output 2, its bias none, its SiLU's 2; the scan's u, dt, gate and output 4, B and C 2 of 8.
        ("mamba-tiny", "chunked", 4 * 128 * (4 + 8), 4 * (8 * 128 + 2 * 8)),
        # One kernel for the convolution, which so has no SiLU to move.
        ("mamba-tiny", "triton", 4 * 128 * (4 + 8), 4 * (6 * 128 + 2 * 8)),
        # One complex number a layer; v, and the resolvent's two.
        ("resnet-bk-tiny", "chunked", 8, 4 * 3),
        ("resnet-bk-tiny", "triton", 8, 4 * 3),
    ],
)
def test_a_decoded_token_reads_its_state_and_writes_it(name: str, path: str, state: int, rows: int) -> None:
    """Of a second sequence: its rows, and its state twice; the weights are there already."""
    assert count(Case.of(preset(name), task="decode", seq_len=64, path=path)).counted.state_bytes == 2 * state
    assert decoded(name, 2, path) - decoded(name, 1, path) == 2 * (rows + 2 * state)


def test_mamba_2_reads_and_writes_its_states_when_it_decodes() -> None:
    # 160 channels of a convolution of 4 tokens and 128 channels of 16 states in float32, in two layers.
    moved = decoded("mamba2-tiny", 2, "chunked") - decoded("mamba2-tiny", 1, "chunked")
    assert moved > 2 * 2 * 4 * (160 * 4 + 128 * 16)


def test_states_are_kept_in_the_weights_dtype_under_autocast() -> None:
    for name, path in (("transformer-tiny", "flash"), ("mamba-tiny", "fused")):
        wide, cast = (
            count(Case.of(preset(name), task="decode", seq_len=64, path=path, **way)).counted
            for way in ({}, {"autocast": "bfloat16"})
        )
        assert wide.state_bytes == cast.state_bytes == cast.memory.state


def test_the_dropout_of_flash_attention_moves_nothing_of_its_own() -> None:
    plain, dropped = (
        count(Case.of(preset("transformer-tiny", dropout=p), task="train", seq_len=512)).ops for p in (0.0, 0.1)
    )
    (drop,) = (
        op for op in dropped if op.formula.name == "dropout" and op.path.endswith("core") and op.phase == "forward"
    )
    assert drop.bytes_moved == drop.saved_bytes == 0
    # 4 heads, 512 · 513 / 2 pairs, a product with the mask and one with 1 / (1 - p).
    assert drop.flops == 2 * 4 * 512 * 513 // 2
    assert len(plain) < len(dropped)


def test_a_chunked_head_adds_its_bias_again() -> None:
    case = Case.of(preset("resnet-bk-baseline"), task="train", seq_len=128, batch=64)
    (op,) = (
        op for op in count(case).ops if op.path == "lm_head" and op.formula.name == "bias" and op.phase == "backward"
    )
    # 8,192 rows of 30,000 logits in chunks of 4,096: every bias again, and the second chunk's sum added to the first's.
    assert op.executed_flops - op.flops == 8192 * 30_000 + 30_000


def test_groups_of_a_norm_share_its_weight() -> None:
    one, four = (pointwise.rms_norm(8, 64, 4, stream=4, groups=groups) for groups in (1, 4))
    # Three operations a mean more, of 8 rows three means more each.
    assert four.forward.flops - one.forward.flops == 3 * 8 * 3
    assert four.forward.bytes_moved == one.forward.bytes_moved
    assert four.params == 64
