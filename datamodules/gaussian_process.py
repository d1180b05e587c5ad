"""Regression tasks from Gaussian processes whose kernel is known, with their exact answers."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor
from torch.distributions import Normal, StudentT

from datamodules.kernels import RandomKernel
from datamodules.readings import Readings
from datamodules.sampling import ContextTargetSplit
from npbench.task import Exact, Task


@dataclass(frozen=True)
class GPDraw:
    """All the random numbers of a batch of tasks. Whoever draws them chooses the order.

    The first `num_context` points of a task are its context, the next `num_target` its targets.
    With `readings` the former are sites, each of which is read several times.
    """

    num_context: Int[Tensor, "batch"]
    num_target: Int[Tensor, "batch"]
    x: Float[Tensor, "batch points dim_x"]
    hyperparameters: list[Tensor]
    white: Float[Tensor, "batch points dim_y"]
    outliers: Float[Tensor, "batch points dim_y"] | None
    readings: Readings | None = None

    @classmethod
    def stack(cls, draws: list["GPDraw"]) -> "GPDraw":
        """Join several draws, which have the same number of points, into one."""

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(draw, name) for draw in draws])

        return cls(
            cat("num_context"),
            cat("num_target"),
            cat("x"),
            [torch.cat(values) for values in zip(*(d.hyperparameters for d in draws))],
            cat("white"),
            None if draws[0].outliers is None else cat("outliers"),
            None if draws[0].readings is None else Readings.stack([d.readings for d in draws]),
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, tasks: slice) -> "GPDraw":
        """Some of the tasks."""
        return type(self)(
            self.num_context[tasks],
            self.num_target[tasks],
            self.x[tasks],
            [values[tasks] for values in self.hyperparameters],
            self.white[tasks],
            None if self.outliers is None else self.outliers[tasks],
            None if self.readings is None else self.readings[tasks],
        )

    @property
    def is_context(self) -> Bool[Tensor, "batch points"]:
        """Which points are context."""
        return torch.arange(self.x.shape[1]) < self.num_context[:, None]

    @property
    def is_target(self) -> Bool[Tensor, "batch points"]:
        """Which points are targets."""
        end = (self.num_context + self.num_target)[:, None]
        return ~self.is_context & (torch.arange(self.x.shape[1]) < end)

    def factor(
        self, kernel: RandomKernel, noise_std: float
    ) -> Float[Tensor, "batch points points"]:
        """The Cholesky factor of the covariance of all observations of each task, of which the
        readings of a site are one: their mean."""
        covariance = kernel.covariance(self.x.double(), self.hyperparameters)
        own = kernel.noise_variance(len(self), self.hyperparameters)
        more = self.noise_variance(kernel, noise_std) - own[:, None]
        covariance.diagonal(dim1=-2, dim2=-1).add_(more)
        return psd_safe_cholesky(covariance)

    def noise_variance(
        self, kernel: RandomKernel, noise_std: float
    ) -> Float[Tensor, "batch points"]:
        """The variance of the noise of each observation: the kernel's own and `noise_std`²."""
        own = kernel.noise_variance(len(self), self.hyperparameters)
        variance = (noise_std**2 + own)[:, None].expand(self.x.shape[:2])
        if self.readings is None:
            return variance
        return variance.where(~self.is_context, variance / self.readings.number[:, None])


def realise(kernel: RandomKernel, draw: GPDraw, noise_std: float, with_exact: bool) -> Task:
    r"""The tasks of a draw, computed in float64 and returned in float32.

    With $L L^\top = K(x, x) + \sigma^2 I$ and white noise $\epsilon$, the values are
    $y = L \epsilon$. The first rows of L belong to the first points alone, and so the factor that
    draws a task also answers it: with the context first, $p(y_t \mid y_c)$ has mean
    $L_{tc} \epsilon_c$ and covariance $L_{tt} L_{tt}^\top$, and the joint density of the targets
    is that of their own $\epsilon$ over $\prod L_{ii}$.

    `exact` is None where outliers were added, because the Gaussian process is not the truth then.
    Where sites are read several times, y are the means of their readings, which say all.
    """
    with torch.no_grad():
        x = draw.x.double()
        factor = draw.factor(kernel, noise_std)
        y = factor @ draw.white
        if draw.outliers is not None:
            return _split(draw, x, y + draw.outliers, exact=None)
        exact = _exact(draw, factor, y) if with_exact else None
        task = _split(draw, x, y, exact)
        if draw.readings is None:
            return task
        variance = noise_std**2 + kernel.noise_variance(len(draw), draw.hyperparameters)
        split = ContextTargetSplit(draw.num_context, draw.num_target)
        split, xc, yc = draw.readings.context(split, x, y, variance.sqrt())
        return replace(task, xc=xc.float(), yc=yc.float(), context_mask=split.context_mask)


def observed(
    kernel: RandomKernel, draw: GPDraw, noise_std: float, noise: Float[Tensor, "batch points dim_y"]
) -> tuple[GPDraw, Float[Tensor, "batch points dim_y"]]:
    r"""A draw of which the function itself is known too, without the noise of observations.

    With $K = U \Lambda U^\top$, without the noise that is the kernel's own, the function is
    $f = U \Lambda^{1/2} \epsilon$ and the observations are $y = f + \sigma \eta$; the new draw has
    the white noise $L^{-1} y$, of which `realise` makes them. An eigenvalue that rounding made
    negative counts as 0.

    Args:
        kernel: of the process.
        draw: whose white noise is that of the function.
        noise_std: standard deviation of the noise that is not the kernel's.
        noise: η, of the standard normal distribution.

    Returns:
        The draw of the observations, and the function at all points.
    """
    with torch.no_grad():
        covariance = kernel.covariance(draw.x.double(), draw.hyperparameters)
        own = kernel.noise_variance(len(draw), draw.hyperparameters)
        covariance.diagonal(dim1=-2, dim2=-1).sub_(own[:, None])
        values, vectors = torch.linalg.eigh(covariance)
        function = vectors @ (values.clamp(min=0.0).sqrt()[..., None] * draw.white)
        y = function + draw.noise_variance(kernel, noise_std).sqrt()[..., None] * noise
        white = torch.linalg.solve_triangular(draw.factor(kernel, noise_std), y, upper=False)
    return replace(draw, white=white), function


def _exact(draw: GPDraw, factor: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean and std of every point given the context, and both log-likelihoods per target."""
    is_target = draw.is_target
    from_context = factor * draw.is_context[:, None, :]
    mean = from_context @ draw.white
    std = (factor - from_context).square().sum(-1, keepdim=True).sqrt().expand_as(mean)

    def per_target(log_density: Tensor) -> Tensor:
        return log_density.sum(-1).masked_fill(~is_target, 0.0).sum(-1) / draw.num_target

    # The std of the context points is 0, of which there is no density; 1 stands in for it.
    marginal = Normal(mean, std.masked_fill(~is_target[..., None], 1.0))
    log_pivot = factor.diagonal(dim1=-2, dim2=-1).log()[..., None]
    joint = Normal(0.0, 1.0).log_prob(draw.white) - log_pivot
    return mean, std, per_target(marginal.log_prob(y)), per_target(joint)


def _split(
    draw: GPDraw, x: Tensor, y: Tensor, exact: tuple[Tensor, Tensor, Tensor, Tensor] | None
) -> Task:
    """The task in which context and targets stand apart."""
    split = ContextTargetSplit(draw.num_context, draw.num_target)
    if exact is not None:
        mean, std, log_likelihood, joint_log_likelihood = exact
        exact = Exact(
            split.targets(mean).float(),
            split.targets(std).float(),
            log_likelihood.float(),
            joint_log_likelihood.float(),
        )
    return Task(
        *(half(values).float() for half in (split.context, split.targets) for values in (x, y)),
        split.context_mask,
        split.target_mask,
        exact,
    )


def outliers(shape: torch.Size, scale: float) -> Tensor:
    """Draws from `scale`·StudentT(2.1), the official out-of-distribution contamination."""
    return scale * StudentT(torch.tensor(2.1, dtype=torch.float64)).sample(shape)
