"""One cell of the comparison: an architecture, what is done with it, and at what size."""

from collections.abc import Mapping
from typing import Any, Literal, Self, cast, get_args

from pydantic import Field, PositiveInt, SerializeAsAny, field_validator, model_validator

from benchbench.errors import UnsupportedError
from benchbench.specs import ModelSpec, from_dict
from benchbench.value import Value

Task = Literal["prefill", "decode", "train", "core"]
Dtype = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["sgd", "momentum", "adam", "adamw"]

TASKS: tuple[str, ...] = get_args(Task)
TRAINING = ("optimizer", "checkpoint", "accumulate")
"""Fields that only a case that trains has."""
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

LOSS_CHUNK_ELEMENTS = 2**27
"""Logits held at a time by the loss: 512 MiB in float32, whatever the context length."""


def loss_chunk_rows(rows: int, vocab_size: int) -> int:
    """How many of `rows` positions the loss projects at a time: all, or the largest power of two that fits."""
    most = max(1, LOSS_CHUNK_ELEMENTS // vocab_size)
    return rows if rows <= most else 1 << (most.bit_length() - 1)


def completed(spec: ModelSpec, sizes: Mapping[str, Any], device: str = "cpu") -> dict[str, Any]:
    """What a case is read from: the sizes given, the family's path for `device`, and AdamW where it trains."""
    given = {key: value for key, value in sizes.items() if value is not None}
    given.setdefault("path", spec.cuda_path if device == "cuda" else spec.paths[0])
    if given.get("task") == "train":
        given.setdefault("optimizer", "adamw")
    return {**given, "spec": spec}


class Case(Value, frozen=True):
    """ModelSpec x task x size, fully resolved: equal cases cost the same.

    `seq_len` is the tokens read (prefill, train, core) or those already behind the one token written (decode); `batch`
    the sequences of one pass.
    """

    spec: SerializeAsAny[ModelSpec]
    task: Task
    seq_len: PositiveInt
    batch: PositiveInt = 1
    dtype: Dtype = "float32"
    path: str
    optimizer: Optimizer | None = None
    checkpoint: bool = False
    """Training: a layer keeps its input alone and runs its forward again in backward."""
    accumulate: PositiveInt = 1
    """Training: passes, of `batch` sequences each, before the optimizer steps."""
    autocast: Dtype | None = None
    """Products and what follows them in this dtype, the weights in `dtype`."""
    seed: int = Field(default=0, ge=0)

    @classmethod
    def of(cls, spec: ModelSpec, **sizes: Any) -> Self:
        """A case with the family's default path, and AdamW where it trains, unless they are given."""
        return cls(**completed(spec, sizes))

    @field_validator("spec", mode="before")
    @classmethod
    def _read_spec(cls, value: object) -> object:
        return from_dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        object.__setattr__(self, "spec", self.spec.cut(mixer_alone=self.task == "core"))
        if self.path not in (known := self.spec.every_path()):
            raise ValueError(f"{self.spec.name} has no path '{self.path}'; it has {', '.join(known)}")
        if (self.optimizer is None) == (self.task == "train"):
            raise ValueError("an optimizer belongs to the task 'train', and only there")
        if self.task != "train" and (self.checkpoint or self.accumulate > 1):
            what = "checkpoint" if self.checkpoint else f"accumulate {self.accumulate}"
            raise ValueError(f"{what} belongs to the task 'train', and only there")
        if self.autocast is not None and (self.dtype != "float32" or self.autocast == "float32"):
            raise ValueError(
                f"autocast {self.autocast} with weights in {self.dtype}: it runs float32 weights in half precision\n"
                "Give dtype float32, and autocast bfloat16 or float16."
            )
        if self.autocast is not None and self.task == "core":
            raise ValueError(
                "autocast is about products with weights, and the task 'core' has none\nGive the dtype of its inputs."
            )
        if self.task == "train" and self.seq_len == 1:
            raise ValueError(
                "training needs seq_len of 2 or more: one token alone has no next token\n"
                "Give a longer seq_len, or another task."
            )
        return self

    @property
    def model(self) -> str:
        return self.spec.name

    @property
    def family(self) -> str:
        return self.spec.family

    @property
    def implementation(self) -> str:
        """The path whose operators run: of 'graph', the one that it captures."""
        return self.spec.cuda_path if self.path == "graph" else self.path

    @property
    def id(self) -> str:
        """A name to read and to grep for: `mamba-130m/prefill/N4096/B1/float32/chunked`, and what is not plain."""
        sizes = f"{self.model}/{self.task}/N{self.seq_len}/B{self.batch}/{self.dtype}/{self.path}"
        return "/".join((sizes, *self.variations))

    @property
    def variations(self) -> tuple[str, ...]:
        """How the case departs from the plain one of its sizes, in words."""
        found = {
            f"autocast-{self.autocast}": self.autocast is not None,
            str(self.optimizer): self.optimizer not in (None, "adamw"),
            "checkpoint": self.checkpoint,
            f"accumulate{self.accumulate}": self.accumulate > 1,
        }
        return tuple(word for word, holds in found.items() if holds)

    def require_supported(self) -> None:
        """Raises `UnsupportedError` with the reason if the architecture cannot do this."""
        if reason := self.unsupported():
            raise UnsupportedError(
                reason, "Another model, task, path or seq_len can do it. See: benchbench list models"
            )

    def unsupported(self) -> str | None:
        """Why the architecture cannot do this, or None: an answer about the model, not about the machine."""
        spec = self.spec
        if reason := spec.refuses(self.path):
            return reason
        if self.task == "core":
            return None
        tokens = self.seq_len + (self.task == "decode")
        if spec.longest is not None and tokens > spec.longest:
            return f"{spec.name} has learned positions for {spec.longest} tokens, not {tokens}"
        if self.task == "decode" and not spec.decodes:
            return f"{spec.name} sees later tokens: it cannot generate token by token"
        if self.task == "train" and self.path == "graph":
            return "the path 'graph' captures prefill, decode and core, not training"
        if self.task == "train" and not spec.trains_next_token:
            return f"{spec.name} sees later tokens: its next-token loss would mean nothing"
        return None


SETTINGS = tuple(sorted({*Case.model_fields} - {"spec", "task"}))
"""What `--set` changes about a case itself; other names are sizes of its model."""
