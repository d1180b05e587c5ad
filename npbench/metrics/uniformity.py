"""How far numbers are from uniform, which those of calibrated predictions are."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from npbench.errors import InputError


class KolmogorovSmirnov(Metric):
    r"""The Kolmogorov–Smirnov distance of values in [0, 1] from the uniform distribution.

    $$D = \sup_u |F_n(u) - u|$$

    where $F_n$ is the empirical distribution function. By the time-rescaling theorem the values
    $u = F(\tau)$ of a right model are uniform; D of n such values is about $0.87 / \sqrt n$. It is
    taken at the edges of bins of equal width, and too small by one such width at most.

    Args:
        num_bins: number of bins.

    Example:
        >>> metric = KolmogorovSmirnov()
        >>> metric.update(torch.tensor([0.5, 0.5, 0.5, 0.5]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_bins: int = 10_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_bins < 1:
            raise InputError(f"num_bins={num_bins} must be 1 or more")
        self.num_bins = num_bins
        self.add_state("counts", torch.zeros(num_bins, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, u: Float[Tensor, "values"]) -> None:
        self.counts += counts_of(u, self.num_bins)

    def compute(self) -> Tensor:
        below = self.counts.cumsum(dim=0).double() / self.counts.sum()
        edges = torch.arange(1, self.num_bins + 1, device=below.device) / self.num_bins
        return (below - edges).abs().max()


class PITHistogram(Metric):
    r"""The histogram of probability integral transforms $u = F(y)$, over bins of equal width.

    F is the predicted distribution function and y the value that came. Of calibrated predictions u
    is uniform on [0, 1]. A histogram that is high at both ends is that of predictions that are too
    sure of themselves, one that is high in the middle that of predictions that are too wide.

    Args:
        num_bins: number of bins.

    Source: Gneiting, Balabdaoui and Raftery, *Probabilistic forecasts, calibration and sharpness*,
    J. R. Stat. Soc. B 2007.

    Example:
        >>> metric = PITHistogram(num_bins=4)
        >>> metric.update(torch.tensor([0.1, 0.2, 0.6, 1.0]))
        >>> metric.compute()
        tensor([2, 0, 1, 1])
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_bins: int = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = num_bins
        self.add_state("counts", torch.zeros(num_bins, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, u: Float[Tensor, "values"]) -> None:
        self.counts += counts_of(u, self.num_bins)

    def compute(self) -> Tensor:
        """The number of values in each bin."""
        return self.counts.clone()


def counts_of(u: Float[Tensor, "values"], num_bins: int) -> Int[Tensor, "bins"]:
    """How many of the values in [0, 1] lie in each of so many bins of equal width."""
    bins = (u.double() * num_bins).long().clamp(0, num_bins - 1)
    return torch.bincount(bins, minlength=num_bins)
