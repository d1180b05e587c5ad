"""Priors of periodic functions, whose periods are found by evidence."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from npbench.blocks.bayesian_regression import (
    InferredNoise,
    inverse_and_log_det,
    noise_evidence,
    plus_identity,
)
from npbench.blocks.fourier import Offset
from npbench.blocks.fourier_moments import FourierMoments
from npbench.errors import InputError
from npbench.structure import TensorRecord

# In each round so many cells are split, into so many parts.
_ROUNDS, _PARTS = (48, 24, 16, 12), 3
# Harmonics in the first round, and the least logarithm of the variance of one.
_FEW_HARMONICS, _LOG_VARIANCE_MIN = 8, -24.0


@dataclass(frozen=True, eq=False)
class PeriodicPosterior(TensorRecord):
    r"""What each expert, a period and a head, says: $w \sim \mathcal{N}(\bar w, V)$.

    `score` is the logarithm of an expert's weight, up to what all experts share.
    """

    frequency: Float[Tensor, "batch experts"]
    mean: Float[Tensor, "batch experts m dim_y"]
    covariance: Float[Tensor, "batch experts m m"]
    noise_std: Float[Tensor, "batch experts"]
    score: Float[Tensor, "batch experts"]

    def predict(
        self, x: Float[Tensor, "batch target"]
    ) -> tuple[Float[Tensor, "batch target experts dim_y"], Float[Tensor, "batch target experts"]]:
        """The mean and standard deviation of values at x, noise included."""
        cycles = self.frequency[..., None] * x.double()[:, None]
        order = torch.arange(self.mean.shape[2] // 2, device=x.device)
        angle = 2 * math.pi * (cycles[..., None] * order).remainder(1.0).to(x.dtype)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            variance = ((features @ self.covariance) * features).sum(dim=-1).clamp(min=0.0)
            std = (variance + self.noise_std.square()[..., None]).sqrt()
            return (features @ self.mean).transpose(1, 2), std.mT


@dataclass(frozen=True, eq=False)
class _Cells(TensorRecord):
    """Intervals of frequencies, and the score of each with each head."""

    frequency: Float[Tensor, "batch cells"]
    width: Float[Tensor, "batch cells"]
    score: Float[Tensor, "batch cells heads"]


class PeriodicHeads(nn.Module):
    r"""H priors of periodic functions of one input, each with any period of a range.

    $$y = \sum_{k=0}^K a_k \cos 2\pi k f x + b_k \sin 2\pi k f x + \varepsilon, \qquad
      a_k, b_k \sim \mathcal{N}(0, v s_{hk}^2), \qquad
      \varepsilon \sim \mathcal{N}(0, \sigma_h^2 + \omega)$$

    The evidence of a frequency f is that of `BayesianHeads`, with second moments that a
    `FourierMoments` knows whatever f is. Cells of frequencies are searched without gradient: those
    with the most evidence are split in three, four times, with more and more harmonics. The
    noise has a variance ω for what a cell's centre cannot say of the functions in it: of
    harmonics that are left out, and of phases that its width df leaves open,

    $$\omega = v \Big[ \sum_k s_{hk}^2 \min\big(1, e^{\gamma_h} (2 \pi k\, df)^2 D^2 / 144\big)
      + \sum_{k > K'} s_{hk}^2 \Big]$$

    with D the width of the range of inputs, so that wide cells are honest. Then the best pairs of a
    cell and a head, and others drawn evenly from the mass of the rest, become the experts of a
    mixture: they are solved with all harmonics, and with gradient. The scale v of the functions is
    $(c + a v_0) / (n + a)$. The spectra $s^2$, σ, γ, a, $v_0$ and the logarithms of the priors of
    heads and of frequencies, $p_h + r \log f$, are learned.

    With `noise` a task has a noise of its own, as in `BayesianHeads`. Each spectrum then has heads
    of several ratios $\rho_h$, which are learned: $v = \rho_h^2 \sigma_h^2$.

    Args:
        periods: the shortest and the longest.
        x_width: width D of the range of inputs.
        num_heads: number H of spectra, which are half-normal in k at first.
        num_harmonics: number K.
        num_cells: number of cells in the first round, of equal widths in f.
        num_experts: how many are the best, and how many are drawn from the rest.
        prior_std: initial $\sqrt{v_0}$.
        noise_std: initial σ.
        rate: of all parameters; see `Offset`.
        noise: that is inferred task by task; by default it is that of the head.

    Example:
        >>> heads = PeriodicHeads(num_harmonics=4, num_cells=64, num_experts=(4, 2))
        >>> x = torch.linspace(-2, 2, 50)[None, :, None]
        >>> from npbench.blocks.frequency_grid import FrequencyGrid
        >>> moments = FourierMoments.of(FrequencyGrid(-2.0, 2.0, heads.top), x, (20 * x).sin())
        >>> posterior = heads.solve(moments, temperature=torch.tensor(1.0))
        >>> best = posterior.frequency[0, posterior.score.argmax()]
        >>> round(best.item(), 2), round(20 / (2 * math.pi), 2)
        (3.18, 3.18)
        >>> posterior.predict(x[..., 0])[0].shape
        torch.Size([1, 50, 6, 1])
    """

    def __init__(
        self,
        periods: tuple[float, float] = (0.1, 0.5),
        x_width: float = 4.0,
        num_heads: int = 5,
        num_harmonics: int = 16,
        num_cells: int = 256,
        num_experts: tuple[int, int] = (64, 32),
        prior_std: float = 0.5,
        noise_std: float = 0.05,
        rate: float = 10.0,
        noise: InferredNoise | None = None,
    ) -> None:
        super().__init__()
        if not 0 < periods[0] < periods[1]:
            raise InputError(f"periods={periods} must be the shortest and the longest, above 0")
        sizes = {"num_heads": num_heads, "num_harmonics": num_harmonics, "num_cells": num_cells}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"{name}={value} must be 1 or more")
        if num_experts[0] < 1 or num_experts[1] < 0:
            raise InputError(f"num_experts={num_experts} must be 1 or more, and 0 or more")
        self.frequencies = 1 / periods[1], 1 / periods[0]
        self.x_width, self.num_cells, self.num_experts = x_width, num_cells, num_experts
        k = torch.arange(num_harmonics + 1.0)
        spread = torch.logspace(math.log10(1.7), 1.0, num_heads)[:, None]
        log_share = (-0.5 * (k / spread).square() + (k > 0) * math.log(2)).log_softmax(dim=-1)
        self.log_ratio = self.log_noise_count = None
        if noise is not None:
            log_share = log_share.repeat_interleave(len(noise.ratios), dim=0)
            log_ratio = torch.tensor(noise.ratios).log().repeat(num_heads)
            num_heads = len(log_ratio)
            self.log_ratio = Offset(log_ratio, rate)
            self.log_noise_count = Offset(torch.full([num_heads], math.log(noise.count)), rate)
        self.log_spectrum = Offset(log_share.clamp(min=_LOG_VARIANCE_MIN), rate)
        self.log_noise_std = Offset(torch.full([num_heads], math.log(noise_std)), rate)
        self.log_width = Offset(torch.zeros(num_heads), rate)
        self.logit = Offset(torch.zeros(num_heads), rate)
        self.log_frequency_rate = Offset(torch.tensor(-1.0), rate)
        self.log_scale = Offset(torch.tensor([math.log(2.0), 2 * math.log(prior_std)]), rate)

    @property
    def num_heads(self) -> int:
        return len(self.log_spectrum.initial)

    @property
    def num_harmonics(self) -> int:
        return self.log_spectrum.initial.shape[-1] - 1

    @property
    def top(self) -> float:
        """The highest frequency of a feature, in radians per unit of x."""
        return 2 * math.pi * self.num_harmonics * self.frequencies[1]

    def solve(self, moments: FourierMoments, temperature: Float[Tensor, ""]) -> PeriodicPosterior:
        """The experts' posteriors, in float64, and then in the model's type.

        Args:
            moments: of the points.
            temperature: that multiplies the evidence.
        """
        with torch.no_grad():
            cells = self._search(moments, temperature)
            cell, head, log_share = self._chosen(cells.score)
            frequency, width = (z.gather(1, cell) for z in (cells.frequency, cells.width))
            gram, targets = moments.harmonic_moments(2 * math.pi * frequency, self.num_harmonics)
        prior, noise = self._variances(moments, width, self.num_harmonics)
        of_head = head[..., None]
        prior = prior[:, 0].expand(head.shape[0], -1, -1)
        prior = prior.gather(1, of_head.expand(-1, -1, prior.shape[-1]))
        noise = noise.gather(2, of_head)[..., 0]
        scale = (prior / noise[..., None]).sqrt().repeat(1, 1, 2)
        precision = plus_identity(gram * scale[..., None] * scale[..., None, :])
        inverse, log_det = inverse_and_log_det(precision)
        projected = targets * (scale / noise.sqrt()[..., None])[..., None]
        solved = inverse @ projected
        explained = (projected * solved).sum(dim=(-2, -1))
        log_count = None
        if self.log_noise_count is not None:
            log_count = self.log_noise_count()[head]
        ratio, log_evidence = _evidence(moments, noise, log_det, explained, log_count)
        score = temperature * log_evidence
        score = score + self._log_prior(frequency, width).gather(2, of_head)[..., 0]
        prior_std = prior.sqrt().repeat(1, 1, 2)
        root = ratio[..., None] * prior_std
        dtype = self.logit.theta.dtype
        return PeriodicPosterior(
            frequency,
            (prior_std[..., None] * solved).to(dtype),
            (root[..., None] * inverse * root[..., None, :]).to(dtype),
            (ratio * noise.sqrt()).to(dtype),
            score + log_share,
        )

    def _search(self, moments: FourierMoments, temperature: Tensor) -> _Cells:
        low, high = self.frequencies
        centre = (torch.arange(self.num_cells, device=moments.count.device) + 0.5).double()
        width = torch.full_like(centre, (high - low) / self.num_cells)[None]
        few, most = min(_FEW_HARMONICS, self.num_harmonics), self.num_harmonics
        cells = self._cells(moments, temperature, low + width * centre, width, few)
        part = torch.arange(_PARTS, device=centre.device) - (_PARTS - 1) / 2
        for i, number in enumerate(_ROUNDS, start=1):
            best = cells.score.logsumexp(dim=-1).topk(min(number, self.num_cells)).indices
            frequency, width = (z.gather(1, best) for z in (cells.frequency, cells.width))
            frequency = (frequency[..., None] + part * width[..., None] / _PARTS).flatten(1)
            width = (width / _PARTS).repeat_interleave(_PARTS, dim=1)
            num_harmonics = few + round((most - few) * i / len(_ROUNDS))
            new = self._cells(moments, temperature, frequency, width, num_harmonics)
            # The cells that are split are there no more.
            left = cells.score.scatter(
                1, best[..., None].expand(-1, -1, self.num_heads), -torch.inf
            )
            pairs = (cells.frequency, new.frequency), (cells.width, new.width), (left, new.score)
            cells = _Cells(*(torch.cat(pair, dim=1) for pair in pairs))
        return cells

    def _cells(
        self,
        moments: FourierMoments,
        temperature: Tensor,
        frequency: Float[Tensor, "tasks cells"],
        width: Float[Tensor, "tasks cells"],
        num_harmonics: int,
    ) -> _Cells:
        """These cells, with their scores by so many harmonics."""
        gram, targets = moments.harmonic_moments(2 * math.pi * frequency, num_harmonics)
        batch = gram.shape[0]
        frequency, width = (z.expand(batch, -1) for z in (frequency, width))
        prior, noise = self._variances(moments, width, num_harmonics)
        scale = (prior / noise[..., None]).sqrt().repeat(1, 1, 1, 2)
        # In place, as this is what the search takes its time for.
        precision = (gram[:, :, None] * scale[..., None]).mul_(scale[..., None, :])
        precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
        factor = torch.linalg.cholesky_ex(precision).L
        projected = targets[:, :, None] * (scale / noise.sqrt()[..., None])[..., None]
        whitened = torch.linalg.solve_triangular(factor, projected, upper=False)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        explained = whitened.square().sum(dim=(-2, -1))
        log_count = None if self.log_noise_count is None else self.log_noise_count()
        _, evidence = _evidence(moments, noise, log_det, explained, log_count)
        return _Cells(frequency, width, temperature * evidence + self._log_prior(frequency, width))

    def _variances(
        self, moments: FourierMoments, width: Float[Tensor, "batch cells"], num_harmonics: int
    ) -> tuple[Float[Tensor, "#batch #cells heads harmonics"], Float[Tensor, "batch cells heads"]]:
        """$v s^2$ of the harmonics that are there, and the variance of the noise."""
        noise = self.log_noise_std().double().exp().square()
        scale = self._scale(moments, noise)
        spectrum = self.log_spectrum().double().exp()
        k = torch.arange(spectrum.shape[-1], device=width.device)
        open_phase = (2 * math.pi * self.x_width / 12 * width[..., None, None] * k).square()
        open_phase = (self.log_width().double().exp()[:, None] * open_phase).clamp(max=1.0)
        share = torch.where(k <= num_harmonics, open_phase, 1.0)
        lost = (spectrum * share).sum(dim=-1)
        prior = scale[:, None, :, None] * spectrum[:, : num_harmonics + 1]
        return prior, noise + scale[:, None] * lost

    def _scale(
        self, moments: FourierMoments, noise: Float[Tensor, "heads"]
    ) -> Float[Tensor, "#batch #heads"]:
        """v."""
        if self.log_ratio is not None:
            return (2 * self.log_ratio().double()).exp()[None] * noise
        prior_count, prior_variance = self.log_scale().double().exp()
        squares, dim_y = moments.squares.sum(dim=-1), moments.squares.shape[-1]
        scale = (squares + prior_count * prior_variance) / (dim_y * moments.count + prior_count)
        return scale[:, None]

    def _log_prior(
        self, frequency: Float[Tensor, "batch cells"], width: Float[Tensor, "batch cells"]
    ) -> Float[Tensor, "batch cells heads"]:
        low, high = self.frequencies
        of_frequency = (
            frequency / math.sqrt(low * high)
        ).log() * self.log_frequency_rate().double()
        of_cell = of_frequency + (width / (high - low)).log()
        return of_cell[..., None] + self.logit().double()

    def _chosen(
        self, score: Float[Tensor, "batch cells heads"]
    ) -> tuple[
        Integer[Tensor, "batch experts"],
        Integer[Tensor, "batch experts"],
        Float[Tensor, "batch experts"],
    ]:
        """The experts' cells and heads, and the logarithm of how many like it each stands for."""
        num_heads, flat = score.shape[-1], score.flatten(1)
        num_best, num_drawn = self.num_experts
        best = flat.topk(min(num_best, self.num_cells * num_heads)).indices
        log_share = torch.zeros_like(flat.gather(1, best))
        if num_drawn:
            rest = flat.scatter(1, best, -torch.inf)
            mass = rest.logsumexp(dim=-1, keepdim=True)
            level = (torch.arange(num_drawn, device=flat.device) + 0.5) / num_drawn
            below = (rest - mass).exp().cumsum(dim=-1)
            drawn = torch.searchsorted(below, level.double().expand(flat.shape[0], -1).contiguous())
            drawn = drawn.clamp(max=flat.shape[1] - 1)
            of_drawn = mass - math.log(num_drawn) - flat.gather(1, drawn)
            best = torch.cat([best, drawn], dim=1)
            log_share = torch.cat([log_share, of_drawn], dim=1)
        return best // num_heads, best % num_heads, log_share


def _evidence(
    moments: FourierMoments,
    noise: Tensor,
    log_det: Tensor,
    explained: Tensor,
    log_count: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """κ and $\\log Z$, as in `BayesianHeads`, for cells and perhaps heads of each task."""
    dim_y = moments.squares.shape[-1]
    shape = moments.count.shape[0], *[1] * (noise.ndim - 1)
    number = dim_y * moments.count.reshape(shape)
    misfit = moments.squares.sum(dim=-1).reshape(shape) / noise - explained
    normaliser = number * (2 * math.pi * noise).log() + dim_y * log_det
    return noise_evidence(misfit, number, normaliser, log_count)
