"""The best prediction without knowing a task's kernel: Bayes over the kernel's hyper-parameters."""

import math

import torch
from jaxtyping import Float
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
# Shares of the draws that must count, as effective sample size: for a task to be done, and among
# the tempered weights near which the next ones are drawn.
_ENOUGH, _TEMPERED = 0.25, 0.1
# Where fewer of the first draws than this count, there are so many times as many first draws.
_LOST, _MORE = 4.0, 8


class BayesianCeiling:
    r"""The posterior predictive of Gaussian-process tasks whose hyper-parameters θ are not known.

    $$p(y_t \mid y_c) = \sum_i w_i\, p(y_t \mid y_c, \theta_i), \qquad
      w_i \propto \frac{p(y_c \mid \theta_i)\, p(\theta_i)}{q(\theta_i)}, \qquad \sum_i w_i = 1$$

    No model that knows only the priors does better on average. At first the θ are quasi-random
    draws from the priors, and 8 times as many for a task where next to none of them has weight, as
    with a period. Where few have weight, they are drawn anew from
    $q(\theta) = \sum_i v_i\, \mathrm{box}(\theta - \theta_i)$ in the cube of the priors'
    quantiles, round by round: v are the weights, tempered until a tenth of them counts, and the
    boxes are as wide as their spread in each dimension. A task keeps the round whose weights have
    the largest effective sample size, and is done when that is a quarter of all. Hyper-parameters
    are taken to be independent of each other, as GPyTorch's priors are. The answer to a task does
    not depend on which others it is computed with.

    Draws that miss a part of the posterior give too low a ceiling, never one too high on average.
    Lengths and scales are found with 256 draws; a period, whose posterior may be thousands of
    times narrower than its prior, often is not found with 1,024.

    Args:
        kernel: with its priors.
        noise_std: of the observations, which is known.
        num_points: number G of draws of θ in each round.
        num_rounds: most rounds after the first.

    Source: Cappé, Guillin, Marin and Robert, *Population Monte Carlo*, 2004.
    """

    def __init__(
        self, kernel: RandomKernel, noise_std: float, num_points: int, num_rounds: int = 12
    ) -> None:
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
            self._jitter = torch.rand(num_rounds, num_points, self._dim, dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, draw: GPDraw) -> Bayes:
        """What is known of the targets of these tasks at best."""
        size = max(1, _MATRICES // self.num_points)
        parts = [self._answer(draw[start : start + size]) for start in range(0, len(draw), size)]
        return Bayes(*(torch.cat(z).float() for z in zip(*(part.tensors() for part in parts))))

    def _answer(self, draw: GPDraw) -> Bayes:
        y = draw.factor(self.kernel, self.noise_std) @ draw.white
        theta = best = self._first[: self.num_points].expand(len(draw), -1, -1)
        evidence = self._log_evidence(draw, y, theta)
        log_weight = best_weight = evidence.log_softmax(dim=-1)
        if self._dim and (lost := _sample_size(log_weight) < _LOST).any():
            theta = self._first.expand(len(draw), -1, -1)
            parts = theta.split(self.num_points, dim=1)[1:]
            more = torch.cat([self._log_evidence(draw, y, part) for part in parts], dim=-1)
            more = more.masked_fill(~lost[:, None], -torch.inf)
            log_weight = torch.cat([evidence, more], dim=-1).log_softmax(dim=-1)
        for jitter in self._jitter:
            missing = _sample_size(best_weight) < _ENOUGH * self.num_points
            if not (missing.any() and self._dim):
                break
            theta, log_density = _proposals(theta, log_weight, jitter)
            evidence = self._log_evidence(draw, y, theta)
            log_weight = (evidence - log_density).log_softmax(dim=-1)
            better = missing & (_sample_size(log_weight) > _sample_size(best_weight))
            best = theta.where(better[:, None, None], best)
            best_weight = log_weight.where(better[:, None], best_weight)
        return _scores(draw, y, self._factor(draw, best), best_weight)

    def _log_evidence(
        self, draw: GPDraw, y: Tensor, theta: Float[Tensor, "batch grid dim"]
    ) -> Float[Tensor, "batch grid"]:
        """$\\log p(y_c \\mid \\theta)$."""
        log_density = _log_densities(self._factor(draw, theta), y)[0]
        return log_density.masked_fill(~draw.is_context[:, None], 0.0).sum(dim=-1)

    def _factor(
        self, draw: GPDraw, theta: Float[Tensor, "batch grid dim"]
    ) -> Float[Tensor, "batch grid points points"]:
        """The Cholesky factors of the covariances, with hyper-parameters at these quantiles."""
        x = draw.x.double().repeat_interleave(theta.shape[1], dim=0)
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


def _sample_size(log_weight: Float[Tensor, "batch grid"]) -> Float[Tensor, "batch"]:
    """The effective sample size of weights that sum to 1."""
    return (-(2 * log_weight).logsumexp(dim=-1)).exp()


def _tempered(
    log_weight: Float[Tensor, "batch grid"], at_least: float
) -> Float[Tensor, "batch grid"]:
    """Weights to the largest power up to 1 at which so many of them count, by bisection."""
    low, high = torch.zeros_like(log_weight[:, :1]), torch.ones_like(log_weight[:, :1])
    power = high
    for _ in range(50):
        size = _sample_size((power * log_weight).log_softmax(dim=-1))[:, None]
        enough = size >= at_least
        low, high = power.where(enough, low), high.where(enough, power)
        power = (low + high) / 2
    return (power * log_weight).softmax(dim=-1)


def _proposals(
    theta: Float[Tensor, "batch grid dim"],
    log_weight: Float[Tensor, "batch grid"],
    jitter: Float[Tensor, "draws dim"],
) -> tuple[Float[Tensor, "batch draws dim"], Float[Tensor, "batch draws"]]:
    """Draws near those with weight, mirrored at the faces of the cube, and their log-density."""
    weight = _tempered(log_weight, _TEMPERED * len(jitter))
    mean = (weight[..., None] * theta).sum(dim=1, keepdim=True)
    half_width = (weight[..., None] * (theta - mean).square()).sum(dim=1).sqrt().clamp(1e-6, 0.5)
    level = (torch.arange(len(jitter), dtype=weight.dtype) + 0.5) / len(jitter)
    index = torch.searchsorted(weight.cumsum(-1), level.expand(len(weight), -1).contiguous())
    index = index.clamp(max=theta.shape[1] - 1)[..., None].expand(-1, -1, theta.shape[-1])
    new = theta.gather(1, index) + half_width[:, None] * (2 * jitter - 1)
    new = 1 - (1 - new.abs()).abs()
    # A draw comes from a box, or from the mirror image of one.
    inside = torch.ones((), dtype=weight.dtype)
    for i in range(theta.shape[-1]):
        own, other, width = new[:, :, None, i], theta[:, None, :, i], half_width[:, None, None, i]
        images = (own, -own, 2 - own)
        inside = inside * sum(((image - other).abs() <= width).double() for image in images)
    density = (inside * weight[:, None, :]).sum(dim=-1)
    return new, density.log() - (2 * half_width).log().sum(dim=-1, keepdim=True)


def _log_densities(
    factor: Float[Tensor, "batch grid points points"], y: Float[Tensor, "batch points dim_y"]
) -> tuple[Float[Tensor, "batch grid points"], Float[Tensor, "batch grid points dim_y"]]:
    """Each point's log-density given those before it, summed over outputs; and the white noise."""
    y = y[:, None].expand(-1, factor.shape[1], -1, -1)
    white = torch.linalg.solve_triangular(factor, y, upper=False)
    log_pivot = factor.diagonal(dim1=-2, dim2=-1).log()[..., None]
    return (Normal(0.0, 1.0).log_prob(white) - log_pivot).sum(dim=-1), white


def _scores(
    draw: GPDraw,
    y: Float[Tensor, "batch points dim_y"],
    factor: Float[Tensor, "batch grid points points"],
    log_weight: Float[Tensor, "batch grid"],
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
