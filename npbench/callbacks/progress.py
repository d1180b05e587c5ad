"""The progress bar."""

from typing import Any

import lightning as L

from npbench.training.lightning_parts import ShortProgressBar


class ProgressBar(ShortProgressBar):
    """Rich's progress bar, with the steps of the whole run, the loss and what is monitored."""

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
