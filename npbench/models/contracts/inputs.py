"""What comes into a model, checked: errors are found at the door."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npbench.errors import ChunkError, InputError
from npbench.models.contracts.points import Points
from npbench.tables import PointTable


@dataclass(frozen=True)
class Inputs:
    """What a model takes in: every method raises an `InputError` that says what was given, what was
    expected, and how to mend it. Values are not looked at under `torch.compile`, whose graphs have
    no place for a branch on them.

    NumPy arrays and chunks are converted to the model's type and device, and may be of one task,
    [points, width]; other tensors are taken as they are.
    """

    dim_x: int
    dim_y: int
    dtype: torch.dtype
    device: torch.device

    def points(self, x_name: str, x: Any, y_name: str, y: Any, mask: Any = None) -> Points:
        """The points as given, with 0 wherever the mask says that none is real."""
        x, y, mask = _as_batch(x, y, mask) if isinstance(x, np.ndarray) else (x, y, mask)
        # Shapes first: an array may be larger than memory.
        _check_shape(x_name, x, self.dim_x, "dim_x")
        _check_shape(y_name, y, self.dim_y, "dim_y")
        if x.shape[:2] != y.shape[:2]:
            raise InputError(
                f"{x_name} {list(x.shape)} and {y_name} {list(y.shape)} differ in the number of "
                f"tasks or points"
            )
        mask = self._mask(x_name, x, mask)
        return Points(self._tensor(x_name, x, mask), self._tensor(y_name, y, mask), mask)

    def targets(self, name: str, x: Any, mask: Any = None) -> Points:
        """Targets whose values are not known (0)."""
        x, mask = _as_batch(x, mask) if isinstance(x, np.ndarray) else (x, mask)
        _check_shape(name, x, self.dim_x, "dim_x")
        if x.shape[1] == 0:
            raise InputError(f"{name} is an empty target set, of shape {list(x.shape)}")
        mask = self._mask(name, x, mask)
        x = self._tensor(name, x, mask)
        return Points(x, x.new_zeros(*x.shape[:2], self.dim_y), mask)

    def check_no_task_is_empty(self, name: str, mask: Tensor | None) -> None:
        """Refuse a mask that leaves nothing to average over."""
        if mask is None or torch.compiler.is_compiling():
            return
        if not mask.any(dim=-1).all():
            raise InputError(f"{name} leaves a task without targets")

    def slices(self, x: Any, y: Any, mask: Any, chunk_size: int | None) -> Iterator[Points]:
        """A context chunk by chunk: no copy of the whole is ever made."""
        _check_size(chunk_size)
        x, y, mask = _as_batch(x, y, mask) if isinstance(x, np.ndarray) else (x, y, mask)
        size = x.shape[1] if x.ndim == 3 else 0
        if chunk_size is None or size <= chunk_size or not _same_points(x, y, mask):
            yield self.points("xc", x, "yc", y, mask)
            return
        for start in range(0, size, chunk_size):
            window = slice(start, start + chunk_size)
            part = None if mask is None else mask[:, window]
            where = f"from point {start} on"
            yield self.points(f"xc {where}", x[:, window], f"yc {where}", y[:, window], part)

    def chunks(self, chunks: Any, chunk_size: int | None = None) -> Iterator[Points]:
        """A context that comes in (x, y) or (x, y, mask) chunks, or in a file of such columns as
        x0, x1, y0; no more than `chunk_size` points at a time."""
        _check_size(chunk_size)
        batch_size = None
        for number, chunk in self._stream(chunks, [f"y{i}" for i in range(self.dim_y)]):
            with _naming(number):
                if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
                    raise InputError("it is no (x, y) or (x, y, mask) tuple")
                x, y, *mask = chunk
                x, y, *mask = _as_batch(self._here(x), self._here(y), *mask)
                points = self.points("x", x, "y", y, *mask)
                batch_size = len(points.x) if batch_size is None else batch_size
                check_batch("x", points.x, batch_size)
            if chunk_size is None or points.x.shape[1] <= chunk_size:
                yield points
            else:
                yield from points.blocks(chunk_size)
        if batch_size is None:
            raise InputError("the iterable of chunks is empty; for a prior, give one empty chunk")

    def target_chunks(self, chunks: Any, batch_size: int) -> Iterator[Points]:
        """Targets that come in chunks of inputs, or in a file with columns x0, x1, …"""
        for number, chunk in self._stream(chunks, []):
            with _naming(number):
                # A loader of a data set of inputs alone gives lists of one tensor.
                x = chunk[0] if isinstance(chunk, tuple | list) and len(chunk) == 1 else chunk
                points = self.targets("xt", *_as_batch(self._here(x)))
                check_batch("xt", points.x, batch_size)
            yield points

    def _stream(self, chunks: Any, outputs: list[str]) -> Iterator[tuple[int, Any]]:
        """The chunks with their numbers."""
        if isinstance(chunks, str | os.PathLike):
            chunks = PointTable(chunks, [f"x{i}" for i in range(self.dim_x)], outputs)
        iterator, end = iter(chunks), object()
        for number in count():
            with _naming(number):
                chunk = next(iterator, end)
            if chunk is end:
                return
            yield number, chunk

    def _here(self, value: Any) -> Any:
        """A chunk's tensor, where it holds real numbers, on the model's device and of its type."""
        if not isinstance(value, Tensor) or not torch.can_cast(value.dtype, self.dtype):
            return value
        return value.to(self.device, self.dtype)

    def _tensor(self, name: str, value: Tensor | np.ndarray, mask: Tensor | None) -> Tensor:
        """The values, found to be finite; 0 wherever the mask says that none is real."""
        tensor = self._converted(name, value) if isinstance(value, np.ndarray) else value
        if mask is not None:
            tensor = tensor.masked_fill(~mask[..., None], 0.0)
        self._check(name, tensor)
        return tensor

    def _converted(self, name: str, array: np.ndarray) -> Tensor:
        if array.dtype.kind not in "fiub":
            raise InputError(f"{name} holds {array.dtype} values, not numbers")
        if np.ma.is_masked(array):
            raise InputError(f"{name} has masked values; drop those points, or give a mask of them")
        # A copy in the order and the bytes that torch knows, whatever the array's are.
        copy = np.array(array, dtype=np.float64, order="C")
        return torch.from_numpy(copy).to(self.device, self.dtype)

    def _mask(self, name: str, x: Tensor | np.ndarray, mask: Any) -> Tensor | None:
        if mask is None:
            return None
        if isinstance(mask, np.ndarray):
            mask = torch.tensor(mask)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise InputError(f"the mask of {name} must be a bool tensor, True = real")
        if mask.shape != x.shape[:2]:
            raise InputError(
                f"the mask of {name} has shape {list(mask.shape)}; expected {list(x.shape[:2])}"
            )
        return mask.to(self.device)

    def _check(self, name: str, tensor: Tensor) -> None:
        if tensor.dtype != self.dtype:
            raise InputError(
                f"{name} is {tensor.dtype}, the model {self.dtype}; convert one: "
                f"{name}.to({self.dtype}) or model.to({tensor.dtype})"
            )
        if not torch.compiler.is_compiling() and not torch.isfinite(tensor).all():
            bad = (~torch.isfinite(tensor)).nonzero()
            task, point, column = bad[0].tolist()
            raise InputError(
                f"{name} holds {len(bad)} NaN or infinite value(s), the first in task {task}, "
                f"point {point}, column {column}; drop those points, or mask them out"
            )


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """A `ValueError` becomes a `ChunkError`, which names the chunk."""
    try:
        yield
    except ValueError as error:
        raise ChunkError(number, str(error)) from error


def _check_shape(name: str, tensor: Any, width: int, width_name: str) -> None:
    if not isinstance(tensor, Tensor | np.ndarray):
        raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.ndim != 3 or len(tensor) == 0 or tensor.shape[-1] != width:
        raise InputError(
            f"{name} has shape {list(tensor.shape)}; expected [batch, points, {width}], as "
            f"the model was built with {width_name}={width}"
        )


def _check_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size={chunk_size} must be 1 or more")


def check_batch(name: str, tensor: Tensor, batch_size: int) -> None:
    """Refuse data of another number of tasks than the state's."""
    if len(tensor) != batch_size:
        raise InputError(f"{name} has {len(tensor)} tasks, the state {batch_size}")


def _as_batch(x: Any, *others: Any) -> tuple:
    """Points of one task, [points, width], as a batch of it."""
    parts = x, *others
    if getattr(x, "ndim", None) != 2:
        return parts
    return tuple(z[None] if isinstance(z, Tensor | np.ndarray) else z for z in parts)


def _same_points(first: Any, *others: Any) -> bool:
    """Whether all are of the same tasks and points; None stands for whatever is needed."""
    return all(
        z is None or (isinstance(z, Tensor | np.ndarray) and z.shape[:2] == first.shape[:2])
        for z in others
    )
