"""ResNet-BK: token mixing by the diagonal of a tridiagonal resolvent, beside a mixture-of-experts feed-forward."""

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from benchbench.specs.base import ModelSpec

Form = Literal["bk-causal", "bk-exact", "bk-compat"]


class ResNetBKSpec(ModelSpec, frozen=True):
    """Sizes of a ResNet-BK language model.

    `form` picks what mixes the tokens: `bk-causal` the left continued fraction (our causal adaptation, one complex
    number of state a layer), `bk-exact` the two-sided resolvent with its exact gradient, `bk-compat` the published
    two-sided recursion with its published gradient, which overflows at long context.
    """

    paths: ClassVar[tuple[str, ...]] = ("chunked", "eager")
    gpu_paths: ClassVar[tuple[str, ...]] = ("triton", "graph")

    family: Literal["resnet-bk"] = "resnet-bk"
    form: Form = "bk-causal"
    d_ff: PositiveInt
    n_experts: PositiveInt = 4
    top_k: PositiveInt = 1
    positions: Literal["none", "learned"] = "none"
    max_seq_len: PositiveInt | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)
    v_max: float = Field(default=3.0, gt=0)
    grad_blend: float = Field(default=0.5, ge=0, le=1)

    @property
    def cuda_path(self) -> str:
        return "triton" if self.form != "bk-compat" else "chunked"

    def refuses(self, path: str) -> str | None:
        if path != "triton" or self.form != "bk-compat":
            return None
        return f"{self.name} has no path 'triton': the unscaled recursion of bk-compat runs position by position"

    @property
    def causal(self) -> bool:
        return self.form == "bk-causal"

    @property
    def trains_next_token(self) -> bool:
        return self.form != "bk-exact"

    @property
    def longest(self) -> int | None:
        return self.max_seq_len if self.positions == "learned" else None

    @property
    def warning(self) -> str | None:
        if self.form != "bk-compat":
            return None
        return (
            "bk-compat sees later tokens, so its loss is not a language-model score, "
            "and its recursion overflows to zero between 446 and 1,476 tokens"
        )

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k {self.top_k} is more than n_experts {self.n_experts}")
        if self.positions == "learned" and self.max_seq_len is None:
            raise ValueError("learned positions need max_seq_len")
        return self


PRESETS = (
    # The depth and width of transformer-130m; d_ff sets the non-embedding parameters to 89.8 M.
    # No position table: at 1,048,576 tokens it would hold 805 M parameters, more than the model.
    ResNetBKSpec(name="resnet-bk-130m", n_layers=12, d_model=768, d_ff=1216, vocab_size=50280),
    ResNetBKSpec(
        name="resnet-bk-baseline",
        form="bk-compat",
        n_layers=4,
        d_model=64,
        d_ff=128,
        vocab_size=30_000,
        positions="learned",
        max_seq_len=128,
        dropout=0.1,
        tied_head=False,
        head_bias=True,
    ),
    ResNetBKSpec(name="resnet-bk-tiny", n_layers=2, d_model=64, d_ff=96, vocab_size=256, top_k=2),
)
