"""`benchbench calibrate`: measure what this device does in a second, once."""

from pathlib import Path

import click

from benchbench.errors import BenchError

DEVICES = Path("results/devices")
BUSY = 0.5
"""Load a core above which what is measured of the host is not its own."""


@click.command(help="Measure this device's ceilings, which counted times then stand on.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is a GPU.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: results/devices/DEVICE.toml")
@click.option("--budget", "budget_s", type=click.FloatRange(min=1), metavar="SECONDS", help="Stop after so long.")
def command(device: str | None, out: Path | None, budget_s: float | None) -> None:
    import torch

    from benchbench.calibrate import Calibrator
    from benchbench.devices.calibration import dump
    from benchbench.files import require_writable, write_whole
    from benchbench.lead import slug
    from benchbench.runner import terminable

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch sees no GPU here.", "Pass --device cpu, or see what torch says of CUDA.")
    # What takes minutes to measure is not measured for a file that cannot be written.
    if out is not None and out.is_dir():
        raise BenchError(f"'{out}' is a folder.", "Pass --out with the name of a file: DEVICE.toml")
    require_writable(out.parent if out is not None else DEVICES)
    calibrator = Calibrator(torch.device(device), lambda line: click.echo(line, err=True), budget_s or 0.0)
    with terminable():
        found = calibrator.run()
    path = out or DEVICES / f"{slug(dict(found.environment))}.toml"
    if calibrator.interrupted:  # what is whole is not written over by a part
        path = path.with_suffix(".partial.toml")
    write_whole(path, dump(found))
    points = sum(len(curve.points) for curve in found.curves.values())
    click.echo(f"{path}: {points} points of {len(found.curves)} curves on {found.device}")
    for name, reason in found.skipped.items():
        click.echo(f"not measured: {name}: {reason}")
    load, cores = found.environment["load_average"], found.environment["cpu"]["logical_cores"]
    if load > BUSY * cores:
        click.echo(f"The machine was busy (load {load:.1f} on {cores} cores): measure again when it is idle.", err=True)
    if calibrator.interrupted:
        raise KeyboardInterrupt
