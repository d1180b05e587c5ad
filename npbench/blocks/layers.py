"""The layers that the models are made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import AttentionState, MultiheadAttention
from npbench.attention.kernels import attention_log_weights, score_bias
from npbench.errors import InputError


class MLP(nn.Sequential):
    """Linear, ReLU, …, Linear: `depth` linear layers, `dim_hidden` wide between them."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, depth: int) -> None:
        if depth < 1:
            raise InputError(f"an MLP has one linear layer at least, not depth={depth}")
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
        norm_residual: whether a layer adds its normalised input h = LN(x) back, h + f(h), as the
            official code does; otherwise it adds x, x + f(h), as the usual pre-norm Transformer
            does, which trains faster (`docs/training-notes.md`).
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

    def attend_to(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        k: Float[Tensor, "batch heads points dim_head"],
        v: Float[Tensor, "batch heads points dim_head"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The output of points that attend to known keys and values, their own among them."""
        residual, h = self.normalise(x)
        return residual + self.attention.attend_to(h, k, v, mask)

    def keys_values_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of points, [batch, heads, points, dim_head] each."""
        return self.attention.keys_values(self.norm(x))


class CrossAttention(PreNorm):
    r"""$\mathrm{residual} + \mathrm{Attn}(h \to \mathrm{LN}_c(c))$; the context has its own norm.

    `absorb` and `readout` are the same layer in two steps, for an `x` that is the same for every
    task: the first sees the context, chunk by chunk, and the second only what the first has kept.
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
        return self.attend_to(x, *self.keys_values_of(context), mask)

    def attend_to(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        k: Float[Tensor, "batch heads points dim_head"],
        v: Float[Tensor, "batch heads points dim_head"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The same of a context whose keys and values are known."""
        residual, h = self.normalise(x)
        return residual + self.attention.attend_to(h, k, v, mask)

    def absorb(
        self,
        x: Float[Tensor, "queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
        bias: Float[Tensor, "#batch heads queries points"] | None = None,
    ) -> AttentionState:
        """What the queries `x` keep of these context points; see `AttentionState.from_chunk`."""
        return self.attention.absorb(self.norm(x), self.norm_context(context), mask, bias)

    def looked_at(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        context: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> tuple[
        Float[Tensor, "batch queries dim_model"], Float[Tensor, "batch heads queries points"]
    ]:
        """What `forward` adds to its residual, and the logarithms of the weights of attention."""
        attention, h = self.attention, self.norm(x)
        q, (k, _) = attention.queries(h), self.keys_values_of(context)
        out = attention(h, self.norm_context(context), None if mask is None else mask[:, None])
        return out, attention_log_weights(q, k, score_bias(mask, None, q.dtype))

    def readout(
        self, x: Float[Tensor, "queries dim_model"], state: AttentionState
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The layer's output from the state of all context points."""
        residual, _ = self.normalise(x)
        return residual + self.attention.readout(state)

    def queries_of(
        self, x: Float[Tensor, "queries dim_model"]
    ) -> Float[Tensor, "1 heads queries dim_head"]:
        """The queries that `absorb` makes of x."""
        return self.attention.queries(self.norm(x)[None])

    def keys_values_of(
        self, context: Float[Tensor, "batch points dim_model"]
    ) -> tuple[
        Float[Tensor, "batch heads points dim_head"], Float[Tensor, "batch heads points dim_head"]
    ]:
        """The keys and values of a context."""
        return self.attention.keys_values(self.norm_context(context))

    def folded_projection(
        self,
    ) -> tuple[Float[Tensor, "two_dim_model dim_model"], Float[Tensor, "two_dim_model"]]:
        r"""The weight and bias that take a *normalised* context ĉ to keys and values.

        The gain γ and the shift β of the context's norm are folded into the projection W:

        $$W\, \mathrm{LN}_c(c) = (W\, \mathrm{diag}\, \gamma)\, \hat{c} + W \beta$$
        """
        weight, norm = self.attention.to_kv.weight, self.norm_context
        return weight * norm.weight, weight @ norm.bias


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

    def attend_to(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        k: Float[Tensor, "batch heads points dim_head"],
        v: Float[Tensor, "batch heads points dim_head"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The same of a context whose keys and values are known."""
        return self.feedforward(self.attend.attend_to(x, k, v, mask))


class Decoder(nn.Module):
    r"""Targets attend to one context a layer.

    $$X_0 = \mathrm{MLP}(x_t), \qquad X_i = \mathrm{QueryLayer}_i(X_{i-1} \to C_i)$$

    It returns $\mathrm{LN}(X_K)$.

    Args:
        config: the layers' common sizes.
        dim_x: number of inputs of a target.
        num_layers: number K of query layers.
        embed_depth: linear layers of the MLP.
    """

    def __init__(self, config: LayerConfig, dim_x: int, num_layers: int, embed_depth: int) -> None:
        super().__init__()
        self.embed = MLP(dim_x, config.dim_model, config.dim_model, embed_depth)
        self.layers: Any = nn.ModuleList(QueryLayer(config) for _ in range(num_layers))
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

    def attend_to(
        self,
        xt: Float[Tensor, "batch target dim_x"],
        keys_values: Iterable[tuple[Tensor, Tensor]],
        mask: Bool[Tensor, "batch #target points"] | None = None,
    ) -> Float[Tensor, "batch target dim_model"]:
        """The same of contexts whose keys and values are known."""
        x = self.embed(xt)
        for layer, (k, v) in zip(self.layers, keys_values, strict=True):
            x = layer.attend_to(x, k, v, mask)
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
        return self.attend_to(x, *self.attention.keys_values(context), mask)

    def attend_to(
        self,
        x: Float[Tensor, "batch queries dim_model"],
        k: Float[Tensor, "batch heads points dim_head"],
        v: Float[Tensor, "batch heads points dim_head"],
        mask: Bool[Tensor, "batch #queries points"] | None = None,
    ) -> Float[Tensor, "batch queries dim_model"]:
        """The same of a context whose keys and values are known."""
        h = self.norm_attention(x + self.dropout(self.attention.attend_to(x, k, v, mask)))
        hidden = self.dropout(F.relu(self.expand(h)))
        return self.norm_feedforward(h + self.dropout(self.contract(hidden)))
