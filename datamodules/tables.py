"""Tasks of a user's own tables."""

from bisect import bisect_left, bisect_right
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from datamodules.loading import Part, TaskDataModule, at_least_one
from datamodules.seeding import seeded
from datamodules.table_draws import Draws
from datamodules.table_functions import Functions, batch
from datamodules.table_rows import IN_MEMORY, blocks_for, held_out, rows_of
from npbench.errors import InputError
from npbench.scaling import Scaling
from npbench.tables import PointTable
from npbench.task import Task

_HELD_OUT = Part.VALIDATE, Part.TEST
# Names of prediction files that are not the data's; the last two where each output is a function.
_RESERVED = "task", "target"
_RESERVED_OF_EACH = "output", "value"


class TableDataModule(TaskDataModule):
    """Tasks from the rows of CSV or Parquet files, or of a data frame, in the units of the table.

    With a `task` column each of its values is a function (a sensor's day, a patient, a curve), and
    whole functions are held out for validation and test. Without one, the table is a single field:
    a task is a random neighbourhood, or a subset of all, and blocks of the field are held out.
    Training never sees a row of theirs, and a task that is evaluated has its context and its
    targets in them.

    Batches hold the table's own values; `scaling` says what numbers a model makes of them. A row of
    which an output is missing is left out of all tasks: models have masks of points, and none of
    single outputs. With `each_output` every output is a function by itself, for a model of one
    output: a row is left out of the functions of those outputs that it lacks, and of no others. A
    batch is then of one output (`Task.output`), whose units are its column's own; an output comes
    as often in training as it has functions. All outputs of a task, or of a block, are held out
    together. A test has a set of tasks for each output, by its name.

    Training batch i on rank r is a function of (seed, r, i), and evaluation task i (of each output)
    of (eval_seed, i).

    Args:
        path: a `.csv`, `.csv.gz` or `.parquet` file, a folder or a pattern of them, or several; in
            Python a data frame too.
        x: columns of the inputs: numbers, dates (see `dates`) or times of day, which are hours.
        y: columns of the outputs.
        task: the column that says to which function a row belongs.
        each_output: make each output a function by itself, for a model with dim_y=1.
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
        num_val_tasks: number of fixed validation tasks; the functions come in turn. With
            `each_output` so many are of each output.
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
        each_output: bool = False,
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
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise InputError(
                f"val_share={val_share} and test_share={test_share} must be above 0, and leave "
                f"something for training"
            )
        for name in (*x, *y):
            if name in _RESERVED or (each_output and name in _RESERVED_OF_EACH):
                raise InputError(
                    f"a column cannot be called {name}, as one of prediction files is; rename it"
                )
        if both := set(x) & {*y, task} or set(y) & {task}:
            raise InputError(f"column {min(map(str, both))} is named for two purposes")
        self.draws = Draws(
            task is None, min_num_context, max_num_context, max_num_targets, spread, neighbourhood,
            centred,
        )  # fmt: skip
        self.path = path
        files = path if isinstance(path, str | list | tuple) else IN_MEMORY
        self.table = PointTable(
            files, x, y, separator=separator, decimal=decimal, dates=dates, missing=True
        )
        self.task = task
        self.each_output = each_output
        self.units = units
        self.x_range = x_range
        self.shares = val_share, test_share
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_val_tasks = num_val_tasks
        self.num_test_tasks = num_test_tasks
        self.seed = seed
        self.eval_seed = eval_seed

    @cached_property
    def parts(self) -> dict[Part, list[Functions]]:
        """The rows for training, validation and test, by function or block: of each output that is
        a function by itself, or of all outputs together."""
        rows = rows_of(self.path, self.table, self.task, self.each_output)
        fewest = self.draws.fewest
        if self.task is None:
            num_known = int(np.isfinite(rows.y).sum(axis=0).min())
            rows = rows.in_blocks(blocks_for(num_known, fewest, self.draws.most))
        of_outputs = [rows]
        if self.each_output:
            of_outputs = [rows.of_output(index) for index in range(len(self.table.y))]
        sizes = [np.bincount(each.group, minlength=len(rows.names)) for each in of_outputs]
        is_usable = np.stack(sizes) >= fewest
        usable = np.flatnonzero(is_usable.any(axis=0))
        if len(usable) < 3:
            raise InputError(
                f"{len(usable)} value(s) of {self.task} have {fewest} rows or more with known "
                f"outputs, and training, validation and test take one each: lower min_num_context, "
                f"or name another task column"
            )
        val, test, train = held_out([rows.names[i] for i in usable.tolist()], self.shares)
        parts: dict[Part, list[Functions]] = {}
        for part, chosen in ((Part.TRAIN, train), (Part.VALIDATE, val), (Part.TEST, test)):
            held = usable[chosen]
            groups = [held[of_output[held]] for of_output in is_usable]
            for name, of_output in zip(self.table.y, groups):
                if not len(of_output):
                    raise InputError(
                        f"{name} has {fewest} values or more in none of the {len(chosen)} "
                        f"{self.task or 'block'}(s) of part {part.name.lower()}: change the shares "
                        f"of the parts, lower min_num_context, or leave this output out"
                    )
            parts[part] = [Functions(*pair) for pair in zip(of_outputs, groups)]
        return parts | {Part.PREDICT: parts[Part.TEST]}

    @cached_property
    def scaling(self) -> Scaling:
        """The units of the table, fitted on the outputs of the training rows, and on all inputs: a
        model must know where the rows lie that are held out."""
        x = [each.rows.x for part in (Part.TRAIN, *_HELD_OUT) for each in self.parts[part]]
        train = self.parts[Part.TRAIN]
        others = len(self.table.y) - train[0].rows.y.shape[1]  # outputs that a function lacks
        y = [
            np.pad(each.rows.y, ((0, 0), (index, others - index)), constant_values=np.nan)
            for index, each in enumerate(train)
        ]
        scaling = Scaling.fit(
            np.concatenate(x), np.concatenate(y), self.table.x, self.table.y, self.units,
            self.x_range, self.table.dates,
        )  # fmt: skip
        return replace(scaling, each_output=self.each_output)

    def setup(self, stage: str) -> None:
        """Read the table, so that what is wrong with it is said before a run begins."""
        _ = self.parts

    def training_batch(self, index: int, rank: int = 0) -> Task:
        """The batch of training step `index` on `rank`."""
        functions = self.parts[Part.TRAIN]
        with seeded(Part.TRAIN, self.seed, rank, index, -1):  # which draws nothing of the tasks
            numbers = torch.tensor([float(len(of_output)) for of_output in functions])
            output = int(torch.multinomial(numbers, 1))
        with seeded(Part.TRAIN, self.seed, rank, index):
            tasks = [self.draws.task(functions[output]) for _ in range(self.batch_size)]
        return batch(tasks, self._name(output))

    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> Task:
        """The fixed evaluation tasks of these indices: those of the first output come first, and a
        batch is of the output of its first task."""
        output, index_there = self._output_of(indices[0], part)
        first = indices[0] - index_there
        functions = self.parts[part][output]
        tasks = []
        for index in indices:
            with seeded(part, self.eval_seed, index - first):
                tasks.append(self.draws.task(functions, index - first))
        return batch(tasks, self._name(output))

    def figure_task(self, index: int = 0) -> Task:
        """A validation task whose targets are all rows of its function, or of a neighbourhood, in
        the order of the first input; outputs that are functions by themselves come in turn."""
        turn, output = divmod(index, len(self.parts[Part.VALIDATE]))
        functions = self.parts[Part.VALIDATE][output]
        with seeded(Part.FIGURES, self.eval_seed, index):
            return batch([self.draws.figure(functions, turn)], self._name(output))

    def named_predictions(self, table: pa.Table) -> pa.Table:
        """Predictions with the names of the table's tasks, in a column of the table's name."""
        if self.task is None:
            return table
        names = []
        for number in table.column("task").to_pylist():
            output, index = self._output_of(number, Part.PREDICT)
            names.append(self.parts[Part.PREDICT][output].name(index))
        return table.set_column(0, self.task, pa.array(names))

    def train_dataloader(self) -> DataLoader:
        return self._training_loader(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._starts(Part.VALIDATE)[-1], Part.VALIDATE)

    def test_dataloader(self) -> DataLoader | dict[str, DataLoader]:
        number = self.num_test_tasks
        if not self.each_output:
            return self._evaluation_loader(number, Part.TEST)
        return {
            name: self._evaluation_loader(number, Part.TEST, first)
            for name, first in zip(self.table.y, self._starts(Part.TEST))
        }

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._starts(Part.PREDICT)[-1], Part.PREDICT)

    def _name(self, output: int) -> str | None:
        return self.table.y[output] if self.each_output else None

    def _starts(self, part: Part) -> list[int]:
        """The index of the first evaluation task of each output, and the number of all tasks."""
        fixed = {Part.VALIDATE: self.num_val_tasks, Part.TEST: self.num_test_tasks}
        numbers = (fixed.get(part, len(functions)) for functions in self.parts[part])
        return [0, *accumulate(numbers)]

    def _output_of(self, index: int, part: Part) -> tuple[int, int]:
        """The output that an evaluation task is of, and its index among the tasks of this one."""
        starts = self._starts(part)
        output = min(bisect_right(starts, index), len(starts) - 1) - 1
        return output, index - starts[output]

    def _chunks(self, indices: range, part: Part) -> list[range]:
        """The indices of each evaluation batch, which is of one output."""
        chunks = []
        for first, last in pairwise(bisect_left(indices, start) for start in self._starts(part)):
            chunks += super()._chunks(indices[first:last], part)
        return chunks
