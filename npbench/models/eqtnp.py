"""EQTNP: a Transformer encodes the context once, and targets attend to its layers."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from npbench.blocks import MLP, Decoder, FeedForward, LayerConfig, SelfAttention
from npbench.likelihoods import Likelihood, target_head
from npbench.models.contracts.causal import CausalExtension, CausalOption, CausalState
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import records_arguments
from npbench.models.contracts.stored_context import StoredContext


class EQTNP(CausalOption):
    r"""Efficient Queries Transformer Neural Process.

    $$E_0 = \mathrm{MLP}([x, y]), \qquad E_i = \mathrm{FF}(\mathrm{SelfAttn}(E_{i-1})),
      \qquad i = 1, …, K - 1$$
    $$X_0 = \mathrm{MLP}(x_t), \qquad X_i = \mathrm{FF}(\mathrm{CrossAttn}(X_{i-1} \to E_{i-1})),
      \qquad i = 1, …, K$$

    Memory: $N^2$ to condition and to update, $NM$ to query; the state holds K encodings a point.

    With `causal` a point of the context sees only those before it. The state then keeps the keys
    and values of all points in every attention, almost four times as many numbers, and no points.
    An update by n points encodes them alone: n(N + n) operations and a copy of what is kept, in
    place of (N + n)² operations. Training predicts each point of a task from all before it, in one
    pass (`next_points`). In return predictions depend on the order of the context.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_model: width D.
        num_heads: heads of every attention.
        num_layers: number K of query layers.
        dim_feedforward: hidden width of the feed-forward layers and of the head.
        embed_depth: linear layers in the two embedding MLPs.
        dropout: rate after each feed-forward layer.
        bound_std: keep the standard deviation above 0.05.
        qk_norm: normalise queries and keys; see `MultiheadAttention`.
        norm_residual: what the layers' residuals add; see `LayerConfig`.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.
        causal: whether points of the context see only those before them; see above.

    Source: Feng et al., *Latent Bottlenecked Attentive Neural Processes*, ICLR 2023.

    Example:
        >>> model = EQTNP(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).mean.shape
        torch.Size([16, 10, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 6,
        dim_feedforward: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        norm_residual: bool = True,
        likelihood: Likelihood = "gaussian",
        causal: bool = False,
    ) -> None:
        super().__init__(dim_x, dim_y)
        self._set_causal(causal)
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout, qk_norm, norm_residual)
        self.embed_points = MLP(dim_x + dim_y, dim_model, dim_model, embed_depth)
        self.layers: Any = nn.ModuleList(_EncoderLayer(config) for _ in range(num_layers - 1))
        self.decoder: Any = Decoder(config, dim_x, num_layers, embed_depth)
        self.head = target_head(
            likelihood,
            dim_y,
            lambda n: MLP(dim_model, dim_feedforward, n, depth=2),
            min_std=0.05 if bound_std else None,
        )

    def _encode(self, points: Points) -> StoredContext:
        encodings = [self.embed_points(points.xy)]
        for layer in self.layers:
            encodings.append(layer(encodings[-1], points.attention_mask))
        return StoredContext(points, torch.stack(encodings, dim=1))

    def _extend(self, state: CausalState | None, points: Points) -> CausalState:
        extension, x = CausalExtension(state, points), self.embed_points(points.xy)
        encodings = [x]
        for layer in self.layers:
            k, v = extension.add(*layer.attend.keys_values_of(x))
            x = layer.attend_to(x, k, v, extension.visible)
            encodings.append(x)
        for query_layer, encoding in zip(self.decoder.layers, encodings, strict=True):
            extension.add(*query_layer.attend.keys_values_of(encoding))
        return extension.state()

    def _predict(self, state: CausalState, xt: Tensor, visible: Tensor) -> Distribution:
        of_decoder = state.keys_values()[len(self.layers) :]
        return self.head(self.decoder.attend_to(xt, of_decoder, visible))

    def _query(self, state: StoredContext | CausalState, xt: Tensor) -> Distribution:
        if isinstance(state, CausalState):
            return super()._query(state, xt)
        contexts = state.encodings.unbind(dim=1)
        return self.head(self.decoder(xt, contexts, state.points.attention_mask))


class _EncoderLayer(nn.Module):
    """Self-attention among the context points, then feed-forward."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attend = SelfAttention(config)
        self.feedforward = FeedForward(config)

    def forward(
        self, x: Float[Tensor, "batch points dim_model"], mask: Tensor | None
    ) -> Float[Tensor, "batch points dim_model"]:
        return self.feedforward(self.attend(x, mask))

    def attend_to(
        self, x: Float[Tensor, "batch new dim_model"], k: Tensor, v: Tensor, mask: Tensor
    ) -> Float[Tensor, "batch new dim_model"]:
        """The same of points that attend to known keys and values."""
        return self.feedforward(self.attend.attend_to(x, k, v, mask))
