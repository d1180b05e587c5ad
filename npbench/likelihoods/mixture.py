"""Mixtures of normals, and a network that corrects one."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
)

from npbench.blocks import MLP, FeedForward, LayerConfig
from npbench.likelihoods.gaussian import independent_normal
from npbench.structure import TensorRecord

# What the network's outputs are multiplied by, and the initial logit of the free component.
_STEP, _FREE_LOGIT = 0.3, -4.0
# Halvings of an interval until a quantile in it is known to the precision of float64.
_HALVINGS = 60
# Bounds of what the network takes in: of a component's log-weight, and of nats per point.
_LOG_WEIGHT_MIN, _EVIDENCE_MAX = -20.0, 10.0


@dataclass(frozen=True, eq=False)
class NormalMixture(TensorRecord):
    """For each target a mixture of normals over its value; outputs are independent given one."""

    log_weight: Float[Tensor, "batch target components"]
    mean: Float[Tensor, "batch target components dim_y"]
    std: Float[Tensor, "batch target components dim_y"]

    @classmethod
    def of(cls, dist: Distribution) -> "NormalMixture":
        """That of a distribution over the outputs of each target: normal, or a mixture of normals.

        Raises:
            TypeError: on a distribution of another kind.
        """
        if isinstance(dist, Independent) and isinstance(dist.base_dist, Normal):
            return cls.of_moments(dist.mean, dist.stddev)
        if isinstance(dist, MixtureSameFamily):
            components = dist.component_distribution
            if isinstance(components, Independent) and isinstance(components.base_dist, Normal):
                log_weight = dist.mixture_distribution.logits.log_softmax(dim=-1)
                return cls(log_weight, components.mean, components.stddev)
        raise TypeError(f"a {type(dist).__name__} is no mixture of normals, target by target")

    @classmethod
    def of_moments(
        cls, mean: Float[Tensor, "batch target dim_y"], std: Float[Tensor, "batch target dim_y"]
    ) -> "NormalMixture":
        """That of one normal for each target."""
        return cls(torch.zeros_like(mean[..., :1]), mean[..., None, :], std[..., None, :])

    def quantiles(
        self, levels: Float[Tensor, "levels"]
    ) -> Float[Tensor, "levels batch target dim_y"]:
        """The values below which an output lies with these probabilities, in float64.

        A quantile of a mixture lies between those of its components, and is found by halving that
        interval.

        Example:
            >>> mixture = NormalMixture.of_moments(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
            >>> mixture.quantiles(torch.tensor([0.5, 0.975])).flatten().round(decimals=3)
            tensor([0.0000, 1.9600], dtype=torch.float64)
        """
        weight = self.log_weight.double().exp()[..., None]
        normals = Normal(self.mean.double(), self.std.double(), validate_args=False)
        found = []
        for level in levels.double():
            of_components = normals.icdf(level)
            low, high = of_components.amin(dim=-2), of_components.amax(dim=-2)
            for _ in range(_HALVINGS if self.mean.shape[-2] > 1 else 1):
                middle = (low + high) / 2
                below = (weight * normals.cdf(middle[..., None, :])).sum(dim=-2) < level
                low, high = middle.where(below, low), high.where(below, middle)
            found.append((low + high) / 2)
        return torch.stack(found)

    def cdf(self, y: Float[Tensor, "batch target dim_y"]) -> Float[Tensor, "batch target dim_y"]:
        """The probability that an output is no greater than this value.

        Example:
            >>> mixture = NormalMixture.of_moments(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
            >>> round(float(mixture.cdf(torch.full((1, 1, 1), 1.96))), 3)
            0.975
        """
        below = Normal(self.mean, self.std, validate_args=False).cdf(y[..., None, :])
        return (self.log_weight.exp()[..., None] * below).sum(dim=-2)

    def crps(self, y: Float[Tensor, "batch target dim_y"]) -> Float[Tensor, "batch target dim_y"]:
        r"""The continuous ranked probability score of each value, in its unit; less is better.

        $$\mathrm{CRPS} = \mathbb{E} |Y - y| - \tfrac 12 \mathbb{E} |Y - Y'|
          = \sum_i \pi_i A(y - \mu_i, \sigma_i^2) - \tfrac 12 \sum_{ij} \pi_i \pi_j
          A(\mu_i - \mu_j, \sigma_i^2 + \sigma_j^2)$$

        with $A(m, s^2) = 2 s\, \varphi(m / s) + m (2 \Phi(m / s) - 1)$, the mean of |N(m, s²)|.

        Source: Grimit et al., *The continuous ranked probability score for circular variables and
        its application to mesoscale forecast ensemble verification*, Q. J. R. Meteorol. Soc. 2006.

        Example:
            >>> mixture = NormalMixture.of_moments(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
            >>> round(float(mixture.crps(torch.zeros(1, 1, 1))), 4)  # (√2 − 1) / √π
            0.2337
        """
        weight = self.log_weight.exp()
        away = _mean_size(y[..., None, :] - self.mean, self.std)
        # One component after another: all pairs at once would take much memory.
        apart = torch.zeros_like(y)
        for i in range(self.mean.shape[-2]):
            difference = self.mean - self.mean[..., i, None, :]
            std = (self.std.square() + self.std[..., i, None, :].square()).sqrt()
            to_one = (weight[..., None] * _mean_size(difference, std)).sum(dim=-2)
            apart = apart + weight[..., i, None] * to_one
        return (weight[..., None] * away).sum(dim=-2) - apart / 2

    @property
    def moments(
        self,
    ) -> tuple[Float[Tensor, "batch target dim_y"], Float[Tensor, "batch target dim_y"]]:
        """The mean and the standard deviation of the whole mixture."""
        weight = self.log_weight.exp()[..., None]
        mean = (weight * self.mean).sum(dim=-2)
        variance = self.std.square() + (self.mean - mean[..., None, :]).square()
        return mean, (weight * variance).sum(dim=-2).sqrt()

    @property
    def distribution(self) -> MixtureSameFamily:
        """Of batch shape [batch, target] and event shape [dim_y]."""
        weights = Categorical(logits=self.log_weight, validate_args=False)
        normals = independent_normal(self.mean, self.std)
        return MixtureSameFamily(weights, normals, validate_args=False)


def _mean_size(
    mean: Float[Tensor, "*shape"], std: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The mean of the absolute value of a normal number."""
    z = mean / std
    density = (-0.5 * z.square()).exp() * math.sqrt(2 / math.pi)
    return std * density + mean * torch.erf(z / math.sqrt(2))


class MixtureCorrection(nn.Module):
    r"""A network that corrects a mixture of H normals at each target, and adds one component.

    With the mixture's mean m and standard deviation s, and the network's outputs o (times 0.3),

    $$\mu_h \gets \mu_h + \sigma_h o_{h1}, \quad \sigma_h \gets \sigma_h e^{o_{h2}}, \quad
      \log \pi_h \gets \log \pi_h + o_{h3}, \qquad
      \mu_0 = m + s\, o_{01}, \quad \sigma_0 = s\, e^{o_{02}}, \quad \log \pi_0 = -4 + o_{03}$$

    The last layer starts at 0: an untrained correction leaves a mixture as it was, beside a free
    component of 1.8 %. The network sees the components, m, s, the number of context points and the
    best evidence per point, but no input: a correction depends on where a target lies only through
    what the mixture says there.

    Args:
        num_components: number H.
        dim_y: number of outputs.
        dim_model: width of the network.
        dim_feedforward: hidden width of its layers.

    Example:
        >>> mixture = NormalMixture(*torch.zeros(2, 1, 5, 3).log_softmax(-1)[:1],
        ...                         torch.zeros(1, 5, 3, 1), torch.ones(1, 5, 3, 1))
        >>> correct = MixtureCorrection(3, dim_y=1, dim_model=8, dim_feedforward=8)
        >>> correct(mixture, torch.tensor([4]), torch.zeros(1)).mean.shape
        torch.Size([1, 5, 4, 1])
    """

    def __init__(
        self, num_components: int, dim_y: int, dim_model: int, dim_feedforward: int
    ) -> None:
        super().__init__()
        self.dim_y = dim_y
        config = LayerConfig(dim_model, 1, dim_feedforward, norm_residual=False)
        dim_in = num_components * (dim_y + 3) + 2 * dim_y + 2
        self.embed = nn.Linear(dim_in, dim_model)
        self.feedforward = FeedForward(config)
        self.norm = nn.LayerNorm(dim_model)
        dim_out = (num_components + 1) * (2 * dim_y + 1)
        self.head = MLP(dim_model, dim_feedforward, dim_out, depth=2)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        mixture: NormalMixture,
        count: Integer[Tensor, "batch"],
        evidence: Float[Tensor, "batch"],
    ) -> NormalMixture:
        """The corrected mixture, of H + 1 components.

        Args:
            mixture: of H components, whose standard deviations all outputs share.
            count: number of context points.
            evidence: the log-evidence of the best component.
        """
        mean, std = (z[..., None, :] for z in mixture.moments)
        features = self._features(mixture, mean, std, count, evidence)
        out = _STEP * self.head(self.norm(self.feedforward(self.embed(features))))
        out = out.unflatten(-1, (-1, 2 * self.dim_y + 1))
        shift, log_factor, logit = out.split([self.dim_y, self.dim_y, 1], dim=-1)
        free = torch.full_like(mixture.log_weight[..., :1], _FREE_LOGIT)
        std = torch.cat([mixture.std, std], dim=-2)
        mean = torch.cat([mixture.mean, mean], dim=-2)
        logit = logit[..., 0] + torch.cat([mixture.log_weight, free], dim=-1)
        return NormalMixture(logit.log_softmax(dim=-1), mean + std * shift, std * log_factor.exp())

    def _features(
        self, mixture: NormalMixture, mean: Tensor, std: Tensor, count: Tensor, evidence: Tensor
    ) -> Float[Tensor, "batch target dim_in"]:
        per_point = (evidence / (count + 1)).clamp(-_EVIDENCE_MAX, _EVIDENCE_MAX)
        of_task = torch.stack([(count + 1).log() / 4, per_point], dim=-1).to(mean.dtype)
        return torch.cat(
            [
                mixture.mean.flatten(-2),
                mixture.std[..., 0].log(),
                mixture.log_weight.exp(),
                mixture.log_weight.clamp(min=_LOG_WEIGHT_MIN) / 10,
                mean.flatten(-2),
                std.flatten(-2).log(),
                of_task[:, None].expand(-1, mean.shape[1], -1),
            ],
            dim=-1,
        )
