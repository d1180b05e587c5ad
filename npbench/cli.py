"""The `npbench` command."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from npbench.callbacks import BestCheckpoint, LastCheckpoint, PredictionWriter

_DESCRIPTION = """Train, measure and use constant-memory neural processes.

  npbench fit --config configs/gp/cmanp-small.yaml
  npbench fit --config configs/gp/cmanp-small.yaml --trainer.max_steps 500
  npbench test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  npbench predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt

A run writes to a folder of its own below trainer.default_root_dir: its configuration, metrics
(CSV and TensorBoard), figures and checkpoints. A run that was cut off goes on exactly where it was
with --ckpt_path RUN/checkpoints/last.ckpt."""


class NPBenchCLI(LightningCLI):
    """LightningCLI with npbench's loggers, checkpoints and messages."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self._get(self.config_init, "trainer.logger") in (None, True):
            root = self._get(self.config_init, "trainer.default_root_dir") or "runs"
            tensorboard = TensorBoardLogger(root, name="")
            # Both into one folder: each would otherwise count versions for itself.
            csv = CSVLogger(root, name="", version=tensorboard.version)
            kwargs["logger"] = [tensorboard, csv]
        return super().instantiate_trainer(**kwargs)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; errors that a user can mend end in one sentence and exit code 1."""
    # Advice for others than those who meet it.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated.*", FutureWarning)
    torch.set_float32_matmul_precision("high")
    try:
        NPBenchCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [RichProgressBar(leave=True)]},
            parser_kwargs={"prog": "npbench", "description": _DESCRIPTION},
            args=args,
        )
    except (ValueError, OSError, MisconfigurationException) as error:
        if os.environ.get("NPBENCH_TRACEBACK"):
            raise
        print(f"npbench: error: {error}", file=sys.stderr)
        print("(NPBENCH_TRACEBACK=1 shows where it arose)", file=sys.stderr)
        raise SystemExit(1) from None
