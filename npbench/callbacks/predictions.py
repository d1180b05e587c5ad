"""A run's predictions, written into a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
from lightning.pytorch.callbacks import BasePredictionWriter

from npbench.errors import InputError
from npbench.offers import OffersNamedPredictions
from npbench.tables import TableWriter
from npbench.training import MetaRegression
from npbench.training.base import TrainingModule


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of `predict` to a Parquet or CSV file, batch by batch.

    The training module says what a row holds: a target in `MetaRegression.prediction_table`, an
    event in `EventPrediction.prediction_table`. A data module whose data have names of their own
    puts them in (`npbench.offers.OffersNamedPredictions`). With several processes, process r of R
    writes the tasks or sequences r, r + R, … into its own file, `predictions-rank1.parquet` and so
    on.

    Args:
        path: the file; by default `predictions.parquet` in the run's folder.
        quantiles: probabilities, such as 0.05: of a regression there is a column for each, the
            value below which a target's lies with this probability.
    """

    def __init__(self, path: str | None = None, quantiles: list[float] | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.quantiles = quantiles or []
        self._writer: TableWriter | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir
        file = Path(self.path) if self.path else Path(folder) / "predictions.parquet"
        rank = trainer.global_rank
        self._writer = TableWriter(file.with_stem(f"{file.stem}-rank{rank}") if rank else file)
        self._seen = self._written = 0
        if self.quantiles:
            if not isinstance(pl_module, MetaRegression):
                raise InputError(f"{type(pl_module).__name__} predicts no quantiles")
            pl_module.quantiles = self.quantiles

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: TrainingModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        table = pl_module.prediction_table(batch, prediction)
        name = table.schema.names[0]
        # Process r of R has the tasks or sequences r, r + R, ….
        numbers = self._seen + table.column(0).to_numpy()
        numbers = trainer.global_rank + trainer.world_size * numbers
        table = table.set_column(0, name, pa.array(numbers))
        if isinstance(trainer.datamodule, OffersNamedPredictions):
            table = trainer.datamodule.named_predictions(table)
        self._writer.write(table)
        self._seen += batch.batch_size
        self._written += len(table)

    def on_predict_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        self._writer.close()
        if self._written:
            print(f"{self._written:,} predictions written to {self._writer.path}")

    def on_exception(
        self, trainer: L.Trainer, pl_module: TrainingModule, exception: BaseException
    ) -> None:
        if self._writer is not None:
            self._writer.discard()
