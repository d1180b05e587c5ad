"""Sequences of tokens as vectors: how they begin, what layers hand on, and how they end."""

from typing import Literal, NamedTuple, Protocol, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.errors import InputError

Readout = Literal["cls", "first", "mean", "mean_with_padding", "memory", "memory_with_cls"]
"""Which vector of a sequence is classified; see `read_out`."""


class Encoded(NamedTuple):
    """What the layers of an encoder hand on: the vectors of the tokens, and those of the memory.

    Masks are True where a row is real. A memory without a mask is real throughout, and one of no
    rows is none.
    """

    x: Float[Tensor, "batch length dim_model"]
    mask: Bool[Tensor, "batch length"]
    memory: Float[Tensor, "batch memory dim_model"]
    memory_mask: Bool[Tensor, "batch memory"] | None = None


LookedAt = tuple[Float[Tensor, "batch memory dim_model"], Float[Tensor, "batch heads memory keys"]]


class MemoryLayer(Protocol):
    """A layer of an encoder whose tokens share a memory."""

    def __call__(self, encoded: Encoded) -> Encoded:
        """The tokens and the memory after the layer."""

    def looked_at(self, encoded: Encoded) -> LookedAt:
        """What the memory's attention brings it, and the logarithm of its weights, which are −∞ at
        padding: for those who look into a model."""


class TokenEmbedding(nn.Module):
    r"""The embedding of tokens and of their positions.

    $$x_j = E[\mathrm{token}_j] + P[j]$$

    where the position j of a real token counts the real tokens ahead of it.

    Args:
        vocab_size: number of tokens.
        dim_model: width D.
        max_length: number of learned positions; None takes sines and cosines, which have no limit.
        cls: put a learned vector, without a position, before the first token.
        norm: normalise the result (LayerNorm).
        clear_padding: set rows of padding to 0.
        dropout: rate after all this.

    Example:
        >>> embed = TokenEmbedding(vocab_size=17, dim_model=8, max_length=20, cls=True)
        >>> tokens = torch.randint(17, (2, 12))
        >>> embed(tokens, torch.ones_like(tokens, dtype=torch.bool)).x.shape
        torch.Size([2, 13, 8])
    """

    frequencies: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim_model: int,
        max_length: int | None,
        cls: bool = False,
        norm: bool = False,
        clear_padding: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim_model)
        self.positions = None
        if max_length is None:
            if dim_model % 2:
                raise InputError(f"dim_model={dim_model} must be even: half sines, half cosines")
            frequencies = 10_000.0 ** -(torch.arange(0, dim_model, 2) / dim_model)
            self.register_buffer("frequencies", frequencies, persistent=False)
        else:
            self.positions = nn.Embedding(max_length, dim_model)
        self.max_length = max_length
        self.cls = nn.Parameter(torch.randn(dim_model) * dim_model**-0.5) if cls else None
        self.norm = nn.LayerNorm(dim_model) if norm else nn.Identity()
        self.clear_padding = clear_padding
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        start: int | Int[Tensor, "batch 1"] = 0,
    ) -> Encoded:
        """The vectors of the tokens, with [CLS] ahead if there is one.

        Args:
            tokens: ids.
            mask: True where a token is real.
            start: position of the first token, where positions are sines and cosines.

        Raises:
            InputError: if there are more tokens than positions.
        """
        if self.max_length is not None and (length := tokens.shape[1]) > self.max_length:
            raise InputError(
                f"a sequence of {length:,} tokens is longer than max_length={self.max_length:,}; "
                f"cut it, or take a model with more positions"
            )
        index = torch.arange(tokens.shape[1], device=tokens.device)
        index = torch.where(mask, mask.cumsum(dim=-1) - 1, index)
        x = self.tokens(tokens) + self._encoded(start + index)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], dim=1)
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        x = self.dropout(self.norm(x))
        if self.clear_padding:
            x = x.masked_fill(~mask[..., None], 0.0)
        return Encoded(x, mask, x[:, :0])

    def _encoded(
        self, index: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length dim_model"]:
        """The vectors of positions."""
        if self.positions is not None:
            return self.positions(index)
        phase = index[..., None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1).to(self.tokens.weight.dtype)


def has_cls(readout: Readout) -> bool:
    """Whether the model puts a vector of its own before the tokens.

    Raises:
        InputError: if there is no such read-out.
    """
    if readout not in get_args(Readout):
        raise InputError(f"readout={readout!r} must be one of {', '.join(get_args(Readout))}")
    return readout in ("cls", "memory_with_cls")


def read_out(encoded: Encoded, readout: Readout) -> Float[Tensor, "batch dim_model"]:
    """One vector for each sequence.

    "cls" and "first" take that of the first row: of a learned vector that the model puts there, or
    of a token that the data have put there. "mean" takes the mean over real tokens, and
    "mean_with_padding" over rows of padding too, as released code does. "memory" takes the mean
    over the memory, and "memory_with_cls" the same where there is a [CLS] too.
    """
    x, mask, memory, memory_mask = encoded
    if readout in ("cls", "first"):
        return x[:, 0]
    if readout == "mean_with_padding":
        return x.mean(dim=1)
    if readout == "mean":
        return masked_mean(x, mask)
    return memory.mean(dim=1) if memory_mask is None else masked_mean(memory, memory_mask)


def masked_mean(
    x: Float[Tensor, "batch rows dim_model"], mask: Bool[Tensor, "batch rows"]
) -> Float[Tensor, "batch dim_model"]:
    """The mean of the real rows; 0 where there are none."""
    total = x.masked_fill(~mask[..., None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)
