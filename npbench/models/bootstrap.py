"""Bootstrapping neural processes: BNP and BANP."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.distributions import Distribution, Independent

from npbench.likelihoods import DiagonalGaussian
from npbench.models.conditional import AttentiveEncoder, PooledEncoder, represent
from npbench.models.contracts.mixture import MixtureProcess, expand, log_mean_exp
from npbench.models.contracts.points import Points, take
from npbench.models.contracts.process import State, masked_mean, records_arguments
from npbench.task import Task


@dataclass(frozen=True, eq=False)
class BNPState(State):
    """The context, which is resampled at every query, and its encoder's state."""

    points: Points
    base: State


class BootstrapProcess(MixtureProcess):
    r"""A conditional neural process whose uncertainty about functions is a residual bootstrap.

    1. Resample the context points with replacement; predict the context from them: $\mu, \sigma$.
    2. Resample the residuals $(y_c - \mu) / \sigma$, centre them, and put them back:
       $\tilde y_c = \mu + \sigma \tilde\varepsilon$.
    3. Predict the targets from the representations of both $(x_c, y_c)$ and $(x_c, \tilde y_c)$:
       $[\mu, \sigma] = \mathrm{head}([r_t, x_t, \tilde r_t])$; without a bootstrap
       (`base`) $\tilde r_t = 0$.

    Points are resampled in sorted order: given torch's random state, the order in which they came
    changes nothing. Training maximises, per point of context and targets, the sum of the base's
    log-likelihood and that of the mixture.
    """

    encoder: PooledEncoder | AttentiveEncoder
    head: DiagonalGaussian

    def loss(self, task: Task) -> Float[Tensor, ""]:
        """The negative sum of both log-likelihoods per point, averaged over tasks."""
        context, targets = self._inputs.of_task(task)
        state = self._condition(iter([context]))
        points = Points.concatenate([context, targets])
        components = self._components(state, points.x, self.num_train_samples)
        mixture = log_mean_exp(components.log_prob(expand(points.y, self.num_train_samples)))
        base = self.base(state, points.x).log_prob(points.y)
        return -masked_mean(base + mixture, points.mask).mean()

    def base(self, state: BNPState, xt: Float[Tensor, "batch target dim_x"]) -> Distribution:
        """The prediction without a bootstrap."""
        return self._base(state.base, xt)

    def _condition(self, chunks: Iterator[Points]) -> BNPState:
        points = Points.concatenate(chunks)
        return BNPState(points, self.encoder.condition([points]))

    def _update(self, state: BNPState, points: Points) -> BNPState:
        base = self.encoder.update(state.base, points)
        return BNPState(Points.concatenate([state.points, points]), base)

    def _components(self, state: BNPState, xt: Tensor, num_samples: int) -> Independent:
        base = represent(self.encoder, state.base, xt)
        bootstrapped = self.encoder.condition([self._bootstrap(state.points, num_samples)])
        bootstrapped = represent(self.encoder, bootstrapped, xt.repeat(num_samples, 1, 1))
        bootstrapped = bootstrapped.unflatten(0, (num_samples, -1))
        return self._decode(expand(base, num_samples), expand(xt, num_samples), bootstrapped)

    @torch.no_grad()
    def _bootstrap(self, points: Points, num_samples: int) -> Points:
        """The context with resampled residuals, `num_samples` times over."""
        points = points.take(_sorted(points)).map(lambda z: torch.cat([z] * num_samples))
        of_points, of_residuals = _resample(points)
        resampled = Points(take(points.x, of_points), take(points.y, of_points), points.mask)
        dist = self._base(self.encoder.condition([resampled]), points.x)
        residual = take((points.y - dist.mean) / dist.stddev, of_residuals)
        if points.mask is not None:
            residual = residual.masked_fill(~points.mask[..., None], 0.0)
        centre = residual.sum(dim=1, keepdim=True) / points.count[:, None, None].clamp(min=1)
        return Points(points.x, dist.mean + dist.stddev * (residual - centre), points.mask)

    def _base(self, state: State, xt: Tensor) -> Distribution:
        representation = represent(self.encoder, state, xt)
        return self._decode(representation, xt, torch.zeros_like(representation))

    def _decode(self, base: Tensor, xt: Tensor, bootstrapped: Tensor) -> Independent:
        return self.head(torch.cat([base, xt, bootstrapped], dim=-1))


def _sorted(points: Points) -> Integer[Tensor, "batch points"]:
    """The order by inputs, then outputs, with all padding behind the real points."""
    order = torch.arange(points.x.shape[1], device=points.x.device).expand(points.x.shape[:2])
    for key in [*reversed(points.xy.unbind(dim=-1)), (~points.full_mask).byte()]:
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def _resample(points: Points) -> Integer[Tensor, "2 batch points"]:
    """Indices of real points, drawn with replacement: twice as many as there are points."""
    batch, number = points.x.shape[:2]
    # The points come first in memory, so that padding behind them changes none of their draws.
    uniform = torch.rand(number, 2, batch, dtype=points.x.dtype, device=points.x.device)
    count = points.count[:, None]
    return (uniform.movedim(0, -1) * count).minimum(count - 1).clamp(min=0).long().contiguous()


class BNP(BootstrapProcess):
    r"""Bootstrapping Neural Process: CNP with a residual bootstrap; see `BootstrapProcess`.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all MLPs.
        pre_depth: linear layers before the means.
        post_depth: linear layers after them.
        decoder_depth: linear layers of the head.
        num_samples: bootstraps in a prediction.
        num_train_samples: bootstraps in training.

    Source: Lee et al., *Bootstrapping Neural Processes*, NeurIPS 2020; the defaults are those of
    the paper's official code.

    Example:
        >>> model = BNP(dim_x=1, dim_y=1)
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
        pre_depth: int = 4,
        post_depth: int = 2,
        decoder_depth: int = 3,
        num_samples: int = 50,
        num_train_samples: int = 4,
    ) -> None:
        super().__init__(dim_x, dim_y, num_samples, num_train_samples)
        self.encoder = PooledEncoder(dim_x, dim_y, dim_hidden, dim_hidden, pre_depth, post_depth)
        self.head = DiagonalGaussian(
            4 * dim_hidden + dim_x, dim_hidden, dim_y, depth=decoder_depth, min_std=0.1
        )


class BANP(BootstrapProcess):
    r"""Bootstrapping Attentive Neural Process: CANP with a residual bootstrap; see
    `BootstrapProcess`.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dim_hidden: width of all layers.
        value_depth: linear layers before the attention's values, 2 of them self-attention.
        query_depth: linear layers before its queries and keys.
        pre_depth: linear layers before the mean, 2 of them self-attention.
        post_depth: linear layers after it.
        decoder_depth: linear layers of the head.
        num_samples: bootstraps in a prediction.
        num_train_samples: bootstraps in training.

    Source: Lee et al., *Bootstrapping Neural Processes*, NeurIPS 2020; the defaults are those of
    the paper's official code.

    Example:
        >>> model = BANP(dim_x=1, dim_y=1)
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
            dim_summary=dim_hidden,
            pre_depth=pre_depth,
            post_depth=post_depth,
            value_depth=value_depth,
            query_depth=query_depth,
        )
        self.head = DiagonalGaussian(
            4 * dim_hidden + dim_x, dim_hidden, dim_y, depth=decoder_depth, min_std=0.1
        )
