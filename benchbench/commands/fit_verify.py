"""`benchbench fit --verify`: the answers and one step past them, run on the GPU within the memory they are for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchbench.case import Case
from benchbench.fit import Answer, Point
from benchbench.launch import PROGRAM, LocalLauncher
from benchbench.record import Protocol

ONCE = Protocol(warmup_calls=0, min_samples=1, max_samples=1, case_budget_s=60.0)
"""The first call, until two agree, one sample, and one whose memory is read."""
LONGEST = 2**24
"""Tokens of a call that is run at all: an answer of `any` ends where the search does."""


@dataclass(frozen=True)
class Run:
    """A case as it ended."""

    case: Case
    point: Point
    status: str
    reason: str | None
    peak_bytes: int | None
    reserved_bytes: int | None

    @property
    def expected(self) -> str:
        return "ok" if self.point.fits else "oom"

    @property
    def agrees(self) -> bool | None:
        """None where the path refuses the size for another reason than memory."""
        return None if self.status == "unsupported" else self.status == self.expected

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.case.id,
            "expected": self.expected,
            "status": self.status,
            "reason": self.reason,
            "counted_bytes": self.point.allocated,
            "measured_bytes": self.peak_bytes,
            "reserved_bytes": self.reserved_bytes,
            "agrees": self.agrees,
        }


def run(answers: Sequence[Answer], memory: int, launcher: LocalLauncher | None = None) -> list[Run]:
    """Every point of the answers, one after the other, in a worker whose allocator may take `memory` bytes."""
    where = launcher or LocalLauncher("cuda", program=(*PROGRAM, "--cuda-memory", str(memory)), beside=False)
    try:
        return [ran(where, case, point) for case, point in sorted(_points(answers), key=lambda one: not one[1].fits)]
    finally:
        where.close()


def ran(launcher: LocalLauncher, case: Case, point: Point) -> Run:
    found = launcher.run(case, ONCE, trace=False)
    measured = found.measured
    return Run(
        case,
        point,
        found.status,
        found.reason,
        measured.peak_allocated_bytes if measured else None,
        measured.peak_reserved_bytes if measured else None,
    )


def _points(answers: Sequence[Answer]) -> Iterator[tuple[Case, Point]]:
    for answer in answers:
        for point in answer.points:
            if point.n <= LONGEST:
                yield answer.case.replace(**{answer.field: point.n}), point
