"""Common kernels with their priors, each in one entry of a configuration.

The nested entries of GPyTorch's own kernels and priors say the same, and more besides, but are slow
to parse: each level of nesting takes about three times as long as the one above it.
"""

from gpytorch.kernels import Kernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel

from datamodules.kernels import LogUniformPrior, SquaredUniformPrior
from npbench.errors import InputError

_SMOOTHNESS = 0.5, 1.5, 2.5


class ScaledMatern(ScaleKernel):
    r"""$\sigma^2 k_\nu(\lVert x - x' \rVert / \ell)$, a Matérn or RBF kernel with priors.

    It is a `ScaleKernel` of a `MaternKernel` or an `RBFKernel`, with two `LogUniformPrior`s.

    Args:
        length: ℓ is log-uniform on [a, b).
        variance: σ² is log-uniform on [a, b).
        nu: the smoothness ν, 0.5, 1.5 or 2.5; None for its limit ∞, the RBF kernel.

    Raises:
        InputError: for another ν.

    Example:
        >>> kernel = ScaledMatern(length=(0.05, 2.0), variance=(0.02, 4.0), nu=1.5)
        >>> [name for name, *_ in kernel.named_priors()]
        ['outputscale_prior', 'base_kernel.lengthscale_prior']
    """

    def __init__(
        self, length: tuple[float, float], variance: tuple[float, float], nu: float | None = None
    ) -> None:
        prior = LogUniformPrior(*length)
        if nu is None:
            base: Kernel = RBFKernel(lengthscale_prior=prior)
        elif nu not in _SMOOTHNESS:
            raise InputError(f"nu={nu} must be 0.5, 1.5 or 2.5, or left out for the RBF kernel")
        else:
            base = MaternKernel(nu, lengthscale_prior=prior)
        super().__init__(base, outputscale_prior=LogUniformPrior(*variance))


class ScaledPeriodic(ScaleKernel):
    r"""$\sigma^2 \exp(-2 \sin^2(\pi |x - x'| / p) / \ell^2)$ of one input, with priors.

    It is a `ScaleKernel` of a `PeriodicKernel`, whose length scale is ℓ².

    Args:
        period: p is log-uniform on [a, b).
        length: ℓ is uniform on [a, b).
        variance: σ² is log-uniform on [a, b).

    Example:
        >>> import torch
        >>> kernel = ScaledPeriodic(period=(0.1, 2.0), length=(0.1, 1.0), variance=(0.02, 4.0))
        >>> kernel(torch.tensor([[0.0]])).shape
        torch.Size([1, 1])
    """

    def __init__(
        self,
        period: tuple[float, float],
        length: tuple[float, float],
        variance: tuple[float, float],
    ) -> None:
        base = PeriodicKernel(
            ard_num_dims=1,
            period_length_prior=LogUniformPrior(*period),
            lengthscale_prior=SquaredUniformPrior(*length),
        )
        super().__init__(base, outputscale_prior=LogUniformPrior(*variance))
