"""The `npbench` command."""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn

import lightning as L
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from npbench.callbacks import BestCheckpoint, LastCheckpoint, PredictionWriter, ProgressBar
from npbench.commands import compare, condition, import_official, profile, query, start
from npbench.commands.sections import check_values
from npbench.errors import InputError
from npbench.messages import explain, options_of, quieten, refuse
from npbench.training.lightning_parts import TrainerCommands

_DESCRIPTION = """\
Train, measure and use constant-memory neural processes.

  npbench fit --config configs/gp/cmanp-small.yaml
  npbench fit --config configs/gp/cmanp-small.yaml --trainer.max_steps 500
  npbench test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  npbench predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  npbench compare RUN RUN ...         # several models on the same tasks; npbench compare --help
  npbench profile --config CONFIG ... # memory and time as the context or the history grows
  npbench condition --ckpt RUN ...    # a table of any size becomes a small file, a state
  npbench query --state STATE ...     # which predicts at the rows of another
  npbench import-official CKPT ...    # weights of the paper's official code

Models of event sequences are trained, tested and asked for predictions by the same commands:
  npbench fit --config configs/events/stackoverflow/cmhp.yaml

Each run writes to a new folder RUN below trainer.default_root_dir: its configuration, metrics (CSV
and TensorBoard), figures and checkpoints. A run that was cut off goes on exactly where it was with
  npbench fit --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
and another one, on other data or with another optimiser, begins with its weights by
  npbench fit --config CONFIG --init_from RUN"""

_SUBCOMMANDS = {
    "fit": "Train a model, with validation.",
    "validate": "Evaluate a checkpoint on the validation data.",
    "test": "Evaluate a checkpoint on the test data.",
    "predict": "Write a checkpoint's predictions to a Parquet file.",
}

# These commands are not the trainer's, and parse their own arguments.
_COMMANDS = {
    "compare": compare.run,
    "profile": profile.run,
    "condition": condition.run,
    "query": query.run,
    "import-official": import_official.run,
}


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the description's lines."""


class _Parser(LightningArgumentParser):
    """Says what is wrong in one sentence, without a page of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        refuse(message, [*options_of(self), *_COMMANDS], "npbench fit")


class NPBenchCLI(TrainerCommands):
    """LightningCLI with npbench's loggers, checkpoints and messages."""

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        self.describe(_SUBCOMMANDS)
        self.accept_options_of_each_other()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_argument(
            "--init_from", type=str | None, default=None, metavar="CKPT",
            help="fit: begin a new run with the weights of a checkpoint, or of a run's best one",
        )  # fmt: skip

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        start.check(self.subcommand, options)
        for section in ("model", "data"):
            check_values(options.get(section), section)
        if options.get("weights_only", True) is None:
            # Lightning's default would let a checkpoint run code.
            options["weights_only"] = True

    def instantiate_classes(self) -> None:
        """Make the trainer, the model and the data; what a constructor refuses, the user wrote."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise InputError(str(error)) from error

    def before_fit(self) -> None:
        if path := self.setting("init_from"):
            start.load_weights(self.model, path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.setting("trainer.logger") in (None, True):
            root = self.setting("trainer.default_root_dir") or "runs"
            tensorboard = TensorBoardLogger(root, name="")
            # Both write into one folder; each would otherwise count versions for itself.
            csv = CSVLogger(root, name="", version=tensorboard.version)
            kwargs["logger"] = [tensorboard, csv]
        if self.setting("trainer.enable_progress_bar") is not False:
            self.trainer_defaults["callbacks"] = [ProgressBar()]
        return super().instantiate_trainer(**kwargs)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; an error that a user can mend ends in one sentence and exit code 1."""
    quieten()
    # Class paths may name modules of the working folder; those that are installed come first.
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    command, *rest = (sys.argv[1:] if args is None else args) or [""]
    try:
        if command in _COMMANDS:
            return _COMMANDS[command](rest)
        NPBenchCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "npbench",
                "description": _DESCRIPTION,
                "formatter_class": _HelpFormatter,
            },
            args=None if args is None else list(args),
        )
    except (InputError, OSError, MisconfigurationException) as error:
        if os.environ.get("NPBENCH_TRACEBACK"):
            raise
        print(f"npbench: error: {explain(str(error))}", file=sys.stderr)
        print("(NPBENCH_TRACEBACK=1 shows where it arose)", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as interrupt:
        print(f"npbench: interrupted{interrupt}", file=sys.stderr)
        raise SystemExit(130) from None
