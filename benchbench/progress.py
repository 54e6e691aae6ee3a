"""What a run shows while it goes on: a live line on a terminal, and one greppable line a finished case elsewhere."""

from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from benchbench import units
from benchbench.case import Case
from benchbench.record import Checked, Record

STYLES = {"ok": "green", "oom": "yellow", "unsupported": "dim", "skipped": "dim"}


class View(Protocol):
    """Whom the runner tells what it does."""

    def say(self, text: str) -> None:
        """A line about the run."""

    def explain(self, text: str) -> None:
        """A line for those who want to know more."""

    def begin(self, case: Case, done: int, total: int, left_s: float) -> None:
        """A case is taken in hand: the `done`-th is behind, and all that is planned takes `left_s` more."""

    def event(self, event: dict[str, Any]) -> None:
        """The worker entered a phase, or took a sample."""

    def finished(self, record: Record) -> None:
        """A case has its record."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_for(console: Console, *, quiet: bool = False, verbose: bool = False) -> View:
    """The live view on a terminal, lines elsewhere; nothing with `quiet`."""
    if console.is_terminal and not quiet:
        return LiveView(console, verbose=verbose)
    return LineView(console, quiet=quiet, verbose=verbose)


def finished_line(record: Record) -> str:
    """`ok mamba-130m/prefill/N131072/B1/bfloat16/fused 170 ms 21.6 GiB 771k tok/s`, or the status and its reason."""
    said = [record.status, record.case.id]
    measured = record.measured
    if measured and "time_s" in record.summary:
        said.append(units.seconds(record.summary["time_s"].median))
        peak = measured.peak_allocated_bytes or measured.peak_requested_bytes
        said += [units.size(peak)] if peak is not None else []
        said += [units.rate(record.tokens_per_s)] if record.tokens_per_s is not None else []
    notes = [record.reason, record.checked and complaint(record.checked)]
    said += [f"({' '.join(note.split())})" for note in notes if note]
    return " ".join(said)


def complaint(checked: Checked) -> str | None:
    """What did not come out as it must: the gate, or the trace or the memory beside the count."""
    if checked.gate == "failed":
        return "FAILED: the gate"
    if checked.traced_flops == checked.explained_flops:
        return "FAILED: the memory beside the count" if checked.memory == "differs" else None
    return f"FAILED: traced {checked.traced_flops:,} FLOPs, {checked.explained_flops:,} expected by the count"


def phase_text(event: dict[str, Any]) -> str:
    """`sampling 14 ±0.70%`, or the name of the phase."""
    said = [str(event["phase"])]
    if event["phase"] == "sampling" and event.get("samples"):
        said.append(str(event["samples"]))
        ratio = event.get("half_ratio")
        said += [f"±{units.percent(ratio)}"] if ratio is not None else []
    return " ".join(said)


def duration(seconds: float) -> str:
    """Whole seconds below two minutes, whole minutes above: `14 s`, `23 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class LineView:
    """One line a finished case, on stderr."""

    def __init__(self, console: Console, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._verbose = verbose

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text), soft_wrap=True)

    def explain(self, text: str) -> None:
        if self._verbose:
            self.say(text)

    def begin(self, case: Case, done: int, total: int, left_s: float) -> None:
        pass

    def event(self, event: dict[str, Any]) -> None:
        pass

    def finished(self, record: Record) -> None:
        self.say(finished_line(record))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LiveView:
    """A bar of cases and the case in hand; finished cases scroll above it."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("planning", total=None, left="")
        self._case = ""

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def explain(self, text: str) -> None:
        if self._verbose:
            self.say(text)

    def begin(self, case: Case, done: int, total: int, left_s: float) -> None:
        self._case = case.id
        left = f"{duration(left_s)} left" if left_s else ""
        self._progress.update(self._task, description=self._case, completed=done, total=total, left=left)

    def event(self, event: dict[str, Any]) -> None:
        self._progress.update(self._task, description=f"{self._case}  {phase_text(event)}")

    def finished(self, record: Record) -> None:
        if record.status in ("skipped", "unsupported"):
            return
        self._console.print(Text(finished_line(record), style=STYLES.get(record.status, "bold red")), soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
