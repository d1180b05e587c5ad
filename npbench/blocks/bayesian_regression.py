"""Bayesian linear regression with several priors at once, which are weighed by their evidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
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
        product = self.root.flatten(1, 2) @ features.mT
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
    log_evidence: Float[Tensor, "batch heads"]

    def variance(
        self, features: Float[Tensor, "batch target m"]
    ) -> Float[Tensor, "batch heads target"]:
        explained = (self.gain.flatten(1, 2) @ features.mT).unflatten(1, self.gain.shape[1:3])
        explained = (explained * (self.inverse @ explained)).sum(dim=-2)
        prior = self.prior_std.square() @ features.square().mT
        return (prior - explained).clamp(min=0.0)


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

    Args:
        dim_x: number of inputs.
        num_features: number F of frequencies.
        lengths: $\ell_1, …, \ell_H$.
        prior_std: initial standard deviation of the functions.
        noise_std: initial σ.
        rate: of all parameters; see `Offset`.
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
        prior_std: float = 0.5,
        noise_std: float = 0.1,
        rate: float = 20.0,
        smoothness: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise InputError(f"num_features={num_features} must be 1 or more")
        for name, value in (("prior_std", prior_std), ("noise_std", noise_std), ("rate", rate)):
            if not value > 0:
                raise InputError(f"{name}={value} must be above 0")
        self.features = FourierFeatures(dim_x, num_features, lengths, rate)
        frequencies = self.features.frequencies.initial
        log_weight = log_spectral_weights(frequencies, lengths, smoothness)
        log_std = 0.5 * log_weight + math.log(prior_std)
        num_heads = len(lengths)
        self.log_prior_std = Offset(log_std.clamp(min=_LOG_STD_INITIAL), rate)
        self.log_noise_std = Offset(torch.full([num_heads], math.log(noise_std)), rate)
        self.logit = Offset(torch.zeros(num_heads), rate)
        self.log_temperature = Offset(torch.zeros(()), rate)

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
        features = self.features(x)
        variance = posterior.variance(features) + self.noise_std.square()[:, None]
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
        explained = whitened.square().sum(dim=(-2, -1))
        dtype = self.features.frequencies.theta.dtype
        return WeightPosterior(
            (root.mT @ whitened).to(dtype),
            root.to(dtype),
            _log_evidence(moments, noise_std, log_det, explained),
        )

    def solve_by_points(
        self,
        features: Float[Tensor, "batch points m"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> FunctionPosterior:
        """The same posterior by n equations in the points, in the type of the model."""
        num_points = features.new_full([len(y)], y.shape[1])
        if mask is not None:
            features, y = (z.masked_fill(~mask[..., None], 0.0) for z in (features, y))
            num_points = mask.sum(dim=-1).to(y.dtype)
        prior_std, noise_std = self.prior_std, self.noise_std
        scale = (prior_std / noise_std[:, None])[:, None]
        scaled = features[:, None] * scale
        inverse, log_det = inverse_and_log_det(_plus_identity(scaled @ scaled.mT))
        gain = scaled * prior_std[:, None]
        solved = inverse @ y[:, None] / noise_std[:, None, None]
        misfit = (y[:, None] * solved).sum(dim=(-2, -1)) / noise_std
        log_evidence = -0.5 * (
            y.shape[-1] * (num_points[:, None] * _log_two_pi_variance(noise_std) + log_det) + misfit
        )
        prior_std = prior_std.expand(len(y), -1, -1)
        return FunctionPosterior(gain.mT @ solved, prior_std, gain, inverse, log_evidence.double())

    def log_evidence(self, moments: SecondMoments) -> Float[Tensor, "batch heads"]:
        """$\\log Z$, without the rest of the posterior."""
        prior_std, noise_std = self.prior_std.double(), self.noise_std.double()
        precision, projected = _equations(moments, prior_std, noise_std)
        inverse, log_det = inverse_and_log_det(precision)
        explained = (projected * (inverse @ projected)).sum(dim=(-2, -1))
        return _log_evidence(moments, noise_std, log_det, explained)


def _equations(
    moments: SecondMoments, prior_std: Tensor, noise_std: Tensor
) -> tuple[Float[Tensor, "batch heads m m"], Float[Tensor, "batch heads m dim_y"]]:
    """P and $T b / \\sigma$."""
    scale = prior_std / noise_std[:, None]
    precision = moments.gram[:, None] * (scale[:, :, None] * scale[:, None, :])
    projected = moments.targets[:, None] * (scale / noise_std[:, None])[..., None]
    return _plus_identity(precision), projected


def _log_evidence(
    moments: SecondMoments, noise_std: Tensor, log_det: Tensor, explained: Tensor
) -> Float[Tensor, "batch heads"]:
    dim_y = moments.squares.shape[-1]
    misfit = moments.squares.sum(dim=-1)[:, None] / noise_std.square() - explained
    normaliser = moments.count[:, None] * _log_two_pi_variance(noise_std) + log_det
    return -0.5 * (dim_y * normaliser + misfit)


def _log_two_pi_variance(std: Tensor) -> Tensor:
    return math.log(2 * math.pi) + 2 * std.log()


def _plus_identity(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
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
