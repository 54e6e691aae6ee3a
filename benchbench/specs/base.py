"""What every architecture states about itself, whoever builds or counts it."""

from typing import ClassVar

from pydantic import Field, PositiveInt

from benchbench.value import Value

class ModelSpec(Value, frozen=True):
    """A named architecture with its sizes: a value, not a module.

    `family` names the files models/<family>.py and counters/<family>.py (with `_` for `-`).
    """

    paths: ClassVar[tuple[str, ...]]
    """The implementations that run on any device; the first is the default on a CPU."""
    gpu_paths: ClassVar[tuple[str, ...]] = ()
    """Those that need an NVIDIA GPU."""
    cuda_path: ClassVar[str]
    """The default on a GPU, and what the path 'graph' captures."""
    wide_stream: ClassVar[bool] = False
    """Whether the residual stream is float32 whatever the dtype."""

    name: str
    family: str
    n_layers: PositiveInt
    d_model: PositiveInt
    vocab_size: int = Field(ge=2)
    tied_head: bool = True
    head_bias: bool = False

    @classmethod
    def every_path(cls) -> tuple[str, ...]:
        """All implementations."""
        return cls.paths + cls.gpu_paths

    @property
    def causal(self) -> bool:
        """Whether output i depends on tokens 0..i alone, so that next-token loss means something."""
        return True

    @property
    def trains_next_token(self) -> bool:
        """Whether next-token training is accepted; a non-causal form is refused."""
        return self.causal

    @property
    def decodes(self) -> bool:
        """Whether the model can generate token by token from a state."""
        return self.causal

    @property
    def longest(self) -> int | None:
        """The longest sequence the architecture accepts; None where nothing bounds it."""
        return None

    @property
    def warning(self) -> str | None:
        """What every reader of this model's numbers must know, or None."""
        return None
