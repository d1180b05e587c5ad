"""Memories that go from segment to segment of a sequence."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.blocks.layers import LayerConfig, TransformerLayer
from npbench.blocks.memory_transformer import attention_looked_at, memory_and_tokens
from npbench.blocks.tokens import Encoded, LookedAt


class ReadingLayer(nn.Module):
    r"""The sequence asks the memory and itself: $x \leftarrow \mathrm{TransformerLayer}(x \to [p;
    x])$. The memory stays as it is.

    Args:
        config: the layers' common sizes.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.layer = TransformerLayer(config)

    def forward(self, encoded: Encoded) -> Encoded:
        rows, mask = memory_and_tokens(encoded)
        return encoded._replace(x=self.layer(encoded.x, rows, mask))


class GatedWriter(nn.Module):
    r"""A new memory from the old one and a segment; no slot sees another, so that they do not mix.

    $$n_i = \mathrm{TransformerLayer}(p_i \to [p_i; x]), \qquad
      g_i = \sigma(W [n_i; p_i] + c), \qquad
      p_i \leftarrow \mathrm{LN}(g_i\, n_i + (1 - g_i)\, p_i + b_i)$$

    where the learned bias b draws each slot to a place of its own, in which the past fades.

    Args:
        config: the layers' common sizes.
        num_memory: number of slots.

    Source: Wu et al., *Memformer*, 2020, arXiv 2010.06891; the gate is that of MemBART.
    """

    def __init__(self, config: LayerConfig, num_memory: int) -> None:
        super().__init__()
        self.layer = TransformerLayer(config)
        self.gate = nn.Linear(2 * config.dim_model, 1)
        self.bias = nn.Parameter(torch.randn(num_memory, config.dim_model))
        self.norm = nn.LayerNorm(config.dim_model)

    def forward(self, encoded: Encoded) -> Float[Tensor, "batch memory dim_model"]:
        memory = encoded.memory
        rows, mask = self._rows(encoded)
        new = self.layer(memory, rows, mask)
        g = self.gate(torch.cat([new, memory], dim=-1)).sigmoid()
        return self.norm(g * new + (1 - g) * memory + self.bias)

    def looked_at(self, encoded: Encoded) -> LookedAt:
        """See `MemoryLayer`; the keys are the memory, and the tokens behind it."""
        return attention_looked_at(self.layer, encoded.memory, *self._rows(encoded))

    def _rows(self, encoded: Encoded) -> tuple[Tensor, Bool[Tensor, "batch memory rows"]]:
        """([p; x], which of them each slot sees)."""
        rows, mask = memory_and_tokens(encoded)
        size = encoded.memory.shape[1]
        itself = torch.eye(size, rows.shape[1], dtype=torch.bool, device=mask.device)
        of_tokens = torch.arange(rows.shape[1], device=mask.device) >= size
        return rows, itself | (mask & of_tokens)


def last_segments_together(
    tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"], size: int
) -> tuple[Int[Tensor, "batch padded"], Bool[Tensor, "batch padded"]]:
    """The same sequences, moved by whole segments so that all end in the last one.

    Which tokens share a segment depends on the sequence alone, and not on its batch: segments of
    nothing but padding stand ahead. A single segment is as long as its longest sequence.
    """
    if tokens.shape[1] <= size:
        return tokens, mask
    missing = -tokens.shape[1] % size
    tokens, mask = (torch.nn.functional.pad(z, (0, missing)) for z in (tokens, mask))
    length = mask.shape[1]
    after_last = (mask * torch.arange(1, length + 1, device=mask.device)).amax(dim=1)
    moved = length - (after_last + size - 1).div(size, rounding_mode="floor") * size
    index = (torch.arange(length, device=mask.device) - moved[:, None]) % max(1, length)
    return tokens.gather(1, index), mask.gather(1, index)
