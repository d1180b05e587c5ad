"""The best prediction without knowing a task's kernel: Bayes over the kernel's hyper-parameters."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor
from torch.distributions import Normal

from datamodules.gaussian_process import GPDraw
from datamodules.kernels import RandomKernel
from datamodules.loading import at_least_one
from datamodules.seeding import seeded
from npbench.task import Bayes

# Matrices of covariance at a time.
_MATRICES = 2048
# Draws from which the quantiles of the priors are taken.
_PRIOR_DRAWS = 2**16
# So many times as many draws from the priors come first, as a posterior may be narrow.
_MORE = 8
# Share of the draws that must still count after a step of the power, as effective sample size.
_ENOUGH = 0.5
# Moves of all draws at each power, and most powers.
_MOVES, _MOST_ROUNDS = 2, 100


class BayesianCeiling:
    r"""The posterior predictive of Gaussian-process tasks whose hyper-parameters θ are not known.

    $$p(y_t \mid y_c) = \frac{1}{G} \sum_{i=1}^G p(y_t \mid y_c, \theta_i), \qquad
      \theta_i \sim p(\theta \mid y_c)$$

    No model that knows only the priors does better on average. The θ come from sequential Monte
    Carlo: they are drawn from the priors, and then follow the densities
    $p(\theta)\, p(y_c \mid \theta)^\beta$ as the power β rises from 0 to 1, by steps after which
    half of them still count. At each step they are resampled, and moved by Metropolis steps along
    the difference of two others, which finds the scale of every mode by itself: a period's
    posterior may be thousands of times narrower than its prior. Hyper-parameters are taken to be
    independent of each other, as GPyTorch's priors are. The answer to a task does not depend on
    which others it is computed with.

    Draws that miss a part of the posterior give too low a ceiling, never one too high on average.
    128 suffice for lengths and scales. Of periods even 256 miss some, and the ceiling is too low.

    Args:
        kernel: with its priors.
        noise_std: of the observations, which is known.
        num_points: number G of draws of θ.

    Sources: Del Moral, Doucet and Jasra, *Sequential Monte Carlo samplers*, 2006; ter Braak, *A
    Markov chain Monte Carlo version of the genetic algorithm differential evolution*, 2006.
    """

    def __init__(self, kernel: RandomKernel, noise_std: float, num_points: int) -> None:
        at_least_one(num_points=num_points)
        self.kernel = kernel
        self.noise_std = noise_std
        self.num_points = num_points
        with seeded(num_points):
            draws = kernel.draw(_PRIOR_DRAWS)
            self._shapes = [values.shape[1:] for values in draws]
            nothing = torch.empty(_PRIOR_DRAWS, 0, dtype=torch.float64)
            table = torch.cat([nothing, *(z.reshape(_PRIOR_DRAWS, -1) for z in draws)], dim=-1)
            self._quantiles = table.sort(dim=0).values
            self._dim = table.shape[-1]
            engine = torch.quasirandom.SobolEngine(max(1, self._dim), scramble=True, seed=0)
            self._first = engine.draw(_MORE * num_points).double()[:, : self._dim]

    @torch.no_grad()
    def __call__(self, draw: GPDraw) -> Bayes:
        """What is known of the targets of these tasks at best."""
        size = max(1, _MATRICES // self.num_points)
        parts = [self._answer(draw[start : start + size]) for start in range(0, len(draw), size)]
        return Bayes(*(torch.cat(z).float() for z in zip(*(part.tensors() for part in parts))))

    def _answer(self, draw: GPDraw) -> Bayes:
        y = draw.factor(self.kernel, self.noise_std) @ draw.white
        theta = self._posterior(draw, y) if self._dim else self._first[:1].expand(len(draw), -1, -1)
        equal = torch.zeros(theta.shape[:2], dtype=y.dtype).log_softmax(dim=-1)
        return _scores(draw, y, self._factor(draw.x, theta), equal)

    def _posterior(
        self, draw: GPDraw, y: Float[Tensor, "batch points dim_y"]
    ) -> Float[Tensor, "batch draws dim"]:
        """Draws of θ given each task's context, as quantiles of the priors."""
        context = slice(int(draw.num_context.max()))
        x, y, is_context = draw.x[:, context], y[:, context], draw.is_context[:, context]

        def log_evidence(theta: Tensor) -> Tensor:
            return self._log_evidence(x, y, is_context, theta)

        theta = self._first.expand(len(draw), -1, -1)
        evidence = torch.cat([log_evidence(z) for z in theta.split(self.num_points, 1)], dim=-1)
        power = evidence.new_zeros(len(draw), 1)
        # Every task meets the same random numbers, whichever others it is computed with.
        random = torch.Generator().manual_seed(self.num_points)
        for round_ in range(_MOST_ROUNDS):
            going = power < 1
            if not going.any():
                break
            step = _step(power, evidence, _ENOUGH * self.num_points)
            power = torch.where(step < 1 - power, power + step, 1.0)
            index = _resampled((step * evidence).softmax(dim=-1), self.num_points, random)
            new = theta.gather(1, index[..., None].expand(-1, -1, self._dim))
            value = evidence.gather(1, index)
            for _ in range(_MOVES if self.num_points > 1 else 0):
                new, value = self._moved(new, value, power, log_evidence, random)
            if round_:  # before, there are more draws, and no task has come to its end
                new, value = new.where(going[..., None], theta), value.where(going, evidence)
            theta, evidence = new, value
        return theta

    def _moved(
        self,
        theta: Float[Tensor, "batch draws dim"],
        evidence: Float[Tensor, "batch draws"],
        power: Float[Tensor, "batch 1"],
        log_evidence: Callable[[Tensor], Tensor],
        random: torch.Generator,
    ) -> tuple[Float[Tensor, "batch draws dim"], Float[Tensor, "batch draws"]]:
        """One Metropolis step of each draw: of one half along differences in the other, in turn."""
        halves, values = list(theta.tensor_split(2, dim=1)), list(evidence.tensor_split(2, dim=1))
        for mine, others in ((0, 1), (1, 0)):
            own, other = halves[mine], halves[others]
            number = own.shape[1]
            first, second = torch.randint(other.shape[1], (2, number), generator=random)
            scale = torch.rand(number, 1, generator=random, dtype=own.dtype)
            scale = 2.38 * (2 * self._dim) ** -0.5 * 10 ** (1.1 * scale - 1)
            jitter = 1e-6 * torch.randn(number, self._dim, generator=random, dtype=own.dtype)
            new = own + scale * (other[:, first] - other[:, second]) + jitter
            new = (1 - (1 - new.abs()).abs()).clamp(0, 1)  # mirrored at the faces of the cube
            value = log_evidence(new)
            chance = torch.rand(number, generator=random, dtype=own.dtype).log()
            accepted = chance < power * (value - values[mine])
            halves[mine] = new.where(accepted[..., None], own)
            values[mine] = value.where(accepted, values[mine])
        return torch.cat(halves, dim=1), torch.cat(values, dim=1)

    def _log_evidence(
        self,
        x: Float[Tensor, "batch points dim_x"],
        y: Float[Tensor, "batch points dim_y"],
        is_context: Bool[Tensor, "batch points"],
        theta: Float[Tensor, "batch draws dim"],
    ) -> Float[Tensor, "batch draws"]:
        """$\\log p(y_c \\mid \\theta)$."""
        log_density = _log_densities(self._factor(x, theta), y)[0]
        return log_density.masked_fill(~is_context[:, None], 0.0).sum(dim=-1)

    def _factor(
        self, x: Float[Tensor, "batch points dim_x"], theta: Float[Tensor, "batch draws dim"]
    ) -> Float[Tensor, "batch draws points points"]:
        """The Cholesky factors of the covariances, with hyper-parameters at these quantiles."""
        x = x.double().repeat_interleave(theta.shape[1], dim=0)
        covariance = self.kernel.covariance(x, self._hyperparameters(theta.flatten(0, 1)))
        covariance.diagonal(dim1=-2, dim2=-1).add_(self.noise_std**2)
        return psd_safe_cholesky(covariance).unflatten(0, theta.shape[:2])

    def _hyperparameters(self, quantiles: Float[Tensor, "draws dim"]) -> list[Tensor]:
        position = quantiles * (_PRIOR_DRAWS - 1)
        low = position.long().clamp(max=_PRIOR_DRAWS - 2)
        below, above = (self._quantiles.gather(0, index) for index in (low, low + 1))
        values = torch.lerp(below, above, position - low)
        parts = values.split([math.prod(shape) for shape in self._shapes], dim=-1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self._shapes)]


def _sample_size(log_weight: Float[Tensor, "batch draws"]) -> Float[Tensor, "batch 1"]:
    """The effective sample size of weights that sum to 1."""
    return (-(2 * log_weight).logsumexp(dim=-1, keepdim=True)).exp()


def _step(
    power: Float[Tensor, "batch 1"], evidence: Float[Tensor, "batch draws"], at_least: float
) -> Float[Tensor, "batch 1"]:
    """By how much the power may rise, up to 1, for so many draws still to count: by bisection."""
    low, high = torch.zeros_like(power), 1 - power
    step = high
    for _ in range(50):
        enough = _sample_size((step * evidence).log_softmax(dim=-1)) >= at_least
        low, high = step.where(enough, low), high.where(enough, step)
        step = torch.where(low == high, high, (low + high) / 2)
    return high


def _resampled(
    weight: Float[Tensor, "batch draws"], number: int, random: torch.Generator
) -> Int[Tensor, "batch number"]:
    """Indices of draws, each as often as its weight says to within one, in random order."""
    level = (torch.randperm(number, generator=random) + 0.5) / number
    levels = level.to(weight.dtype).expand(len(weight), -1).contiguous()
    return torch.searchsorted(weight.cumsum(dim=-1), levels).clamp(max=weight.shape[1] - 1)


def _log_densities(
    factor: Float[Tensor, "batch draws points points"], y: Float[Tensor, "batch points dim_y"]
) -> tuple[Float[Tensor, "batch draws points"], Float[Tensor, "batch draws points dim_y"]]:
    """Each point's log-density given those before it, summed over outputs; and the white noise."""
    y = y[:, None].expand(-1, factor.shape[1], -1, -1)
    white = torch.linalg.solve_triangular(factor, y, upper=False)
    log_pivot = factor.diagonal(dim1=-2, dim2=-1).log()[..., None]
    return (Normal(0.0, 1.0).log_prob(white) - log_pivot).sum(dim=-1), white


def _scores(
    draw: GPDraw,
    y: Float[Tensor, "batch points dim_y"],
    factor: Float[Tensor, "batch draws points points"],
    log_weight: Float[Tensor, "batch draws"],
) -> Bayes:
    """The four log-likelihoods per target."""
    is_target, num_target = draw.is_target, draw.num_target
    log_density, white = _log_densities(factor, y)
    joint = log_density.masked_fill(~is_target[:, None], 0.0).sum(dim=-1)
    joint = (log_weight + joint).logsumexp(dim=-1)

    from_context = factor * draw.is_context[:, None, None, :]
    rest = (factor - from_context) * is_target[:, None, :, None]
    means = from_context @ white
    # A variance of 1 keeps the points that are no targets out of the way.
    padding = (~is_target).to(y.dtype)
    variances = (rest.square().sum(dim=-1) + padding[:, None])[..., None]
    each = Normal(means, variances.sqrt()).log_prob(y[:, None]).sum(dim=-1)
    mixture = (log_weight[..., None] + each).logsumexp(dim=1)

    weight = log_weight.exp()[..., None, None]
    mean = (weight * means).sum(dim=1)
    away = means - mean[:, None]
    variance = (weight * (variances + away.square())).sum(dim=1)
    gaussian = Normal(mean, variance.sqrt()).log_prob(y).sum(dim=-1)

    # One covariance for each output, whose means differ.
    common = torch.einsum("bg,bgnk,bgmk->bnm", log_weight.exp(), rest, rest)
    away = away * is_target[:, None, :, None]
    spread = torch.einsum("bg,bgnd,bgmd->bdnm", log_weight.exp(), away, away)
    covariance = common[:, None] + spread + torch.diag_embed(padding)[:, None]
    residual = ((y - mean) * is_target[..., None]).mT[..., None]
    joint_gaussian, _ = _log_densities(
        psd_safe_cholesky(covariance).flatten(0, 1)[:, None], residual.flatten(0, 1)
    )
    joint_gaussian = joint_gaussian[:, 0].unflatten(0, covariance.shape[:2]).sum(dim=1)

    def per_target(values: Float[Tensor, "batch points"]) -> Float[Tensor, "batch"]:
        return values.masked_fill(~is_target, 0.0).sum(dim=-1) / num_target

    return Bayes(
        per_target(mixture), per_target(gaussian), joint / num_target, per_target(joint_gaussian)
    )
