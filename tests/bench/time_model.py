"""The time model beside measured times: predicted over measured for every timed record of results files.

    python tests/bench/time_model.py results/*/nvidia-h200.json results/devices/nvidia-h200.toml

Prints a Markdown table, then the median |error| and the share of cases within 25 %: for all, by suite and by task, and
for those apart that take as long as the host needs to launch them, which varies with whatever else its cores do.
`--ops MODEL` prints what the operations of one model's cases take by the model, largest first, to find what an error
stands on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tabulate import tabulate

from benchbench import units
from benchbench.columns import current, time_of
from benchbench.counters import count
from benchbench.counters.time import piece_of, predict
from benchbench.devices import Device, device
from benchbench.record import Record
from benchbench.report import load

WITHIN = 0.25
LAUNCHING = 0.9
"""A case waits for the host if its launches take this share of the predicted time, or more."""


class Row(NamedTuple):
    record: Record
    predicted_s: float | None
    low_s: float
    high_s: float
    measured_s: float
    basis: str
    host_s: float

    @property
    def waits(self) -> bool:
        return self.predicted_s is not None and self.host_s >= LAUNCHING * self.predicted_s

    @property
    def error(self) -> float:
        assert self.predicted_s is not None
        return self.predicted_s / self.measured_s - 1


def rows(records: Sequence[Record], on: Device) -> list[Row]:
    found = []
    for record in current(records):
        time = time_of(record)
        if time is None or record.status != "ok":
            continue
        guess = predict(count(record.case), on)
        known = guess is not None and not guess.bound
        low, high = (guess.low_s, guess.high_s or 0.0) if guess else (0.0, 0.0)
        basis = guess.basis if guess else "nothing is known of the device"
        host_s = guess.host_s if guess else 0.0
        found.append(Row(record, guess.time_s if guess and known else None, low, high, time.median, basis, host_s))
    return found


def table(found: Sequence[Row]) -> str:
    lines = [
        [
            row.record.case.id,
            units.seconds(row.measured_s),
            units.ABSENT if row.predicted_s is None else units.seconds(row.predicted_s),
            units.ABSENT if row.predicted_s is None else f"{units.seconds(row.low_s)} to {units.seconds(row.high_s)}",
            row.basis if row.predicted_s is None else units.percent(row.error, signed=True),
        ]
        for row in found
    ]
    return tabulate(lines, ["case", "measured", "predicted", "range", "error"], tablefmt="pipe", disable_numparse=True)


def summary(name: str, found: Sequence[Row]) -> str:
    known = [abs(row.error) for row in found if row.predicted_s is not None]
    if not known:
        return f"{name}: nothing was predicted of {len(found)} cases"
    within = sum(error <= WITHIN for error in known) / len(known)
    return (
        f"{name}: median |error| {units.percent(median(known))}, within 25 % {units.percent(within)}, "
        f"worst {units.percent(max(known))}, {len(known)} of {len(found)} cases predicted"
    )


def operations(record: Record, on: Device) -> str:
    """What each operation of a case takes by the model, over all repetitions."""
    assert on.calibration is not None
    cost = count(record.case)
    pieces = [(op, piece_of(op, cost, on.calibration, [])) for op in cost.ops]
    pieces.sort(key=lambda pair: -pair[0].repeat * max(pair[1].device_s, pair[1].host_s))
    lines = [
        [op.phase, op.path, op.formula.name, op.repeat, *(units.seconds(op.repeat * s) for s in (p.device_s, p.host_s))]
        for op, p in pieces[:20]
    ]
    return f"{record.case.id}\n" + tabulate(lines, ["phase", "path", "op", "times", "device", "host"], tablefmt="pipe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("device", help="a file of `benchbench calibrate`")
    parser.add_argument("--ops", metavar="MODEL")
    options = parser.parse_args()
    on = device(options.device)
    found = rows([record for path in options.results for record in load(path).records], on)
    print(table(found) + "\n")
    print(summary("all", found))
    for suite in dict.fromkeys(row.record.suite for row in found):
        print(summary(suite, [row for row in found if row.record.suite == suite]))
    for task in dict.fromkeys(row.record.case.task for row in found):
        print(summary(task, [row for row in found if row.record.case.task == task]))
    print(summary("launches last as long", [row for row in found if row.waits]))
    print(summary("the device is busy", [row for row in found if not row.waits]))
    for row in found:
        if row.record.case.model == options.ops:
            print("\n" + operations(row.record, on))


if __name__ == "__main__":
    main()
