"""Second moments of a set of points: sums, which merge and forget exactly."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from npbench.blocks.sums import Sums


@dataclass(frozen=True, eq=False)
class SecondMoments(Sums):
    r"""All that Bayesian linear regression asks of points with features φ, in float64:

    $$A = \sum_n \varphi_n \varphi_n^\top, \qquad b = \sum_n \varphi_n y_n^\top, \qquad
      c = \sum_n y_n^2, \qquad n$$

    `products` holds the upper triangle of A, row by row.

    Example:
        >>> features, y = torch.randn(2, 10, 4), torch.randn(2, 10, 1)
        >>> moments = SecondMoments.of(features, y)
        >>> moments.products.shape, moments.gram.shape
        (torch.Size([2, 10]), torch.Size([2, 4, 4]))
    """

    products: Float[Tensor, "batch triangle"]
    targets: Float[Tensor, "batch m dim_y"]

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "batch points m"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> "SecondMoments":
        """The sums over these points, or over those that the mask says are real."""
        features, y = features.double(), y.double()
        count = torch.full([len(y)], y.shape[1], device=y.device)
        if mask is not None:
            features, y = (z.masked_fill(~mask[..., None], 0.0) for z in (features, y))
            count = mask.sum(dim=-1)
        return cls.of_gram(features.mT @ features, features.mT @ y, y.square().sum(dim=1), count)

    @classmethod
    def of_gram(
        cls,
        gram: Float[Tensor, "batch m m"],
        targets: Float[Tensor, "batch m dim_y"],
        squares: Float[Tensor, "batch dim_y"],
        count: Integer[Tensor, "batch"],
    ) -> "SecondMoments":
        """These sums, given the whole of A."""
        rows, columns = _triangle(gram.shape[-1], gram.device)
        return cls(squares, count, gram[:, rows, columns], targets)

    @property
    def gram(self) -> Float[Tensor, "batch m m"]:
        """The whole of A."""
        m = self.targets.shape[1]
        rows, columns = _triangle(m, self.products.device)
        index = torch.empty(m, m, dtype=torch.long, device=self.products.device)
        index[rows, columns] = index[columns, rows] = torch.arange(len(rows), device=index.device)
        return self.products[:, index]


def _triangle(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(size, size, device=device)
    return rows, columns
