"""What every language model shares: head, chunked loss, prefill and decode.

Shape suffixes: B batch, N new tokens, D d_model, V vocab_size, T = B·N rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchbench.case import loss_chunk_rows
from benchbench.specs import ModelSpec

IGNORE = -100


def has_numbers(tensor: Tensor) -> bool:
    """False for a tensor that is all shape: a million tokens are then traced without a loop."""
    return not tensor.is_meta and not is_fake(tensor)


class State(ABC):
    """What a model carries from one token to the next. `length` tokens are behind it; updated in place."""

    length: int = 0

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Every tensor held, once."""

    @property
    def nbytes(self) -> int:
        """Bytes held, preallocated room included."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @torch.no_grad()
    def fill_random(self, length: int) -> None:
        """Stands for `length` tokens already read: what a decoding step costs does not depend on their values.

        One random row is repeated: drawing every number of a long cache would take longer than measuring with it.
        """
        for tensor in self.tensors():
            tensor.copy_(tensor.new_empty(tensor.shape[-1]).normal_(0, 0.1))
        self.length = length


class Backbone(nn.Module, ABC):
    """Tokens to final hidden states: embedding, blocks, final norm."""

    embedding: nn.Embedding
    layers: nn.ModuleList
    checkpoint: bool = False
    """In training, a layer keeps its input alone and runs its forward again in backward."""
    random: bool = False
    """Whether a layer draws random numbers, which must come out the same again."""

    def through(self, layer: nn.Module, x_BND: Tensor, *others: Any) -> Tensor:
        """`x_BND` through one of the layers."""
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(layer, x_BND, *others, use_reentrant=False, preserve_rng_state=self.random)
        return layer(x_BND, *others)

    @abstractmethod
    def forward(self, tokens_BN: Tensor, state: State | None = None) -> Tensor:
        """Hidden states (B, N, D). With a `state`, continues from it and advances it by N tokens."""


class LanguageModel(nn.Module, ABC):
    """A backbone under a vocabulary head.

    `path` names the implementation that runs; a model never falls back to another one silently.
    """

    backbone: Backbone

    def __init__(self, spec: ModelSpec, backbone: Backbone, path: str) -> None:
        super().__init__()
        self.spec = spec
        self.path = path
        self.backbone = backbone
        backbone.random = getattr(spec, "dropout", 0.0) > 0
        self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=spec.head_bias)
        if spec.tied_head:
            self.lm_head.weight = backbone.embedding.weight

    @abstractmethod
    def new_state(self, batch: int, capacity: int) -> State:
        """An empty state with room for `capacity` tokens, on the model's device and in its dtype."""

    def forward(self, tokens_BN: Tensor) -> Tensor:
        """Logits of every position, (B, N, V)."""
        return self.lm_head(self.backbone(tokens_BN))

    def loss(self, tokens_BN: Tensor, targets_BN: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the positions whose target is not -100.

        `targets_BN[b, i]` is what position i should predict: the caller shifts. Rows are projected in chunks of
        `loss_chunk_rows`, each recomputed in backward, so that full logits never exist at long context.

        Raises:
            ValueError: The model sees later tokens and refuses next-token loss.
        """
        if not self.spec.trains_next_token:
            raise ValueError(f"{self.spec.name} sees later tokens: next-token loss would be meaningless")
        hidden_TD = self.backbone(tokens_BN).flatten(0, 1)
        targets_T = targets_BN.flatten()
        rows = loss_chunk_rows(hidden_TD.shape[0], self.spec.vocab_size)
        if rows == hidden_TD.shape[0]:
            total = self._summed_loss(hidden_TD, targets_T)
        else:
            parts = zip(hidden_TD.split(rows), targets_T.split(rows), strict=True)
            total = torch.stack([checkpoint(self._summed_loss, *part, use_reentrant=False) for part in parts]).sum()
        return total / (targets_T != IGNORE).sum()

    def prefill(self, tokens_BN: Tensor, state: State) -> Tensor:
        """Logits of the last position, (B, V); `state` is left ready to decode."""
        return self.lm_head(self.backbone(tokens_BN, state)[:, -1])

    def decode(self, token_B: Tensor, state: State) -> Tensor:
        """Logits (B, V) of the token after `token_B`, which is added to `state`."""
        return self.lm_head(self.backbone(token_B[:, None], state)[:, 0])

    def _summed_loss(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        logits_TV = self.lm_head(hidden_TD)
        return F.cross_entropy(logits_TV.float(), targets_T, ignore_index=IGNORE, reduction="sum")
