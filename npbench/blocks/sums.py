"""Sums over points, which merge and forget exactly."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

from jaxtyping import Float, Integer
from torch import Tensor

from npbench.structure import TensorRecord

AnySums = TypeVar("AnySums", bound="Sums")


@dataclass(frozen=True, eq=False)
class Sums(TensorRecord):
    r"""Sums over a set of points: of their squares $c = \sum_n y_n^2$, their number n, and others.

    Sums form a commutative group: `merge` adds and `remove` subtracts, both exact but for rounding,
    in any order. Subclasses have further tensors, in float64, each of which is a sum too.
    """

    squares: Float[Tensor, "batch dim_y"]
    count: Integer[Tensor, "batch"]

    def merge(self: AnySums, other: AnySums) -> AnySums:
        """The sums over both sets of points."""
        return replace(self, **{name: z + getattr(other, name) for name, z in self.named()})

    def remove(self: AnySums, other: AnySums) -> AnySums:
        """The sums without the other's points, which these have in them."""
        return replace(self, **{name: z - getattr(other, name) for name, z in self.named()})

    def named(self) -> list[tuple[str, Tensor]]:
        """The tensors, with their names."""
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in pairs if isinstance(value, Tensor)]
