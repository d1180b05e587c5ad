"""How tasks are drawn from the functions of a table."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int

from datamodules.table_functions import Functions, TaskPoints
from datamodules.table_rows import Rows
from npbench.errors import InputError

# Rows of a global task, or of a figure, times its points: an order of all rows would take long.
_MANY = 16


@dataclass(frozen=True)
class Draws:
    """Which rows of a function, or of a field, are the context and the targets of a task.

    All is drawn from torch's generator.

    Args:
        of_field: whether the functions are blocks of a single field, of which a task is drawn from
            all that training may see, or from one block.
        min_num_context: fewest context points.
        max_num_context: most context points.
        max_num_targets: most targets.
        spread: of a field: "local" draws from a neighbourhood of a random row, "global" from all
            rows, and "both" from either as often.
        neighbourhood: fewest and most rows of a neighbourhood; by default up to 16 times the points
            of the largest task.
        centred: move each neighbourhood to the middle of the field.

    Raises:
        InputError: if there are no such tasks.

    Example:
        >>> rows = Rows(np.arange(9.0)[:, None], np.ones((9, 1)), np.repeat([0, 1, 2], 3), "abc")
        >>> draws = Draws(of_field=False, min_num_context=1, max_num_context=2, max_num_targets=5)
        >>> xc, yc, xt, yt = draws.task(Functions(rows, np.array([1, 2])), index=0)
        >>> len(xc) + len(xt)
        3
    """

    of_field: bool
    min_num_context: int = 3
    max_num_context: int = 50
    max_num_targets: int = 64
    spread: Literal["local", "global", "both"] = "both"
    neighbourhood: tuple[int, int] | None = None
    centred: bool = False

    def __post_init__(self) -> None:
        if self.max_num_context < self.min_num_context:
            raise InputError(
                f"max_num_context={self.max_num_context} must not be below "
                f"min_num_context={self.min_num_context}"
            )
        if self.spread not in ("local", "global", "both"):
            raise InputError(f'spread={self.spread!r} must be "local", "global" or "both"')
        low, high = self.num_near
        if not self.min_num_context < low <= high:
            raise InputError(
                f"neighbourhood={self.num_near} must go from more rows than "
                f"min_num_context={self.min_num_context} to as many or more"
            )

    @property
    def fewest(self) -> int:
        """Rows of the smallest task: those of a context, and one target."""
        return self.min_num_context + 1

    @property
    def most(self) -> int:
        """Rows of the largest task."""
        return self.max_num_context + self.max_num_targets

    @property
    def num_near(self) -> tuple[int, int]:
        """Fewest and most rows of a neighbourhood."""
        return self.neighbourhood or (self.most, _MANY * self.most)

    def task(self, functions: Functions, index: int | None = None) -> TaskPoints:
        """A task of the function, or the block, of this index; by default of a random function, or
        of all blocks."""
        points = self._candidates(functions, index)
        return self._points(functions.rows, points, *self._split(points))

    def figure(self, functions: Functions, index: int) -> TaskPoints:
        """A task whose targets are all rows of its function, or of a neighbourhood, in the order of
        the first input."""
        points = _some(self._candidates(functions, index), _MANY * self.max_num_targets)
        context, _ = self._split(points)
        order = points[np.argsort(functions.rows.x[points, 0], kind="stable")]
        return self._points(functions.rows, points, context, order)

    def _candidates(self, functions: Functions, index: int | None) -> Int[np.ndarray, "candidates"]:
        """The rows that a task is drawn from."""
        if not self.of_field:
            return functions.of(index)
        # A neighbourhood of rows that are held out must lie in one block.
        group = functions.everything if index is None else functions.of(index)
        is_local = self.spread == "local" or (self.spread == "both" and torch.rand(()) < 0.5)
        if not is_local:
            return _some(group, _MANY * self.most)
        low, high = np.log(self.num_near)
        size = round(float(np.exp(low + (high - low) * float(torch.rand(())))))
        return functions.nearest(group, int(torch.randint(len(group), ())), size)

    def _split(
        self, points: Int[np.ndarray, "candidates"]
    ) -> tuple[Int[np.ndarray, "context"], Int[np.ndarray, "target"]]:
        """Random ones as context, and of the others as targets."""
        points = points[torch.randperm(len(points)).numpy()]
        most = min(self.max_num_context, len(points) - 1)
        number = int(torch.randint(self.min_num_context, most + 1, ()))
        return points[:number], points[number : number + self.max_num_targets]

    def _points(
        self,
        rows: Rows,
        points: Int[np.ndarray, "candidates"],
        context: Int[np.ndarray, "context"],
        targets: Int[np.ndarray, "target"],
    ) -> TaskPoints:
        shift = np.zeros(rows.x.shape[1])
        if self.centred:
            ends = (rows.x.min(axis=0) + rows.x.max(axis=0)) / 2
            shift = ends - (rows.x[points].min(axis=0) + rows.x[points].max(axis=0)) / 2
        return tuple(
            torch.from_numpy(values)
            for chosen in (context, targets)
            for values in (rows.x[chosen] + shift, rows.y[chosen])
        )


def _some(rows: Int[np.ndarray, "rows"], most: int) -> Int[np.ndarray, "some"]:
    """So many of the rows at most, from torch's generator."""
    if len(rows) <= most:
        return rows
    return rows[torch.randint(len(rows), (most,)).unique().numpy()]
