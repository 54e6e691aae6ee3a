"""Pre-norm decoder-only Transformers: GPT-2 (Radford et al. 2019) and the rotary, gated form of Llama (2302.13971)."""

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from benchbench.specs.base import ModelSpec


class TransformerSpec(ModelSpec, frozen=True):
    """Sizes of a decoder; `n_kv_heads < n_heads` shares each key and value head among a group of queries."""

    paths: ClassVar[tuple[str, ...]] = ("flash", "eager")
    gpu_paths: ClassVar[tuple[str, ...]] = ("graph",)

    family: Literal["transformer"] = "transformer"
    n_heads: PositiveInt
    n_kv_heads: PositiveInt
    d_ff: PositiveInt
    positions: Literal["rotary", "learned"] = "rotary"
    max_seq_len: PositiveInt | None = None
    norm: Literal["rms", "layer"] = "rms"
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rope_theta: float = Field(default=10_000.0, gt=0)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def longest(self) -> int | None:
        return self.max_seq_len if self.positions == "learned" else None

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.d_model % self.n_heads:
            near = max(1, round(self.d_model / self.n_heads)) * self.n_heads
            raise ValueError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}\n"
                f"With {self.n_heads} heads d_model could be {near}."
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads}")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions need an even d_head, not {self.d_head}")
        if self.positions == "learned" and self.max_seq_len is None:
            raise ValueError("learned positions need max_seq_len")
        return self


PRESETS = (
    TransformerSpec(
        name="gpt2",
        n_layers=12,
        d_model=768,
        n_heads=12,
        n_kv_heads=12,
        d_ff=3072,
        vocab_size=50257,
        positions="learned",
        max_seq_len=1024,
        norm="layer",
        activation="gelu",
        bias=True,
    ),
    # d_ff sets the non-embedding parameters to 90.3 M, 0.3 % under mamba-130m's.
    TransformerSpec(
        name="transformer-130m",
        n_layers=12,
        d_model=768,
        n_heads=12,
        n_kv_heads=12,
        d_ff=2240,
        vocab_size=50280,
    ),
    # The shape of GPT-3 XL (2005.14165, table 2.1; 32 heads of 64 as in Mamba's table 12), beside mamba-1.4b and with
    # its vocabulary. Its 2,048 learned positions are doubled: 128 tokens are to be generated behind 2,048.
    TransformerSpec(
        name="transformer-1.3b",
        n_layers=24,
        d_model=2048,
        n_heads=32,
        n_kv_heads=32,
        d_ff=8192,
        vocab_size=50280,
        positions="learned",
        max_seq_len=4096,
        norm="layer",
        activation="gelu",
        bias=True,
    ),
    TransformerSpec(
        name="transformer-tiny",
        n_layers=2,
        d_model=64,
        n_heads=4,
        n_kv_heads=2,
        d_ff=160,
        vocab_size=256,
    ),
)
