"""`benchbench list`: what there is to measure, and what was measured."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchbench import units
from benchbench.commands.names import SuiteName
from benchbench.commands.options import FORMATS, echo_tables, kind_of
from benchbench.errors import BenchError
from benchbench.table import Column, build

Row = dict[str, Any]
KINDS = ("models", "families", "suites", "cases", "runs", "devices")


@click.command()
@click.argument("what", type=click.Choice(KINDS))
@click.option("--suite", "names", multiple=True, type=SuiteName(), help="Of `list cases`: this suite. Default: all.")
@click.option("--device", default="cpu", show_default=True, help="Of `list cases` and `suites`: for this device.")
@FORMATS
def command(what: str, names: tuple[str, ...], device: str, output: str) -> None:
    """List models, families, suites, cases, runs or devices."""
    if names and what != "cases":
        raise BenchError(f"list {what} takes no --suite.", "It goes with: benchbench list cases")
    rows, columns = {
        "models": lambda: (models(), MODELS),
        "families": lambda: (families(), FAMILIES),
        "suites": lambda: (suites(device), SUITES),
        "cases": lambda: (cases(names, device), CASES),
        "runs": lambda: (runs(), RUNS),
        "devices": lambda: (known_devices(), DEVICES),
    }[what]()
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    shown = tuple(column(name, title, show) for name, title, show in columns)
    echo_tables([build(what, (), shown, rows)], output)


Show = Callable[[Any], str]
Layout = Sequence[tuple[str, str, Show]]


COUNTED = ("params", "flops", "peak_bytes")


def column(name: str, title: str, show: Show) -> Column[Row]:
    return Column(name, title, "counted" if name in COUNTED else "text", lambda row: row[name], show)


MODELS: Layout = (
    ("model", "model", str),
    ("family", "family", str),
    ("params", "params", units.integer),
    ("n_layers", "layers", units.integer),
    ("d_model", "d_model", units.integer),
    ("vocab_size", "vocabulary", units.integer),
    ("paths", "paths", str),
    ("warning", "warning", str),
)
FAMILIES: Layout = (("family", "family", str), ("models", "models", str), ("paths", "paths", str))
SUITES: Layout = (
    ("suite", "suite", str),
    ("version", "version", units.integer),
    ("cases", "cases", units.integer),
    ("tasks", "tasks", str),
    ("shortest", "N from", units.integer),
    ("longest", "to", units.integer),
    ("budget_s", "budget s", units.digits),
    ("about", "about", str),
)
CASES: Layout = (
    ("suite", "suite", str),
    ("case", "case", str),
    ("flops", "FLOPs", units.flops),
    ("peak_bytes", "peak", units.size),
    ("unsupported", "unsupported", str),
)
RUNS: Layout = (
    ("run", "run", str),
    ("suites", "suites", str),
    ("device", "device", str),
    ("created", "created", str),
    ("outcomes", "outcomes", str),
)


def peak(flops_per_s: float) -> str:
    return f"{units.flops(flops_per_s)}/s"


DEVICES: Layout = (
    ("device", "device", str),
    ("name", "name", str),
    ("memory_bytes", "memory", units.size),
    ("memory_bytes_per_s", "bandwidth", lambda rate: f"{units.size(rate)}/s"),
    ("float32", "float32", peak),
    ("tf32", "TF32", peak),
    ("bfloat16", "bfloat16", peak),
    ("float16", "float16", peak),
    ("calibrated", "calibrated", str),
    ("source", "source", str),
)


def known_devices() -> list[Row]:
    """Every device of the table with its dense peaks, and whether it was calibrated here."""
    from benchbench.devices import DTYPES, devices, with_calibration

    return [
        {
            "device": device.key,
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "memory_bytes_per_s": device.memory_bytes_per_s,
            **{dtype: device.peak(dtype) for dtype in DTYPES},
            "calibrated": "yes" if with_calibration(device).calibration else "no",
            "source": device.source,
        }
        for device in devices().values()
    ]


def models() -> list[Row]:
    """Every preset with its parameters, counted."""
    from benchbench.case import Case
    from benchbench.counters import count
    from benchbench.specs import presets

    return [
        {
            "model": spec.name,
            "family": spec.family,
            "params": count(Case.of(spec, task="prefill", seq_len=1)).counted.params,
            "n_layers": spec.n_layers,
            "d_model": spec.d_model,
            "vocab_size": spec.vocab_size,
            "paths": ", ".join(spec.every_path()),
            "warning": spec.warning,
        }
        for spec in sorted(presets().values(), key=lambda spec: (spec.family, spec.name))
    ]


def families() -> list[Row]:
    from benchbench.specs import families as kinds
    from benchbench.specs import presets

    return [
        {
            "family": family,
            "models": ", ".join(name for name, spec in sorted(presets().items()) if spec.family == family),
            "paths": ", ".join(kind.every_path()),
        }
        for family, kind in sorted(kinds().items())
    ]


def suites(device: str) -> list[Row]:
    from benchbench.suite import built_in, load

    found = [load(name, device) for name in built_in()]
    return [
        {
            "suite": suite.name,
            "version": suite.version,
            "cases": len(suite.cases),
            "tasks": ", ".join(dict.fromkeys(case.task for case in suite.cases)),
            "shortest": min(case.seq_len for case in suite.cases),
            "longest": max(case.seq_len for case in suite.cases),
            "budget_s": suite.budget_s,
            "about": suite.about,
        }
        for suite in found
    ]


def cases(names: Sequence[str], device: str) -> list[Row]:
    """Every case with its counted size; no count where the architecture cannot do it."""
    from benchbench.counters import count
    from benchbench.suite import built_in, load

    rows: list[Row] = []
    kind = kind_of(device)
    for suite in (load(name, device) for name in names or built_in()):
        for case in suite.cases:
            reason = case.unsupported()
            counted = None if reason else count(case, kind).counted
            rows.append(
                {
                    "suite": suite.name,
                    "case": case.id,
                    "flops": counted and counted.flops,
                    "peak_bytes": counted and counted.peak_bytes,
                    "unsupported": reason,
                }
            )
    return rows


def runs() -> list[Row]:
    """The run folders under results/runs, oldest first."""
    from benchbench.job import tally
    from benchbench.store import read_run
    from benchbench.store import runs as folders

    return [_run(folder, read_run, tally) for folder in folders()]


def _run(folder: Path, read: Callable[[Path], Any], tally: Callable[[Any], str]) -> Row:
    run = read(folder)
    return {
        "run": str(folder),
        "suites": ", ".join(f"{name} v{suite.version}" for name, suite in run.info.suites.items()),
        "device": run.info.device,
        "created": run.info.created,
        "outcomes": tally(run.records),
    }
