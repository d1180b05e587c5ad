"""Predictions into a file."""

import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from npbench.models.base import Marginals
from npbench.task import Task


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of `predict` to a Parquet file, batch by batch.

    One row for each target: `task` and `target` (its place in the task), inputs `x0`, `x1`, …,
    `mean0`, …, `std0`, …, and the true values `y0`, … where they are known. With several processes
    each writes its own file, `predictions-rank1.parquet` and so on.

    Args:
        path: the file; by default `predictions.parquet` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self._writer: pq.ParquetWriter | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir
        file = Path(self.path) if self.path else Path(folder) / "predictions.parquet"
        rank = trainer.global_rank
        self._file = file.with_stem(f"{file.stem}-rank{rank}") if rank else file
        self._partial = self._file.with_suffix(".partial")
        self._num_tasks = 0
        self._file.parent.mkdir(parents=True, exist_ok=True)

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
        table = self._table(batch, prediction.mean, prediction.std)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._partial, table.schema)
        self._writer.write_table(table)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            os.replace(self._partial, self._file)
            print(f"predictions of {self._num_tasks} tasks written to {self._file}")

    def _table(self, batch: Task, mean: Tensor, std: Tensor) -> pa.Table:
        shape = batch.xt.shape[:2]
        mask = np.ones(shape, bool)
        if batch.target_mask is not None:
            mask = batch.target_mask.cpu().numpy()
        task, target = np.indices(shape)
        columns = {"task": task[mask] + self._num_tasks, "target": target[mask]}
        self._num_tasks += len(mask)
        for name, values in {"x": batch.xt, "mean": mean, "std": std, "y": batch.yt}.items():
            if values is not None:
                rows = values.detach().float().cpu().numpy()[mask]
                columns |= {f"{name}{i}": column for i, column in enumerate(rows.T)}
        return pa.table(columns)
