"""Distributions of values in the units of data, from those of a model's numbers."""

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
    times = like.shape[-1] // len(scaling.y)
    scale, shift = (
        z.repeat(times) for z in (scaling.output_scale(like), scaling.output_shift(like))
    )
    moved = _moved(dist, scale, shift)
    if not scaling.has_log_output:
        return moved
    is_log = torch.tensor([column.kind == "log" for column in scaling.y], device=like.device)
    return PartlyLogNormal(moved, is_log.repeat(times))


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
