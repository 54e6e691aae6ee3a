"""Two processes on cores of their own."""

import subprocess
import sys

import psutil
import pytest

from benchbench.cores import bind, siblings, split, usable_cores


def topology(folder, **lists: str):
    for core, text in lists.items():
        (folder / core / "topology").mkdir(parents=True)
        (folder / core / "topology" / "thread_siblings_list").write_text(f"{text}\n")
    return folder


def test_the_last_physical_core_is_set_apart_with_both_its_threads(tmp_path):
    assert split(frozenset(range(8)), topology(tmp_path, cpu7="3,7")) == ({0, 1, 2, 4, 5, 6}, {3, 7})


def test_siblings_are_listed_one_by_one_or_as_a_range(tmp_path):
    assert siblings(6, topology(tmp_path, cpu6="6-7", cpu3="3,19")) == {6, 7}
    assert siblings(3, tmp_path) == {3, 19}
    assert siblings(5, tmp_path) == {5}  # the system does not say


def test_a_thread_that_the_process_may_not_use_is_not_taken(tmp_path):
    assert split(frozenset({0, 1, 2, 7}), topology(tmp_path, cpu7="3,7")) == ({0, 1, 2}, {7})


def test_few_cores_are_not_split(tmp_path):
    assert split(frozenset({0, 1, 2}), tmp_path) is None
    assert split(frozenset({4, 5, 6, 7}), topology(tmp_path, cpu7="4-7")) is None


@pytest.mark.skipif(not usable_cores(), reason="the system has no affinity of processes")
def test_a_process_is_kept_on_its_cores():
    one = frozenset({max(usable_cores())})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        bind(process.pid, one)
        assert psutil.Process(process.pid).cpu_affinity() == sorted(one)
        process.communicate(b"\n")
    bind(process.pid, one)  # it has ended: nothing to do
