"""Neural processes with a latent variable: NP and ANP."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent

from npbench.likelihoods import DiagonalGaussian, independent_normal
from npbench.models.conditional import AttentiveEncoder, CNPState, PooledEncoder
from npbench.models.contracts.merging import MergingProcess
from npbench.models.contracts.mixture import MixtureProcess, expand, log_mean_exp
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import State, records_arguments
from npbench.task import Task


class LatentProcess(MixtureProcess):
    r"""A deterministic path $r_t$ and a latent z, whose distribution the second summary gives:

    $$q(z \mid \mathrm{set}) = \mathcal{N}(\mu_z, \sigma_z^2), \qquad
      \sigma_z = 0.1 + 0.9\, \mathrm{sigmoid}(\cdot), \qquad
      y_t \sim \mathcal{N}(\mu, \sigma^2), \quad [\mu, \sigma] = \mathrm{head}([r_t, z, x_t])$$

    Predictions average over z given the context. Training maximises the importance-weighted bound
    on all points, context and targets, with K samples of z given all of them:

    $$\log \frac 1K \sum_{k=1}^K \frac{p(y \mid z_k)\, q(z_k \mid \mathrm{context})}
      {q(z_k \mid \mathrm{all})}, \qquad z_k \sim q(z \mid \mathrm{all})$$
    """

    encoder: PooledEncoder | AttentiveEncoder
    head: DiagonalGaussian

    def loss(self, task: Task) -> Float[Tensor, ""]:
        """The negative bound per point, averaged over tasks."""
        context, targets = self._inputs.of_task(task)
        state = self._condition(iter([context]))
        points = Points.concatenate([context, targets])
        prior = self.latent(state)
        posterior = self.latent(self._update(state, targets))
        z = posterior.rsample(torch.Size([self.num_train_samples]))
        log_prob = self.given(state, points.x, z).log_prob(points.y)
        if points.mask is not None:
            log_prob = log_prob.masked_fill(~points.mask, 0.0)
        log_weight = log_prob.sum(dim=-1) + prior.log_prob(z) - posterior.log_prob(z)
        return -(log_mean_exp(log_weight) / points.count).mean()

    def latent(self, state: State) -> Distribution:
        """The distribution of z given the context: batch shape [B], event shape [dim_latent]."""
        mean, raw = self.encoder.summarise(state).chunk(2, dim=-1)
        std = 0.1 + 0.9 * raw.sigmoid()
        return independent_normal(mean, std)

    def given(
        self,
        state: State,
        xt: Float[Tensor, "batch target dim_x"],
        z: Float[Tensor, "samples batch dim_latent"],
    ) -> Independent:
        """The prediction for each z: batch shape [samples, B, M]."""
        z = z[:, :, None].expand(-1, -1, xt.shape[1], -1)
        summary = expand(self.encoder.summarise_for(state, xt), len(z))
        return self.head(torch.cat([summary, z, expand(xt, len(z))], dim=-1))

    def _condition(self, chunks: Iterator[Points]) -> State:
        return self.encoder.condition(chunks)

    def _update(self, state: State, points: Points) -> State:
        return self.encoder.update(state, points)

    def _components(self, state: State, xt: Tensor, num_samples: int) -> Independent:
        return self.given(state, xt, self.latent(state).rsample(torch.Size([num_samples])))


class NP(MergingProcess, LatentProcess):
    r"""Neural Process: a latent variable beside CNP's deterministic summary (`PooledEncoder`).

    Its state is CNP's, of constant size. See `LatentProcess` for the model and its training.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all MLPs.
        dim_latent: width of z.
        pre_depth: linear layers before the means.
        post_depth: linear layers after them.
        decoder_depth: linear layers of the head.
        num_samples: samples of z in a prediction.
        num_train_samples: samples of z in training.

    Source: Garnelo et al., *Neural Processes*, 2018; the bound and the defaults are those of the
    paper's official code.

    Example:
        >>> model = NP(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).mean.shape
        torch.Size([16, 10, 1])
    """

    state_class = CNPState

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_hidden: int = 128,
        dim_latent: int = 128,
        pre_depth: int = 4,
        post_depth: int = 2,
        decoder_depth: int = 3,
        num_samples: int = 50,
        num_train_samples: int = 4,
    ) -> None:
        super().__init__(dim_x, dim_y, num_samples, num_train_samples)
        self.encoder = PooledEncoder(
            dim_x, dim_y, dim_hidden, 2 * dim_latent, pre_depth, post_depth
        )
        self.head = DiagonalGaussian(
            dim_hidden + dim_latent + dim_x, dim_hidden, dim_y, depth=decoder_depth, min_std=0.1
        )


class ANP(LatentProcess):
    r"""Attentive Neural Process: a latent variable beside CANP's attention (`AttentiveEncoder`).

    See `LatentProcess` for the model and its training.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all layers.
        dim_latent: width of z.
        value_depth: linear layers before the attention's values, 2 of them self-attention.
        query_depth: linear layers before its queries and keys.
        pre_depth: linear layers before the mean, 2 of them self-attention.
        post_depth: linear layers after it.
        decoder_depth: linear layers of the head.
        num_samples: samples of z in a prediction.
        num_train_samples: samples of z in training.

    Source: Kim et al., *Attentive Neural Processes*, ICLR 2019; the bound and the defaults are
    those of the paper's official code.

    Example:
        >>> model = ANP(dim_x=1, dim_y=1)
        >>> x, y = torch.randn(2, 16, 10, 1)
        >>> model(x, y, x).mean.shape
        torch.Size([16, 10, 1])
    """

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        dim_hidden: int = 128,
        dim_latent: int = 128,
        value_depth: int = 4,
        query_depth: int = 2,
        pre_depth: int = 4,
        post_depth: int = 2,
        decoder_depth: int = 3,
        num_samples: int = 50,
        num_train_samples: int = 4,
    ) -> None:
        super().__init__(dim_x, dim_y, num_samples, num_train_samples)
        self.encoder = AttentiveEncoder(
            dim_x,
            dim_y,
            dim_hidden,
            dim_summary=2 * dim_latent,
            pre_depth=pre_depth,
            post_depth=post_depth,
            value_depth=value_depth,
            query_depth=query_depth,
        )
        self.head = DiagonalGaussian(
            dim_hidden + dim_latent + dim_x, dim_hidden, dim_y, depth=decoder_depth, min_std=0.1
        )
