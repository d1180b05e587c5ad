"""Distances of two points, from their coordinates one by one.

A point comes as the sequence of its coordinates, each a tensor; those of queries and those of keys
broadcast against each other. So one formula serves all pairs of a chunk, and one pair at a time in
a kernel of a GPU.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from npbench.errors import InputError

Coordinates = Sequence[Tensor]


class Distance(ABC):
    """A distance of a query a and a key b."""

    num_columns: ClassVar[int | None] = None
    """How many coordinates it takes; None: any number."""

    hides: ClassVar[bool] = False
    """Whether it may be infinite, which hides the key from the query."""

    @abstractmethod
    def squared(self, a: Coordinates, b: Coordinates) -> Tensor:
        """d² of all pairs."""

    def between(self, a: Coordinates, b: Coordinates) -> Tensor:
        """d of all pairs; its gradient is 0 where d is."""
        return _root(self.squared(a, b))

    def check(self, x: Float[Tensor, "*batch columns"]) -> None:  # noqa: B027 -- most take any
        """Refuse coordinates that the distance is not defined for.

        Raises:
            InputError: which says where they are.
        """


@dataclass(frozen=True)
class Euclidean(Distance):
    r"""$d^2 = \sum_i (a_i - b_i)^2$, from the differences, so that near points keep all digits.

    Example:
        >>> zero, three, four = (torch.tensor(number) for number in (0.0, 3.0, 4.0))
        >>> Euclidean().between([zero, zero], [three, four])
        tensor(5.)
    """

    def squared(self, a: Coordinates, b: Coordinates) -> Tensor:
        return _sum_of_squares([p - q for p, q in zip(a, b, strict=True)])


@dataclass(frozen=True)
class Periodic(Distance):
    r"""$d^2 = \sum_i \big(\tfrac{p}{\pi} \sin \tfrac{\pi (a_i - b_i)}{p}\big)^2$: the Euclidean
    distance where points are near, and 0 again a period p apart.

    Args:
        period: p, in the unit of the inputs.
    """

    period: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.period < math.inf:
            raise InputError(f"period={self.period} must be a positive number")

    def squared(self, a: Coordinates, b: Coordinates) -> Tensor:
        rate = math.pi / self.period
        return _sum_of_squares([((p - q) * rate).sin() / rate for p, q in zip(a, b, strict=True)])


@dataclass(frozen=True)
class GreatCircle(Distance):
    """The angle in degrees between two points of a sphere, given as (longitude, latitude) in
    degrees, by the haversine formula.

    Example:
        >>> zero, right = torch.tensor(0.0), torch.tensor(90.0)
        >>> float(GreatCircle().between([zero, zero], [zero, right]))
        90.0
    """

    num_columns: ClassVar[int] = 2

    def between(self, a: Coordinates, b: Coordinates) -> Tensor:
        (lon_a, lat_a), (lon_b, lat_b) = ([torch.deg2rad(z) for z in point] for point in (a, b))
        haversine = ((lat_a - lat_b) / 2).sin().square()
        haversine = haversine + lat_a.cos() * lat_b.cos() * ((lon_a - lon_b) / 2).sin().square()
        sine, cosine = _root(haversine), _root(1 - haversine)
        return torch.rad2deg(2 * torch.atan2(sine, cosine))

    def squared(self, a: Coordinates, b: Coordinates) -> Tensor:
        return self.between(a, b).square()

    def check(self, x: Float[Tensor, "*batch columns"]) -> None:
        if torch.compiler.is_compiling() or not x.numel():
            return
        latitudes = x[..., 1].detach()
        furthest = latitudes.flatten()[latitudes.abs().argmax()]
        if furthest.abs() > 90:
            raise InputError(
                f"a great-circle bias takes (longitude, latitude) in degrees, and got a latitude "
                f"of {float(furthest):g}: latitudes are from -90 to 90"
            )


@dataclass(frozen=True)
class Causal(Distance):
    """The time since the key, or infinity if it comes after the query, from which it is hidden.

    Example:
        >>> now, before, after = (torch.tensor(number) for number in (2.0, 0.5, 3.0))
        >>> Causal().between([now], [before]), Causal().between([now], [after])
        (tensor(1.5000), tensor(inf))
    """

    num_columns: ClassVar[int] = 1
    hides: ClassVar[bool] = True

    def between(self, a: Coordinates, b: Coordinates) -> Tensor:
        since = a[0] - b[0]
        return torch.where(since >= 0, since, torch.inf)

    def squared(self, a: Coordinates, b: Coordinates) -> Tensor:
        return self.between(a, b).square()


def _sum_of_squares(differences: Sequence[Tensor]) -> Tensor:
    first, *others = (difference.square() for difference in differences)
    for square in others:
        first = first + square
    return first


def _root(square: Tensor) -> Tensor:
    """The root, whose gradient is 0 where the square is not positive."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
