"""What every architecture states about itself, whoever builds or counts it."""

from typing import ClassVar, Self

from pydantic import Field, PositiveInt, PrivateAttr

from benchbench.value import Value


class ModelSpec(Value, frozen=True):
    """A named architecture with its sizes: a value, not a module.

    `family` names the files models/<family>.py and counters/<family>.py (with `_` for `-`).
    """

    paths: ClassVar[tuple[str, ...]]
    """The implementations that run on any device; the first is the default on a CPU."""
    gpu_paths: ClassVar[tuple[str, ...]] = ()
    """Those that need an NVIDIA GPU."""
    wide_stream: ClassVar[bool] = False
    """Whether the residual stream is float32 whatever the dtype."""

    name: str
    family: str
    n_layers: PositiveInt
    d_model: PositiveInt
    vocab_size: int = Field(ge=2)
    tied_head: bool = True
    head_bias: bool = False
    _mixer_alone: bool = PrivateAttr(default=False)

    @classmethod
    def every_path(cls) -> tuple[str, ...]:
        """All implementations."""
        return cls.paths + cls.gpu_paths

    @property
    def mixer_alone(self) -> bool:
        """Whether the token mixer of one layer is meant, not the model: what the task `core` builds and counts.

        A case derives it from its task, so it is no field, and no file holds it.
        """
        return self._mixer_alone

    def cut(self, *, mixer_alone: bool) -> Self:
        """The same sizes, of the whole model or of its token mixer alone."""
        if mixer_alone == self._mixer_alone:
            return self
        spec = self.model_copy()
        spec._mixer_alone = mixer_alone  # pyright: ignore[reportAttributeAccessIssue]
        return spec

    @property
    def cuda_path(self) -> str:
        """The default on a GPU, and what the path 'graph' captures."""
        return self.paths[0]

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

    def refuses(self, path: str) -> str | None:
        """Why one of its paths cannot run at these sizes, or None."""
        return None

    @property
    def warning(self) -> str | None:
        """What every reader of this model's numbers must know, or None."""
        return None
