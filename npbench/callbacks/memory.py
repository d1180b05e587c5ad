"""Peak memory and time of the model in training, as the context grows."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pandas as pd
from lightning.pytorch.loggers import TensorBoardLogger

from npbench.callbacks.recording import Onlooker
from npbench.errors import InputError
from npbench.profiling import PHASES, profile, profile_figure
from npbench.training.lightning_parts import precision_of


class PeakMemoryProfiler(Onlooker):
    """Profiles the model in training at several sizes of context; see `npbench.profiling.profile`.

    After every `every_n_epochs` epochs the first process measures. It logs to TensorBoard a scalar
    for each phase, `memory/PHASE` in MiB, whose steps are the sizes, and a log–log figure; and
    writes `memory.csv` in the run's folder, one row an epoch, size and phase. A phase that ran out
    of memory is a row without numbers. Training goes on as if nothing had been measured.

    Args:
        context_sizes: numbers of context points, or of events.
        num_targets: number of targets, in query and train; an event model has none.
        phases: some of condition, query, update and train.
        every_n_epochs: how often to measure.

    Example:
        >>> from npbench.callbacks import PeakMemoryProfiler
        >>> profiler = PeakMemoryProfiler(context_sizes=[100, 1000, 10_000])
    """

    def __init__(
        self,
        context_sizes: Sequence[int] = (100, 1000, 10_000),
        num_targets: int = 1000,
        phases: Sequence[str] = PHASES,
        every_n_epochs: int = 1,
    ) -> None:
        if not context_sizes or min(context_sizes) < 1:
            raise InputError(f"context_sizes={list(context_sizes)} must be sizes of 1 or more")
        if num_targets < 1 or every_n_epochs < 1:
            raise InputError(
                f"num_targets={num_targets} and every_n_epochs={every_n_epochs} must be 1 or more"
            )
        if unknown := set(phases) - set(PHASES):
            raise InputError(f"unknown phase(s) {sorted(unknown)}; known: {', '.join(PHASES)}")
        self.context_sizes = sorted(context_sizes)
        self.num_targets = num_targets
        self.phases = tuple(phases)
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = trainer.log_dir  # which all processes must ask for together
        epoch = trainer.current_epoch
        if not trainer.is_global_zero or (epoch + 1) % self.every_n_epochs:
            return
        table = self.look(lambda: self._measure(trainer, pl_module))
        if table is None:
            return
        if folder is not None:
            path = Path(folder) / "memory.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            table.assign(epoch=epoch).to_csv(path, mode="a", header=is_new, index=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for row in table.dropna().itertuples():
                    name, mebibytes = f"memory/{row.phase}", row.peak_bytes / 2**20
                    logger.experiment.add_scalar(name, mebibytes, row.num_context)
                figure = profile_figure({type(pl_module.model).__name__: table})
                logger.experiment.add_figure("memory", figure, trainer.global_step)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> pd.DataFrame:
        sizes, targets = self.context_sizes, self.num_targets
        with precision_of(trainer):
            rows = profile(pl_module.model, sizes, targets, self.phases, pl_module.device)
            return pd.DataFrame(rows)
