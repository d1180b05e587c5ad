"""Bayesian linear regression with several priors at once, which are weighed by their evidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from npbench.blocks.fourier import FourierFeatures, Offset, log_spectral_weights
from npbench.blocks.second_moments import SecondMoments
from npbench.errors import InputError
from npbench.structure import TensorRecord

# Of the logarithm of a weight's prior standard deviation. The last one bounds the condition of the
# equations: it is how far above that of the noise it may be.
_LOG_STD_INITIAL, _LOG_STD_MIN, _LOG_STD_MAX, _LOG_STD_OVER_NOISE = -12.0, -16.0, 5.0, 4.6


@dataclass(frozen=True, eq=False)
class WeightPosterior(TensorRecord):
    r"""Each head's posterior of the weights: $w \sim \mathcal{N}(\bar w, R^\top R)$.

    What is predicted at features φ has the mean $\bar w^\top \varphi$ and the variance
    $\lVert R \varphi \rVert^2$, without the noise: no equation is left to solve.
    """

    mean: Float[Tensor, "batch heads m dim_y"]
    root: Float[Tensor, "batch heads m m"]
    noise_std: Float[Tensor, "batch heads"]
    log_evidence: Float[Tensor, "batch heads"]

    def variance(
        self, features: Float[Tensor, "batch target m"]
    ) -> Float[Tensor, "batch heads target"]:
        return self._rooted(features).square().sum(dim=-2)

    def covariance(
        self, features: Float[Tensor, "batch target m"]
    ) -> Float[Tensor, "batch heads target target"]:
        rooted = self._rooted(features)
        return rooted.mT @ rooted

    def _rooted(self, features: Tensor) -> Float[Tensor, "batch heads m target"]:
        root = self.root.flatten(1, 2)
        if root.stride(0) == 0:  # the tasks have one posterior: one product, in place of many
            product = root[0] @ features.flatten(0, 1).mT
            product = product.unflatten(-1, features.shape[:2]).movedim(1, 0)
        else:
            product = root @ features.mT
        return product.unflatten(1, self.root.shape[1:3])


@dataclass(frozen=True, eq=False)
class FunctionPosterior(TensorRecord):
    r"""The same posterior by the n points themselves: smaller, and cheaper, while n < m.

    With $K = I + \Phi T^2 \Phi^\top$ and $G = \Phi S^2 / \sigma$, the variance at φ is
    $\lVert S \varphi \rVert^2 - (G \varphi)^\top K^{-1} G \varphi$.
    """

    mean: Float[Tensor, "batch heads m dim_y"]
    prior_std: Float[Tensor, "batch heads m"]
    gain: Float[Tensor, "batch heads points m"]
    inverse: Float[Tensor, "batch heads points points"]
    noise_std: Float[Tensor, "batch heads"]
    log_evidence: Float[Tensor, "batch heads"]

    def variance(
        self, features: Float[Tensor, "batch target m"]
    ) -> Float[Tensor, "batch heads target"]:
        explained = (self.gain.flatten(1, 2) @ features.mT).unflatten(1, self.gain.shape[1:3])
        explained = (explained * (self.inverse @ explained)).sum(dim=-2)
        prior = self.prior_std.square() @ features.square().mT
        return (prior - explained).clamp(min=0.0)


@dataclass(frozen=True)
class InferredNoise:
    """Noise that is inferred task by task, where it differs from one to the next.

    The scale of the functions then is that of the noise times a ratio, so that heads of several
    ratios share each length.

    Args:
        ratios: initial ratios of the functions' standard deviation to that of the noise.
        count: number of observations that the prior of the noise is worth at first.

    Example:
        >>> InferredNoise(ratios=(0.5, 5.0)).heads([0.1, 0.4], noise_std=0.1)
        ([0.1, 0.1, 0.4, 0.4], [0.05, 0.5, 0.05, 0.5])
    """

    ratios: tuple[float, ...] = (0.5, 4.0, 30.0)
    count: float = 2.0

    def heads(self, lengths: Sequence[float], noise_std: float) -> tuple[list[float], list[float]]:
        """The length and the prior standard deviation of each head.

        Raises:
            InputError: if there are no ratios.
        """
        if not self.ratios:
            raise InputError("noise.ratios=() must have one ratio or more")
        pairs = [(length, noise_std * ratio) for length in lengths for ratio in self.ratios]
        return [length for length, _ in pairs], [std for _, std in pairs]


class BayesianHeads(nn.Module):
    r"""H priors ("heads") of one linear regression on Fourier features φ of width m = 2F:

    $$y = w^\top \varphi(x) + \varepsilon, \qquad w_k \sim \mathcal{N}(0, s_{hk}^2), \qquad
      \varepsilon \sim \mathcal{N}(0, \sigma_h^2), \qquad h = 1, …, H$$

    with one w and ε for each output. All heads are answered by the same `SecondMoments`. With
    S = diag(s) and T = S/σ,

    $$P = I + T A T, \quad u = P^{-1} T b / \sigma, \quad \bar w = S u, \quad
      \mathrm{Cov}(w) = S P^{-1} S$$
    $$\log Z_h = -\tfrac 12 \Big[n \log 2 \pi \sigma^2 + \log \det P + \frac{c}{\sigma^2}
      - u^\top \frac{T b}{\sigma} \Big], \qquad
      \pi = \mathrm{softmax}(p + \tau \log Z)$$

    summed over outputs. P has no eigenvalue below 1, so that no jitter is needed. Everything is
    learned: the frequencies, $\log s$ (common to a frequency's cosine and sine), $\log \sigma$, p
    and $\log \tau$. Initially head h is an RBF kernel of length $\ell_h$.

    With `noise_count` $\nu_h$, which is learned too, a task has a noise of its own, whose variance
    has an inverse-gamma prior with the mean $\sigma_h^2$; and the functions' standard deviations
    are those that $s_h$ says times the ratio κ of the task's noise to $\sigma_h$. With
    $q = c / \sigma^2 - u^\top T b / \sigma$ and dim_y = d outputs, the posterior mean of the
    variance, and the evidence, are

    $$\kappa^2 \sigma_h^2 = \sigma_h^2 \frac{\nu + q}{\nu + n d}, \qquad
      Z_h \propto \frac{\Gamma(a + \frac{nd}2)}{\Gamma(a)}
      \frac{(\nu / 2)^a}{(\nu / 2 + q / 2)^{a + nd/2}}, \qquad a = \frac \nu 2 + 1$$

    and predictions are normal, with that variance, where the exact ones have Student's law.

    Args:
        dim_x: number of inputs.
        num_features: number F of frequencies.
        lengths: $\ell_1, …, \ell_H$.
        prior_std: initial standard deviation of the functions, of all heads or of each.
        noise_std: initial σ.
        rate: of all parameters; see `Offset`.
        noise_count: initial ν, the number of observations that the prior of the noise is worth; by
            default the noise is that of the head.
        smoothness: ν of each head, which then is a Matérn kernel at first; by default infinity, of
            which the limit is the RBF kernel.

    Source: Harrison, Sharma and Pavone, *Meta-Learning Priors for Efficient Online Bayesian
    Regression* (ALPaCA), WAFR 2018, which has one head and a network for features; Rasmussen and
    Williams, *Gaussian Processes for Machine Learning*, 2006, section 2.1.

    Example:
        >>> heads = BayesianHeads(dim_x=1, num_features=8, lengths=[0.2, 0.8])
        >>> x, y = torch.randn(2, 3, 10, 1)
        >>> posterior = heads.solve(SecondMoments.of(heads.features(x), y))
        >>> heads.log_weights(posterior).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        dim_x: int,
        num_features: int,
        lengths: Sequence[float],
        prior_std: float | Sequence[float] = 0.5,
        noise_std: float = 0.1,
        rate: float = 20.0,
        noise_count: float | None = None,
        smoothness: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise InputError(f"num_features={num_features} must be 1 or more")
        num_heads = len(lengths)
        stds = [prior_std] * num_heads if isinstance(prior_std, float | int) else list(prior_std)
        positive = {"noise_std": noise_std, "rate": rate, "prior_std": min(stds)}
        if noise_count is not None:
            positive["noise_count"] = noise_count
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"{name}={value} must be above 0")
        self.features = FourierFeatures(dim_x, num_features, lengths, rate)
        frequencies = self.features.frequencies.initial
        log_weight = log_spectral_weights(frequencies, lengths, smoothness)
        log_std = 0.5 * log_weight + torch.tensor(stds).log()[:, None]
        self.log_prior_std = Offset(log_std.clamp(min=_LOG_STD_INITIAL), rate)
        self.log_noise_std = Offset(torch.full([num_heads], math.log(noise_std)), rate)
        self.logit = Offset(torch.zeros(num_heads), rate)
        self.log_temperature = Offset(torch.zeros(()), rate)
        self.log_noise_count = None
        if noise_count is not None:
            self.log_noise_count = Offset(torch.full([num_heads], math.log(noise_count)), rate)

    @property
    def noise_std(self) -> Float[Tensor, "heads"]:
        return self.log_noise_std().exp()

    @property
    def prior_std(self) -> Float[Tensor, "heads m"]:
        log_std = self.log_prior_std().clamp(_LOG_STD_MIN, _LOG_STD_MAX)
        log_std = log_std.minimum(self.log_noise_std()[:, None] + _LOG_STD_OVER_NOISE)
        return log_std.exp().repeat(1, 2)

    def log_weights(
        self, posterior: WeightPosterior | FunctionPosterior
    ) -> Float[Tensor, "batch heads"]:
        """log π, in the type of the model."""
        return self.scores(posterior).log_softmax(dim=-1).to(posterior.mean.dtype)

    def scores(
        self, posterior: WeightPosterior | FunctionPosterior
    ) -> Float[Tensor, "batch heads"]:
        """$p + \\tau \\log Z$, in float64: log π, up to what all heads share."""
        return self.logit() + self.log_temperature().exp() * posterior.log_evidence

    def predict(
        self,
        posterior: WeightPosterior | FunctionPosterior,
        x: Float[Tensor, "batch target dim_x"],
    ) -> tuple[Float[Tensor, "batch target heads dim_y"], Float[Tensor, "batch target heads"]]:
        """The mean and standard deviation of values at x, noise included."""
        # Weights may be large, and cancel: no product of theirs is for autocast.
        with torch.autocast(x.device.type, enabled=False):
            features = self.features(x)
            variance = posterior.variance(features) + posterior.noise_std.square()[..., None]
            return torch.einsum("btm,bhmd->bthd", features, posterior.mean), variance.sqrt().mT

    def solve(self, moments: SecondMoments) -> WeightPosterior:
        """The posterior by m equations in the weights, in float64, and then in the model's type."""
        prior_std, noise_std = self.prior_std.double(), self.noise_std.double()
        precision, projected = _equations(moments, prior_std, noise_std)
        factor = torch.linalg.cholesky(precision)
        root, whitened = (
            torch.linalg.solve_triangular(factor, z, upper=False)
            for z in (torch.diag_embed(prior_std).expand_as(factor), projected)
        )
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        misfit = _misfit(moments, noise_std, whitened.square().sum(dim=(-2, -1)))
        number = moments.squares.shape[-1] * moments.count[:, None]
        ratio, log_evidence = self._with_noise(misfit, number, log_det, moments.squares.shape[-1])
        mean, root = root.mT @ whitened, ratio[..., None, None] * root
        dtype = self.features.frequencies.theta.dtype
        return WeightPosterior(
            mean.to(dtype), root.to(dtype).contiguous(), (ratio * noise_std).to(dtype), log_evidence
        )

    def solve_by_points(
        self,
        features: Float[Tensor, "batch points m"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> FunctionPosterior:
        """The same posterior by n equations in the points, in the type of the model."""
        with torch.autocast(features.device.type, enabled=False):
            num_points = features.new_full([len(y)], y.shape[1])
            if mask is not None:
                features, y = (z.masked_fill(~mask[..., None], 0.0) for z in (features, y))
                num_points = mask.sum(dim=-1).to(y.dtype)
            prior_std, noise_std = self.prior_std, self.noise_std
            scale = (prior_std / noise_std[:, None])[:, None]
            scaled = features[:, None] * scale
            inverse, log_det = inverse_and_log_det(plus_identity(scaled @ scaled.mT))
            gain = scaled * prior_std[:, None]
            solved = inverse @ y[:, None] / noise_std[:, None, None]
            misfit = (y[:, None] * solved).sum(dim=(-2, -1)) / noise_std
            number = y.shape[-1] * num_points[:, None]
            ratio, log_evidence = self._with_noise(misfit, number, log_det, y.shape[-1])
            return FunctionPosterior(
                gain.mT @ solved,
                ratio[..., None] * prior_std,
                ratio[..., None, None] * gain,
                inverse,
                ratio * noise_std,
                log_evidence.double(),
            )

    def log_evidence(
        self, moments: SecondMoments, noise_std: Float[Tensor, "batch heads"] | None = None
    ) -> Float[Tensor, "batch heads"]:
        r"""$\log Z$, without the rest of the posterior.

        With `noise_std` the noise κσ of each task is known, and the functions' scale follows it:
        $-\tfrac 12 [nd \log 2 \pi \kappa^2 \sigma^2 + d \log \det P + q / \kappa^2]$.
        """
        prior_std, own_noise_std = self.prior_std.double(), self.noise_std.double()
        precision, projected = _equations(moments, prior_std, own_noise_std)
        inverse, log_det = inverse_and_log_det(precision)
        explained = (projected * (inverse @ projected)).sum(dim=(-2, -1))
        misfit = _misfit(moments, own_noise_std, explained)
        dim_y = moments.squares.shape[-1]
        number = dim_y * moments.count[:, None]
        if noise_std is None:
            return self._with_noise(misfit, number, log_det, dim_y)[1]
        normaliser = number * (math.log(2 * math.pi) + 2 * noise_std.log()) + dim_y * log_det
        return -0.5 * (normaliser + misfit * (own_noise_std / noise_std).square())

    def with_more(
        self,
        posterior: WeightPosterior,
        number: Real[Tensor, "batch 1"],
        misfit: Float[Tensor, "batch heads"],
        log_det: Float[Tensor, "batch heads"],
        num_more: int,
    ) -> tuple[Float[Tensor, "batch heads"], Float[Tensor, "batch heads"]]:
        """κ and $\\log Z$ after more points, from what they add to q and to log det P.

        Args:
            posterior: of the points before.
            number: $nd$, of values before.
            misfit: what is added to q.
            log_det: what is added to $\\log \\det P$.
            num_more: number of points that are added.
        """
        dim_y, before = posterior.mean.shape[-1], torch.zeros_like(misfit)
        if self.log_noise_count is not None:
            count = self.log_noise_count().exp()
            ratio = posterior.noise_std / self.noise_std
            before = (ratio.square() * (count + number) - count).to(misfit.dtype)
        nothing = torch.zeros_like(log_det)
        _, evidence = self._with_noise(before, number, nothing, dim_y)
        ratio, more = self._with_noise(before + misfit, number + num_more * dim_y, log_det, dim_y)
        return ratio, posterior.log_evidence + more - evidence

    def _with_noise(
        self,
        misfit: Float[Tensor, "batch heads"],
        number: Real[Tensor, "batch 1"],
        log_det: Float[Tensor, "batch heads"],
        dim_y: int,
    ) -> tuple[Float[Tensor, "batch heads"], Float[Tensor, "batch heads"]]:
        """κ and $\\log Z$, from q, nd and log det P."""
        noise_std = self.noise_std.to(misfit.dtype)
        normaliser = number * (math.log(2 * math.pi) + 2 * noise_std.log()) + dim_y * log_det
        log_count = None if self.log_noise_count is None else self.log_noise_count()
        return noise_evidence(misfit, number, normaliser, log_count)


def noise_evidence(
    misfit: Float[Tensor, "*heads"],
    number: Real[Tensor, "*#heads"],
    normaliser: Float[Tensor, "*heads"],
    log_count: Float[Tensor, "*#heads"] | None,
) -> tuple[Float[Tensor, "*heads"], Float[Tensor, "*heads"]]:
    """κ and $\\log Z$ of `BayesianHeads`.

    Args:
        misfit: $q = c / \\sigma^2 - u^\\top T b / \\sigma$.
        number: $nd$, of observed values.
        normaliser: $nd \\log 2 \\pi \\sigma^2 + d \\log \\det P$.
        log_count: $\\log \\nu$; without it κ is 1.
    """
    if log_count is None:
        return torch.ones_like(misfit), -0.5 * (normaliser + misfit)
    half = log_count.to(misfit.dtype).exp() / 2
    shape, rest = half + 1, half + misfit.clamp(min=0.0) / 2
    density = (
        torch.lgamma(shape + number / 2) - torch.lgamma(shape)
        + shape * half.log() - (shape + number / 2) * rest.log()
    )  # fmt: skip
    return (rest / (half + number / 2)).sqrt(), density - 0.5 * normaliser


def _equations(
    moments: SecondMoments, prior_std: Tensor, noise_std: Tensor
) -> tuple[Float[Tensor, "batch heads m m"], Float[Tensor, "batch heads m dim_y"]]:
    """P and $T b / \\sigma$."""
    scale = prior_std / noise_std[:, None]
    precision = moments.gram[:, None] * (scale[:, :, None] * scale[:, None, :])
    projected = moments.targets[:, None] * (scale / noise_std[:, None])[..., None]
    return plus_identity(precision), projected


def _misfit(
    moments: SecondMoments, noise_std: Tensor, explained: Tensor
) -> Float[Tensor, "batch heads"]:
    """q."""
    return moments.squares.sum(dim=-1)[:, None] / noise_std.square() - explained


def plus_identity(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """M + I."""
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


class _InverseAndLogDet(torch.autograd.Function):
    """Backward is two products, where that of a Cholesky factor solves triangular equations."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.linalg.cholesky(matrix)
        inverse = torch.cholesky_inverse(factor)
        ctx.save_for_backward(inverse)
        return inverse, 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_inverse: Tensor, grad_log_det: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return grad_log_det[..., None, None] * inverse - inverse @ grad_inverse @ inverse


def inverse_and_log_det(
    matrix: Float[Tensor, "*batch n n"],
) -> tuple[Float[Tensor, "*batch n n"], Float[Tensor, "*batch"]]:
    r"""$X = M^{-1}$ and $\log \det M$ of symmetric positive definite matrices.

    $$\frac{\partial L}{\partial M}
      = -X \frac{\partial L}{\partial X} X + \frac{\partial L}{\partial \log\det M} X$$

    Example:
        >>> inverse, log_det = inverse_and_log_det(2 * torch.eye(3))
        >>> inverse.diagonal(), log_det.exp()
        (tensor([0.5000, 0.5000, 0.5000]), tensor(8.0000))
    """
    return _InverseAndLogDet.apply(matrix)
