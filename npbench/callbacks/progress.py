"""The progress bar."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme


class ProgressBar(RichProgressBar):
    """Rich's progress bar: steps of the whole run, the loss and what is monitored."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3f"))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        short = {
            "train/loss": "loss", "val/log_likelihood": "val log-lik.", "val/nll": "val NLL",
        }  # fmt: skip
        named = {short.get(name, name): value for name, value in metrics.items()}
        if trainer.training and trainer.max_steps > 0:
            return {"step": f"{trainer.global_step}/{trainer.max_steps}", **named}
        return named

    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        # Without a number of epochs Lightning counts to −2.
        return description.replace("/-2", "  ") if self.trainer.max_epochs == -1 else description
