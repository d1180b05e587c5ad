"""Sets of points."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from npbench.structure import TensorRecord


@dataclass(frozen=True, eq=False)
class Points(TensorRecord):
    """A checked set of points: inputs, outputs, and which of them are real (None: all)."""

    x: Float[Tensor, "batch points dim_x"]
    y: Float[Tensor, "batch points dim_y"]
    mask: Bool[Tensor, "batch points"] | None = None

    @property
    def xy(self) -> Float[Tensor, "batch points dim_xy"]:
        return torch.cat([self.x, self.y], dim=-1)

    @property
    def attention_mask(self) -> Bool[Tensor, "batch 1 points"] | None:
        """The mask as attention takes it: the same points for every query."""
        return None if self.mask is None else self.mask[:, None]

    @property
    def count(self) -> Integer[Tensor, "batch"]:
        """Number of real points of each task."""
        if self.mask is None:
            return self.x.new_full([self.x.shape[0]], self.x.shape[1], dtype=torch.long)
        return self.mask.sum(dim=-1)

    @classmethod
    def concatenate(cls, sets: Iterable["Points"]) -> "Points":
        """All points of all sets, in their order."""
        sets = list(sets)
        if len(sets) == 1:
            return sets[0]
        mask = None
        if any(points.mask is not None for points in sets):
            mask = torch.cat([points.full_mask for points in sets], dim=1)
        x, y = (torch.cat([getattr(points, z) for points in sets], dim=1) for z in "xy")
        return cls(x, y, mask)

    @property
    def full_mask(self) -> Bool[Tensor, "batch points"]:
        if self.mask is not None:
            return self.mask
        return self.x.new_ones(self.x.shape[:2], dtype=torch.bool)

    def take(self, order: Integer[Tensor, "batch points"]) -> "Points":
        """The points of each task at these indices."""
        return self.map(lambda z: take(z, order))

    def packed(self) -> "Points":
        """The same points, all padding behind the real ones."""
        return self if self.mask is None else self.take(self.real_first)

    @property
    def real_first(self) -> Integer[Tensor, "batch points"]:
        """The order of the points in `packed`."""
        return torch.argsort((~self.full_mask).byte(), dim=-1, stable=True)

    def blocks(self, size: int) -> Iterator["Points"]:
        """The points, `size` at a time; where there are none, one block without points."""
        for start in range(0, max(1, self.x.shape[1]), size):
            yield self[start : start + size]

    def __getitem__(self, window: slice) -> "Points":
        return self.map(lambda z: z[:, window])


def take(
    values: Shaped[Tensor, "batch points *rest"], indices: Integer[Tensor, "batch taken"]
) -> Shaped[Tensor, "batch taken *rest"]:
    """The values of each task at its own indices."""
    return values[torch.arange(values.shape[0], device=values.device)[:, None], indices]
