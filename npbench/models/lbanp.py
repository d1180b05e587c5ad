"""LBANP: a fixed number of latents stands between the context and the targets."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Distribution

from npbench.blocks import MLP, CrossAttention, Decoder, FeedForward, LayerConfig, SelfAttention
from npbench.likelihoods import JointGaussian, Likelihood, target_head
from npbench.models.contracts.joint import JointProcess
from npbench.models.contracts.memory import MemoryView
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import records_arguments
from npbench.models.contracts.stored_context import StoredContext, StoredContextProcess
from npbench.task import Task


class LBANP(StoredContextProcess):
    r"""Latent Bottlenecked Attentive Neural Process.

    $$E = \mathrm{MLP}([x, y]), \qquad
      Z_i = \mathrm{FF}(\mathrm{SelfAttn}(\mathrm{FF}(\mathrm{CrossAttn}(Z_{i-1} \to E)))),
      \qquad i = 1, …, K$$
    $$X_0 = \mathrm{MLP}(x_t), \qquad X_i = \mathrm{FF}(\mathrm{CrossAttn}(X_{i-1} \to Z_i))$$

    with $Z_0$ learned. Each layer's queries depend on the output of the one before, so that new
    points change them all: a query is constant in the number N of context points, but `condition`
    and `update` take memory NL, and the state keeps the points.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_model: width D.
        num_heads: heads of every attention.
        num_layers: number K of layers, in the encoder and in the decoder.
        dim_feedforward: hidden width of the feed-forward layers and of the head.
        num_latents: number L of latents.
        embed_depth: linear layers in the two embedding MLPs.
        dropout: rate after each feed-forward layer.
        bound_std: keep the standard deviation above 0.05.
        qk_norm: normalise queries and keys; see `MultiheadAttention`.
        norm_residual: what the layers' residuals add; see `LayerConfig`.
        likelihood: "gaussian", or "categorical" for `dim_y` classes as one-hot outputs.

    Source: Feng et al., *Latent Bottlenecked Attentive Neural Processes*, ICLR 2023.

    Example:
        >>> model = LBANP(dim_x=1, dim_y=1)
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
        num_latents: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        norm_residual: bool = True,
        likelihood: Likelihood = "gaussian",
    ) -> None:
        super().__init__(dim_x, dim_y)
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout, qk_norm, norm_residual)
        self.embed_points = MLP(dim_x + dim_y, dim_model, dim_model, embed_depth)
        self.latents = nn.Parameter(torch.randn(num_latents, dim_model))
        self.layers = nn.ModuleList(_LatentLayer(config) for _ in range(num_layers))
        self.decoder = Decoder(config, dim_x, num_layers, embed_depth)
        self.head: nn.Module = target_head(
            likelihood,
            dim_y,
            lambda n: MLP(dim_model, dim_feedforward, n, depth=2),
            min_std=0.05 if bound_std else None,
        )

    def _encode(self, points: Points) -> StoredContext:
        embedding = self.embed_points(points.xy)
        latents = [self.latents.expand(len(embedding), -1, -1)]
        for layer in self.layers:
            latents.append(layer(latents[-1], embedding, points.attention_mask))
        return StoredContext(points, torch.stack(latents[1:], dim=1))

    def memory_layers(self, batch: Task) -> list[MemoryView]:
        """What each layer's latents hold of the contexts of tasks, and how they attend to them."""
        context, _ = self._inputs.of_task(batch)
        embedding, state = self.embed_points(context.xy), self._encode(context)
        before = [self.latents.expand(len(embedding), -1, -1), *state.encodings.unbind(dim=1)]
        return [
            MemoryView(packed, after, weights)
            for layer, latents, after in zip(self.layers, before, before[1:])
            for packed, weights in [layer.attend_points.looked_at(latents, embedding, context.mask)]
        ]

    def _query(self, state: StoredContext, xt: Tensor) -> Distribution:
        return self.head(self._encode_targets(state, xt))

    def _encode_targets(
        self, state: StoredContext, xt: Tensor
    ) -> Float[Tensor, "batch target dim_model"]:
        return self.decoder(xt, state.encodings.unbind(dim=1))


class _LatentLayer(nn.Module):
    """Latents attend to the points, then to each other."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attend_points = CrossAttention(config)
        self.mix_latents = nn.Sequential(
            FeedForward(config), SelfAttention(config), FeedForward(config)
        )

    def forward(
        self,
        latents: Float[Tensor, "batch num_latents dim_model"],
        points: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch 1 points"] | None,
    ) -> Float[Tensor, "batch num_latents dim_model"]:
        return self.mix_latents(self.attend_points(latents, points, mask))


class LBANPND(JointProcess, LBANP):
    r"""LBANP with a joint Gaussian over all targets: see `JointGaussian` for its covariance.

    Args:
        covariance: "cholesky" or "lowrank".
        dim_projection: columns of the covariance's factor P.
        num_std_layers: Transformer layers among the targets before P.
        projection_depth: linear layers from their output to P (and to the diagonal).

    The other arguments are those of `LBANP`.

    Example:
        >>> model = LBANPND(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).covariance_matrix.shape
        torch.Size([16, 10, 10])
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
        num_latents: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        norm_residual: bool = True,
        covariance: Literal["cholesky", "lowrank"] = "cholesky",
        dim_projection: int = 20,
        num_std_layers: int = 2,
        projection_depth: int = 4,
    ) -> None:
        super().__init__(
            dim_x=dim_x,
            dim_y=dim_y,
            dim_model=dim_model,
            num_heads=num_heads,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            num_latents=num_latents,
            embed_depth=embed_depth,
            dropout=dropout,
            bound_std=bound_std,
            qk_norm=qk_norm,
            norm_residual=norm_residual,
        )
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        self.head = JointGaussian(
            config=config,
            dim_y=dim_y,
            covariance=covariance,
            dim_projection=dim_projection,
            num_std_layers=num_std_layers,
            projection_depth=projection_depth,
            bound_std=bound_std,
        )
