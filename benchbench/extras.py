"""What the extra `cuda` installs piece by piece, and what to type where one is missing. Imports none of them."""

from typing import NamedTuple

from benchbench.errors import UnsupportedError

BUILD = "pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall"
"""Neither package has a wheel on the index, and both compile against the torch that is installed. Without isolation
pip uses that torch; without its cache it cannot reuse a wheel that was once built without kernels."""

CONV1D = f"CAUSAL_CONV1D_FORCE_BUILD=TRUE {BUILD} causal-conv1d"
MAMBA = f"MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE {BUILD} mamba-ssm"
"""One version builds its kernels unless told not to, the next only if told to."""

FIRST = "pip install ninja packaging setuptools wheel einops transformers"
"""What the builds without isolation expect to find, and what mamba-ssm imports whether it is used or not."""


class Piece(NamedTuple):
    """A module that the path `fused` imports."""

    module: str
    what: str
    fix: str


PIECES = (
    Piece("triton", "Triton", "Install the build of torch for CUDA, which brings it; or: pip install triton"),
    Piece("einops", "einops, which mamba-ssm imports", "pip install einops"),
    Piece("huggingface_hub", "huggingface_hub, which mamba-ssm imports", "pip install huggingface_hub"),
    Piece("transformers", "transformers, which mamba-ssm imports", "pip install transformers"),
    Piece("causal_conv1d", "causal-conv1d", CONV1D),
    Piece("causal_conv1d_cuda", "the CUDA extension of causal-conv1d", CONV1D),
    Piece("mamba_ssm", "mamba-ssm", MAMBA),
    Piece("selective_scan_cuda", "the CUDA extension of mamba-ssm", MAMBA),
)


def piece(module: str) -> Piece:
    """The piece whose module is `module` or contains it; an unknown one is installed by its own name."""
    top = module.partition(".")[0]
    unknown = Piece(top, top, f"pip install {top}")
    return next((known for known in PIECES if known.module == top), unknown)


def refusal(path: str, error: ImportError) -> UnsupportedError:
    """The answer of a path whose import failed: which piece it was, and what to type."""
    found = piece(error.name or "mamba_ssm")
    if isinstance(error, ModuleNotFoundError):
        return UnsupportedError(f"the path '{path}' needs {found.what}, which is not installed.", found.fix)
    # A name that is not there, or an extension whose symbols are not those of this torch.
    return UnsupportedError(f"the path '{path}' cannot import {found.what}: {error.msg}.", found.fix)
