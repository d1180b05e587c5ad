"""The two checkpoints of every run: the best so far, and the last, from which to resume."""

from pathlib import Path
from signal import SIGTERM, signal
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from npbench.errors import InputError
from npbench.files import remove_litter
from npbench.training.lightning_parts import keep_checkpoints_whole


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
        keep_checkpoints_whole(trainer)
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, renewed every `every_n_train_steps` and at the end of training.

    SIGTERM ends a run in one process after the step that it is in, with a checkpoint of it.

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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        keep_checkpoints_whole(trainer)
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            self._remove_litter(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._told_to_end = False
        # Lightning's own handler, of which several processes need each other's, ends a run without
        # a checkpoint. When the run is over, Lightning puts back what was there before.
        if trainer.world_size == 1 and current_thread() is main_thread():
            self._end = signal(SIGTERM, self._end_soon)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._told_to_end:
            path = Path(self.dirpath) / "last.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            print(f"SIGTERM: step {trainer.global_step} is kept in {path}, to go on from")
            if callable(self._end):
                self._end(SIGTERM, None)  # Lightning ends the run when it has logged this step

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + SIGTERM  # as a shell reports it; Lightning would exit with 0

    def _end_soon(self, number: int, frame: FrameType | None) -> None:
        """Have the run end after the training step that it is in, or the next one."""
        self._told_to_end = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step % self.every_n_train_steps:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)

    def _remove_litter(self, trainer: L.Trainer) -> None:
        """Remove what killed runs of the same root, and the run to go on from, were writing."""
        runs = Path(self.dirpath).parents[1]
        folders = {Path(self.dirpath), *runs.glob("version_*/checkpoints")}
        if trainer.ckpt_path is not None:
            folders.add(Path(trainer.ckpt_path).parent)
        for folder in folders:
            remove_litter(folder, "*.ckpt")

    def state_dict(self) -> dict[str, Any]:
        generators = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        return {**super().state_dict(), "generators": generators}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        generators = state_dict.pop("generators")
        torch.set_rng_state(generators["cpu"])
        if len(generators["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(generators["cuda"])
        super().load_state_dict(state_dict)
