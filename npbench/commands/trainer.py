"""`npbench fit`, `validate`, `test` and `predict`: the commands of Lightning's trainer."""

import atexit
import shlex
import sys
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM
from typing import Any, NoReturn

import lightning as L
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from rich.console import Console
from torch import distributed

from npbench.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    ModelLine,
    PredictionWriter,
    ProgressBar,
)
from npbench.commands import COMMANDS, start
from npbench.commands.sections import check_values
from npbench.commands.tables import metrics_table
from npbench.errors import InputError
from npbench.messages import options_of, refuse
from npbench.training import EventPrediction, MetaRegression, SequenceClassification
from npbench.training.checkpoint_files import checkpoint_to_resume
from npbench.training.lightning_parts import TrainerCommands

# jsonargparse finds by their names alone, without a path, the classes that are imported.
_NAMED = EventPrediction, MetaRegression, SequenceClassification

_FIELDS = """

Any field of the configuration can be set, as in
  npbench {name} --config configs/gp/cmanp.yaml --model.model.num_layers 3 --data.batch_size 8

The fields of a model, of its training, and of the data are listed by
  npbench {name} --config configs/gp/cmanp.yaml --model.model.help npbench.models.CMANP
  npbench {name} --model.help npbench.training.MetaRegression
  npbench {name} --data.help datamodules.GPDataModule
and those of Lightning's trainer, such as --trainer.max_steps, by --help-trainer."""
# What Lightning takes for `--ckpt_path` beside files.
_NOT_FILES = "best", "hpc"
# Stands for the newest checkpoint of all runs in the root that is whole.
_LAST = "last"
# What shells report of a process that SIGTERM has ended.
_SIGTERM_CODE = 128 + SIGTERM
# What the groups of `--help` are called, and options whose texts are not npbench's own.
_TITLES = {
    "model": "what is trained",
    "data": "what it is trained on",
    "best_checkpoint": "best.ckpt, the model that did best in validation",
    "last_checkpoint": "last.ckpt, from which a run goes on",
    "predictions": "the file that npbench predict writes",
}
_TEXTS = {
    "model": "fields are set as in --model.model.num_layers 3; --model.model.help CLASS lists them",
    "data": "fields are set as in --data.batch_size 8; --data.help CLASS lists them",
    "last_checkpoint.every_n_train_steps": "steps between two renewals",
    "ckpt_path": "the checkpoint to go on from (last: the newest), or to evaluate",
    "weights_only": "false would let a checkpoint run code",
    "seed_everything": "seed of all random numbers; true draws one",
}


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the description's lines."""


class _HelpTrainer(Action):
    """`--help-trainer`: the options of Lightning's trainer, which `--help` leaves out."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, SUPPRESS, nargs=0, default=SUPPRESS, **kwargs)

    def __call__(self, parser: Any, *_: Any) -> None:
        parser.print_help(trainer=True)
        parser.exit()


class _Parser(LightningArgumentParser):
    """Says what is wrong in one sentence, and helps with npbench's own options by themselves."""

    def print_help(self, file: Any = None, trainer: bool = False) -> None:
        for action in self._actions:
            if action.dest.partition(".")[0] == "trainer" and not trainer:
                action.help = SUPPRESS
            else:
                action.help = _TEXTS.get(action.dest, action.help)
        super().print_help(file)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        refuse(message, options_of(self), "npbench fit")


class NPBenchCLI(TrainerCommands):
    """LightningCLI with npbench's loggers, checkpoints and messages."""

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        for name, parser in self.parsers.items():
            parser.formatter_class = _HelpFormatter
            parser.usage = f"npbench {name} --config CONFIG [--GROUP.FIELD VALUE …]"
            parser.description = COMMANDS[name].summary + _FIELDS.format(name=name)
            groups = parser.groups or {}
            for group, title in {**_TITLES, name: "the checkpoint"}.items():
                groups[group].title = title
        self.accept_options_of_each_other()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--help-trainer", action=_HelpTrainer, help="list --trainer.FIELDs too")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_argument(
            "--init_from", type=str | None, default=None, metavar="CKPT",
            help="fit: begin a new run with the weights of a checkpoint, of a run's best one, or "
            "of a model that comes with npbench",
        )  # fmt: skip

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        start.check(self.subcommand, options)
        for section in ("model", "data"):
            check_values(options.get(section), section)
        if options.get("weights_only", True) is None:
            # Lightning's default would let a checkpoint run code.
            options["weights_only"] = True
        path = options.get("ckpt_path")
        if self.subcommand == "fit" and path not in (None, *_NOT_FILES):
            if path == _LAST:
                path = options.get("trainer.default_root_dir") or "runs"
                if not any(Path(path).rglob("*.ckpt")):
                    options["ckpt_path"] = None
                    self._remark(f"there is no checkpoint in {path}; training begins anew")
                    return
            found, remark = checkpoint_to_resume(path)
            options["ckpt_path"] = str(found)
            self._remark(remark)

    def _remark(self, text: str | None) -> None:
        if text and not _rank():
            print(f"npbench: {text}", file=sys.stderr)

    def instantiate_classes(self) -> None:
        """Make the trainer, the model and the data; what a constructor refuses, the user wrote."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise InputError(str(error)) from error

    def before_fit(self) -> None:
        path = self.setting("init_from")
        # The configuration of a run that was begun so says so when it is resumed, too.
        if path and not self.setting("ckpt_path"):
            start.load_weights(self.model, path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.setting("trainer.logger") in (None, True):
            root = self.setting("trainer.default_root_dir") or "runs"
            # Both write into one folder; each would otherwise count versions for itself.
            version = None if self.setting("trainer.fast_dev_run") else new_version(Path(root))
            tensorboard = TensorBoardLogger(root, name="", version=version)
            csv = CSVLogger(root, name="", version=tensorboard.version)
            kwargs["logger"] = [tensorboard, csv]
        if self.setting("trainer.enable_progress_bar") is not False:
            self.trainer_defaults["callbacks"] = [ProgressBar()]
        if self.setting("trainer.enable_model_summary") is not False:
            self.trainer_defaults.setdefault("callbacks", []).append(ModelLine())
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Say where the run is, and what to type next."""
        run = self.trainer.log_dir
        if run is None or not self.trainer.is_global_zero:
            return
        checkpoints = Path(run) / "checkpoints"
        found = [name for name in ("best.ckpt", "last.ckpt") if (checkpoints / name).is_file()]
        print(f"the run is in {run}{'; test it by' if found else ''}")
        if found:
            files = "--config", f"{run}/config.yaml", "--ckpt_path", str(checkpoints / found[0])
            print(f"  {shlex.join(['npbench', 'test', *files])}")

    def validate(self, **arguments: Any) -> None:
        self._evaluate(self.trainer.validate, **arguments)

    def test(self, **arguments: Any) -> None:
        self._evaluate(self.trainer.test, **arguments)

    def _evaluate(
        self, evaluate: Callable[..., Any], verbose: bool = True, **arguments: Any
    ) -> None:
        """Run one of the trainer's evaluations, and show the results in four digits.

        `LightningCLI` calls the method of a command's name, if there is one, for the trainer's.
        """
        results = evaluate(verbose=False, **arguments)
        if verbose and self.trainer.is_global_zero:
            merged = {name: value for part in results for name, value in part.items()}
            Console().print(metrics_table(merged))


def run(args: Sequence[str] | None = None) -> None:
    """Run one of the trainer's commands.

    Args:
        args: the command and its arguments; by default those of the process.

    Raises:
        InputError: on what a configuration or a checkpoint says and cannot be.
        SystemExit: with code 143, if SIGTERM has ended the run.
    """
    atexit.register(_leave_processes)
    try:
        NPBenchCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={"prog": "npbench"},
            args=None if args is None else list(args),
        )
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except SIGTERMException:
        print("npbench: ended by SIGTERM", file=sys.stderr)
        raise SystemExit(_SIGTERM_CODE) from None


def _leave_processes() -> None:
    """Take leave of the other processes of a run, whose threads would else be cut off at the end:
    Lightning does it for NCCL alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def new_version(root: Path) -> int | None:
    """Make the folder of a new run, `version_N` in `root`, and return N.

    Of several commands that start at once each makes one of its own. The other processes of a run
    make none: the first one's folder counts.

    Raises:
        OSError: if the folder cannot be made.
    """
    if _rank():
        return None
    while True:
        names = [path.name.removeprefix("version_") for path in root.glob("version_*")]
        version = max((int(name) for name in names if name.isdecimal()), default=-1) + 1
        with suppress(FileExistsError):  # another command was faster
            (root / f"version_{version}").mkdir(parents=True)
            return version


def _rank() -> int:
    """The number of this process among those of a run, which Lightning knows from the start."""
    return getattr(rank_zero_only, "rank", 0)
