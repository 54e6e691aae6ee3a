"""Mamba-1 (Gu & Dao, arXiv 2312.00752), at the sizes of the published checkpoints."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from benchbench.specs.base import ModelSpec

TRITON_STATES = 32
"""The most states of the path 'triton'. With more, dΔ as a difference of sums over the states loses digits: 2e-4 of
rms at 64, 3e-3 at 256."""


class MambaSpec(ModelSpec, frozen=True):
    """Sizes of a Mamba language model. `vocab_size` is the padded one, as in the checkpoints."""

    paths: ClassVar[tuple[str, ...]] = ("chunked", "eager")
    gpu_paths: ClassVar[tuple[str, ...]] = ("fused", "triton", "graph")
    wide_stream: ClassVar[bool] = True

    family: Literal["mamba"] = "mamba"
    d_state: PositiveInt = 16
    d_conv: PositiveInt = 4
    expand: PositiveInt = 2

    @property
    def cuda_path(self) -> str:
        return "fused"

    def refuses(self, path: str) -> str | None:
        # Its value alone, for it may carry a closed form.
        if path != "triton" or TRITON_STATES % int.__int__(self.d_state) == 0:
            return None
        return f"the path 'triton' needs a d_state that is a power of two up to {TRITON_STATES}, not {self.d_state}"

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def dt_rank(self) -> int:
        return -(-self.d_model // 16)


def _published(name: str, d_model: int, n_layers: int) -> MambaSpec:
    """A checkpoint size: the GPT-NeoX vocabulary of 50,277 padded to a multiple of 8."""
    return MambaSpec(name=name, d_model=d_model, n_layers=n_layers, vocab_size=50280)


PRESETS = (
    _published("mamba-130m", 768, 24),
    _published("mamba-370m", 1024, 48),
    _published("mamba-790m", 1536, 48),
    _published("mamba-1.4b", 2048, 48),
    _published("mamba-2.8b", 2560, 64),
    MambaSpec(name="mamba-tiny", d_model=64, n_layers=2, vocab_size=256, d_state=8),
)
