"""The two checkpoints of every run: the best so far, and the last, from which to resume."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from npbench.errors import InputError


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the model that did best in validation.

    Args:
        monitor: the logged value to go by; by default that of the training module,
            `val/log_likelihood` of `MetaRegression` and `val/nll` of `EventPrediction`.
        mode: "max" where more is better, "min" where less is; by default what is right for the
            value of the training module.

    Raises:
        InputError: when a run starts, if another value is monitored without a mode.
    """

    def __init__(
        self, monitor: str | None = None, mode: Literal["min", "max"] | None = None
    ) -> None:
        self._asked_mode = mode
        super().__init__(
            filename="best", monitor=monitor, mode=mode or "min", enable_version_counter=False
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        own = getattr(pl_module, "monitor", None)
        self.monitor = self.monitor or own
        if self._asked_mode is None:
            if self.monitor != own or own is None:
                raise InputError(
                    f'monitor={self.monitor!r} needs a mode: "min" where less of it is better, '
                    f'"max" where more is'
                )
            self.mode = self._asked_mode = pl_module.monitor_mode
            self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, renewed every `every_n_train_steps` and at the end of training.

    A run in one process resumes from it exactly: it holds the state of torch's random generators,
    for models that draw while they train. Several processes all resume with the first one's.
    """

    def __init__(self, every_n_train_steps: int = 200) -> None:
        self.every_n_train_steps = every_n_train_steps
        super().__init__(
            filename="last",
            every_n_train_steps=every_n_train_steps,
            save_top_k=1,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step % self.every_n_train_steps:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        generators = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        return {**super().state_dict(), "generators": generators}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        generators = state_dict.pop("generators")
        torch.set_rng_state(generators["cpu"])
        if len(generators["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(generators["cuda"])
        super().load_state_dict(state_dict)
