"""From the history of a sequence to the time and the mark of its next event."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Categorical

from npbench.blocks import MLP
from npbench.errors import InputError
from npbench.structure import TensorRecord

# How often the interval of a quantile is halved; so many times are enough for float64.
_BISECTIONS = 60
# Bounds of the log of a component's width: no component collapses onto one interval, and none is
# so wide that its mean, e^(σ²/2) times its median, hides the means of all others.
_LEAST_LOG_STD, _MOST_LOG_STD = -5.0, math.log(2.0)


@dataclass(frozen=True, eq=False)
class NextEvent(TensorRecord):
    r"""What comes next: a joint distribution over the time τ until the next event and its mark k.

    $$p(\tau, k) = P(k) \sum_c w_c\, \mathrm{LogNormal}(\tau; \mu_c, \sigma_c), \qquad
      P(k) = \mathrm{softmax}(l)_k$$

    Densities are per unit of τ, in the data's own unit. A τ below `floor` counts as `floor`, for
    log-normals have no density at 0. Values may have more dimensions in front, as samples have.

    Args:
        log_weights: $\log w$, normalised.
        log_mean: means μ of log τ.
        log_std: standard deviations σ of log τ.
        mark_logits: l.
        floor: least τ.

    Source: Shchur, Biloš and Günnemann, *Intensity-Free Learning of Temporal Point Processes*,
    ICLR 2020.

    Example:
        >>> logits, one = torch.zeros(2, 5), torch.ones(2, 1)
        >>> dist = NextEvent(log_weights=0 * one, log_mean=0 * one, log_std=one, mark_logits=logits)
        >>> dist.median
        tensor([1., 1.])
        >>> dist.log_prob(torch.tensor([1.0, 2.0]), torch.tensor([0, 4])).shape
        torch.Size([2])
    """

    log_weights: Float[Tensor, "*batch components"]
    log_mean: Float[Tensor, "*batch components"]
    log_std: Float[Tensor, "*batch components"]
    mark_logits: Float[Tensor, "*batch num_marks"]
    floor: float = 1e-8

    @property
    def batch_shape(self) -> torch.Size:
        return self.mark_logits.shape[:-1]

    def __getitem__(self, index: Any) -> "NextEvent":
        """The distributions at an index of the batch dimensions, such as `[:, -1]`."""
        return self.map(lambda tensor: tensor[index])

    def log_prob(
        self, tau: Float[Tensor, "*batch"], mark: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """log p(τ, k)."""
        return self.log_prob_time(tau) + self.log_prob_mark(mark)

    def log_prob_time(self, tau: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """log p(τ)."""
        log_tau = self._log(tau)
        z = self._standardised(log_tau)
        log_density = -0.5 * (z.square() + math.log(2 * math.pi)) - self.log_std.log()
        return (self.log_weights + log_density).logsumexp(dim=-1) - log_tau

    def log_prob_mark(self, mark: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """log P(k)."""
        log_probs = self.mark_logits.log_softmax(dim=-1)
        shape = torch.broadcast_shapes(mark.shape, self.batch_shape)
        log_probs = log_probs.expand(*shape, log_probs.shape[-1])
        return log_probs.gather(-1, mark.long().expand(shape)[..., None])[..., 0]

    def log_survival(self, tau: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """log P(the next event comes later than τ): the log-likelihood of having seen none by τ."""
        z = self._standardised(self._log(tau))
        return (self.log_weights + torch.special.log_ndtr(-z)).logsumexp(dim=-1)

    def cdf(self, tau: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """P(the next event comes by τ); of true intervals it is uniform, if the model is right."""
        z = self._standardised(self._log(tau))
        return (self.log_weights.exp() * torch.special.ndtr(z)).sum(dim=-1)

    def quantile(self, level: float) -> Float[Tensor, "*batch"]:
        """The τ with `cdf(τ)` equal to the level, by bisection over log τ; without gradient.

        Raises:
            InputError: if the level does not lie between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise InputError(f"level={level} must lie between 0 and 1")
        with torch.no_grad():
            z = NormalDist().inv_cdf(level)
            of_components = self.log_mean + z * self.log_std
            # A mixture's quantile lies between those of its components.
            low, high = of_components.amin(dim=-1), of_components.amax(dim=-1)
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                below = self.cdf(middle.exp()) < level
                low, high = middle.where(below, low), high.where(below, middle)
            return ((low + high) / 2).exp().clamp(min=self.floor)

    @property
    def median(self) -> Float[Tensor, "*batch"]:
        """The median of τ, which minimises the expected absolute error."""
        return self.quantile(0.5)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        r"""The mean of τ, $\sum_c w_c e^{\mu_c + \sigma_c^2 / 2}$.

        It is huge where a component is wide; the median is the steadier prediction.
        """
        log_means = self.log_mean + 0.5 * self.log_std.square()
        return (self.log_weights + log_means).logsumexp(dim=-1).exp()

    @property
    def mark_probs(self) -> Float[Tensor, "*batch num_marks"]:
        """P(k) of all marks."""
        return self.mark_logits.softmax(dim=-1)

    def sample(
        self, sample_shape: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "*samples_batch"], Int[Tensor, "*samples_batch"]]:
        """Draws of (τ, k), in the sample's shape and then the batch's; without gradient."""
        with torch.no_grad():
            shape = torch.Size(sample_shape)
            component = Categorical(logits=self.log_weights, validate_args=False).sample(shape)
            mean, std = (
                z.expand(*shape, *z.shape).gather(-1, component[..., None])[..., 0]
                for z in (self.log_mean, self.log_std)
            )
            tau = torch.normal(mean, std).exp().clamp(min=self.floor)
            return tau, Categorical(logits=self.mark_logits, validate_args=False).sample(shape)

    def _log(self, tau: Tensor) -> Tensor:
        return tau.to(self.log_mean.dtype).clamp(min=self.floor).log()

    def _standardised(self, log_tau: Tensor) -> Float[Tensor, "*batch components"]:
        return (log_tau[..., None] - self.log_mean) / self.log_std


class NextEventHead(nn.Module):
    r"""From a history vector to the distribution of the next event.

    $$[\log w, \mu, \log \sigma] = \mathrm{MLP}(h), \qquad l = \mathrm{MLP}(h)$$

    where μ and σ count log τ in units of its mean m and standard deviation s: $\mu_c = m + s \mu$
    and $\sigma_c = s \sigma$, with $-5 < \log \sigma < \log 2$.

    Args:
        dim_in: width of h.
        dim_hidden: width of the MLPs.
        num_marks: number K of marks.
        num_components: number of log-normals of the mixture.
        floor: least τ; see `NextEvent`.
    """

    def __init__(
        self, dim_in: int, dim_hidden: int, num_marks: int, num_components: int, floor: float
    ) -> None:
        super().__init__()
        self.floor = floor
        self.time = MLP(dim_in, dim_hidden, 3 * num_components, depth=2)
        self.mark = MLP(dim_in, dim_hidden, num_marks, depth=2)

    def forward(
        self,
        history: Float[Tensor, "*batch dim_in"],
        log_mean: Float[Tensor, ""],
        log_std: Float[Tensor, ""],
    ) -> NextEvent:
        # Float32 stays under autocast too, as bfloat16 would tell few values of log τ apart.
        time, mark = (mlp(history).to(log_mean.dtype) for mlp in (self.time, self.mark))
        logits, mean, raw = time.chunk(3, dim=-1)
        bound = torch.where(raw < 0, _LEAST_LOG_STD, _MOST_LOG_STD)
        std = (bound * (raw / bound).tanh()).exp()
        return NextEvent(
            logits.log_softmax(dim=-1),
            log_mean + log_std * mean,
            log_std * std,
            mark,
            self.floor,
        )
