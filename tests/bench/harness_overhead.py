"""What a run took beside what it timed: `python tests/bench/harness_overhead.py RESULTS [WALL_SECONDS]`.

RESULTS is a run folder or a file of results. Of each measured case the seconds in calls that were timed (first,
warm-up, samples), those of the case, and of its steps. With the seconds that the whole command took, the ratio of the
run; else of the cases alone, which leaves out the start of workers, the plan and the tables.
"""

import sys
from pathlib import Path

from benchbench.record import Record
from benchbench.report import load

LEAST_S = 0.05
"""Shorter calls are not what the harness is held to."""


def timed_s(record: Record) -> float:
    measured = record.measured
    return (measured.first_call_s or 0.0) + sum(measured.warmup_s) + sum(measured.time_s) if measured else 0.0


def main(results: str, wall_s: str | None = None) -> None:
    records = [record for record in load(Path(results)).records if record.measured]
    for record in records:
        steps = " ".join(f"{name} {seconds:.2f}" for name, seconds in record.steps_s.items())
        print(f"{timed_s(record):8.2f} s timed of {record.wall_s:8.2f} s  {record.case.id}  {steps}")
    long = [record for record in records if record.summary["time_s"].median > LEAST_S]
    for what, chosen in (("all cases", records), (f"calls above {LEAST_S:g} s", long)):
        timed, wall = sum(map(timed_s, chosen)), sum(record.wall_s for record in chosen)
        print(f"{what}: {len(chosen)}, {timed:.1f} s timed, {wall:.1f} s in all", end="")
        print(f", {wall / timed:.2f} x" if timed else "")
    if wall_s is not None:
        print(f"run: {float(wall_s) / sum(map(timed_s, records)):.2f} x what was timed")


if __name__ == "__main__":
    main(*sys.argv[1:])
