"""Suite files: what they expand to, and what a user is told who writes one wrongly."""

import pytest

from benchbench.errors import BenchError
from benchbench.suite import built_in, load, parse
from benchbench.toml_lines import TomlLines

HEAD = 'name = "mine"\nversion = 1\nabout = "?"\n'
CASE = HEAD + '\n[[cases]]\ntask = "prefill"\nmodel = "mamba-tiny"\n'  # [[cases]] on line 5


def complaint(text: str, device: str = "cpu") -> tuple[str, str]:
    with pytest.raises(BenchError) as caught:
        parse(text, "my.toml", device)
    return caught.value.message, caught.value.hint


def test_a_table_is_the_product_of_its_models_lengths_and_batches():
    suite = parse(
        HEAD + '[[cases]]\ntask = "decode"\nmodel = ["mamba-tiny", "gpt2"]\nseq_len = [8, 16]\nbatch = [1, 4]', "f"
    )
    assert [(case.model, case.seq_len, case.batch) for case in suite.cases] == [
        ("mamba-tiny", 8, 1),
        ("mamba-tiny", 8, 4),
        ("mamba-tiny", 16, 1),
        ("mamba-tiny", 16, 4),
        ("gpt2", 8, 1),
        ("gpt2", 8, 4),
        ("gpt2", 16, 1),
        ("gpt2", 16, 4),
    ]


def test_lengths_multiply_up_to_the_last():
    suite = parse(CASE + "seq_len = { from = 512, to = 4000, times = 2 }", "f")
    assert [case.seq_len for case in suite.cases] == [512, 1024, 2048]


def test_batch_follows_from_tokens():
    suite = parse(CASE + "seq_len = [64, 256]\ntokens = 1024", "f")
    assert [case.batch for case in suite.cases] == [16, 4]


def test_the_same_case_twice_is_one():
    assert len(parse(CASE + "seq_len = [8, 8]", "f").cases) == 1


def test_training_has_an_optimizer_and_the_familys_first_path():
    case = parse(HEAD + '[[cases]]\ntask = "train"\nmodel = "mamba-tiny"\nseq_len = 8', "f").cases[0]
    assert (case.optimizer, case.path) == ("adamw", "chunked")


def test_values_by_device():
    text = HEAD + (
        "[protocol]\nmax_samples = { cpu = 7, cuda = 70 }\nbudget_s = { cpu = 60, cuda = 600 }\n"
        '[[cases]]\ntask = "prefill"\nmodel = "gpt2"\nseq_len = 8\ndtype = { cpu = "float32", cuda = "bfloat16" }'
    )
    cpu, cuda = parse(text, "f", "cpu"), parse(text, "f", "cuda:1")
    assert (cpu.budget_s, cpu.protocol.max_samples, cpu.cases[0].dtype) == (60, 7, "float32")
    assert (cuda.budget_s, cuda.protocol.max_samples, cuda.cases[0].dtype) == (600, 70, "bfloat16")


def test_changed_sizes_show_in_the_models_name():
    case = parse(CASE + "seq_len = 8\nset = { n_layers = 3 }", "f").cases[0]
    assert (case.model, case.spec.n_layers) == ("mamba-tiny+n_layers=3", 3)


def test_a_misspelt_key_is_named_with_its_line_and_the_nearest_one():
    message, hint = complaint(CASE + "seq_length = 8")
    assert message == "my.toml:8: [[cases]] has no key 'seq_length'. Did you mean 'seq_len'?"
    ways = "accumulate, autocast, batch, checkpoint, device, dtype"
    assert hint == f"Keys: {ways}, model, optimizer, path, seed, seq_len, set, task, tokens."


def test_the_line_is_that_of_the_right_table():
    # Two tables with the same keys: the fault is in the second, on line 12.
    text = CASE + 'seq_len = [\n  8, # ] [[cases]]\n]\n[[cases]]\ntask = "prefill"\nmodel = "mamba-tiny"\nseq_len = 0'
    assert complaint(text)[0] == "my.toml:14: seq_len = 0: expected 1 or more."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seq_len = 0", "my.toml:8: seq_len = 0: expected 1 or more."),
        ('seq_len = "8"', 'my.toml:8: seq_len = "8": expected a whole number.'),
        ("seq_len = true", "my.toml:8: seq_len = true: expected a whole number."),
        ("seq_len = [8, -1]", "my.toml:8: seq_len = -1: expected 1 or more."),
        ("seq_len = { from = 8 }", "my.toml:8: seq_len needs 'to'."),
        ("seq_len = { from = 8, too = 16 }", "my.toml:8: seq_len has no key 'too'. Did you mean 'to'?"),
        ("seq_len = { from = 8, to = 4 }", "my.toml:8: to = 4 is less than from = 8."),
        ("seq_len = 8\nbatch = 0", "my.toml:9: batch = 0: expected 1 or more."),
        ("seq_len = 8\nbatch = 1\ntokens = 8", "my.toml:10: tokens: batch and tokens are two ways to say the same"),
        ("seq_len = 8\ntokens = 12", "my.toml:9: tokens: 12 is not a multiple of seq_len 8."),
        (
            'seq_len = 8\ndtype = "float31"',
            "my.toml:9: dtype = \"float31\": expected 'float32', 'bfloat16' or 'float16'.",
        ),
        ('seq_len = 8\ndtype = { cuda = "bfloat16" }', "my.toml:9: dtype has no value for cpu, only for cuda."),
        ('seq_len = 8\npath = "flash"', "my.toml:5: mamba-tiny has no path 'flash'; it has chunked, eager"),
        ("seq_len = 8\ncheckpoint = true", "my.toml:5: checkpoint belongs to the task 'train', and only there"),
        ("seq_len = 8\naccumulate = 2", "my.toml:5: accumulate 2 belongs to the task 'train', and only there"),
        (
            'seq_len = 8\ndtype = "bfloat16"\nautocast = "bfloat16"',
            "my.toml:5: autocast bfloat16 with weights in bfloat16: it runs float32 weights in half precision",
        ),
        ("seq_len = 8\nseed = -1", "my.toml:9: seed = -1: expected 0 or more."),
        ("seq_len = 8\nset = { d_modl = 8 }", "my.toml:9: mamba-tiny has no key 'd_modl'. Did you mean 'd_model'?"),
        ("seq_len = 8\n[cases.set]\nn_layers = 0", "my.toml:10: n_layers = 0: expected more than 0."),
        ("", "my.toml:5: [[cases]] needs 'seq_len'."),
    ],
)
def test_wrong_values_are_quoted_with_their_line(line, message):
    assert complaint(CASE + line)[0].startswith(message)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        ("transformer-tiny", "d_model = 66", "d_model 66 is not divisible by n_heads 4"),
        ("transformer-tiny", "dropout = 1.0", "dropout = 1.0: expected less than 1"),
        ("resnet-bk-tiny", "top_k = 9", "top_k 9 is more than n_experts 4"),
    ],
)
def test_sizes_that_no_model_can_have(model, sizes, message):
    text = HEAD + f'[[cases]]\ntask = "prefill"\nmodel = "{model}"\nseq_len = 8\nset = {{ {sizes} }}'
    assert complaint(text)[0].startswith(f"my.toml:8: {message}")


def test_an_unknown_model_in_a_file():
    message, hint = complaint(HEAD + '[[cases]]\ntask = "prefill"\nmodel = "mamba-130"\nseq_len = 8')
    assert message == "my.toml:6: no model 'mamba-130'. Did you mean 'mamba-130m'?"
    assert hint == "See: benchbench list models"


def test_training_on_one_token_is_refused():
    text = HEAD + '[[cases]]\ntask = "train"\nmodel = "mamba-tiny"\nseq_len = 1'
    assert "training needs seq_len of 2 or more" in complaint(text)[0]


def test_what_is_not_toml():
    message, _ = complaint(CASE + "seq_len =\nbatch = 1")
    assert message.startswith("my.toml: not TOML: ")
    assert "line 8" in message


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("min_sample = 3", "my.toml:5: [protocol] has no key 'min_sample'. Did you mean 'min_samples'?"),
        ("target_ratio = 1.5", "my.toml:5: target_ratio = 1.5: expected less than 1."),
        ("budget_s = -1", "my.toml:5: budget_s = -1: expected a number of seconds, more than 0."),
        ("budget_s = { gpu = 1 }", "my.toml:5: budget_s has no key 'gpu'."),
    ],
)
def test_wrong_protocols(protocol, message):
    text = HEAD + f'[protocol]\n{protocol}\n[[cases]]\ntask = "prefill"\nmodel = "gpt2"\nseq_len = 8'
    assert complaint(text)[0].startswith(message)


def test_no_cases_at_all():
    assert complaint(HEAD + "cases = []")[0] == "my.toml: the suite has no cases."


def test_a_missing_top_key():
    assert complaint("version = 1")[0].startswith("my.toml:1: the file needs ")


def test_an_unknown_suite_suggests_the_nearest():
    with pytest.raises(BenchError) as caught:
        load("long-contxt")
    assert caught.value.message == "no suite 'long-contxt'. Did you mean 'long-context'?"
    assert caught.value.hint.endswith("A path to a .toml file works too.")


def test_a_suite_file_by_path(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(CASE + "seq_len = 8")
    assert load(str(file)).name == "mine"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BenchError, match="No such file"):
        load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", list(built_in()))
def test_built_in_suites_load(name, device):
    suite = load(name, device)
    assert suite.name == name
    assert suite.budget_s


def test_long_context_doubles_from_512_to_a_million_for_three_families_and_tasks():
    cases = load("long-context").cases
    assert sorted({case.seq_len for case in cases}) == [512 * 2**i for i in range(12)]
    assert len(cases) == 12 * 3 * 3


def test_lines_of_keys():
    lines = TomlLines(
        'a = """\n[x]\nb = 1\n"""\n'  # 1-4
        "[t]\n"  # 5
        "'q' = { c = 1 } # d = 2\n"  # 6
        "[[s]]\nk = [\n1,\n]\n"  # 7-10
        "[s.u]\nv = 1\n"  # 11-12
        "[[s]]\nw.x = 2\n"  # 13-14
    )
    assert lines.line(("a",)) == 1
    assert lines.line(("b",)) == 1  # within a string: no key
    assert lines.line(("t", "q")) == 6
    assert lines.line(("t", "d")) == 5
    assert lines.line(("s", 0, "k", 1)) == 8
    assert lines.line(("s", 0, "u", "v")) == 12
    assert lines.line(("s", 1)) == 13
    assert lines.line(("s", 1, "w", "x")) == 14


def test_lists_of_ways_are_every_combination():
    text = CASE.replace("prefill", "train") + (
        'seq_len = 8\noptimizer = ["sgd", "adamw"]\ncheckpoint = [false, true]\naccumulate = 2\n'
    )

    assert [case.variations for case in parse(text, "my.toml").cases] == [
        ("sgd", "accumulate2"),
        ("sgd", "checkpoint", "accumulate2"),
        ("accumulate2",),
        ("checkpoint", "accumulate2"),
    ]


@pytest.mark.parametrize(("device", "path"), [("cpu", "chunked"), ("cuda", "graph")])
def test_a_path_for_one_device_leaves_the_others_their_own(device: str, path: str):
    text = CASE + 'seq_len = 8\npath = { cuda = "graph" }\n'

    assert [case.path for case in parse(text, "my.toml", device).cases] == [path]


@pytest.mark.parametrize(("device", "path"), [("cpu", "chunked"), ("cuda", "fused")])
def test_a_family_has_its_own_path_on_a_gpu(device: str, path: str):
    assert [case.path for case in parse(CASE + "seq_len = 8\n", "my.toml", device).cases] == [path]


def test_lengths_by_device():
    text = CASE + "seq_len = { cpu = 8, cuda = { from = 8, to = 32 } }\n"

    assert [case.seq_len for case in parse(text, "my.toml", "cpu").cases] == [8]
    assert [case.seq_len for case in parse(text, "my.toml", "cuda").cases] == [8, 16, 32]


def test_cases_for_one_kind_of_device():
    text = CASE + 'seq_len = 8\n\n[[cases]]\ndevice = "cuda"\ntask = "decode"\nmodel = "mamba-tiny"\nseq_len = 8\n'

    assert [case.task for case in parse(text, "my.toml", "cpu").cases] == ["prefill"]
    assert [case.task for case in parse(text, "my.toml", "cuda").cases] == ["prefill", "decode"]
