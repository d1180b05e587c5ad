"""Kernels of distance, which attention adds to its scores or takes as its weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError

# The compact kernel is (1 − r²/2k)^k with k = 2^_DOUBLINGS.
_DOUBLINGS = 4
_POWER = 2**_DOUBLINGS
REACH = math.sqrt(2 * _POWER)
"""Distance beyond which the compact kernel is 0, in lengths."""
# The base 1 − r²/2k below which it counts as 0, so that no weight is a denormal number.
_LEAST_BASE = 2.0**-6


class Lengths(nn.Module):
    r"""A length $\ell_h$ of each head, learned as a factor of the one that is given.

    $\ell_h = \ell_h^0\, e^{\delta_h}$ with $\delta_h = 0$ at first. An infinite length stays so:
    its head sees no distance.

    Args:
        lengths: $\ell_h^0$ of each head, in the unit of x.
    """

    initial_rates: Tensor

    def __init__(self, lengths: Sequence[float]) -> None:
        super().__init__()
        if not lengths or not all(length > 0 for length in lengths):
            raise InputError(f"lengths={list(lengths)} must be one positive number a head")
        rates = torch.tensor([1 / length for length in lengths])
        self.register_buffer("initial_rates", rates, persistent=False)
        self.log_factors = nn.Parameter(torch.zeros(len(lengths)))

    @property
    def rates(self) -> Float[Tensor, "heads"]:
        """1/ℓ, which is 0 for an infinite length."""
        return self.initial_rates * self.log_factors.neg().exp()


def squared_distances(
    a: Float[Tensor, "*#batch queries dim_x"], b: Float[Tensor, "*#batch keys dim_x"]
) -> Float[Tensor, "*batch queries keys"]:
    """|a − b|² of all pairs, from the differences, so that near pairs keep all digits."""
    if a.shape[-1] == 1:
        return (a - b.mT).square()
    return (a[..., :, None, :] - b[..., None, :, :]).square().sum(dim=-1)


class GaussianBias(Lengths):
    r"""What the scores of attention get added: $-|a - b|^2 / (2 \ell_h^2)$ for each head h.

    Args:
        lengths: as of `Lengths`.

    Example:
        >>> bias = GaussianBias([0.5, float("inf")])
        >>> bias(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])).tolist()
        [[[-0.0, -2.0], [-2.0, -0.0]], [[-0.0, -0.0], [-0.0, -0.0]]]
    """

    def forward(
        self, a: Float[Tensor, "*#batch queries dim_x"], b: Float[Tensor, "*#batch keys dim_x"]
    ) -> Float[Tensor, "*batch heads queries keys"]:
        factors = -0.5 * self.rates.square()
        return squared_distances(a, b)[..., None, :, :] * factors[:, None, None]


class CompactKernel(Lengths):
    r"""Weights of points at places that are exactly 0 beyond a distance of $R = \sqrt{2k}$ lengths.

    $$\kappa(r) = \left(1 - \frac{r^2}{2k}\right)_+^k, \qquad r = |x - u| / \ell_h, \qquad k = 16$$

    This is nearly $e^{-r^2/2}$, to which it tends as k grows; but a place need not be scored by a
    point that is out of its reach, and a place that no point reaches holds exactly nothing.

    Args:
        lengths: as of `Lengths`.

    Example:
        >>> kernel = CompactKernel([1.0])
        >>> x, u = torch.tensor([[0.0], [1.0], [6.0]]), torch.zeros(1, 1, 1)
        >>> kernel(x, u).flatten()
        tensor([1.0000, 0.6017, 0.0000], grad_fn=<ViewBackward0>)
    """

    def forward(
        self, x: Float[Tensor, "*batch points dim_x"], places: Float[Tensor, "heads places dim_x"]
    ) -> Float[Tensor, "*batch heads places points"]:
        distances = squared_distances(places, x[..., None, :, :])
        return compact(distances, self.rates[:, None, None])

    def distances(
        self, log_mass: Float[Tensor, "*batch heads places"]
    ) -> Float[Tensor, "*batch heads places"]:
        r"""How far a point alone is that has this mass, in lengths: $\sqrt{2k (1 - m^{1/k})}$, of
        log m from which $\log(1 + m)$ is taken, so that it is smooth where m is 1 or more."""
        soft = F.logsigmoid(log_mass)
        return (-2 * _POWER * torch.expm1(soft / _POWER)).clamp(min=1e-12).sqrt()

    def log_mass(self, density: float, dim_x: int) -> Float[Tensor, "heads 1"]:
        r"""The logarithm of the weights' sum where so many points lie in each unit of volume.

        It is that of $e^{-r^2/2}$, $\log \rho + d \log(\sqrt{2\pi}\, \ell_h)$, in d inputs.
        """
        length = math.sqrt(2 * math.pi) / self.rates
        return (math.log(density) + dim_x * length.log())[:, None]


def compact(
    squared_distances: Float[Tensor, "*batch places points"], rates: Float[Tensor, "*heads 1 1"]
) -> Float[Tensor, "*batch places points"]:
    """κ of squared distances, for lengths 1/rates."""
    base = 1 - squared_distances * (rates.square() / (2 * _POWER))
    return _Power.apply(F.threshold(base, _LEAST_BASE, 0.0))


class _Power(torch.autograd.Function):
    """base^k by squaring, of a base that is 0 or at least `_LEAST_BASE`: the same bits however many
    there are at once, and a backward of two operations."""

    @staticmethod
    def forward(ctx: Any, base: Tensor) -> Tensor:
        power = base.square()
        for _ in range(_DOUBLINGS - 1):
            power.square_()
        ctx.save_for_backward(base, power)
        return power

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        base, power = ctx.saved_tensors
        return grad * (_POWER * power / base.clamp(min=_LEAST_BASE))
