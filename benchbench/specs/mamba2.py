"""Mamba-2 (Dao & Gu, arXiv 2405.21060), at the sizes of the published checkpoints."""

from typing import ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator

from benchbench.specs.base import ModelSpec


class Mamba2Spec(ModelSpec, frozen=True):
    """Sizes of a Mamba-2 language model. `vocab_size` is the padded one, as in the checkpoints.

    The inner width is cut into heads of `headdim` channels; the heads of one of `n_groups` share their B and C, and are
    normed together. `chunk` is what the published kernels work in; a path here may take less at a time.
    """

    paths: ClassVar[tuple[str, ...]] = ("chunked", "eager")
    wide_stream: ClassVar[bool] = True

    family: Literal["mamba2"] = "mamba2"
    d_state: PositiveInt = 128
    d_conv: PositiveInt = 4
    expand: PositiveInt = 2
    headdim: PositiveInt = 64
    n_groups: PositiveInt = 1
    chunk: PositiveInt = 256

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        return self.d_inner // self.headdim

    @property
    def d_conv_inner(self) -> int:
        """Channels of the convolution: x, and B and C of every group."""
        return self.d_inner + 2 * self.n_groups * self.d_state

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.d_inner % self.headdim:
            raise ValueError(f"the inner width {self.d_inner} is not divisible by headdim {self.headdim}")
        if self.n_heads % self.n_groups:
            raise ValueError(f"{self.n_heads} heads are not divisible by n_groups {self.n_groups}")
        return self


def _published(name: str, d_model: int, n_layers: int) -> Mamba2Spec:
    """A checkpoint size: the GPT-NeoX vocabulary of 50,277 padded to a multiple of 16."""
    return Mamba2Spec(name=name, d_model=d_model, n_layers=n_layers, vocab_size=50288)


PRESETS = (
    _published("mamba2-130m", 768, 24),
    _published("mamba2-370m", 1024, 48),
    _published("mamba2-780m", 1536, 48),
    _published("mamba2-1.3b", 2048, 48),
    _published("mamba2-2.7b", 2560, 64),
    Mamba2Spec(name="mamba2-tiny", d_model=64, n_layers=2, vocab_size=256, d_state=16, headdim=16),
)
