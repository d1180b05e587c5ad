"""All that npbench uses of Lightning's inner parts, which its documentation does not promise.

`pyproject.toml` bounds the versions of Lightning that are tested: whoever moves the bound reads
this file, and runs the tests. Everything else that npbench uses of Lightning is documented.

Two uses stand where they are needed. `datamodules.loading` takes the number of batches that a run
has trained on from `trainer.fit_loop.epoch_loop.batch_progress`, since data modules import no
training. `npbench.messages` leaves the tips out of the log `lightning.pytorch.utilities.rank_zero`.
"""

import logging
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO

from npbench.errors import InputError
from npbench.training.checkpoint_io import WholeCheckpointIO

_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def is_rebuilt_from_paths(hparams: Mapping[str, Any]) -> bool:
    """Whether `load_from_checkpoint` builds the module from the class paths in its `hparams`.

    `LightningCLI` writes the key `_instantiator` into the hyper-parameters of modules that it has
    made from a configuration.
    """
    return "_instantiator" in hparams


def without_builder(hparams: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint without the key `_instantiator`, if it is Lightning's.

    Raises:
        InputError: if the key names another function, which `load_from_checkpoint` would call.
    """
    if (named := hparams.get("_instantiator", _INSTANTIATOR)) != _INSTANTIATOR:
        raise InputError(f"{source} asks for {named!r} to be run, and was not loaded")
    return {name: value for name, value in hparams.items() if name != "_instantiator"}


def rebuild_from_paths(hparams: MutableMapping[str, Any]) -> None:
    """Have `load_from_checkpoint` build the module from the class paths in its `hparams`.

    It calls the function that the key `_instantiator` names, and takes no other than this one.
    """
    hparams["_instantiator"] = _INSTANTIATOR


def save_untrained(module: L.LightningModule, path: Path) -> None:
    """Write a checkpoint of a module that no trainer has run; the file is whole, or not there.

    `Trainer.save_checkpoint` wants a module that its strategy knows, and `strategy.connect` tells
    it of one; `fit`, `test` and the like do so themselves.
    """
    with _without_notices():
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            plugins=[WholeCheckpointIO()],
        )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=False)  # so that `fit` takes it too


def keep_checkpoints_whole(trainer: L.Trainer) -> None:
    """Have a trainer write its checkpoints through `WholeCheckpointIO`.

    `strategy.checkpoint_io` is Lightning's own where the trainer was given no plugin for it, and
    then alone is it replaced.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def scales_gradients(trainer: L.Trainer) -> bool:
    """Whether the trainer's precision scales gradients, and skips steps in which they overflow.

    `trainer.precision_plugin` then has a `scaler`.
    """
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def precision_of(trainer: L.Trainer) -> AbstractContextManager[None]:
    """A context in which a model computes in the trainer's precision, as within its steps.

    `trainer.precision_plugin` knows it; its `forward_context` turns on autocast, or sets torch's
    default type.
    """
    return trainer.precision_plugin.forward_context()


class ShortProgressBar(RichProgressBar):
    """Rich's progress bar with three digits after the point, and epochs that are not numbered.

    The theme is documented by an example alone. `_get_train_description` makes "Epoch 3/-2" where
    the number of epochs is not bounded, and `total_train_batches` is what the bar counts to.
    """

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3f"))

    @property
    def total_train_batches(self) -> int | float:
        """The batches of the epoch, which the last step of the run may cut short.

        Lightning takes the steps that are left of the run for those of the epoch, which a resumed
        run has begun before. `batch_progress.current.ready` batches of it have begun: one too many
        where a run goes on from a checkpoint of the end of training.
        """
        trainer = self.trainer
        begun = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        total = max(trainer.num_training_batches, begun)
        if trainer.max_steps <= 0:
            return total
        accumulated = trainer.accumulate_grad_batches
        left = (trainer.max_steps - trainer.global_step) * accumulated - begun % accumulated
        return min(total, begun + left)

    def _get_train_description(self, current_epoch: int) -> str:
        description = super()._get_train_description(current_epoch)
        return description.replace("/-2", "  ") if self.trainer.max_epochs == -1 else description


class TrainerCommands(LightningCLI):
    """LightningCLI that shows its parsers, and keeps a configuration as it is."""

    @property
    def parsers(self) -> Mapping[str, LightningArgumentParser]:
        """The parser of each command, by its name; Lightning has them in `_subcommand_parsers`."""
        return self._subcommand_parsers

    def accept_options_of_each_other(self) -> None:
        """Let every command take the configuration of a run of every other.

        A run's `config.yaml` has the arguments of its command too, such as `verbose` of `test`,
        which `predict` does not have: it parses and ignores them.
        """
        methods = {
            name: [f"--{option}" for option in self._subcommand_method_arguments[name]]
            for name in self._subcommand_parsers
        }
        for parser in self._subcommand_parsers.values():
            for option in {option for options in methods.values() for option in options}:
                if option not in parser._option_string_actions:
                    parser.add_argument(option, type=Any, default=SUPPRESS, help=SUPPRESS)

    def fit(self, ckpt_path: str | None = None, **options: Any) -> None:
        """Train; where a checkpoint cannot be resumed from, say what to do instead.

        LightningCLI calls the method that has a command's name, if there is one, in place of the
        trainer's.

        Raises:
            InputError: if the trainer cannot take up the state of the checkpoint.
        """
        try:
            self.trainer.fit(ckpt_path=ckpt_path, **options)
        except (RuntimeError, ValueError, KeyError) as error:
            if isinstance(error, InputError) or not getattr(self.model, "is_resuming", False):
                raise
            raise InputError(
                f"{ckpt_path} cannot be resumed from with this configuration ({error}); "
                f"--init_from {ckpt_path} begins a new run with its weights alone"
            ) from error

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
