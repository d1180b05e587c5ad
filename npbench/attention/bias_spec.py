"""Which bias the scores of attention get added, as configurations say it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from npbench.attention.distances import Causal, Euclidean, GreatCircle, Periodic
from npbench.attention.pair_bias import (
    CentredRBFBias,
    ExponentialBias,
    PairBias,
    RBFBias,
    ScalarBias,
)
from npbench.errors import InputError


@dataclass(frozen=True)
class Bias:
    """Which bias the scores of attention get added.

    Args:
        kernel: "rbf" (`RBFBias`), "centred_rbf" (`CentredRBFBias`), "scalar" (`ScalarBias`) or
            "exponential" (`ExponentialBias`).
        columns: which inputs the distance is of; None: all.
        distance: "euclidean", "periodic", "great_circle" (of longitude and latitude in degrees) or
            "causal" (of a time; a later key is hidden).
        num_basis: number of basis functions of a network.
        length: the distance at which the bias changes, at first.
        spread: ratio of the rates of neighbouring basis functions, at first; with 1 they start
            equal, and stay so.
        period: of the periodic distance.

    Source: Jenson et al., *Transformer Neural Processes – Kernel Regression*, 2024.

    Example:
        >>> bias = Bias(columns=(0, 1)).build(num_heads=4, dim_x=3)
        >>> bias(torch.randn(10, 3), torch.randn(20, 3)).shape
        torch.Size([4, 10, 20])
    """

    kernel: Literal["rbf", "centred_rbf", "scalar", "exponential"] = "rbf"
    columns: Sequence[int] | None = None
    distance: Literal["euclidean", "periodic", "great_circle", "causal"] = "euclidean"
    num_basis: int = 5
    length: float = 1.0
    spread: float = 4.0
    period: float = 1.0

    def chosen(self, dim_x: int) -> tuple[int, ...]:
        """The columns of so many inputs.

        Raises:
            InputError: if there is no such column, or one is named twice.
        """
        columns = tuple(range(dim_x)) if self.columns is None else tuple(self.columns)
        wrong = [column for column in columns if not 0 <= column < dim_x]
        if wrong:
            raise InputError(
                f"bias.columns={list(columns)} names column {wrong[0]}, which does not exist: "
                f"dim_x={dim_x} inputs are columns 0 to {dim_x - 1}"
            )
        if not columns or len(set(columns)) < len(columns):
            raise InputError(
                f"bias.columns={list(columns)} must name one input or more, each of them once"
            )
        return columns

    def build(self, num_heads: int, dim_x: int) -> PairBias:
        """The module.

        Raises:
            InputError: if the kernel, the distance or a column does not exist, or the distance is
                not one of so many columns.
        """
        if self.kernel not in _KERNELS:
            raise InputError(f"bias.kernel={self.kernel!r} must be one of {', '.join(_KERNELS)}")
        if self.distance not in _DISTANCES:
            raise InputError(
                f"bias.distance={self.distance!r} must be one of {', '.join(_DISTANCES)}"
            )
        if not (self.length > 0 and self.spread > 0):
            raise InputError(
                f"bias.length={self.length} and bias.spread={self.spread} must be positive numbers"
            )
        columns = self.chosen(dim_x)
        kind = _DISTANCES[self.distance]
        distance = kind(self.period) if kind is Periodic else kind()
        if distance.num_columns not in (None, len(columns)):
            raise InputError(
                f"the {self.distance} distance is one of {distance.num_columns} column(s), not of "
                f"bias.columns={list(columns)}"
            )
        if self.kernel == "scalar":
            return ScalarBias(num_heads, distance, columns, self.length)
        network = _KERNELS[self.kernel]
        return network(num_heads, distance, columns, self.num_basis, self.length, self.spread)


_KERNELS = {
    "rbf": RBFBias,
    "centred_rbf": CentredRBFBias,
    "scalar": ScalarBias,
    "exponential": ExponentialBias,
}
_DISTANCES = {
    "euclidean": Euclidean,
    "periodic": Periodic,
    "great_circle": GreatCircle,
    "causal": Causal,
}
