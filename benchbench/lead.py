"""The three lines before every table: where it was measured, how, and with which command."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchbench import units
from benchbench.record import Protocol

Environment = dict[str, Any]
"""What the worker said of its machine and software, as run.json holds it."""


def slug(env: Environment) -> str:
    """A file name for the device: `nvidia-h200`, `cpu-2-cores-intel-xeon`."""
    gpu, cpu = env.get("gpu"), env["cpu"]
    if gpu:
        return _slug(gpu["name"])
    model = re.sub(r"\(R\)|\(TM\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", cpu["model"] or "")
    return _slug(f"cpu {units.plural(cores(cpu), 'core')} {model}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def cores(cpu: Environment) -> int:
    return cpu["usable_cores"] or cpu["logical_cores"]


def environment_line(environments: Iterable[Environment]) -> str:
    """Device, versions and commits. They are of one machine, so they differ in the commit at most."""
    known = list(environments)
    env, cpu = known[0], known[0]["cpu"]
    packages = [f"{name} {number}" for name, number in sorted(env["packages"].items()) if number]
    cuda = [f"CUDA {env['cuda']}"] if env.get("cuda") else []
    return "Environment: " + " · ".join(
        [
            device_name(env),
            f"{units.plural(cpu['threads'], 'thread')} on {units.plural(cores(cpu), 'core')}, {cpu['capability']}",
            *packages,
            *cuda,
            f"benchbench {env['benchbench']}",
            f"commit {commits(known)}",
        ]
    )


def device_name(env: Environment) -> str:
    gpu, cpu = env.get("gpu"), env["cpu"]
    if gpu:
        return f"{gpu['name']} ({units.size(gpu['memory_bytes'])}, driver {gpu['driver']})"
    return f"{cpu['model']} ({units.size(cpu['memory_bytes'])})"


def commits(environments: Iterable[Environment]) -> str:
    """What was measured by which commits, and by which it was counted, where that is another."""
    measured: dict[str, dict[str, None]] = {}
    for git in (env.get("git") for env in environments):
        if not git or not git["sha"]:
            measured.setdefault("", {})["unknown"] = None
            continue
        counted = git.get("counted_by", git)
        behind = f", counted by {_named(counted)}" if counted["sha"] != git["sha"] else ""
        measured.setdefault(behind, {})[_named(git)] = None
    return "; ".join(units.listing(list(names)) + behind for behind, names in measured.items())


def _named(git: dict[str, Any]) -> str:
    return git["sha"][:7] + (" (dirty)" if git["dirty"] else "")


def dirty(env: Environment) -> bool:
    git = env.get("git")
    return bool(git and (git["dirty"] or git.get("counted_by", git)["dirty"]))


def protocol_line(protocols: Iterable[Protocol]) -> str:
    """How the calls were timed; every protocol, where records of one table differ."""
    return "Protocol: " + "; or ".join(dict.fromkeys(map(_protocol, protocols)))


def _protocol(p: Protocol) -> str:
    narrow, budget = units.percent(p.target_ratio), units.seconds(p.case_budget_s)
    return (
        f"first call apart; {p.warmup_calls} or more warm-up calls; {p.min_samples} to {p.max_samples} samples, "
        f"until half the 95% interval is within {narrow} of the median or {budget} are spent; "
        "times are medians, ± is that half interval"
    )


def command_line(suite: str, version: int, commands: Sequence[str]) -> str:
    """The commands that measure the same again; without any, the suite alone: it may have other cases."""
    if not commands:
        return f"Suite: {suite} (version {version}); which command measured these cases of it is not known"
    return f"Reproduce: {', then '.join(f'`{one}`' for one in commands)} (version {version} of the suite)"
