"""Two processes on cores of their own."""

import os
import subprocess
import sys
import threading

import psutil
import pytest

from benchbench import cores
from benchbench.cores import LaunchingCore, bind, launching_core, siblings, split, usable_cores


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


class Machine:
    """Cores whose speeds change at will, and this thread, alone."""

    def __init__(self, monkeypatch, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.on = frozenset(range(len(seconds)))
        monkeypatch.setattr(cores, "usable_cores", lambda: frozenset(range(len(seconds))))
        monkeypatch.setattr(cores, "_threads", lambda: [0])
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: self.on, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", lambda _, to: setattr(self, "on", frozenset(to)), raising=False)
        self.core = LaunchingCore(lambda: self.seconds[min(self.on)])

    def held(self) -> tuple[list[int], float]:
        before = self.on
        with self.core.held() as slowdown:
            kept = sorted(self.on)
        assert self.on == before
        return kept, slowdown


def test_a_core_is_kept_while_it_is_fast(monkeypatch):
    machine = Machine(monkeypatch, 2.0, 1.0, 1.1)
    # Core 0 takes 2, core 1 takes 1: it is the first that is fast.
    assert machine.held() == ([1], 1.0)
    machine.seconds[0] = 1.0
    machine.seconds[1] = 1.15
    assert machine.held() == ([1], 1.15)


def test_a_core_that_something_slows_is_left_for_the_first_that_is_fast(monkeypatch):
    machine = Machine(monkeypatch, 1.0, 1.0, 1.1)
    machine.held()
    machine.seconds[:] = 1.8, 1.9, 1.1
    assert machine.held() == ([2], 1.1)


def test_where_all_are_slowed_the_fastest_is_taken_and_by_how_much_is_told(monkeypatch):
    machine = Machine(monkeypatch, 1.0, 1.0, 1.0)
    machine.held()
    machine.seconds[:] = 1.8, 1.5, 2.0
    assert machine.held() == ([1], 1.5)


def test_the_fastest_ever_seen_is_what_others_are_judged_by(monkeypatch):
    machine = Machine(monkeypatch, 1.0)
    machine.held()
    machine.seconds[0] = 0.5
    assert machine.held() == ([0], 1.0)
    machine.seconds[0] = 1.0
    assert machine.held() == ([0], 2.0)


def test_without_affinity_nothing_moves_and_the_slowdown_is_told(monkeypatch):
    machine = Machine(monkeypatch, 1.0, 1.0)
    monkeypatch.delattr(os, "sched_setaffinity")
    assert machine.held() == ([0, 1], 1.0)
    machine.seconds[0] = 3.0
    assert machine.held() == ([0, 1], 3.0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity of threads")
def test_all_threads_are_on_one_core_meanwhile_and_where_they_were_after():
    done, threads = threading.Event(), []

    def start() -> int:
        threads.append(threading.Thread(target=done.wait))
        threads[-1].start()
        return threads[-1].native_id

    usable = usable_cores()
    try:
        bound, free = start(), start()
        os.sched_setaffinity(bound, {max(usable)})
        with launching_core.held() as slowdown:
            late = start()
            inside = {frozenset(os.sched_getaffinity(one)) for one in (0, bound, free, late)}
        assert slowdown >= 1
        assert len(inside) == 1
        assert len(inside.pop()) == 1
        after = [frozenset(os.sched_getaffinity(one)) for one in (0, bound, free, late)]
        assert after == [usable, {max(usable)}, usable, usable]
    finally:
        done.set()
