"""Luna: attention of a sequence to itself through a small memory, in two nested attentions."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import attend, join_heads, split_heads
from npbench.attention.kernels import attention_log_weights
from npbench.blocks.tokens import Encoded, LookedAt
from npbench.errors import InputError


@dataclass(frozen=True)
class LunaConfig:
    """What all layers of a Luna have in common.

    Args:
        dim_model: width D.
        num_heads: heads of the unpacking attention.
        dim_feedforward: hidden width of the feed-forward layers.
        num_pack_heads: heads of the packing attention; as many as `num_heads` by default.
        tied: whether an attention takes its keys as its values.
        pre_norm: whether norms come before the attentions and the feed-forward layer, not behind.
        activation: of the feed-forward layers, "gelu" or "relu".
        dropout: rate after attentions and feed-forward layers.
        attention_dropout: rate at which attention weights are dropped.
    """

    dim_model: int
    num_heads: int
    dim_feedforward: int
    num_pack_heads: int | None = None
    tied: bool = False
    pre_norm: bool = False
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, heads in (
            ("num_heads", self.num_heads),
            ("num_pack_heads", self.num_pack_heads or self.num_heads),
        ):
            if heads < 1 or self.dim_model % heads:
                raise InputError(f"dim_model={self.dim_model} does not split into {name}={heads}")
        if self.activation not in ("gelu", "relu"):
            raise InputError(f'activation={self.activation!r} must be "gelu" or "relu"')


class LunaAttention(nn.Module):
    r"""Two attentions: the memory p asks the sequence x, and the sequence asks what it has packed.

    $$\mathrm{packed} = \mathrm{Attn}(p \to x), \qquad
      \mathrm{unpacked} = W_o\, \mathrm{Attn}(x \to \mathrm{packed}) + b_o$$

    where the first has no projection of its output. The cost is linear in the length of x.

    Args:
        config: the layers' common sizes.

    Source: Ma et al., *Luna: Linear Unified Nested Attention*, NeurIPS 2021, section 3.

    Example:
        >>> attention = LunaAttention(LunaConfig(dim_model=16, num_heads=4, dim_feedforward=32))
        >>> unpacked, packed = attention(torch.randn(2, 100, 16), torch.randn(2, 8, 16))
        >>> unpacked.shape, packed.shape
        (torch.Size([2, 100, 16]), torch.Size([2, 8, 16]))
    """

    def __init__(self, config: LunaConfig) -> None:
        super().__init__()
        width = config.dim_model
        self.num_heads = config.num_heads
        self.num_pack_heads = config.num_pack_heads or config.num_heads
        self.dropout = config.attention_dropout
        self.pack_query, self.pack_key = nn.Linear(width, width), nn.Linear(width, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.pack_value = None if config.tied else nn.Linear(width, width)
        self.value = None if config.tied else nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.xavier_uniform_(weight, gain=1.0 if name.startswith("out.") else 2**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Float[Tensor, "batch length dim_model"],
        memory: Float[Tensor, "batch memory dim_model"],
        mask: Bool[Tensor, "batch length"] | None = None,
        memory_mask: Bool[Tensor, "batch memory"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim_model"], Float[Tensor, "batch memory dim_model"]]:
        """(unpacked, packed); masks are True where a row is real."""
        packed = self.pack(x, memory, mask)
        return self.unpack(x, packed, memory_mask), packed

    def pack(
        self,
        x: Float[Tensor, "batch length dim_model"],
        memory: Float[Tensor, "batch memory dim_model"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch memory dim_model"]:
        """What the memory takes from the sequence."""
        q, k = self._pack_queries_keys(x, memory)
        v = k if self.pack_value is None else split_heads(self.pack_value(x), self.num_pack_heads)
        return join_heads(attend(q, k, v, _of_keys(mask), dropout=self._rate))

    def unpack(
        self,
        x: Float[Tensor, "batch length dim_model"],
        packed: Float[Tensor, "batch memory dim_model"],
        memory_mask: Bool[Tensor, "batch memory"] | None = None,
    ) -> Float[Tensor, "batch length dim_model"]:
        """What the sequence takes from what was packed."""
        q, k = self._queries_keys(x, packed)
        v = k if self.value is None else split_heads(self.value(packed), self.num_heads)
        return self.out(join_heads(attend(q, k, v, _of_keys(memory_mask), dropout=self._rate)))

    def pack_log_weights(
        self,
        x: Float[Tensor, "batch length dim_model"],
        memory: Float[Tensor, "batch memory dim_model"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch heads memory length"]:
        """The logarithm of how much the memory attends to each token."""
        return attention_log_weights(*self._pack_queries_keys(x, memory), mask=_of_keys(mask))

    def unpack_weights(
        self,
        x: Float[Tensor, "batch length dim_model"],
        packed: Float[Tensor, "batch memory dim_model"],
        memory_mask: Bool[Tensor, "batch memory"] | None = None,
    ) -> Float[Tensor, "batch heads length memory"]:
        """How much each token attends to what was packed."""
        q, k = self._queries_keys(x, packed)
        return attention_log_weights(q, k, mask=_of_keys(memory_mask)).exp()

    @property
    def _rate(self) -> float:
        return self.dropout if self.training else 0.0

    def _pack_queries_keys(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.pack_query(memory), self.pack_key(x)
        return split_heads(q, self.num_pack_heads), split_heads(k, self.num_pack_heads)

    def _queries_keys(self, x: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.query(x), self.key(packed)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads)


class LunaLayer(nn.Module):
    r"""A layer of Luna's encoder. The feed-forward layer acts on the sequence alone.

    $$(a, b) = \mathrm{LunaAttention}(x, p), \qquad
      x \leftarrow \mathrm{LN}_1(x + a), \qquad p \leftarrow \mathrm{LN}_2(p + b), \qquad
      x \leftarrow \mathrm{LN}_3(x + \mathrm{FF}(x))$$

    With `pre_norm` each norm comes before what it is added to: $x + \mathrm{FF}(\mathrm{LN}_3(x))$.

    Args:
        config: the layers' common sizes.
    """

    def __init__(self, config: LunaConfig) -> None:
        super().__init__()
        width = config.dim_model
        self.pre_norm = config.pre_norm
        self.activation = config.activation
        self.attention = LunaAttention(config)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_memory = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.dim_feedforward)
        self.contract = nn.Linear(config.dim_feedforward, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoded: Encoded) -> Encoded:
        x, mask, memory, memory_mask = encoded
        a, b = self.attention(*self._before(x, memory), mask, memory_mask)
        x, memory = x + self.dropout(a), memory + self.dropout(b)
        if self.pre_norm:
            x = x + self._feed_forward(self.norm_feedforward(x))
        else:
            x, memory = self.norm_attention(x), self.norm_memory(memory)
            x = self.norm_feedforward(x + self._feed_forward(x))
        return Encoded(x, mask, memory, memory_mask)

    def looked_at(self, encoded: Encoded) -> LookedAt:
        """See `MemoryLayer`."""
        x, mask, memory, _ = encoded
        seen = *self._before(x, memory), mask
        return self.attention.pack(*seen), self.attention.pack_log_weights(*seen)

    def _before(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What the attention sees."""
        return (self.norm_attention(x), self.norm_memory(memory)) if self.pre_norm else (x, memory)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.expand(x)
        hidden = F.gelu(hidden) if self.activation == "gelu" else F.relu(hidden)
        return self.dropout(self.contract(hidden))


def _of_keys(mask: Bool[Tensor, "batch keys"] | None) -> Bool[Tensor, "batch 1 keys"] | None:
    return None if mask is None else mask[:, None]
