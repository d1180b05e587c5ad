"""The functions of a table, and batches of tasks that are drawn from them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from datamodules.table_rows import Rows
from npbench.task import Task

# Inputs and outputs of the context, and of the targets.
TaskPoints = tuple[Tensor, ...]


class Functions:
    """The functions, or the blocks of a field, of a part of the data.

    Args:
        rows: of all parts.
        groups: which of their groups are the part's.

    Example:
        >>> rows = Rows(np.arange(4.0)[:, None], np.ones((4, 1)), np.array([0, 1, 1, 2]), "abc")
        >>> functions = Functions(rows, np.array([1, 2]))
        >>> functions.name(0), functions.of(0), functions.everything
        ('b', array([0, 1]), array([0, 1, 2]))
    """

    def __init__(self, rows: Rows, groups: Int[np.ndarray, "groups"]) -> None:
        self.rows = rows.where(np.isin(rows.group, groups))
        self.groups = groups
        self.everything = np.arange(len(self.rows))
        order = np.argsort(self.rows.group, kind="stable")
        starts = np.searchsorted(self.rows.group[order], groups)
        ends = np.searchsorted(self.rows.group[order], groups, side="right")
        self._of = [order[start:end] for start, end in zip(starts, ends)]
        width = np.ptp(self.rows.x, axis=0)
        self._x = self.rows.x / np.where(width > 0, width, 1.0)

    def __len__(self) -> int:
        return len(self.groups)

    def name(self, index: int) -> str:
        """Of the function of this index; they come in turn."""
        return self.rows.names[int(self.groups[index % len(self.groups)])]

    def of(self, index: int | None) -> Int[np.ndarray, "rows"]:
        """The rows of the function of this index, or of a random one from torch's generator."""
        if index is None:
            index = int(torch.randint(len(self.groups), ()))
        return self._of[index % len(self.groups)]

    def nearest(
        self, rows: Int[np.ndarray, "rows"], centre: int, number: int
    ) -> Int[np.ndarray, "nearest"]:
        """Those of these rows that are nearest to one of them: the largest difference of inputs
        counts, in their ranges."""
        if number >= len(rows):
            return rows
        x = self._x[rows]
        distance = np.abs(x - x[centre]).max(axis=1)
        return rows[np.argpartition(distance, number - 1)[:number]]


def batch(tasks: Sequence[TaskPoints], output: str | None = None) -> Task:
    """Tasks of different sizes, with zeros behind the points and masks of the real ones.

    Args:
        tasks: the points of each.
        output: the name of the output that they are of, where each is a function by itself.
    """
    padded, masks = [], []
    for values in zip(*tasks):
        most = max(len(value) for value in values)
        padded.append(torch.stack([_padded(value, most) for value in values]))
        sizes = torch.tensor([len(value) for value in values])
        masks.append(torch.arange(most) < sizes[:, None])
    xc, yc, xt, yt = padded
    return Task(xc, yc, xt, yt, context_mask=masks[0], target_mask=masks[2], output=output)


def _padded(values: Float[Tensor, "points columns"], number: int) -> Float[Tensor, "most columns"]:
    return torch.nn.functional.pad(values, (0, 0, 0, number - len(values)))
