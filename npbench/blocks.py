"""The layers that the models are made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import AttentionState, MultiheadAttention


class MLP(nn.Sequential):
    """Linear, ReLU, …, Linear: `depth` linear layers, `dim_hidden` wide between them."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"an MLP has one linear layer at least, not depth={depth}")
        layers: list[nn.Module] = []
        for width, next_width in pairwise([dim_in, *[dim_hidden] * (depth - 1), dim_out]):
            layers += [nn.Linear(width, next_width), nn.ReLU()]
        super().__init__(*layers[:-1])


@dataclass(frozen=True)
class LayerConfig:
    """What all layers of a model have in common.

    Args:
        dim_model: width D.
        num_heads: heads of every attention, which split the width.
        dim_feedforward: hidden width of the feed-forward layers.
        dropout: rate after each feed-forward layer.
        qk_norm: normalise queries and keys; see `MultiheadAttention`.
        norm_residual: what a layer's residual adds, with h = LN(x): h itself, h + f(h), as in the
            official code; or x, x + f(h), as in the usual pre-norm Transformer (False), which
            trains faster (`docs/training-notes.md`).
    """

    dim_model: int
    num_heads: int
    dim_feedforward: int
    dropout: float = 0.0
    qk_norm: bool = False
    norm_residual: bool = True


class PreNorm(nn.Module):
    """A layer that computes on h = LN(x) and adds h, or x, to the result."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim_model)
        self.norm_residual = config.norm_residual

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(residual, h): what the layer adds in the end, and what it computes on."""
        h = self.norm(x)
        return (h if self.norm_residual else x), h


class FeedForward(PreNorm):
    r"""GEGLU: $\mathrm{residual} + W_2 (a \circ \mathrm{GELU}(g)) + b_2$ with
    $[a, g] = W_1 h + b_1$ (Shazeer, 2020)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.expand = nn.Linear(config.dim_model, 2 * config.dim_feedforward)
        self.contract = nn.Linear(config.dim_feedforward, config.dim_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "*batch dim_model"]) -> Float[Tensor, "*batch dim_model"]:
        residual, h = self.normalise(x)
        linear, gate = self.expand(h).chunk(2, dim=-1)
        return residual + self.dropout(self.contract(linear * F.gelu(gate)))


class SelfAttention(PreNorm):
    r"""$\mathrm{residual} + \mathrm{Attn}(h \to h)$."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.attention = MultiheadAttention(config.dim_model, config.num_heads, config.qk_norm)

    def forward(
        self,
        x: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch #points points"] | None = None,
    ) -> Float[Tensor, "batch points dim_model"]:
        residual, h = self.normalise(x)
        return residual + self.attention(h, h, mask)


class CrossAttention(PreNorm):
    r"""$\mathrm{residual} + \mathrm{Attn}(h \to \mathrm{LN}_c(c))$; the context has its own norm.

    `absorb` and `readout` are the same layer in two steps, for an `x` that no task changes: the
    first sees the context, chunk by chunk; the second sees only what the first kept of it.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.norm_context = nn.LayerNorm(config.dim_model)
        self.attention = MultiheadAttention(config.dim_model, config.num_heads, config.qk_norm)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        residual, h = self.normalise(x)
        return residual + self.attention(h, self.norm_context(context), mask)

    def absorb(
        self,
        x: Float[Tensor, "queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> AttentionState:
        """What the queries `x` keep of these context points."""
        return self.attention.absorb(self.norm(x), self.norm_context(context), mask)

    def readout(
        self, x: Float[Tensor, "queries dim_model"], state: AttentionState
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The layer's output from the state of all context points."""
        residual, _ = self.normalise(x)
        return residual + self.attention.readout(state)


class QueryLayer(nn.Module):
    r"""Targets attend to the encoded context: $\mathrm{FF}(\mathrm{CrossAttn}(X \to Z))$."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attend = CrossAttention(config)
        self.feedforward = FeedForward(config)

    def forward(
        self,
        x: Float[Tensor, "batch target dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch #target points"] | None = None,
    ) -> Float[Tensor, "batch target dim_model"]:
        return self.feedforward(self.attend(x, context, mask))


class Decoder(nn.Module):
    r"""Targets read one context a layer: $X_0 = \mathrm{MLP}(x_t)$, $X_i = \mathrm{QueryLayer}_i(
    X_{i-1} \to C_i)$; returns $\mathrm{LN}(X_K)$.

    Args:
        config: the layers' common sizes.
        dim_x: number of inputs of a target.
        num_layers: number K of query layers.
        embed_depth: linear layers of the MLP.
    """

    def __init__(self, config: LayerConfig, dim_x: int, num_layers: int, embed_depth: int) -> None:
        super().__init__()
        self.embed = MLP(dim_x, config.dim_model, config.dim_model, embed_depth)
        self.layers = nn.ModuleList(QueryLayer(config) for _ in range(num_layers))
        self.norm = nn.LayerNorm(config.dim_model)

    def forward(
        self,
        xt: Float[Tensor, "batch target dim_x"],
        contexts: Iterable[Float[Tensor, "batch points dim_model"]],
        mask: Bool[Tensor, "batch #target points"] | None = None,
    ) -> Float[Tensor, "batch target dim_model"]:
        x = self.embed(xt)
        for layer, context in zip(self.layers, contexts, strict=True):
            x = layer(x, context, mask)
        return self.norm(x)


class TransformerLayer(nn.Module):
    r"""Post-norm: $\mathrm{LN}(h + W_2\, \mathrm{ReLU}(W_1 h + b_1) + b_2)$ with
    $h = \mathrm{LN}(x + \mathrm{Attn}(x \to c))$ (Vaswani et al., 2017)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attention = MultiheadAttention(
            config.dim_model, config.num_heads, config.qk_norm, bias=True
        )
        self.norm_attention = nn.LayerNorm(config.dim_model)
        self.expand = nn.Linear(config.dim_model, config.dim_feedforward)
        self.contract = nn.Linear(config.dim_feedforward, config.dim_model)
        self.norm_feedforward = nn.LayerNorm(config.dim_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        h = self.norm_attention(x + self.dropout(self.attention(x, context, mask)))
        hidden = self.dropout(F.relu(self.expand(h)))
        return self.norm_feedforward(h + self.dropout(self.contract(hidden)))


class ConstantMemoryAttentionBlock(nn.Module):
    r"""CMAB: latents attend to a set of points of any size through a state of constant size.

    With the block's own latents $Z_B$, the points' embeddings $E$, and the input latents $Z_I$:

    $$P = \mathrm{FF}(\mathrm{SelfAttn}(\mathrm{FF}(\mathrm{CrossAttn}(Z_B \to E))))$$
    $$Z = \mathrm{FF}(\mathrm{SelfAttn}(\mathrm{FF}(\mathrm{CrossAttn}(Z_I \to P))))$$

    where each layer includes its norm and residual. Only the first attention sees the points, and
    its queries are fixed: `absorb` turns points into an `AttentionState` (which merges with
    others), `forward` does the rest at a cost that does not depend on their number.

    Args:
        config: the layers' common sizes.
        num_block_latents: number L_B of the block's own latents.

    Source: Feng et al., *Memory Efficient Neural Processes via Constant Memory Attention Block*,
    ICML 2024, section 3.

    Example:
        >>> config = LayerConfig(dim_model=16, num_heads=2, dim_feedforward=32)
        >>> block = ConstantMemoryAttentionBlock(config, num_block_latents=4)
        >>> latents, points = torch.randn(3, 8, 16), torch.randn(3, 1000, 16)
        >>> block(latents, block.absorb(points)).shape
        torch.Size([3, 8, 16])
    """

    def __init__(self, config: LayerConfig, num_block_latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_block_latents, config.dim_model))
        self.attend_points = CrossAttention(config)
        self.mix_block = nn.Sequential(
            FeedForward(config), SelfAttention(config), FeedForward(config)
        )
        self.attend_block = CrossAttention(config)
        self.mix_latents = nn.Sequential(
            FeedForward(config), SelfAttention(config), FeedForward(config)
        )

    def absorb(
        self,
        points: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> AttentionState:
        """The block's state of these points."""
        return self.attend_points.absorb(self.latents, points, mask)

    def forward(
        self,
        input_latents: Float[Tensor, "batch num_latents dim_model"],
        state: AttentionState,
    ) -> Float[Tensor, "batch num_latents dim_model"]:
        """The input latents, informed by all the points that the state has absorbed."""
        block = self.mix_block(self.attend_points.readout(self.latents, state))
        return self.mix_latents(self.attend_block(input_latents, block))
