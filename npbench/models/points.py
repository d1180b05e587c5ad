"""Sets of points, checked at the door of a model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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
            return self.x.new_full([len(self.x)], self.x.shape[1], dtype=torch.long)
        return self.mask.sum(dim=-1)

    @classmethod
    def union(cls, sets: Iterable["Points"]) -> "Points":
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
        """The points at these places of each task."""
        return self.map(lambda z: take(z, order))

    def packed(self) -> "Points":
        """The same points, all padding behind the real ones."""
        return self if self.mask is None else self.take(self.real_first)

    @property
    def real_first(self) -> Integer[Tensor, "batch points"]:
        """The order of the points in `packed`."""
        return torch.argsort((~self.full_mask).byte(), dim=-1, stable=True)

    def blocks(self, size: int) -> Iterator["Points"]:
        """The points, `size` at a time."""
        for start in range(0, self.x.shape[1], size):
            yield self[start : start + size]

    def __getitem__(self, places: slice) -> "Points":
        return self.map(lambda z: z[:, places])


def take(
    values: Shaped[Tensor, "batch points *rest"], order: Integer[Tensor, "batch places"]
) -> Shaped[Tensor, "batch places *rest"]:
    """Each task's values at its own places."""
    return values[torch.arange(len(values), device=values.device)[:, None], order]


@dataclass(frozen=True)
class Door:
    """What a model takes in: every method raises a `ValueError` that says what was given, what was
    expected, and how to mend it. Values are not looked at under `torch.compile`, whose graphs have
    no place for a branch on them."""

    dim_x: int
    dim_y: int
    dtype: torch.dtype

    def points(self, x_name: str, x: Any, y_name: str, y: Any, mask: Any = None) -> Points:
        """The points as given, with 0 wherever the mask says that none is real."""
        if mask is not None:
            x, y = self._masked(x_name, x, y, mask)
        self._check(x_name, x, self.dim_x, "dim_x")
        self._check(y_name, y, self.dim_y, "dim_y")
        if x.shape[:2] != y.shape[:2]:
            raise ValueError(
                f"{x_name} {list(x.shape)} and {y_name} {list(y.shape)} differ in the number of "
                f"tasks or points"
            )
        return Points(x, y, mask)

    def targets(self, name: str, x: Any, mask: Any = None) -> Points:
        """Targets whose values are not known (0)."""
        if mask is not None:
            x, _ = self._masked(name, x, None, mask)
        self.check_targets(name, x)
        return Points(x, x.new_zeros(*x.shape[:2], self.dim_y), mask)

    def check_targets(self, name: str, x: Any) -> None:
        """Refuse what no prediction can be made at."""
        self._check(name, x, self.dim_x, "dim_x")
        if x.shape[1] == 0:
            raise ValueError(f"{name} is an empty target set, of shape {list(x.shape)}")

    def check_no_task_is_empty(self, name: str, mask: Tensor | None) -> None:
        """Refuse a mask that leaves nothing to average over."""
        if mask is None or torch.compiler.is_compiling():
            return
        if not mask.any(dim=-1).all():
            raise ValueError(f"{name} leaves a task without targets")

    def slices(self, x: Tensor, y: Any, mask: Any, chunk_size: int | None) -> Iterator[Points]:
        """A context chunk by chunk: no copy of the whole is ever made."""
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be 1 or more")
        size = x.shape[1] if x.ndim == 3 else 0
        if chunk_size is None or size <= chunk_size or not _same_points(x, y, mask):
            yield self.points("xc", x, "yc", y, mask)
            return
        for start in range(0, size, chunk_size):
            window = slice(start, start + chunk_size)
            part = None if mask is None else mask[:, window]
            where = f"from point {start} on"
            yield self.points(f"xc {where}", x[:, window], f"yc {where}", y[:, window], part)

    def chunks(self, chunks: Iterable[tuple]) -> Iterator[Points]:
        """A context that comes in (x, y) or (x, y, mask) chunks."""
        batch_size = None
        for number, chunk in enumerate(chunks):
            if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
                raise ValueError(f"chunk {number} is no (x, y) or (x, y, mask) tuple")
            x, y, *mask = chunk
            name = f"x of chunk {number}"
            points = self.points(name, x, f"y of chunk {number}", y, *mask)
            batch_size = len(points.x) if batch_size is None else batch_size
            check_batch(name, points.x, batch_size)
            yield points
        if batch_size is None:
            raise ValueError("the iterable of chunks is empty; for a prior, give one empty chunk")

    def _masked(self, name: str, x: Any, y: Any, mask: Any) -> Iterator[Any]:
        """x and y with 0 at padding, whatever stood there."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise ValueError(f"the mask of {name} must be a bool tensor, True = real")
        if not _same_points(mask, x):
            given = list(x.shape[:2]) if isinstance(x, Tensor) else "[batch, points]"
            raise ValueError(f"the mask of {name} has shape {list(mask.shape)}; expected {given}")
        padding = ~mask[..., None]
        return (
            z.masked_fill(padding, 0.0) if z is not None and _same_points(mask, z) else z
            for z in (x, y)
        )

    def _check(self, name: str, tensor: Any, width: int, width_name: str) -> None:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.ndim != 3 or len(tensor) == 0 or tensor.shape[-1] != width:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; expected [batch, points, {width}], as "
                f"the model was built with {width_name}={width}"
            )
        if tensor.dtype != self.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype}, the model {self.dtype}; convert one: "
                f"{name}.to({self.dtype}) or model.to({tensor.dtype})"
            )
        if not torch.compiler.is_compiling() and not torch.isfinite(tensor).all():
            bad = (~torch.isfinite(tensor)).nonzero()
            raise ValueError(
                f"{name} holds {len(bad)} NaN or infinite value(s), the first at "
                f"{bad[0].tolist()}; drop those points, or mask them out"
            )


def check_batch(name: str, tensor: Tensor, batch_size: int) -> None:
    """Refuse data of another number of tasks than the state's."""
    if len(tensor) != batch_size:
        raise ValueError(f"{name} has {len(tensor)} tasks, the state {batch_size}")


def _same_points(first: Tensor, *others: Any) -> bool:
    """Whether all are of the same tasks and points; None stands for whatever is needed."""
    return all(
        other is None or (isinstance(other, Tensor) and other.shape[:2] == first.shape[:2])
        for other in others
    )
