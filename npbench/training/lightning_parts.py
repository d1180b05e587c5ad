"""All that npbench uses of Lightning's inner parts, which its documentation does not promise.

`pyproject.toml` bounds the versions of Lightning that are tested: whoever moves the bound reads
this file, and runs the tests. Everything else that npbench uses of Lightning is documented.

Two uses stand where they are needed. `datamodules.loading` takes the number of batches that a run
has trained on from `trainer.fit_loop.epoch_loop.batch_progress`, since data modules import no
training. `npbench.messages` leaves the tips out of the log `lightning.pytorch.utilities.rank_zero`.
"""

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from npbench.files import whole_file


def is_rebuilt_from_paths(hparams: Mapping[str, Any]) -> bool:
    """Whether `load_from_checkpoint` builds the module from the class paths in its `hparams`.

    `LightningCLI` writes the key `_instantiator` into the hyper-parameters of modules that it has
    made from a configuration.
    """
    return "_instantiator" in hparams


def rebuild_from_paths(hparams: MutableMapping[str, Any]) -> None:
    """Have `load_from_checkpoint` build the module from the class paths in its `hparams`.

    It calls the function that the key `_instantiator` names, and takes no other than this one.
    """
    hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"


def save_untrained(module: L.LightningModule, path: Path) -> None:
    """Write a checkpoint of a module that no trainer has run; the file is whole, or not there.

    `Trainer.save_checkpoint` wants a module that its strategy knows, and `strategy.connect` tells
    it of one; `fit`, `test` and the like do so themselves.
    """
    with _without_notices():
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    with whole_file(path) as unfinished:
        trainer.save_checkpoint(unfinished, weights_only=False)  # so that `fit` takes it too


def precision_of(trainer: L.Trainer) -> AbstractContextManager[None]:
    """A context in which a model computes in the trainer's precision, as within its steps.

    `trainer.precision_plugin` knows it; its `forward_context` turns on autocast, or sets torch's
    default type.
    """
    return trainer.precision_plugin.forward_context()


class ShortProgressBar(RichProgressBar):
    """Rich's progress bar with three digits after the point, and epochs that are not numbered.

    The theme is documented by an example alone. `_get_train_description` makes "Epoch 3/-2" where
    the number of epochs is not bounded.
    """

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3f"))

    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        return description.replace("/-2", "  ") if self.trainer.max_epochs == -1 else description


class TrainerCommands(LightningCLI):
    """LightningCLI that shows its parsers, and keeps a configuration as it is."""

    @property
    def parsers(self) -> Mapping[str, LightningArgumentParser]:
        """The parser of each command, by its name; Lightning has them in `_subcommand_parsers`."""
        return self._subcommand_parsers

    def setting(self, key: str) -> Any:
        """The value of the command that runs, such as of "trainer.logger"; None if it has none.

        `_get` looks `key` up below the command's name in the configuration.
        """
        return self._get(self.config_init, key)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is.

        Lightning puts the hyper-parameters of the checkpoint of `--ckpt_path` over it.
        """


@contextmanager
def _without_notices() -> Iterator[None]:
    """Leave out Lightning's lines on which devices there are: none is used."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
