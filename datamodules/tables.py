"""Tasks of a user's own tables."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.loading import Part, TaskDataModule, at_least_one
from datamodules.seeding import seeded
from datamodules.table_rows import IN_MEMORY, Rows, blocks_for, held_out, rows_of
from npbench.errors import InputError
from npbench.scaling import Scaling
from npbench.tables import PointTable
from npbench.task import Task

_HELD_OUT = Part.VALIDATE, Part.TEST
# Names of prediction files that are not the data's.
_RESERVED = "task", "target"
# Rows of a global task, or of a figure, times its points: an order of all rows would take long.
_MANY = 16
# Inputs and outputs of the context, and of the targets.
_Points = tuple[Tensor, ...]


class TableDataModule(TaskDataModule):
    """Tasks from the rows of CSV or Parquet files, or of a data frame, in the units of the table.

    With a `task` column each of its values is a function (a sensor's day, a patient, a curve), and
    whole functions are held out for validation and test. Without one, the table is a single field:
    a task is a random neighbourhood, or a subset of all, and blocks of the field are held out.
    Training never sees a row of theirs, and a task that is evaluated has its context and its
    targets in them.

    Batches hold the table's own values; `scaling` says what numbers a model makes of them. A row of
    which an output is missing is left out of all tasks: models have masks of points, and none of
    single outputs.

    Training batch i on rank r is a function of (seed, r, i), and evaluation task i of
    (eval_seed, i).

    Args:
        path: a `.csv`, `.csv.gz` or `.parquet` file, a folder or a pattern of them, or several; in
            Python a data frame too.
        x: columns of the inputs: numbers, dates (see `dates`) or times of day, which are hours.
        y: columns of the outputs.
        task: the column that says to which function a row belongs.
        dates: what dates are as numbers, such as "days since 2020-01-01".
        units: the scalings of columns by name: standard, min-max, log, none, or for inputs that go
            round circular(24), with the period. By default inputs are min-max, outputs standard.
        x_range: what min-max inputs run between, as a model sees them.
        min_num_context: fewest context points of a task.
        max_num_context: most context points of a task.
        max_num_targets: most targets of a task.
        spread: of a single field: "local" draws a task from a neighbourhood of a random row,
            "global" from all rows, and "both" from either as often.
        neighbourhood: fewest and most rows of a local task's neighbourhood, from which its points
            are drawn; a number between the two is drawn log-uniformly. By default up to 16 times
            the points of the largest task.
        centred: move each neighbourhood to the middle of the field, for models that see only
            differences of inputs.
        val_share: share of the functions, or of the field, for validation.
        test_share: share for the test.
        batch_size: tasks a training step, on each rank.
        eval_batch_size: tasks an evaluation step; it changes no result.
        steps_per_epoch: training batches an epoch; a validation follows each epoch.
        num_val_tasks: number of fixed validation tasks; the functions come in turn.
        num_test_tasks: number of fixed test tasks, likewise.
        separator: what stands between the columns of a CSV file, if it is not recognised.
        decimal: what stands before the decimals, likewise.
        seed: seed of the training tasks.
        eval_seed: seed of the evaluation tasks.
        num_workers: processes that make tasks; 0 makes them in the training process.

    Raises:
        InputError: when the table is first needed: on a file that cannot be read, a column that is
            missing or holds no numbers, a missing input, and where there are too few rows.

    Example:
        >>> import pandas as pd
        >>> days = np.repeat(np.arange(20), 24)
        >>> hours = np.tile(np.arange(24), 20)
        >>> frame = pd.DataFrame({"day": days, "hour": hours, "kW": np.sin(hours / 4) + days / 20})
        >>> data = TableDataModule(frame, x=["hour"], y=["kW"], task="day", batch_size=4)
        >>> data.training_batch(0).batch_size, data.scaling.y_names
        (4, ['kW'])
    """

    def __init__(
        self,
        path: Any,  # a parser would take a file for the configuration of a data frame
        x: list[str],
        y: list[str],
        task: str | None = None,
        dates: str | None = None,
        units: dict[str, str] | None = None,
        x_range: tuple[float, float] = (-2.0, 2.0),
        min_num_context: int = 3,
        max_num_context: int = 50,
        max_num_targets: int = 64,
        spread: Literal["local", "global", "both"] = "both",
        neighbourhood: tuple[int, int] | None = None,
        centred: bool = False,
        val_share: float = 0.15,
        test_share: float = 0.15,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        steps_per_epoch: int = 250,
        num_val_tasks: int = 160,
        num_test_tasks: int = 640,
        separator: str | None = None,
        decimal: str | None = None,
        seed: int = 0,
        eval_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(eval_batch_size, num_workers)
        at_least_one(
            min_num_context=min_num_context,
            max_num_targets=max_num_targets,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            steps_per_epoch=steps_per_epoch,
            num_val_tasks=num_val_tasks,
            num_test_tasks=num_test_tasks,
        )
        if max_num_context < min_num_context:
            raise InputError(
                f"max_num_context={max_num_context} must not be below "
                f"min_num_context={min_num_context}"
            )
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise InputError(
                f"val_share={val_share} and test_share={test_share} must be above 0, and leave "
                f"something for training"
            )
        for name in (*x, *y):
            if name in _RESERVED:
                raise InputError(
                    f"a column cannot be called {name}, as one of prediction files is; rename it"
                )
        if both := set(x) & {*y, task} or set(y) & {task}:
            raise InputError(f"column {min(map(str, both))} is named for two purposes")
        if spread not in ("local", "global", "both"):
            raise InputError(f'spread={spread!r} must be "local", "global" or "both"')
        largest = max_num_context + max_num_targets
        self.neighbourhood = (largest, 16 * largest) if neighbourhood is None else neighbourhood
        if not min_num_context < self.neighbourhood[0] <= self.neighbourhood[1]:
            raise InputError(
                f"neighbourhood={self.neighbourhood} must go from more rows than "
                f"min_num_context={min_num_context} to as many or more"
            )
        self.path = path
        files = path if isinstance(path, str | list | tuple) else IN_MEMORY
        self.table = PointTable(
            files, x, y, separator=separator, decimal=decimal, dates=dates, missing=True
        )
        self.task = task
        self.units = units
        self.x_range = x_range
        self.min_num_context = min_num_context
        self.max_num_context = max_num_context
        self.max_num_targets = max_num_targets
        self.spread = spread
        self.centred = centred
        self.shares = val_share, test_share
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_val_tasks = num_val_tasks
        self.num_test_tasks = num_test_tasks
        self.seed = seed
        self.eval_seed = eval_seed

    @cached_property
    def parts(self) -> dict[Part, "_Functions"]:
        """The rows for training, validation and test, by function or block."""
        rows = rows_of(self.path, self.table, self.task)
        fewest = self.min_num_context + 1
        if self.task is None:
            enough = self.max_num_context + self.max_num_targets
            rows = rows.in_blocks(blocks_for(len(rows), fewest, enough))
        sizes = np.bincount(rows.group, minlength=len(rows.names))
        usable = np.flatnonzero(sizes >= fewest)
        if len(usable) < 3:
            raise InputError(
                f"{len(usable)} value(s) of {self.task} have {fewest} rows or more with known "
                f"outputs, and training, validation and test take one each: lower min_num_context, "
                f"or name another task column"
            )
        val, test, train = held_out([rows.names[i] for i in usable.tolist()], self.shares)
        chosen = {Part.TRAIN: train, Part.VALIDATE: val, Part.TEST: test, Part.PREDICT: test}
        return {part: _Functions(rows, usable[groups]) for part, groups in chosen.items()}

    @cached_property
    def scaling(self) -> Scaling:
        """The units of the table, fitted on the outputs of the training rows, and on all inputs: a
        model must know where the rows lie that are held out."""
        x = np.concatenate([self.parts[part].rows.x for part in (Part.TRAIN, *_HELD_OUT)])
        return Scaling.fit(
            x, self.parts[Part.TRAIN].rows.y, self.table.x, self.table.y, self.units, self.x_range,
            self.table.dates,
        )  # fmt: skip

    def setup(self, stage: str) -> None:
        """Read the table, so that what is wrong with it is said before a run begins."""
        _ = self.parts

    def training_batch(self, index: int, rank: int = 0) -> Task:
        """The batch of training step `index` on `rank`."""
        with seeded(Part.TRAIN, self.seed, rank, index):
            functions = self.parts[Part.TRAIN]
            return _batch([self._draw(functions, None) for _ in range(self.batch_size)])

    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> Task:
        """The fixed evaluation tasks of these indices."""
        tasks = []
        for index in indices:
            with seeded(part, self.eval_seed, index):
                tasks.append(self._draw(self.parts[part], index))
        return _batch(tasks)

    def figure_task(self, index: int = 0) -> Task:
        """A validation task whose targets are all rows of its function, or of a neighbourhood, in
        the order of the first input."""
        functions = self.parts[Part.VALIDATE]
        with seeded(Part.FIGURES, self.eval_seed, index):
            points = _some(self._candidates(functions, index), _MANY * self.max_num_targets)
            context, _ = self._split(points)
        order = points[np.argsort(functions.rows.x[points, 0], kind="stable")]
        return _batch([self._task(functions.rows, points, context, order)])

    def named_predictions(self, table: pa.Table) -> pa.Table:
        """Predictions with the names of the table's tasks, in a column of the table's name."""
        if self.task is None:
            return table
        functions = self.parts[Part.PREDICT]
        names = [functions.name(index) for index in table.column("task").to_pylist()]
        return table.set_column(0, self.task, pa.array(names))

    def train_dataloader(self) -> DataLoader:
        return self._training_loader(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_val_tasks, Part.VALIDATE)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_test_tasks, Part.TEST)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.parts[Part.PREDICT].groups), Part.PREDICT)

    def _draw(self, functions: "_Functions", index: int | None) -> "_Points":
        """A task from torch's generator: of the function of this index, or of a random one."""
        points = self._candidates(functions, index)
        return self._task(functions.rows, points, *self._split(points))

    def _candidates(
        self, functions: "_Functions", index: int | None
    ) -> Int[np.ndarray, "candidates"]:
        """The rows that a task is drawn from."""
        if self.task is not None:
            return functions.of(index)
        # A neighbourhood of rows that are held out must lie in one block.
        group = functions.everything if index is None else functions.of(index)
        is_local = self.spread == "local" or (self.spread == "both" and torch.rand(()) < 0.5)
        if not is_local:
            return _some(group, _MANY * (self.max_num_context + self.max_num_targets))
        low, high = np.log(self.neighbourhood)
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

    def _task(
        self,
        rows: Rows,
        points: Int[np.ndarray, "candidates"],
        context: Int[np.ndarray, "context"],
        targets: Int[np.ndarray, "target"],
    ) -> "_Points":
        shift = np.zeros(rows.x.shape[1])
        if self.centred:
            ends = (rows.x.min(axis=0) + rows.x.max(axis=0)) / 2
            shift = ends - (rows.x[points].min(axis=0) + rows.x[points].max(axis=0)) / 2
        return tuple(
            torch.from_numpy(values)
            for chosen in (context, targets)
            for values in (rows.x[chosen] + shift, rows.y[chosen])
        )


class _Functions:
    """The functions or blocks of a part of the data."""

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


def _some(rows: Int[np.ndarray, "rows"], most: int) -> Int[np.ndarray, "some"]:
    """So many of the rows at most, from torch's generator."""
    if len(rows) <= most:
        return rows
    return rows[torch.randint(len(rows), (most,)).unique().numpy()]


def _batch(tasks: Sequence[_Points]) -> Task:
    """Tasks of different sizes, with zeros behind the points and masks of the real ones."""
    padded, masks = [], []
    for values in zip(*tasks):
        most = max(len(value) for value in values)
        padded.append(torch.stack([_padded(value, most) for value in values]))
        sizes = torch.tensor([len(value) for value in values])
        masks.append(torch.arange(most) < sizes[:, None])
    xc, yc, xt, yt = padded
    return Task(xc, yc, xt, yt, context_mask=masks[0], target_mask=masks[2])


def _padded(values: Float[Tensor, "points columns"], number: int) -> Float[Tensor, "most columns"]:
    return torch.nn.functional.pad(values, (0, 0, 0, number - len(values)))
