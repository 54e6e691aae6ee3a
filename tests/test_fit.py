"""What fits: by trying every size of small models, by hand for the allocator, and on a GPU by running it."""

import json

import pytest

from benchbench.case import Case, completed
from benchbench.commands import fit_verify
from benchbench.commands.fit import command
from benchbench.counters import count, limited
from benchbench.counters.allocator import simulated
from benchbench.counters.limited import Limited, played, played_within
from benchbench.counters.timeline import Block, Timeline
from benchbench.errors import BenchError
from benchbench.fit import LIMIT, Answer, Point, Sizes, bytes_of, largest
from benchbench.launch import Outcome
from benchbench.specs import preset

MIB = 2**20


def sizes(model: str, task: str, field="seq_len", device="cpu", **given) -> Sizes:
    return Sizes(Case(**completed(preset(model), {"task": task, "seq_len": 2, **given}, device)), field, device)


# Amounts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("80G", 80 * 2**30),
        ("1.5 gib", 3 * 2**29),
        ("512MiB", 2**29),
        ("1_000", 1000),
        ("150,109,000,000", 150_109_000_000),
    ],
)
def test_amounts_of_memory(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["24zb", "GiB", "", "-1", "1e9", "24 GiB more"])
def test_no_amount_of_memory(text):
    with pytest.raises(BenchError, match="is no amount of memory"):
        bytes_of(text)


# An allocator that may take so much


def test_states_lie_where_the_first_step_left_room():
    """Made before, they would be 12 MiB beside the 30 of the activations; made at the end of the first step, they are
    cut from those 30, and the second step's activations need a segment more, which nothing can be given back for.
    """
    kept, saved = Block(30 * MIB, "x", "activations"), Block(12 * MIB, "w", "optimizer")
    root = Block(12 * MIB, "root", "workspace", "optimizer")
    step = Timeline((saved,), [(kept, 1), (kept, -1), (root, 1), (root, -1)])
    assert simulated(step).reserved == (30 + 12) * MIB
    assert played(step, 42 * MIB).taken == (30 + 30) * MIB
    assert played_within(step, 42 * MIB) is None
    assert played_within(step, 60 * MIB) is not None


def test_free_segments_are_given_back_before_the_limit_is_passed():
    """A request of 10 MiB or more has a segment of its own, in steps of 2 MiB."""
    first, second = Block(12 * MIB, "a", "workspace"), Block(14 * MIB, "b", "workspace")
    apart = Timeline((), [(first, 1), (first, -1), (second, 1), (second, -1)])
    assert played(apart, 26 * MIB).taken == 26 * MIB  # the first stays cached
    assert played(apart, 24 * MIB).taken == 14 * MIB
    together = Timeline((), [(first, 1), (second, 1)])
    assert played(together, 24 * MIB).taken == 26 * MIB
    assert played_within(together, 24 * MIB) is None
    # What was there at the most: both; or, once the first went, the second alone.
    assert dict(played(together, 24 * MIB).requests) == {12 * MIB: 1, 14 * MIB: 1}
    assert dict(+played(apart, 24 * MIB).requests) == {14 * MIB: 1}


def test_a_segment_with_anything_alive_in_it_stays():
    """20 MiB cut in 8 and 8 with 4 left, of which the middle 8 stay: neither part of the rest is given back."""
    allocator = Limited(22 * MIB)
    first, _ = allocator.allocate(8 * MIB), allocator.allocate(8 * MIB)
    allocator.release(first)
    allocator.allocate(12 * MIB)
    assert (allocator.allocated, allocator.taken) == (20 * MIB, 32 * MIB)


# Searches


@pytest.mark.parametrize("field", ["seq_len", "batch"])
@pytest.mark.parametrize(
    ("model", "task"), [("transformer-tiny", "train"), ("mamba-tiny", "prefill"), ("resnet-bk-tiny", "prefill")]
)
def test_on_a_cpu_it_is_what_trying_all_sizes_finds(model, task, field):
    asked = sizes(model, task, field)
    last = 150
    peaks = {n: count(asked.at(n), "cpu").counted.peak_bytes for n in range(asked.first, last + 1)}
    for memory in (peaks[60], peaks[61] - 1, peaks[127], (peaks[128] + peaks[129]) // 2):
        found = largest(asked, memory)
        assert found.at == max(n for n, peak in peaks.items() if peak <= memory)
        assert [(point.n, point.allocated, point.fits) for point in found.points] == [
            (found.at, peaks[found.at], True),
            (found.at + 1, peaks[found.at + 1], False),
        ]


def test_on_a_gpu_the_segments_decide():
    """More fits of the blocks alone than of the segments that they are cut from; none fits past the blocks' bound."""
    asked = sizes("transformer-tiny", "train", device="cuda")
    memory = 200 * MIB
    found = largest(asked, memory)
    assert found.at is not None
    assert found.bound is not None
    assert found.at <= found.bound
    at, past = found.points
    assert at.taken <= memory < past.taken
    assert at.allocated <= at.taken
    for n in range(found.bound + 1, found.bound + 40):
        assert not asked.fits(n, memory)


@pytest.mark.parametrize("field", ["seq_len", "batch"])
@pytest.mark.parametrize("task", ["train", "prefill", "decode"])
@pytest.mark.parametrize("model", ["transformer-130m", "mamba-370m", "resnet-bk-130m"])
def test_the_answer_fits_and_the_next_does_not(model, task, field):
    """As the allocator is simulated for a count of its own, on whichever way the search came there."""
    memory = 24 * 2**30
    asked = sizes(model, task, field, "cuda", **({"seq_len": 2048} if field == "batch" else {}))
    found = largest(asked, memory)
    assert found.at is not None
    for n, fits in [(found.at, True), (found.at + 1, False)]:
        if n <= asked.last:
            allocator = played(count(asked.at(n), "cuda").fullest.timeline, memory)
            assert (allocator.taken <= memory) is fits


def test_segments_taken_at_one_size_lead_to_another():
    """A prefill's tensors are weights or lines in its batch: where 60 just fit, the segments of 64 tell so."""
    asked = sizes("mamba-130m", "prefill", "batch", "cuda", seq_len=2048)
    memory = asked.point(60, 2**50).taken
    assert not asked.point(64, memory).fits
    assert asked.last_like(64, memory, range(1, 64)) == 60


def test_a_length_that_fits_again_is_the_answer():
    """The loss of 2,670 tokens is in chunks, of 2,669 not: 2^27 logits held at a time, of 50,280 a token."""
    asked = sizes("transformer-130m", "train")
    peak = {n: count(asked.at(n), "cpu").counted.peak_bytes for n in (2668, 2669, 2670, 2671)}
    assert peak[2670] < peak[2668] < peak[2669]
    found = largest(asked, peak[2670])
    assert (found.at, found.points[1].fits) == (2670, False)
    assert found.again == ((2669, 2670),)


def test_what_the_least_size_needs_is_shown_where_it_does_not_fit():
    found = largest(sizes("mamba-tiny", "train"), 1000)
    assert (found.at, found.bound, found.end) == (None, None, None)
    assert [(point.n, point.fits) for point in found.points] == [(2, False)]


@pytest.mark.parametrize(("task", "at"), [("prefill", 1024), ("decode", 1023)])
def test_learned_positions_end_it(task, at):
    found = largest(sizes("gpt2", task), 2**40)
    assert (found.at, found.any) == (at, False)
    assert found.end == "gpt2 has learned positions for 1024 tokens"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_constant_state_fits_any_context(device):
    found = largest(sizes("mamba-tiny", "decode", device=device), 64 * MIB)
    assert (found.at, found.any) == (LIMIT, True)


# The command line


def asked(capsys, *words) -> dict:
    with pytest.raises(SystemExit) as ended:
        command([*words, "--format", "json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("on", "kind", "path"), [((), "cuda", "fused"), (("--device", "cpu"), "cpu", "chunked")])
def test_a_memory_answers_four_questions_of_a_gpu_unless_it_is_the_cpus(capsys, on, kind, path):
    found = asked(capsys, "--model", "mamba-tiny", "--task", "train", "--memory", "1GiB", *on)
    assert (found["device"], {one["case"]["path"] for one in found["answers"]}) == (kind, {path})
    assert [one["question"] for one in found["answers"]] == ["seq_len", "batch", "batch", "batch"]
    assert [one["case"].get("seq_len") for one in found["answers"]] == [None, 2048, 8192, 32768]
    for one in found["answers"]:
        assert [point["n"] for point in one["counted"]] == [one["answer"], one["answer"] + 1]
        assert [point["fits"] for point in one["counted"]] == [True, False]


def test_a_device_has_a_memory_and_a_path_and_keeps_a_reserve(capsys):
    words = ("--model", "mamba-130m", "--device", "h200", "--max", "batch", "--seq-len", "64", "--reserve", "600MiB")
    found = asked(capsys, *words)
    assert found["memory_bytes"] == 150_109_000_000 - 600 * MIB
    [answer] = found["answers"]
    assert (answer["case"]["path"], answer["case"]["seq_len"]) == ("fused", 64)
    assert asked(capsys, *words, "--memory", "8GiB")["memory_bytes"] == 8 * 2**30 - 600 * MIB


def test_without_a_memory_it_is_the_smallest_device(capsys):
    """Keys and values of 64 sequences of 32,769 tokens: 2·768·4·12 bytes a token, 154.6 GB: more than an H200 has."""
    words = ("--model", "transformer-130m", "--task", "decode", "--seq-len", "32768", "--batch", "64")
    found = asked(capsys, *words)
    memories = [one["memory_bytes"] for one in found["devices"]]
    assert memories == sorted(memories)
    assert [one["device"] for one in found["devices"] if one["fits"]] == ["b200", "mi300x"]
    assert found["smallest"] == "b200"
    for one in found["devices"]:
        assert (one["longest"]["answer"] >= 32768) == (one["largest_batch"]["answer"] >= 64) == one["fits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "gpt2", "--memory", "24zb"], "'24zb' is no amount of memory"),
        (["--model", "gpt2", "--memory", "1GiB", "--reserve", "2GiB"], "--reserve leaves nothing"),
        (["--model", "gpt2", "--max", "batch"], "no memory is named"),
        (["--model", "gpt2", "--memory", "1GiB", "--device", "h20"], "no device 'h20'. Did you mean"),
        (["--model", "gpt2", "--memory", "1GiB", "--seq-len", "4096"], "learned positions for 1024 tokens"),
    ],
)
def test_errors_are_said(words, message):
    with pytest.raises(BenchError, match=message.replace("'", "['‘]")):
        command(words, standalone_mode=False)


@pytest.mark.parametrize(
    ("model", "given", "gib", "reserved"),
    [
        ("transformer-130m", {"seq_len": 68266}, 27, [28_137_488_384, 28_963_766_272, 28_963_766_272]),
        ("resnet-bk-130m", {"seq_len": 80555}, 12, [12_574_523_392, 12_788_432_896, None]),
        ("mamba-130m", {"seq_len": 1024, "batch": 8, "dtype": "float32"}, 8, [7_415_529_472 + 20 * MIB, None]),
    ],
)
def test_what_an_h200_reserved_step_by_step(model, given, gib, reserved, monkeypatch):
    """torch 2.11's peak of reserved bytes after each training step within so much memory; None where it ran out of it.

    Mamba's first was one segment of 20 MiB less there: mamba-ssm tuned its norm in it, in blocks of 256 MiB.
    """
    case = Case(**completed(preset(model), {"task": "train", "dtype": "bfloat16", **given}, "cuda"))
    timeline = count(case, "cuda").fullest.timeline
    for calls, bytes_then in enumerate(reserved, 1):
        monkeypatch.setattr(limited, "CALLS", calls)
        found = played_within(timeline, gib * 2**30)
        assert (found and found.taken) == bytes_then


# Verifying


class Told:
    """A launcher that says of each batch what it was told to."""

    def __init__(self, statuses: dict[int, str]) -> None:
        self.statuses = statuses
        self.closed = False

    def run(self, case, protocol, *, trace):
        return Outcome(self.statuses[case.batch], 0.0)

    def close(self):
        self.closed = True


@pytest.mark.parametrize(("past", "agrees"), [("oom", True), ("ok", False), ("unsupported", None)])
def test_a_run_agrees_where_only_the_answer_fits(past, agrees):
    case = sizes("mamba-tiny", "train", "batch").case
    points = (Point(3, 10, 10, fits=True, simulated=True), Point(4, 20, 20, fits=False, simulated=True))
    told = Told({3: "ok", 4: past})
    found = fit_verify.run([Answer(case, "batch", 15, 3, 3, points, None, (), exact=True)], 15, told)
    assert [(run.case.batch, run.expected, run.agrees) for run in found] == [(3, "ok", True), (4, "oom", agrees)]
    assert told.closed


def test_only_a_gpu_s_memory_is_capped():
    import torch

    from benchbench.worker import cap

    with pytest.raises(BenchError, match="about a GPU, not 'cpu'"):
        cap(torch.device("cpu"), 2**30)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("model", "task", "field", "seq_len"),
    [
        ("transformer-130m", "train", "batch", 1024),
        ("mamba-130m", "train", "batch", 1024),
        ("resnet-bk-130m", "train", "batch", 1024),
        ("transformer-130m", "decode", "batch", 4096),
    ],
)
def test_a_gpu_runs_the_answer_and_not_one_more(model, task, field, seq_len):
    """In 8 GiB of it: one sequence more is some hundred MiB, more than what earlier calls leave in pieces."""
    memory = 8 * 2**30
    found = largest(sizes(model, task, field, "cuda", seq_len=seq_len), memory)
    runs = fit_verify.run([found], memory)
    assert [(run.case.batch, run.status) for run in runs] == [(found.at, "ok"), (found.at + 1, "oom")]
    assert runs[0].peak_bytes == pytest.approx(runs[0].point.allocated, rel=0.01)
