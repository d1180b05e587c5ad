"""What values a model was trained on, and what is said where it is given others."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbench.errors import DataWarning, InputError, ValueOverflow
from npbench.models.contracts.points import Points
from npbench.scaling import DEFAULT_ENDS, Scaling, shown_ends
from npbench.structure import TensorRecord

# Values are far outside a range beyond this share of its width.
_MARGIN = 0.25
# Padded points that are looked at at a time.
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Ranges(TensorRecord):
    """Range and scale of each column of points, inputs before outputs, in float64.

    Ranges merge as states do: those of the union of two sets follow from those of both.

    Example:
        >>> x, y = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[5.0], [7.0]]])
        >>> ranges = Ranges.of(Points(x, y))
        >>> ranges.low.tolist(), ranges.high.tolist(), ranges.mean.tolist(), ranges.std.tolist()
        ([0.0, 5.0], [2.0, 7.0], [1.0, 6.0], [1.0, 1.0])
    """

    low: Float[Tensor, "columns"]
    high: Float[Tensor, "columns"]
    mean: Float[Tensor, "columns"]
    squares: Float[Tensor, "columns"]
    """Sums of squared deviations from the mean."""
    count: Float[Tensor, ""]
    """Number of points."""

    @classmethod
    def of(cls, points: Points) -> "Ranges":
        """The ranges of all real points of all tasks."""
        values = points.xy.detach().double().flatten(0, 1)
        real = points.full_mask.flatten()[:, None]
        low, high = (
            values.masked_fill(~real, sign * torch.inf).mul(sign).amin(dim=0).mul(sign)
            for sign in (1, -1)
        )
        count = real.sum(dtype=values.dtype)
        mean = values.masked_fill(~real, 0.0).sum(dim=0) / count.clamp(min=1)
        squares = (values - mean).square().masked_fill(~real, 0.0).sum(dim=0)
        return cls(low, high, mean, squares, count)

    @classmethod
    def of_checkpoint(cls, content: Mapping[str, Any]) -> "Ranges | None":
        """Those of the training that has left a checkpoint; release 0.1.0 did not write them."""
        known = content.get("training_ranges")
        return None if known is None else cls(**known)

    def to_checkpoint(self) -> dict[str, Any]:
        """What `of_checkpoint` takes, as an entry of a checkpoint."""
        return {"training_ranges": vars(self.to("cpu"))}

    def merge(self, other: "Ranges") -> "Ranges":
        """The ranges of both sets of points."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        apart = other.mean - self.mean
        return Ranges(
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.mean + share * apart,
            self.squares + other.squares + self.count * share * apart.square(),
            count,
        )

    @property
    def std(self) -> Float[Tensor, "columns"]:
        return (self.squares / self.count.clamp(min=1)).sqrt()


@dataclass
class Extent:
    """The smallest and largest values of points on their way into a model, and where the largest
    of all magnitudes is."""

    low: Float[Tensor, "columns"]
    high: Float[Tensor, "columns"]
    largest: float = 0.0
    value: float = 0.0
    """The value that has it."""
    where: tuple[int, int, int] = (0, 0, 0)
    """Task, point and column."""
    num_points: int = field(default=0)

    @classmethod
    def of_none(cls, num_columns: int) -> "Extent":
        """That of no points."""
        nothing = torch.full([num_columns], torch.inf, dtype=torch.float64)
        return cls(nothing, -nothing)

    def passing(self, chunks: Iterator[Points]) -> Iterator[Points]:
        """The same chunks, at which this looks as they pass."""
        for points in chunks:
            self.add(points.mask, points.x, points.y)
            yield points

    def add(self, mask: Bool[Tensor, "batch points"] | None, *parts: Tensor) -> None:
        """Look at points, whose columns are those of all parts; padding is 0 in all of them."""
        start = self.num_points
        self.num_points += parts[0].shape[1]
        if not parts[0].numel():
            return
        ends = [_ends(part.detach(), mask) for part in parts]
        # One transfer from the device, where they are compared in the model's own precision.
        low, high = torch.stack([torch.cat(end) for end in zip(*ends)]).cpu().double()
        columns = slice(len(low))
        self.low[columns] = torch.minimum(self.low[columns], low)
        self.high[columns] = torch.maximum(self.high[columns], high)
        sizes = torch.maximum(-low, high)
        if float(sizes.max()) <= self.largest:
            return
        self.largest = float(sizes.max())
        column = int(sizes.argmax())
        values = [column for part in parts for column in part.detach().unbind(dim=-1)][column]
        is_high = float(high[column]) == self.largest
        of_tasks, points = values.max(dim=1) if is_high else values.min(dim=1)
        task = int(of_tasks.abs().argmax())
        self.value = float(high[column]) if is_high else float(low[column])
        self.where = task, start + int(points[task]), column


def _ends(
    values: Float[Tensor, "batch points columns"], mask: Bool[Tensor, "batch points"] | None
) -> tuple[Float[Tensor, "columns"], Float[Tensor, "columns"]]:
    """The smallest and the largest real value of each column, in memory that does not depend on the
    number of points."""
    if mask is None:
        return values.amin(dim=(0, 1)), values.amax(dim=(0, 1))
    lows, highs = [], []
    for block, real in zip(values.split(_BLOCK, dim=1), mask.split(_BLOCK, dim=1)):
        padding = ~real[..., None]
        lows.append(block.masked_fill(padding, torch.inf).amin(dim=(0, 1)))
        highs.append(block.masked_fill(padding, -torch.inf).amax(dim=(0, 1)))
    return torch.stack(lows).amin(dim=0), torch.stack(highs).amax(dim=0)


class Watch:
    """Looks at what a trained model is given.

    It warns once of each column whose values are far outside those of training: more than a
    quarter of their range beyond it. What a model says of such values looks as confident as
    everything else, and means nothing.

    Attributes:
        ranges: those of training; None where they are not known, and nothing is far then.
        columns: names of the inputs and then of the outputs, for messages.
        scaling: the units of the model; messages then have its names and are in its units, and
            `ranges` are those of the model's numbers.
        watched: the columns of which it warns; all by default.
    """

    def __init__(self, dim_x: int, dim_y: int) -> None:
        self.ranges: Ranges | None = None
        self.columns: Sequence[str] = [
            *(f"x{i}" for i in range(dim_x)),
            *(f"y{i}" for i in range(dim_y)),
        ]
        self.watched: Sequence[int] = range(dim_x + dim_y)
        self.scaling: Scaling | None = None
        self._said: set[int] = set()

    def anew(self) -> "Watch":
        """A watch of the same ranges that has said nothing yet."""
        watch = copy.copy(self)
        watch._said = set()
        return watch

    def input_ends(
        self, margin: float = 0.0, otherwise: tuple[float, float] = DEFAULT_ENDS
    ) -> tuple[float, float]:
        """The ends between which the first input lay in training, moved towards each other.

        Args:
            margin: how much room is left on either side, as a share of the width between.
            otherwise: the ends if they are not known.

        Raises:
            InputError: if the margin is below 0.
        """
        if not 0 <= margin < math.inf:
            raise InputError(f"margin={margin} must be 0 or more, a share of the width of inputs")
        low, high = otherwise
        if self.ranges is not None:
            low, high = float(self.ranges.low[0]), float(self.ranges.high[0])
        middle, half = (low + high) / 2, (high - low) / (2 + 4 * margin)
        return middle - half, middle + half

    def look(self, points: Points) -> Extent:
        """The extent of targets, whose outputs are not known."""
        extent = Extent.of_none(len(self.columns))
        extent.add(points.mask, points.x)
        return extent

    def warn_if_far(self, extent: Extent) -> None:
        """Warn once of each column that is far outside the range of training."""
        if self.ranges is None:
            return
        ranges = self.ranges.to("cpu")
        margin = _MARGIN * (ranges.high - ranges.low)
        far = (extent.low < ranges.low - margin) | (extent.high > ranges.high + margin)
        for column in far.nonzero().flatten().tolist():
            if column not in self.watched or column in self._said:
                continue
            self._said.add(column)
            ends = (ranges.low, ranges.high, extent.low, extent.high)
            shown = (self.shown(column, float(end[column])) for end in ends)
            low, high, from_, to = shown_ends(*shown)
            spread = ""
            if self.scaling is None:
                mean, std = float(ranges.mean[column]), float(ranges.std[column])
                spread = f" (mean {mean:.3g}, standard deviation {std:.3g})"
            warnings.warn(
                f"{self._name(column)} runs from {from_} to {to}, and in training from {low} to "
                f"{high}{spread}: predictions from such values mean nothing. Bring the column to "
                f"the unit and the range of training, or train on data like these (said once)",
                DataWarning,
                stacklevel=4,
            )

    def overflow(self, extent: Extent, dtype: torch.dtype) -> ValueOverflow:
        """The error for points of which a model cannot compute a finite number."""
        task, point, column = extent.where
        index = column if self.scaling is None else self.scaling.column_of(column)[0]
        size = abs(self.shown(column, extent.value))
        return ValueOverflow(index, self._name(column), size, task, point, dtype)

    def _name(self, column: int) -> str:
        if self.scaling is None:
            return self.columns[column]
        return self.scaling.column_of(column)[1].name

    def between(self, low: Sequence[float], high: Sequence[float]) -> str:
        """A range of inputs in words, in the units of the columns.

        Args:
            low: the lower ends, as the model's numbers.
            high: the upper ends.

        Example:
            >>> Watch(2, 1).between([-2.0, 0.0], [2.0, 1.0])
            'x0 from -2 to 2 and x1 from 0 to 1'
        """
        parts = []
        for column, ends in enumerate(zip(low, high, strict=True)):
            first, last = shown_ends(*(self.shown(column, end) for end in ends))
            parts.append(f"{self._name(column)} from {first} to {last}")
        return " and ".join(parts)

    def shown(self, column: int, number: float) -> float:
        """A number of the model, in its units."""
        if self.scaling is None:
            return number
        decoded = self.scaling.column_of(column)[1].decode(torch.tensor(number, dtype=torch.double))
        return float(decoded)
