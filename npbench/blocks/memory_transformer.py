"""Transformer layers over tokens alone, and over tokens and memory."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention.kernels import attention_log_weights
from npbench.blocks.layers import LayerConfig, TransformerLayer
from npbench.blocks.tokens import Encoded, LookedAt


class TokenLayer(nn.Module):
    r"""A Transformer layer of a sequence without memory, post-norm or pre-norm.

    Args:
        config: the layers' common sizes.
        pre_norm: whether norms come before the attention and the feed-forward layer, not behind.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017.
    """

    def __init__(self, config: LayerConfig, pre_norm: bool) -> None:
        super().__init__()
        self.layer = PreNormTransformerLayer(config) if pre_norm else TransformerLayer(config)

    def forward(self, encoded: Encoded) -> Encoded:
        x, mask = encoded.x, encoded.mask
        return encoded._replace(x=self.layer(x, x, mask[:, None]))


class PreNormTransformerLayer(TransformerLayer):
    r"""$h + W_2\, \mathrm{ReLU}(W_1 \mathrm{LN}(h) + b_1) + b_2$ with
    $h = x + \mathrm{Attn}(\mathrm{LN}(x) \to \mathrm{LN}(c))$."""

    def forward(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        seen = self.norm_attention(context)
        h = x + self.dropout(self.attention(self.norm_attention(x), seen, mask))
        hidden = self.dropout(F.relu(self.expand(self.norm_feedforward(h))))
        return h + self.dropout(self.contract(hidden))


class MemoryTokenLayer(nn.Module):
    r"""The memory stands before the sequence, as further tokens that are never padding:

    $$[p; x] \leftarrow \mathrm{TransformerLayer}([p; x])$$

    Args:
        config: the layers' common sizes.

    Source: Burtsev et al., *Memory Transformer*, arXiv 2006.11527.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.layer = TransformerLayer(config)

    def forward(self, encoded: Encoded) -> Encoded:
        rows, mask = memory_and_tokens(encoded)
        memory, x = self.layer(rows, rows, mask).tensor_split([_size(encoded)], dim=1)
        return encoded._replace(x=x, memory=memory)

    def looked_at(self, encoded: Encoded) -> LookedAt:
        """See `MemoryLayer`; the keys are the memory, and the tokens behind it."""
        return attention_looked_at(self.layer, encoded.memory, *memory_and_tokens(encoded))


class BottleneckLayer(nn.Module):
    r"""The memory asks memory and sequence; the sequence asks the new memory, and never itself:

    $$p \leftarrow \mathrm{TransformerLayer}_p(p \to [p; x]), \qquad
      x \leftarrow \mathrm{TransformerLayer}_x(x \to p)$$

    Args:
        config: the layers' common sizes.

    Source: Burtsev et al., *Memory Transformer*, arXiv 2006.11527 (MemBottleneck).
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.memory_layer = TransformerLayer(config)
        self.token_layer = TransformerLayer(config)

    def forward(self, encoded: Encoded) -> Encoded:
        rows, mask = memory_and_tokens(encoded)
        memory = self.memory_layer(encoded.memory, rows, mask)
        return encoded._replace(x=self.token_layer(encoded.x, memory), memory=memory)

    def looked_at(self, encoded: Encoded) -> LookedAt:
        """See `MemoryLayer`; the keys are the memory, and the tokens behind it."""
        return attention_looked_at(self.memory_layer, encoded.memory, *memory_and_tokens(encoded))


def memory_and_tokens(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """([p; x], its mask for all queries)."""
    x, mask, memory, _ = encoded
    real = torch.ones(memory.shape[:2], dtype=torch.bool, device=mask.device)
    return torch.cat([memory, x], dim=1), torch.cat([real, mask], dim=1)[:, None]


def attention_looked_at(
    layer: TransformerLayer,
    memory: Float[Tensor, "batch memory dim_model"],
    rows: Float[Tensor, "batch rows dim_model"],
    mask: Bool[Tensor, "batch #memory rows"],
) -> LookedAt:
    """What a layer's attention brings a memory from rows, and the logarithm of its weights."""
    keys, _ = layer.attention.keys_values(rows)
    log_weights = attention_log_weights(layer.attention.queries(memory), keys, mask=mask)
    return layer.attention(memory, rows, mask), log_weights


def _size(encoded: Encoded) -> int:
    return encoded.memory.shape[1]
