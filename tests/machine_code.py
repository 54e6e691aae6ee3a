"""What a Triton kernel's machine code for Hopper computes: Triton's own tools compile and read it, without a GPU."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

HOPPER = 90
FLOPS = {"FADD": 1, "FMUL": 1, "FFMA": 2}
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@\S+\s+)?([A-Z0-9]+)\S*(.*);", re.MULTILINE)


class LaneFlops(NamedTuple):
    """Float32 operations of a lane outside the kernel's loop and in one round of it, and those of the first that are
    jumped over where there is no round.

    Left out is what runs only for some lanes: the scaling of a divisor beyond 2^126 and back.
    """

    once: int
    a_round: int
    skipped: int


def lane_flops(kernel: Any, types: dict[str, str], constants: dict[str, Any], folder: Path) -> LaneFlops:
    """What the kernel computes on a Hopper. Pointers and N are aligned to 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    aligned = [i for i, name in enumerate(names) if name == "N" or types.get(name, "").startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned if names[i] in types},
    )
    options = {"num_warps": 1, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=options)
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return counted(subprocess.run([tool, "-sass", binary], capture_output=True, text=True, check=True).stdout)


def counted(text: str) -> LaneFlops:
    """A loop ends in a jump backwards; the last jump, of an instruction to itself, is none. What there is no round for
    lies between a jump ahead of the loop and its target behind it.
    """
    code = [(int(found[1], 16), found[2], found[3], found[4]) for found in INSTRUCTION.finditer(text)]
    jumps = [(int(rest.split("0x")[1], 16), at) for at, _, name, rest in code if name == "BRA"]
    loops = [(first, last) for first, last in jumps if first < last]
    assert len(loops) <= 1
    skips = [(at, to) for to, at in jumps for first, last in loops if at < first and last < to]
    found: Counter[str] = Counter()
    for at, predicate, name, _ in code:
        if not predicate:
            around = "round" if _within(at, loops) else "skipped" if _within(at, skips) else "always"
            found[around] += FLOPS.get(name, 0)
    return LaneFlops(found["always"] + found["skipped"], found["round"], found["skipped"])


def _within(at: int, spans: list[tuple[int, int]]) -> bool:
    return any(first <= at <= last for first, last in spans)
