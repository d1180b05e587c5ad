"""Distributions of values in the units of data, from those of a model's numbers."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    constraints,
)

from npbench.likelihoods.gaussian import independent_normal
from npbench.scaling import Scaling


class PartlyLogNormal(Distribution):
    r"""Normal values, some of which are exponentials of normal ones.

    $$v_i = e^{w_i} \text{ where column } i \text{ is logarithmic, else } w_i, \qquad w \sim
      \mathrm{base}$$

    Args:
        base: normal in each value by itself, with an event shape of one dimension.
        is_log: which values of an event are exponentials.

    Example:
        >>> base = independent_normal(torch.zeros(1, 2), torch.ones(1, 2))
        >>> PartlyLogNormal(base, torch.tensor([False, True])).mean
        tensor([[0.0000, 1.6487]])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 -- as torch's classes
    support = constraints.independent(constraints.real, 1)

    def __init__(self, base: Distribution, is_log: Bool[Tensor, "event"]) -> None:
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.base = base
        self.is_log = is_log

    @property
    def mean(self) -> Float[Tensor, "*batch event"]:
        mean, variance = self.base.mean, self.base.variance
        return torch.where(self.is_log, (mean + variance / 2).exp(), mean)

    @property
    def variance(self) -> Float[Tensor, "*batch event"]:
        variance = self.base.variance
        return torch.where(self.is_log, variance.expm1() * self.mean.square(), variance)

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch event event"]:
        base: Any = self.base
        return _exponentiated(base.mean, base.covariance_matrix, self.is_log)[1]

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*shape event"]:  # noqa: B008
        normal = self.base.sample(sample_shape)
        return torch.where(self.is_log, normal.exp(), normal)

    def log_prob(self, value: Float[Tensor, "*shape event"]) -> Float[Tensor, "*shape"]:
        log = torch.where(self.is_log, value, 1.0).log()
        log_prob = self.base.log_prob(torch.where(self.is_log, log, value))
        return log_prob - log.sum(dim=-1)


def in_units(dist: Distribution, scaling: Scaling) -> Distribution:
    """The distribution of the values whose numbers have this distribution, in float64.

    Args:
        dist: normals or mixtures of normals: over the outputs of each target, or over all values of
            all targets, by target.
        scaling: of the outputs.

    Raises:
        TypeError: on a distribution of another kind.

    Example:
        >>> from npbench.scaling import Column
        >>> scaling = Scaling((Column("x"),), (Column("y", "standard", 20.0, 5.0),))
        >>> dist = in_units(independent_normal(torch.zeros(1), torch.ones(1)), scaling)
        >>> dist.mean, dist.stddev
        (tensor([20.], dtype=torch.float64), tensor([5.], dtype=torch.float64))
    """
    if isinstance(dist, MixtureSameFamily):
        components = in_units(dist.component_distribution, scaling)
        return MixtureSameFamily(dist.mixture_distribution, components, validate_args=False)
    like = dist.mean
    moved = _moved(dist, *_scale_and_shift(like, scaling))
    return PartlyLogNormal(moved, _is_log(like, scaling)) if scaling.has_log_output else moved


def moments_in_units(
    mean: Float[Tensor, "*batch values"],
    covariance: Float[Tensor, "*batch values values"],
    scaling: Scaling,
) -> tuple[Float[Tensor, "*batch values"], Float[Tensor, "*batch values values"]]:
    """Mean and covariance of the values whose numbers are normal with these, in float64.

    Args:
        mean: of all values of all targets, by target.
        covariance: of the same, which need not be of full rank.
        scaling: of the outputs.
    """
    scale, shift = _scale_and_shift(mean, scaling)
    mean, covariance = mean * scale + shift, covariance * scale * scale[:, None]
    if scaling.has_log_output:
        return _exponentiated(mean, covariance, _is_log(mean, scaling))
    return mean, covariance


def _exponentiated(
    mean: Float[Tensor, "*batch event"],
    covariance: Float[Tensor, "*batch event event"],
    is_log: Bool[Tensor, "event"],
) -> tuple[Float[Tensor, "*batch event"], Float[Tensor, "*batch event event"]]:
    r"""Mean and covariance of values, some of which are exponentials of normal ones w.

    $\mathrm{Cov}(v_i, v_j) = f_i f_j S_{ij}$, where f is the mean of an exponential and 1 of other
    values, and S is Cov(w), or $e^{\mathrm{Cov}(w_i, w_j)} - 1$ between two exponentials.
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    factor = torch.where(is_log, mean + variance / 2, 0.0).exp()
    mean = torch.where(is_log, factor, mean)
    both = is_log[:, None] & is_log
    covariance = torch.where(both, torch.where(both, covariance, 0.0).expm1(), covariance)
    return mean, factor[..., None] * covariance * factor[..., None, :]


def _scale_and_shift(
    like: Float[Tensor, "*batch values"], scaling: Scaling
) -> tuple[Float[Tensor, "values"], Float[Tensor, "values"]]:
    """Those of all values of all targets, by target."""
    times = like.shape[-1] // len(scaling.y)
    return scaling.output_scale(like).repeat(times), scaling.output_shift(like).repeat(times)


def _is_log(like: Float[Tensor, "*batch values"], scaling: Scaling) -> Bool[Tensor, "values"]:
    """Which of these values are exponentials of their numbers."""
    is_log = torch.tensor([column.kind == "log" for column in scaling.y], device=like.device)
    return is_log.repeat(like.shape[-1] // len(scaling.y))


def _moved(
    dist: Distribution, scale: Float[Tensor, "event"], shift: Float[Tensor, "event"]
) -> Distribution:
    """The distribution of scale · z + shift."""
    if isinstance(dist, Independent) and isinstance(dist.base_dist, Normal):
        return independent_normal(dist.mean * scale + shift, dist.stddev * scale)
    if isinstance(dist, LowRankMultivariateNormal):
        return type(dist)(
            dist.loc * scale + shift,
            dist.cov_factor * scale[:, None],
            dist.cov_diag * scale.square(),
            validate_args=False,
        )
    if isinstance(dist, MultivariateNormal):
        scale_tril = scale[:, None] * dist.scale_tril
        return MultivariateNormal(
            dist.loc * scale + shift, scale_tril=scale_tril, validate_args=False
        )
    raise TypeError(f"a {type(dist).__name__} cannot be given in the units of the data")
