"""The two checkpoints of every run: the best so far, and the last, from which to resume."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the model that did best in validation.

    Args:
        monitor: the logged value to go by.
        mode: "max" where more is better, "min" where less is.
    """

    def __init__(self, monitor: str = "val/log_likelihood", mode: str = "max") -> None:
        super().__init__(filename="best", monitor=monitor, mode=mode, enable_version_counter=False)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, renewed every `every_n_train_steps` and at the end of training.

    A run in one process resumes from it exactly: the state of torch's random generators goes with
    it, for models that draw while they train. With several, all resume with the first one's.
    """

    def __init__(self, every_n_train_steps: int = 200) -> None:
        super().__init__(
            filename="last",
            every_n_train_steps=every_n_train_steps,
            save_top_k=1,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step % self._every_n_train_steps:
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
