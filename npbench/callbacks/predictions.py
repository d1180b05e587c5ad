"""Predictions into a file."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from npbench.models.base import Marginals
from npbench.tables import TableWriter
from npbench.task import Task


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of `predict` to a Parquet or CSV file, batch by batch.

    One row for each target: `task` and `target` (its place in the task), inputs `x0`, `x1`, …,
    `mean0`, …, `std0`, …, and the true values `y0`, … where they are known. With several processes
    each writes its own file, `predictions-rank1.parquet` and so on, of every so many tasks.

    Args:
        path: the file; by default `predictions.parquet` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self._writer: TableWriter | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir
        file = Path(self.path) if self.path else Path(folder) / "predictions.parquet"
        self._rank, self._world_size = rank, _ = trainer.global_rank, trainer.world_size
        self._writer = TableWriter(file.with_stem(f"{file.stem}-rank{rank}") if rank else file)
        self._num_tasks = 0

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Marginals,
        batch_indices: Sequence[int] | None,
        batch: Task,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self._writer.write(self._table(batch, prediction.mean, prediction.std))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._writer.close()
        if self._num_tasks:
            print(f"predictions of {self._num_tasks} tasks written to {self._writer.path}")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _table(self, batch: Task, mean: Tensor, std: Tensor) -> pa.Table:
        shape = batch.xt.shape[:2]
        mask = np.ones(shape, bool)
        if batch.target_mask is not None:
            mask = batch.target_mask.cpu().numpy()
        task, target = np.indices(shape)
        columns = {"task": self._rank + self._world_size * (self._num_tasks + task[mask])}
        columns["target"] = target[mask]
        self._num_tasks += len(mask)
        for name, values in {"x": batch.xt, "mean": mean, "std": std, "y": batch.yt}.items():
            if values is not None:
                rows = values.detach().float().cpu().numpy()[mask]
                columns |= {f"{name}{i}": column for i, column in enumerate(rows.T)}
        return pa.table(columns)
