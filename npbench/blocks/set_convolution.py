"""From points to a grid and back, by sums of kernels: set convolutions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError

# A grid takes as many nodes as fill it in so many dimensions.
_MOST_DIMS = 2


@dataclass(frozen=True)
class Grid:
    """Nodes in a box of the inputs, equally far apart in all directions.

    Args:
        low: lower end of the box, one number for all inputs or one each.
        high: upper end.
        spacing: distance of neighbouring nodes; by default 1/128 of the longest side for one input,
            and 1/32 for two.
        margin: how far the grid reaches beyond the box; by default 8 spacings.

    Example:
        >>> [axis.tolist() for axis in Grid(0.0, 1.0, spacing=0.5, margin=0.0).axes(dim_x=1)]
        [[0.0, 0.5, 1.0]]
    """

    low: float | tuple[float, ...] = -2.0
    high: float | tuple[float, ...] = 2.0
    spacing: float | None = None
    margin: float | None = None

    def resolved(self, dim_x: int) -> "Grid":
        """The same grid with all fields written out, which are equal where the grids are.

        Raises:
            InputError: if the box is none, or there are too many inputs.
        """
        if not 1 <= dim_x <= _MOST_DIMS:
            raise InputError(
                f"dim_x={dim_x}: a grid takes 1 or {_MOST_DIMS} inputs; attention takes any number"
            )
        ends = []
        for name, given in (("low", self.low), ("high", self.high)):
            end = tuple(torch.tensor(given, dtype=torch.float64).reshape(-1).tolist())
            if len(end) not in (1, dim_x):
                raise InputError(
                    f"grid.{name}={given} must be one number, or one for each of {dim_x} inputs"
                )
            ends.append(end * (dim_x // len(end)))
        low, high = ends
        if not all(math.isfinite(b - a) and a < b for a, b in zip(low, high)):
            raise InputError(
                f"grid.low={self.low} must be below grid.high={self.high}, both finite"
            )
        longest = max(b - a for a, b in zip(low, high))
        spacing = longest / (128 if dim_x == 1 else 32) if self.spacing is None else self.spacing
        margin = 8 * spacing if self.margin is None else self.margin
        if not (0 < spacing < math.inf and 0 <= margin < math.inf):
            raise InputError(
                f"grid.spacing={self.spacing} must be a positive number, and "
                f"grid.margin={self.margin} 0 or more"
            )
        if min(b - a for a, b in zip(low, high)) < spacing:
            raise InputError(
                f"grid.spacing={spacing} is wider than the box from {list(low)} to {list(high)}: a "
                f"grid has two nodes or more in each direction"
            )
        return Grid(low, high, spacing, margin)

    def on(
        self, low: float | tuple[float, ...], high: float | tuple[float, ...], dim_x: int
    ) -> "Grid":
        """The grid of another box, as dense as this."""
        return replace(self.resolved(dim_x), low=low, high=high).resolved(dim_x)

    def axes(self, dim_x: int, multiple: int = 1) -> list[Float[Tensor, "nodes"]]:
        """The coordinates of the nodes in each direction, in float64.

        Args:
            dim_x: number of inputs.
            multiple: the number of nodes is one of this; the grid grows on both sides alike.
        """
        grid = self.resolved(dim_x)
        lows, highs = cast(tuple[float, ...], grid.low), cast(tuple[float, ...], grid.high)
        spacing, margin = cast(float, grid.spacing), cast(float, grid.margin)
        axes = []
        for low, high in zip(lows, highs):
            sides = (high - low + 2 * margin) / spacing
            number = multiple * math.ceil((math.ceil(sides - 1e-6) + 1) / multiple)
            steps = torch.arange(number, dtype=torch.float64) - (number - 1) / 2
            axes.append((low + high) / 2 + spacing * steps)
        return axes


class SetConvolution(nn.Module):
    r"""Values of points as a function on a grid, and a function on a grid at points.

    $$F(u) = \sum_n \psi(u - x_n)\, v_n, \qquad f(x) = \sum_u \psi(x - u)\, F(u), \qquad
      \psi(d) = e^{-|d|^2 / 2 \ell^2}$$

    ψ is a product over dimensions, so that no matrix of points × nodes of a plane is formed.

    Args:
        length: ℓ at first; it is learned as a factor.
    """

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length
        self.log_factor = nn.Parameter(torch.zeros(()))

    def to_grid(
        self,
        x: Float[Tensor, "batch points dim_x"],
        values: Float[Tensor, "batch points channels"],
        axes: Sequence[Float[Tensor, "_"]],
    ) -> Float[Tensor, "batch channels *nodes"]:
        """F of values at x."""
        first, *others = self._kernels(x, axes)
        if not others:
            return values.mT @ first
        weighted = values.mT[:, :, None] * first.mT[:, None]
        return (weighted.flatten(1, 2) @ others[0]).unflatten(1, weighted.shape[1:3])

    def to_points(
        self,
        x: Float[Tensor, "batch points dim_x"],
        function: Float[Tensor, "batch channels *nodes"],
        axes: Sequence[Float[Tensor, "_"]],
    ) -> Float[Tensor, "batch points channels"]:
        """f at x."""
        first, *others = self._kernels(x, axes)
        if not others:
            return first @ function.mT
        columns = others[0] @ function.flatten(1, 2).mT
        columns = columns.unflatten(-1, function.shape[1:3])
        return torch.einsum("bnci,bni->bnc", columns, first)

    def _kernels(self, x: Tensor, axes: Sequence[Tensor]) -> list[Float[Tensor, "batch points _"]]:
        rate = (-self.log_factor).exp() / self.length
        return [
            ((x[..., i : i + 1] - axis) * rate).square().mul(-0.5).exp()
            for i, axis in enumerate(axes)
        ]
