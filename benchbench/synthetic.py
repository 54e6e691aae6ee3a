"""Token batches drawn from a seed: independent and uniform over the vocabulary, the same on every machine.

Shape suffixes: B batch, N tokens.
"""

import torch
from torch import Tensor


def tokens(vocab_size: int, batch: int, seq_len: int, seed: int, device: str | torch.device = "cpu") -> Tensor:
    """(B, N) token ids on `device`. Drawn on the host, whose generator does not depend on the device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(vocab_size, (batch, seq_len), generator=generator).to(device)


def training_batch(
    vocab_size: int, batch: int, seq_len: int, seed: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N) and what each position should predict (B, N): the token after it. Two tensors of their own."""
    drawn = tokens(vocab_size, batch, seq_len + 1, seed, device)
    return drawn[:, :-1].clone(), drawn[:, 1:].clone()
