"""Layers whose tokens have places: attention by content, by distance and by displacement."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import MultiheadAttention
from npbench.attention.bias import GaussianBias
from npbench.attention.rotary import Rotary, Rotation
from npbench.blocks.layers import FeedForward, LayerConfig, PreNorm


@dataclass(frozen=True)
class At:
    """Where tokens are, from the centre of the places, and how rotary positions turn them there."""

    x: Float[Tensor, "*batch tokens dim_x"]
    rotation: Rotation

    @classmethod
    def of(cls, x: Float[Tensor, "*batch tokens dim_x"], rotary: Rotary) -> "At":
        rotation = rotary(x)
        if x.ndim == 3:  # all heads turn alike
            rotation = Rotation(rotation.cos[:, None], rotation.sin[:, None])
        return cls(x, rotation)


class LocatedAttention(MultiheadAttention):
    r"""Attention by content and by distance, whose values carry displacements.

    For a query at a and keys at $b_j$, with rotations R and normalised q and k:

    $$s_j = \frac{\tau\, R(a) q \cdot R(b_j) k_j}{\sqrt{d}} - \frac{|a - b_j|^2}{2 \ell_h^2}, \qquad
      \mathrm{out} = \sum_j \mathrm{softmax}(s)_j\, R(b_j - a)\, v_j$$

    Only differences of positions matter: the same tokens elsewhere have the same output.

    Args:
        dim_model: width of queries, keys and output.
        lengths: initial $\ell_h$ of each head, which split the width.
    """

    def __init__(self, dim_model: int, lengths: Sequence[float]) -> None:
        super().__init__(dim_model, len(lengths), qk_norm=True, bias=True)
        self.bias = GaussianBias(lengths)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        a: At,
        context: Float[Tensor, "batch keys dim_model"],
        b: At,
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        k, v = self.keys_values(context)
        k, v = b.rotation.turn(torch.cat([k, v], dim=1)).chunk(2, dim=1)
        q, bias = a.rotation.turn(self.queries(x)), self.bias(a.x, b.x)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
        if bias.requires_grad:
            # The fused kernel has no gradient of a bias.
            scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias
            out = scores.softmax(dim=-1).to(v.dtype) @ v
        else:
            bias = bias.to(q.dtype).expand(q.shape[0], -1, -1, -1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.join(a.rotation.undo(out))


class LocatedSelfAttention(PreNorm):
    r"""$x + \mathrm{Attn}(\mathrm{LN}(x) \to \mathrm{LN}(x))$ among tokens where they are."""

    def __init__(self, config: LayerConfig, lengths: Sequence[float]) -> None:
        super().__init__(config)
        self.attention = LocatedAttention(config.dim_model, lengths)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim_model"],
        at: At,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens dim_model"]:
        residual, h = self.normalise(x)
        return residual + self.attention(h, at, h, at, mask)


class LocatedMix(nn.Module):
    r"""FF, then K × (self-attention, FF): latents, or targets, learn of each other."""

    def __init__(self, config: LayerConfig, lengths: Sequence[float], num_layers: int) -> None:
        super().__init__()
        self.feedforward = nn.ModuleList(FeedForward(config) for _ in range(num_layers + 1))
        self.attend = nn.ModuleList(
            LocatedSelfAttention(config, lengths) for _ in range(num_layers)
        )

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim_model"],
        at: At,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens dim_model"]:
        first, *others = self.feedforward
        x = first(x)
        for attend, feedforward in zip(self.attend, others):
            x = feedforward(attend(x, at, mask))
        return x


class LocatedQueryLayer(PreNorm):
    r"""$\mathrm{FF}(x + \mathrm{Attn}(\mathrm{LN}(x) \to \mathrm{LN}_c(z)))$: targets at their
    inputs attend to latents at their places."""

    def __init__(self, config: LayerConfig, lengths: Sequence[float]) -> None:
        super().__init__(config)
        self.norm_context = nn.LayerNorm(config.dim_model)
        self.attention = LocatedAttention(config.dim_model, lengths)
        self.feedforward = FeedForward(config)

    def forward(
        self,
        x: Float[Tensor, "batch targets dim_model"],
        a: At,
        latents: Float[Tensor, "batch places dim_model"],
        b: At,
    ) -> Float[Tensor, "batch targets dim_model"]:
        residual, h = self.normalise(x)
        return self.feedforward(residual + self.attention(h, a, self.norm_context(latents), b))


class LocatedDecoder(nn.Module):
    r"""What targets learn from latents: $X_0$ is one learned vector, the same for all targets, and
    $X_i = \mathrm{QueryLayer}_i(X_{i-1} \to Z)$; returns $\mathrm{LN}(X_K)$."""

    def __init__(self, config: LayerConfig, lengths: Sequence[float], num_layers: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(config.dim_model))
        self.layers = nn.ModuleList(LocatedQueryLayer(config, lengths) for _ in range(num_layers))
        self.norm = nn.LayerNorm(config.dim_model)

    def forward(
        self, a: At, latents: Float[Tensor, "batch places dim_model"], b: At
    ) -> Float[Tensor, "batch targets dim_model"]:
        x = self.start.expand(*a.x.shape[:2], -1)
        for layer in self.layers:
            x = layer(x, a, latents, b)
        return self.norm(x)
