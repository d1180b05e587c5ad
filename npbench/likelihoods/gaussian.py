"""From the encoding of a target to a Gaussian, or a mixture of them, over its value."""

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from npbench.attention.precision import at_least_float32
from npbench.blocks import MLP, LayerConfig, TransformerLayer
from npbench.errors import InputError
from npbench.likelihoods.calibration import Deviations

# Numbers that a variance may get added until a covariance is positive definite.
_JITTERS = [10.0**exponent for exponent in range(-8, 1)]


class GaussianHead(nn.Module):
    r"""Each target on its own: $\mathcal{N}(\mu, \sigma^2)$ with $[\mu, r] = \mathrm{MLP}(h)$.

    $\sigma = e^r$, or with a least value m: $\sigma = m + (1 - m)\,\mathrm{softplus}(r)$. Returns a
    distribution with the batch shape of the targets and event shape [dim_y].

    Args:
        mlp: from h to μ and r side by side.
        min_std: least standard deviation m, or None.
    """

    def __init__(self, mlp: nn.Module, min_std: float | None = None) -> None:
        super().__init__()
        self.min_std = min_std
        self.mlp = mlp
        self.deviations = Deviations()

    def forward(self, encoding: Float[Tensor, "*batch target dim_in"]) -> Independent:
        return self.distribution(*self.parts(encoding))

    def parts(
        self, encoding: Float[Tensor, "*batch target dim_in"]
    ) -> tuple[Float[Tensor, "*batch target dim_y"], Float[Tensor, "*batch target dim_y"]]:
        """Mean and standard deviation."""
        mean, raw = at_least_float32(self.mlp(encoding)).chunk(2, dim=-1)
        if self.min_std is None:
            std = raw.exp()
        else:
            std = self.min_std + (1 - self.min_std) * F.softplus(raw)
        return mean, self.deviations(std)

    def distribution(self, mean: Tensor, std: Tensor) -> Independent:
        """The distribution of these parts."""
        return independent_normal(mean, std)


class DiagonalGaussian(GaussianHead):
    """A `GaussianHead` whose MLP has equally wide layers.

    Args:
        dim_in: width of h.
        dim_hidden: width of the MLP.
        dim_y: number of outputs.
        depth: linear layers of the MLP.
        min_std: least standard deviation, or None.
    """

    def __init__(
        self, dim_in: int, dim_hidden: int, dim_y: int, depth: int, min_std: float | None = None
    ) -> None:
        super().__init__(MLP(dim_in, dim_hidden, 2 * dim_y, depth), min_std)


def independent_normal(
    mean: Float[Tensor, "*batch dim_y"], std: Float[Tensor, "*batch dim_y"]
) -> Independent:
    """Normals whose last dimension is one event."""
    return Independent(Normal(mean, std, validate_args=False), 1, validate_args=False)


def equal_mixture(components: Independent) -> MixtureSameFamily:
    """The equal mixture, of batch shape [B, M], of components of batch shape [samples, B, M]."""
    normal = components.base_dist
    mean, std = (z.movedim(0, -2) for z in (normal.loc, normal.scale))
    weights = Categorical(logits=torch.zeros_like(mean[..., 0]), validate_args=False)
    return MixtureSameFamily(weights, independent_normal(mean, std), validate_args=False)


class JointGaussian(nn.Module):
    r"""All targets together: $\mathcal{N}(\mu, \Sigma)$ over the $M \cdot d_y$ values, by target.

    $$\mu = \mathrm{MLP}(h), \qquad \tilde h = \mathrm{Transformer}(h), \qquad
      P = \mathrm{MLP}(\tilde h) \in \mathbb{R}^{M d_y \times d_P}$$

    - "cholesky": $\Sigma = L L^\top$ with $L = \mathrm{tril}(P P^\top)$, which depends on the order
      of the targets. With `bound_std` the diagonal l of L becomes $0.05 + 0.95 \tanh(l)$.
    - "lowrank": $\Sigma = P P^\top + \mathrm{diag}(\exp \mathrm{MLP}(\tilde h))$, as a
      `LowRankMultivariateNormal`: no matrix of M × M is formed, and the order does not matter.

    Where Σ is not positive definite, the smallest jitter (on the diagonal of L, or on that of Σ)
    that makes it so is added, for those tasks alone, and a warning says so once. Where the
    network's outputs are not finite, neither is the prediction.

    Args:
        config: width, heads and hidden width of the layers.
        dim_y: number of outputs.
        covariance: "cholesky" or "lowrank".
        dim_projection: columns $d_P$ of P.
        num_std_layers: Transformer layers.
        projection_depth: linear layers of the MLPs of P and of the diagonal.
        bound_std: see "cholesky".

    Source: Nguyen and Grover, *Transformer Neural Processes*, ICML 2022, section 3.3.
    """

    def __init__(
        self,
        config: LayerConfig,
        dim_y: int,
        covariance: Literal["cholesky", "lowrank"],
        dim_projection: int,
        num_std_layers: int,
        projection_depth: int,
        bound_std: bool = False,
    ) -> None:
        super().__init__()
        if covariance not in ("cholesky", "lowrank"):
            raise InputError(f'covariance={covariance!r} must be "cholesky" or "lowrank"')
        dim_model, dim_hidden = config.dim_model, config.dim_feedforward
        self.covariance = covariance
        self.bound_std = bound_std
        self.dim_projection = dim_projection
        self.mean = MLP(dim_model, dim_hidden, dim_y, depth=2)
        self.std_layers = nn.ModuleList(TransformerLayer(config) for _ in range(num_std_layers))
        self.project = MLP(dim_model, dim_hidden, dim_projection * dim_y, projection_depth)
        if covariance == "lowrank":
            self.diagonal = MLP(dim_model, dim_hidden, dim_y, projection_depth)
        self._has_warned = False

    def forward(
        self,
        encoding: Float[Tensor, "batch target dim_model"],
        mask: Bool[Tensor, "batch target"] | None = None,
    ) -> MultivariateNormal | LowRankMultivariateNormal:
        """The distribution of the targets' values; padding has standard normals of its own."""
        attention_mask = None if mask is None else mask[:, None]
        h = encoding
        for layer in self.std_layers:
            h = layer(h, h, attention_mask)
        mean, factor = self.mean(encoding).flatten(1), self.project(h)
        raw = self.diagonal(h).flatten(1) if self.covariance == "lowrank" else None
        return self._distribution(mean, factor, raw, mask)

    def _distribution(
        self,
        mean: Float[Tensor, "batch values"],
        factor: Float[Tensor, "batch target columns"],
        raw: Float[Tensor, "batch values"] | None,
        mask: Bool[Tensor, "batch target"] | None,
    ) -> MultivariateNormal | LowRankMultivariateNormal:
        """That of μ, P and the logarithm of the diagonal."""
        with torch.autocast(mean.device.type, enabled=False):
            dtype = torch.promote_types(mean.dtype, torch.float32)
            mean = mean.to(dtype)
            factor = factor.to(dtype).reshape(*mean.shape, self.dim_projection)
            if mask is not None:
                padding = ~mask.repeat_interleave(mean.shape[1] // mask.shape[1], dim=1)
                mean = mean.masked_fill(padding, 0.0)
                factor = factor.masked_fill(padding[..., None], 0.0)
            else:
                padding = None
            if raw is None:
                return self._cholesky(mean, factor, padding)
            return self._lowrank(mean, factor, raw.to(dtype).exp(), padding)

    def _cholesky(self, mean: Tensor, factor: Tensor, padding: Tensor | None) -> MultivariateNormal:
        scale = (factor @ factor.mT).tril()
        diagonal = scale.diagonal(dim1=-2, dim2=-1)
        if self.bound_std:
            diagonal = 0.05 + 0.95 * diagonal.tanh()
        if padding is not None:
            diagonal = diagonal.masked_fill(padding, 1.0)
        diagonal = self._repair(diagonal, lambda diagonal: (diagonal <= 0).any(dim=-1))
        scale = scale.tril(-1) + torch.diag_embed(diagonal)
        return MultivariateNormal(mean, scale_tril=scale, validate_args=False)

    def _lowrank(
        self, mean: Tensor, factor: Tensor, diagonal: Tensor, padding: Tensor | None
    ) -> LowRankMultivariateNormal:
        if padding is not None:
            diagonal = diagonal.masked_fill(padding, 1.0)

        def is_broken(diagonal: Tensor) -> Bool[Tensor, "batch"]:
            scale, info = torch.linalg.cholesky_ex(_capacitance(factor, diagonal))
            return (info > 0) | ~scale.isfinite().all(dim=-1).all(dim=-1)

        finite = (factor.isfinite().all(-1) & diagonal.isfinite()).all(-1, keepdim=True)
        mean = mean.where(finite, torch.nan)
        factor = factor.where(finite[..., None], 0.0)
        diagonal = self._repair(diagonal.where(finite, 1.0), is_broken)
        return _LowRankNormal(mean, factor, diagonal, validate_args=False)

    def _repair(self, diagonal: Tensor, is_broken: Callable[[Tensor], Tensor]) -> Tensor:
        """The diagonal; each task that `is_broken` gets the smallest jitter that mends it.

        A compiled graph cannot branch on values: it tries every jitter, and says nothing.
        """
        is_compiling = torch.compiler.is_compiling()
        with torch.no_grad():
            jitter = torch.zeros_like(diagonal[..., :1])
            for more in _JITTERS:
                broken = is_broken(diagonal + jitter)
                if not (is_compiling or broken.any()):
                    break
                jitter = jitter.masked_fill(broken[:, None], more)
            if not (is_compiling or self._has_warned) and jitter.any():
                self._has_warned = True
                warnings.warn(
                    f"a joint covariance was not positive definite: added "
                    f"{float(jitter.max()):.0e} to its diagonal (said once)",
                    stacklevel=2,
                )
        return diagonal + jitter


class _LowRankNormal(LowRankMultivariateNormal):
    r"""A low-rank normal whose log-density cannot come out too high by rounding.

    With $C = I + P^\top D^{-1} P$ and $b = C^{-1} P^\top D^{-1} x$,

    $$x^\top (P P^\top + D)^{-1} x
      = \lVert D^{-1/2} (x - P b) \rVert^2 + \lVert b \rVert^2$$

    where the usual form, $x^\top D^{-1} x - x^\top D^{-1} P b$, subtracts two large numbers if D is
    small, and in float32 may come out negative.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        difference, factor, diagonal = value - self.loc, self.cov_factor, self.cov_diag
        scale = torch.linalg.cholesky(_capacitance(factor, diagonal))
        projected = factor.mT @ (difference / diagonal)[..., None]
        b = torch.cholesky_solve(projected, scale)
        residual = difference - (factor @ b)[..., 0]
        distance = (residual.square() / diagonal).sum(dim=-1) + b.square().sum(dim=(-2, -1))
        log_det = diagonal.log().sum(dim=-1)
        log_det = log_det + 2 * scale.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        return -0.5 * (distance + log_det + math.log(2 * math.pi) * value.shape[-1])


def _capacitance(factor: Tensor, diagonal: Tensor) -> Float[Tensor, "*batch columns columns"]:
    """$I + P^\\top D^{-1} P$: as LowRankMultivariateNormal computes it, to the last bit."""
    capacitance = (factor.mT / diagonal[..., None, :]) @ factor
    return capacitance + torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
