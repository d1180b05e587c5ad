"""The Fourier transform of a set of points: sums, which know the second moments of any features."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from npbench.blocks.frequency_grid import FrequencyGrid
from npbench.blocks.second_moments import SecondMoments
from npbench.blocks.sums import Sums


@dataclass(frozen=True, eq=False)
class FourierMoments(Sums):
    r"""The transform of points with one input, on a grid of frequencies, in float64:

    $$C(w) = \sum_n e^{i w x_n}, \qquad B(w) = \sum_n y_n e^{i w x_n}, \qquad
      c = \sum_n y_n^2, \qquad n$$

    The second moments of Fourier features depend on frequencies only through their sums and
    differences,

    $$\sum_n \cos w x_n \cos w' x_n = \tfrac 12 \mathrm{Re}\,[C(w - w') + C(w + w')]$$

    and so on, so that the features may be chosen after the points were seen. `points` and `outputs`
    hold the real and imaginary parts of C and B on the `grid`, C up to twice its top. Inputs count
    from the centre of the grid's range.

    Example:
        >>> x, y = torch.rand(2, 3, 10, 1)
        >>> moments = FourierMoments.of(FrequencyGrid(-2.0, 2.0, top=50.0), x, y)
        >>> moments.second_moments(torch.tensor([0.0, 17.3])).gram.shape
        torch.Size([3, 4, 4])
    """

    points: Float[Tensor, "batch double_size 2"]
    outputs: Float[Tensor, "batch dim_y size 2"]
    grid: FrequencyGrid

    @classmethod
    def of(
        cls,
        grid: FrequencyGrid,
        x: Float[Tensor, "batch points 1"],
        y: Float[Tensor, "batch points dim_y"],
        mask: Bool[Tensor, "batch points"] | None = None,
    ) -> "FourierMoments":
        """The sums over these points, or over those that the mask says are real."""
        y = y.double()
        one = torch.ones_like(y[..., :1])
        count = torch.full([len(y)], y.shape[1], device=y.device)
        if mask is not None:
            x, y, one = (z.masked_fill(~mask[..., None], 0.0) for z in (x, y, one))
            count = mask.sum(dim=-1)
        points = grid.transform(x[..., 0], one, grid.size_for(2 * grid.top))[:, 0]
        outputs = grid.transform(x[..., 0], y, grid.size)
        squares = y.square().sum(dim=1)
        return cls(squares, count, torch.view_as_real(points), torch.view_as_real(outputs), grid)

    def points_at(self, frequency: Float[Tensor, "tasks w"]) -> Complex[Tensor, "batch w"]:
        """C, at frequencies of all tasks or of each."""
        return self.grid.at(torch.view_as_complex(self.points)[:, None], frequency)[:, 0]

    def outputs_at(self, frequency: Float[Tensor, "tasks w"]) -> Complex[Tensor, "batch dim_y w"]:
        """B, at frequencies of all tasks or of each."""
        return self.grid.at(torch.view_as_complex(self.outputs), frequency)

    def second_moments(self, frequency: Float[Tensor, "features"]) -> SecondMoments:
        """The second moments of [cos w x, sin w x], for each of these frequencies w."""
        number, frequency = len(frequency), frequency.double()
        pairs = torch.stack(
            [frequency[:, None] - frequency, frequency[:, None] + frequency]
        ).flatten()
        difference, total = self.points_at(pairs[None]).unflatten(-1, (2, number, number)).unbind(1)
        outputs = self.outputs_at(frequency[None]).mT
        targets = torch.cat([outputs.real, outputs.imag], dim=1)
        return SecondMoments.of_gram(_gram(difference, total), targets, self.squares, self.count)

    def harmonic_moments(
        self, base: Float[Tensor, "tasks bases"], num_harmonics: int
    ) -> tuple[Float[Tensor, "batch bases m m"], Float[Tensor, "batch bases m dim_y"]]:
        """A and b of [cos k w x, sin k w x], k = 0, …, K, for each of these base frequencies w."""
        order = torch.arange(2 * num_harmonics + 1, device=base.device)
        points = self.points_at((base[..., None] * order).flatten(1)).unflatten(
            -1, (-1, len(order))
        )
        k = order[: num_harmonics + 1]
        difference = k[:, None] - k
        below = points[..., difference.abs()]
        below = torch.where(difference < 0, below.conj(), below)
        outputs = self.outputs_at((base[..., None] * k).flatten(1)).unflatten(-1, (-1, len(k)))
        outputs = outputs.permute(0, 2, 3, 1)
        targets = torch.cat([outputs.real, outputs.imag], dim=2)
        return _gram(below, points[..., k[:, None] + k]), targets


def _gram(
    difference: Complex[Tensor, "*batch w w"], total: Complex[Tensor, "*batch w w"]
) -> Float[Tensor, "*batch m m"]:
    """A of cosines and sines, from C at the differences and sums of their frequencies."""
    cosines = (total.real + difference.real) / 2
    sines = (difference.real - total.real) / 2
    crossed = (total.imag - difference.imag) / 2
    upper = torch.cat([cosines, crossed], dim=-1)
    return torch.cat([upper, torch.cat([crossed.mT, sines], dim=-1)], dim=-2)
