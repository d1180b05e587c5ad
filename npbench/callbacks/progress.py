"""What training shows in the terminal: one line of the model, and one of how far it has come."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelSummary
from rich.progress import ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from npbench.training.lightning_parts import ShortProgressBar

_SHORT = {"train/loss": "loss", "val/log_likelihood": "val", "val/nll": "val NLL"}


class ProgressBar(ShortProgressBar):
    """Rich's progress bar in one line, with the steps of the run, the loss and what is monitored.

    Example:
        >>> trainer = L.Trainer(callbacks=[ProgressBar()], logger=False)
        >>> type(trainer.progress_bar_callback).__name__
        'ProgressBar'
    """

    def __init__(self) -> None:
        super().__init__()
        self._values = ""

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """Description, bar and batches, the time that is left, and the values; none breaks."""
        left = TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True))
        return [*super().configure_columns(trainer)[:3], left, _Values(self)]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Nothing: Lightning's column of metrics breaks lines, and `configure_columns` has its
        own."""
        self._values = "  ".join(
            f"{name} {value}" for name, value in self.values(trainer, pl_module).items()
        )
        return {}

    def values(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, str]:
        """The step, the loss and the monitored value, by their short names, in four digits."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        values = {}
        if trainer.training and trainer.max_steps > 0:
            values["step"] = f"{trainer.global_step}/{trainer.max_steps}"
        for name, value in metrics.items():
            values[_SHORT.get(name, name)] = (
                f"{value:.4g}" if isinstance(value, float) else str(value)
            )
        return values

    def text_of(self, task: Task) -> str:
        """The values, beside the bar of training, and none beside the others."""
        return self._values if task.id == self.train_progress_bar_id else ""


class _Values(ProgressColumn):
    """The values of a progress bar, in one line."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text(self._bar.text_of(task), no_wrap=True, overflow="ellipsis")


class ModelLine(ModelSummary):
    """Says in one line what is trained, in place of Lightning's table of modules."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            model = getattr(pl_module, "model", pl_module)
            number = sum(parameter.numel() for parameter in model.parameters())
            print(f"{type(model).__name__}: {number:,} parameters")
