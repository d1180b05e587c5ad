"""What comes into a model is checked here, so that errors are found at the door."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from npbench.errors import ChunkError, InputError
from npbench.models.contracts.points import Points
from npbench.scaling import Column, Scaling
from npbench.tables import PointTable
from npbench.task import Task

# The inputs of a point, or its outputs.
Part = Literal["x", "y"]


@dataclass(frozen=True)
class Inputs:
    """Checks what comes into a model, and makes `Points` of it.

    Every method raises an `InputError` that says what was given, what was expected, and how to mend
    it. Tensors, NumPy arrays and chunks of real numbers are converted to the model's type and
    device, and may be of one task, [points, width]. Where the model has units they are values in
    them, and the `Points` are the model's numbers. Under `torch.compile` values are not checked,
    since a graph has no place for a branch on them.

    Args:
        dim_x: number of inputs of a point.
        dim_y: number of outputs of a point.
        dtype: of the model.
        device: of the model.
        one_hot: whether outputs are classes.
        scaling: the units of the model, if it has any.
    """

    dim_x: int
    dim_y: int
    dtype: torch.dtype
    device: torch.device
    one_hot: bool = False
    scaling: Scaling | None = None

    def points(self, x_name: str, x: Any, y_name: str, y: Any, mask: Any = None) -> Points:
        """The points as given, with 0 wherever the mask says that none is real."""
        points = self._points(x_name, x, y_name, y, mask)
        _check_finite({x_name: points.x, y_name: points.y})
        if self.one_hot:
            _check_one_hot(y_name, points)
        return points

    def targets(self, name: str, x: Any, mask: Any = None) -> Points:
        """Targets whose values are not known; they are 0 here."""
        x, mask = _as_batch(x, mask)
        self._check_shape(name, x, "x")
        _check_any_target(name, x)
        mask = self._mask(name, x, mask)
        x = self._tensor(name, x, mask, "x")
        _check_finite({name: x})
        return Points(x, x.new_zeros(*x.shape[:2], self.dim_y), mask)

    def of_task(self, task: Task) -> tuple[Points, Points]:
        """The context and the targets of a task, whose values are known.

        All values are checked together: on a GPU the host waits once for the device, and once more
        where there is a target mask.
        """
        if task.yt is None:
            raise InputError("the task has no yt: a log-likelihood needs the targets' true values")
        inputs = self._of_output(task.output)
        targets = inputs._points("xt", task.xt, "yt", task.yt, task.target_mask)
        _check_any_target("xt", targets.x)
        _check_no_task_is_empty("target_mask", targets.mask)
        context = inputs._points("xc", task.xc, "yc", task.yc, task.context_mask)
        check_batch("xt", targets.x, context.x.shape[0], "xc")
        _check_finite({"xt": targets.x, "yt": targets.y, "xc": context.x, "yc": context.y})
        if self.one_hot:
            _check_one_hot("yt", targets)
            _check_one_hot("yc", context)
        return context, targets

    def slices(self, x: Any, y: Any, mask: Any, chunk_size: int | None) -> Iterator[Points]:
        """The context chunk by chunk; no copy of the whole is ever made."""
        _check_size(chunk_size)
        x, y, mask = _as_batch(x, y, mask)
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
        """The context from (x, y) or (x, y, mask) chunks, or from a file of such columns as x0, x1,
        y0; no more than `chunk_size` points at a time."""
        _check_size(chunk_size)
        batch_size = None
        for number, chunk in self._stream(chunks, with_outputs=True):
            with _naming(number):
                if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
                    raise InputError("it is no (x, y) or (x, y, mask) tuple")
                x, y, *mask = chunk
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
        """Targets from chunks of inputs, or from a file with columns x0, x1, …"""
        for number, chunk in self._stream(chunks, with_outputs=False):
            with _naming(number):
                # A `DataLoader` over inputs alone gives lists of one tensor.
                x = chunk[0] if isinstance(chunk, tuple | list) and len(chunk) == 1 else chunk
                points = self.targets("xt", x)
                check_batch("xt", points.x, batch_size)
            yield points

    def _stream(self, chunks: Any, with_outputs: bool) -> Iterator[tuple[int, Any]]:
        """The chunks with their numbers."""
        if isinstance(chunks, str | os.PathLike):
            x, y = ([f"{z}{i}" for i in range(dim)] for z, dim in zip("xy", self._dims))
            dates = None
            if self.scaling is not None:
                x, y, dates = self.scaling.x_names, self.scaling.y_names, self.scaling.dates
            chunks = PointTable(chunks, x, y if with_outputs else [], dates=dates)
        iterator, end = iter(chunks), object()
        for number in count():
            with _naming(number):
                chunk = next(iterator, end)
            if chunk is end:
                return
            yield number, chunk

    def _of_output(self, name: str | None) -> "Inputs":
        """The same in the units of one output, where tasks are of one."""
        if name is None or self.scaling is None:
            return self
        return replace(self, scaling=self.scaling.of_output(name))

    def _points(self, x_name: str, x: Any, y_name: str, y: Any, mask: Any) -> Points:
        """The points, of which everything is checked but that their values are finite."""
        x, y, mask = _as_batch(x, y, mask)
        # Shapes come first: an array may be larger than memory.
        self._check_shape(x_name, x, "x")
        self._check_shape(y_name, y, "y")
        if x.shape[:2] != y.shape[:2]:
            raise InputError(
                f"{x_name} {list(x.shape)} and {y_name} {list(y.shape)} differ in the number of "
                f"tasks or points"
            )
        mask = self._mask(x_name, x, mask)
        return Points(self._tensor(x_name, x, mask, "x"), self._tensor(y_name, y, mask, "y"), mask)

    def _tensor(
        self, name: str, value: Tensor | np.ndarray, mask: Tensor | None, part: Part
    ) -> Tensor:
        """The values as the model's numbers, with 0 wherever the mask says so."""
        tensor = self._converted(name, value) if isinstance(value, np.ndarray) else value
        if tensor.is_complex():
            raise InputError(f"{name} holds {tensor.dtype} values, not real numbers")
        if self.scaling is not None:
            tensor = self._encoded(name, tensor, mask, part)
        tensor = tensor.to(self.device, self.dtype)
        return tensor if mask is None else tensor.masked_fill(~mask[..., None], 0.0)

    def _encoded(self, name: str, tensor: Tensor, mask: Tensor | None, part: Part) -> Tensor:
        scaling = self.scaling
        assert scaling is not None
        if mask is not None:  # 1 is a value of every kind of column
            tensor = tensor.masked_fill(~mask[..., None].to(tensor.device), 1)
        _check_logarithms(name, tensor, scaling.x if part == "x" else scaling.y)
        return scaling.encode_x(tensor) if part == "x" else scaling.encode_y(tensor)

    @property
    def _dims(self) -> tuple[int, int]:
        """How many columns of inputs and of outputs are given."""
        if self.scaling is None:
            return self.dim_x, self.dim_y
        return len(self.scaling.x), len(self.scaling.y)

    def _check_shape(self, name: str, tensor: Any, part: Part) -> None:
        if not isinstance(tensor, Tensor | np.ndarray):
            check_no_frame(name, tensor)
            raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if self.scaling is not None and self.scaling.each_output:
            raise InputError(
                f"the model takes {', '.join(self.scaling.y_names)} each by itself: choose one by "
                f"model.of_output(NAME), or give tasks of one output (each_output=True)"
            )
        width = self._dims[part == "y"]
        if tensor.ndim == 3 and tensor.shape[0] and tensor.shape[-1] == width:
            return
        reason = f"the model was built with dim_{part}={width}"
        if self.scaling is not None:
            names = self.scaling.x_names if part == "x" else self.scaling.y_names
            reason = f"the model has the units of {', '.join(names)}"
        remedy = ""
        if width == 1 and tensor.ndim in (1, 2) and tensor.shape[-1] != 1:
            remedy = f"; give it a last dimension by {name}[..., None]"
        raise InputError(
            f"{name} has shape {list(tensor.shape)}; expected [batch, points, {width}], as "
            f"{reason}{remedy}"
        )

    def _converted(self, name: str, array: np.ndarray) -> Tensor:
        if array.dtype.kind not in "fiub":
            raise InputError(f"{name} holds {array.dtype} values, not numbers")
        if np.ma.is_masked(array):
            raise InputError(f"{name} has masked values; drop those points, or give a mask of them")
        # The copy has the order and the bytes that torch knows, whatever the array has.
        return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))

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


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """A `ValueError` becomes a `ChunkError`, which names the chunk."""
    try:
        yield
    except ValueError as error:
        raise ChunkError(number, str(error)) from error


def _check_logarithms(name: str, values: Tensor, columns: Sequence[Column]) -> None:
    """Refuse values of logarithmic columns that have no logarithm."""
    if torch.compiler.is_compiling():
        return
    for index, column in enumerate(columns):
        if column.kind != "log":
            continue
        bad = (values[..., index] <= 0).nonzero()
        if len(bad):
            task, point = bad[0].tolist()
            raise InputError(
                f"{name} holds {float(values[task, point, index]):.6g} of column {column.name} in "
                f"task {task}, point {point}, and its log scaling takes values above 0; drop such "
                f"points"
            )


def check_no_frame(name: str, value: Any) -> None:
    """Refuse a data frame, whose columns may be in any order, and say what to give."""
    if hasattr(value, "to_numpy"):
        raise InputError(
            f"{name} is a {type(value).__name__}, and must be a tensor or an array: give its "
            f"columns in the model's order, as in {name}[['lat', 'lon']].to_numpy()"
        )


def _check_any_target(name: str, x: Tensor | np.ndarray) -> None:
    if x.shape[1] == 0:
        raise InputError(f"{name} is an empty target set, of shape {list(x.shape)}")


def _check_no_task_is_empty(name: str, mask: Tensor | None) -> None:
    if mask is None or torch.compiler.is_compiling():
        return
    if not mask.any(dim=-1).all():
        raise InputError(f"{name} leaves a task without targets")


def _check_finite(tensors: dict[str, Tensor]) -> None:
    """Refuse NaN and infinite values, in one look at all tensors.

    A sum of finite numbers may overflow, but one with a NaN or an infinite number is never finite:
    where the sums are, so is everything. They take no memory, and one transfer from the device.
    """
    if torch.compiler.is_compiling():
        return
    with torch.no_grad():
        if torch.stack([tensor.sum() for tensor in tensors.values()]).isfinite().all():
            return
        for name, tensor in tensors.items():
            bad = (~torch.isfinite(tensor)).nonzero()
            if len(bad):
                task, point, column = bad[0].tolist()
                raise InputError(
                    f"{name} holds {len(bad)} NaN or infinite value(s), the first in task {task}, "
                    f"point {point}, column {column}; drop those points, or mask them out"
                )


def _check_one_hot(name: str, points: Points) -> None:
    """Refuse real points whose outputs are no class."""
    if torch.compiler.is_compiling():
        return
    is_class = (points.y.sum(dim=-1) == 1) & (points.y.square().sum(dim=-1) == 1)
    bad = (~is_class & points.full_mask).nonzero()
    if len(bad):
        task, point = bad[0].tolist()
        raise InputError(
            f"{name} holds {points.y[task, point].tolist()} in task {task}, point {point}, which "
            f"is no class: with a categorical likelihood outputs are one-hot, 1 for the class and "
            f"0 elsewhere"
        )


def _check_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size={chunk_size} must be 1 or more")


def check_batch(name: str, tensor: Tensor, batch_size: int, other: str = "the state") -> None:
    """Refuse data of another number of tasks than those of the state, or of other data."""
    if tensor.shape[0] != batch_size:
        raise InputError(f"{name} has {tensor.shape[0]} tasks, {other} {batch_size}")


def _as_batch(x: Any, *others: Any) -> tuple:
    """Points of one task, [points, width], as a batch of it."""
    parts = x, *others
    if getattr(x, "ndim", None) != 2:
        return parts
    return tuple(z[None] if isinstance(z, Tensor | np.ndarray) else z for z in parts)


def _same_points(first: Any, *others: Any) -> bool:
    """Whether all have the same numbers of tasks and points; None has any."""
    return all(
        z is None or (isinstance(z, Tensor | np.ndarray) and z.shape[:2] == first.shape[:2])
        for z in others
    )
