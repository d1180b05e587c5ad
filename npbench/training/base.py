"""What the training of all models has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, Literal, TypeVar

import lightning as L
import pyarrow as pa
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torchmetrics import Metric

from npbench.errors import InputError
from npbench.models import EventModel, NeuralProcess, SequenceClassifier
from npbench.optim import scale_rates
from npbench.structure import TensorRecord
from npbench.training.bounds import WithinWeights, check_numbers
from npbench.training.checkpoint_files import check_resumable, load_checkpoint
from npbench.training.class_paths import check_class_paths, class_at, public_path
from npbench.training.gradients import GradientCheck, OnNonFinite
from npbench.training.lightning_parts import (
    is_rebuilt_from_paths,
    rebuild_from_paths,
    scales_gradients,
    without_builder,
)

Module = TypeVar("Module", bound="TrainingModule")

# Differing weights that a message names.
_NAMED_WEIGHTS = 3


class TrainingModule(L.LightningModule, ABC):
    """Optimiser, schedule, metrics and checkpoints of a model's training.

    A subclass says what a training step is, how its metrics take in a batch, and what a row of its
    predictions holds. Its `__init__` takes the model by the type that it trains.

    Args:
        model: what is trained, with its arguments as `hparams`.
        optimizer: from parameters to an optimiser.
        lr_scheduler: from an optimiser to a scheduler, stepped at every training step
            (`ReduceLROnPlateau`, Lightning's, after each validation); None: as `decay` says.
        decay: how the learning rate falls to 0 over the run, "cosine" or "linear".
        warmup_steps: steps over which the learning rate rises linearly before either.
        on_nonfinite: what to do about a step whose gradients are not finite: "skip" it, with one
            warning, or "raise" an error. Weights are never made of it.
        lr_factors: what the learning rates of parts of the model are multiplied by, by their names.
    """

    monitor: ClassVar[str]
    """The value by which the best checkpoint is chosen, unless one says otherwise."""

    monitor_mode: ClassVar[Literal["min", "max"]]
    """Whether less of it is better, or more."""

    metrics: ClassVar[type[nn.Module]]
    """All that is measured in a stage."""

    batch: ClassVar[type[TensorRecord]]
    """What the data module must give."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        decay: Literal["cosine", "linear"],
        warmup_steps: int,
        on_nonfinite: OnNonFinite,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if decay not in ("cosine", "linear"):
            raise InputError(f'decay={decay!r} must be "cosine" or "linear"')
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps} must not be negative")
        self.model = model
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.lr_factors = dict(lr_factors or {})
        self.is_resuming = False
        self._gradients = GradientCheck(on_nonfinite)
        self._save_hyperparameters()
        self.train_metrics, self.val_metrics, self.test_metrics = (
            self._new_metrics() for _ in range(3)
        )
        # Of several sets of test data: their names, which may be any, and the metrics of each.
        self._test_names: list[str] = []
        self._metrics_of_tests = nn.ModuleList()

    @classmethod
    def load_from_checkpoint(
        cls: type[Module],
        checkpoint_path: str | PathLike,
        map_location: Any = None,
        hparams_file: str | PathLike | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Module:
        """The module of a checkpoint, which chooses no code that is run.

        Its hyper-parameters may name classes of npbench, datamodules, torch.optim and lightning,
        and models, optimisers and schedulers that are imported already; nothing is imported. They
        may not announce a model that is larger than the weights in the file.

        Args:
            checkpoint_path: the file.
            map_location: where to load the weights to; where they were saved from by default.
            hparams_file: hyper-parameters to take in place of the checkpoint's.
            strict: whether the weights must be exactly the module's.
            weights_only: False for a file that is trusted, which may then run code.
            kwargs: arguments of the module to take in place of the checkpoint's.

        Raises:
            InputError: if the file is damaged or no checkpoint, names other classes, or holds
                weights that are not finite or not of its model.
        """
        source = str(checkpoint_path)
        if weights_only is False:
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
            )
        saved = load_checkpoint(checkpoint_path)
        weights = saved["state_dict"]
        hparams = without_builder(saved.get("hyper_parameters", {}), source)
        kinds = (NeuralProcess, EventModel, SequenceClassifier, Optimizer, LRScheduler)
        check_class_paths(hparams, kinds, source)
        check_numbers(hparams.get("model"), weights, source)
        with WithinWeights(weights, source):
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, True, **kwargs
            )

    def _new_metrics(self) -> nn.Module:
        """What is measured in a stage, from nothing."""
        return self.metrics()

    @abstractmethod
    def _update_metrics(self, batch: Any, metrics: nn.Module) -> dict[str, Metric]:
        """Add a batch to the metrics; those that apply to it, by name."""

    @abstractmethod
    def prediction_table(self, batch: Any, prediction: Any) -> pa.Table:
        """What `predict_step` gave, row by row; the first column numbers the batch from 0."""

    def on_train_start(self) -> None:
        self.is_resuming = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._check(batch)

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._check(batch)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._check(batch)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._check(batch)

    def on_validation_start(self) -> None:
        _reset(self.val_metrics)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("val", batch, self.val_metrics)

    def on_test_start(self) -> None:
        _reset(self.test_metrics)
        loaders = self.trainer.test_dataloaders
        self._test_names = list(loaders) if isinstance(loaders, dict) else []
        metrics = [self._new_metrics() for _ in self._test_names]
        self._metrics_of_tests = nn.ModuleList(metrics).to(self.device)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        metrics, of = self._tested(dataloader_idx)
        self._measure("test", batch, metrics, of)

    @property
    def named_test_metrics(self) -> dict[str, nn.Module]:
        """The metrics of each set of test data, where the data module names several."""
        return dict(zip(self._test_names, self._metrics_of_tests, strict=True))

    def _tested(self, dataloader_idx: int) -> tuple[nn.Module, str]:
        """The metrics of a test loader, and what follows their names in logs."""
        if not self._test_names:
            return self.test_metrics, ""
        return self._metrics_of_tests[dataloader_idx], f"/{self._test_names[dataloader_idx]}"

    @property
    def _data(self) -> Any:
        """The data module of the run; None without one, and of a module that no trainer runs."""
        return getattr(self._trainer, "datamodule", None)

    def _check(self, batch: Any) -> None:
        if not isinstance(batch, self.batch):
            raise InputError(
                f"{type(self).__name__} takes batches of {self.batch.__name__}, and the data gives "
                f"{type(batch).__name__}; take a data module for it, or another module"
            )

    def _measure(self, stage: str, batch: Any, metrics: nn.Module, of: str = "") -> None:
        self._log_metrics(stage, self._update_metrics(batch, metrics), batch.batch_size, of)

    def _log_metrics(
        self, stage: str, metrics: Mapping[str, Metric], batch_size: int, of: str = ""
    ) -> None:
        for name, metric in metrics.items():
            shown = self.monitor.endswith(f"/{name}") and stage != "train"
            self.log(
                f"{stage}/{name}{of}",
                metric,
                prog_bar=shown,
                on_step=False,
                on_epoch=True,
                batch_size=batch_size,
                add_dataloader_idx=False,
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Scaled gradients overflow as a matter of course, which their scaler sees to.
        taken = scales_gradients(self.trainer) or self._gradients.passes(
            self.parameters(), self.trainer.global_step
        )
        self._end_step(taken)

    def _end_step(self, taken: bool) -> None:
        """Called before each step of the optimiser, which is taken or skipped."""

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer(self.model.parameters())
        except ValueError as error:
            raise InputError(f"the optimizer cannot be built: {error}") from error
        scale_rates(optimizer, self.model, self.lr_factors)
        scheduler = (self.lr_scheduler or self._decay_over_the_run)(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if not isinstance(scheduler, ReduceLROnPlateau):
                raise InputError(
                    "take lightning.pytorch.cli.ReduceLROnPlateau, which is told what to monitor"
                )
            if self.warmup_steps:
                raise InputError("ReduceLROnPlateau takes no warmup_steps; set warmup_steps to 0")
            schedule = {"scheduler": scheduler, "monitor": scheduler.monitor}
        else:
            schedule = {"scheduler": self._with_warmup(scheduler), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _decay_over_the_run(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        steps = max(1, self.trainer.estimated_stepping_batches - self.warmup_steps)
        if self.decay == "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps)
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)

    def _with_warmup(self, scheduler: LRScheduler) -> LRScheduler:
        if not self.warmup_steps:
            return scheduler
        warmup = LinearLR(
            scheduler.optimizer, start_factor=1 / self.warmup_steps, total_iters=self.warmup_steps
        )
        return SequentialLR(scheduler.optimizer, [warmup, scheduler], [self.warmup_steps])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what data the run is on: it can go on with no other."""
        if self._data is not None:
            checkpoint["data"] = public_path(type(self._data))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, and to go on from weights alone or on other data.

        Raises:
            InputError: if its parameters are not this model's (it says how the two differ), or if
                a run that trains is on another kind of data.
        """
        self._check_parameters(checkpoint)
        trainer = self._trainer
        self.is_resuming = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        if self.is_resuming:
            check_resumable(checkpoint)
        there = checkpoint.get("data")
        if not self.is_resuming or there is None or self._data is None:
            return
        kind = type(self._data)
        if there != (here := public_path(kind)) and class_at(there) is not kind:
            raise InputError(
                f"the checkpoint is of a run on {there}, and this run's data is {here}: a run goes "
                f"on with its own data only. To begin a new run with its weights, give --init_from "
                f"CKPT in place of --ckpt_path CKPT, or load_from_checkpoint in Python"
            )

    def _check_parameters(self, checkpoint: dict[str, Any]) -> None:
        mine, theirs = (
            {name: list(value.shape) for name, value in state.items()}
            for state in (self.state_dict(), checkpoint["state_dict"])
        )
        if mine == theirs:
            return
        here = self.hparams["model"]
        there = checkpoint.get("hyper_parameters", {}).get("model", {})
        path, arguments = there.get("class_path", "no model"), there.get("init_args", {})
        if path != here["class_path"] and class_at(path) is not type(self.model):
            difference = f"it holds {path}, this is {here['class_path']}"
        else:
            # The release that wrote the checkpoint may not have had all of today's arguments.
            difference = ", ".join(
                f"{name} is {arguments[name]} there and {value} here"
                for name, value in here["init_args"].items()
                if name in arguments and arguments[name] != value
            )
        raise InputError(
            f"the checkpoint is of another model: {difference or _differing(mine, theirs)}"
        )

    def _save_hyperparameters(self) -> None:
        """Keep all that `load_from_checkpoint` needs.

        Under the command line Lightning keeps the parsed configuration itself. In Python the model
        is described by its class and arguments; the optimiser and scheduler, arbitrary functions
        then, are not kept.
        """
        self.save_hyperparameters(ignore=["model"])
        if not is_rebuilt_from_paths(self.hparams):
            del self.hparams["optimizer"], self.hparams["lr_scheduler"]
            rebuild_from_paths(self.hparams)
        self.hparams["model"] = {
            "class_path": public_path(type(self.model)),
            "init_args": self.model.hparams,
        }


def _reset(metrics: nn.Module) -> None:
    """Begin anew: after `Trainer.validate` they hold tensors that `Trainer.fit` cannot add to."""
    for metric in metrics.modules():
        if isinstance(metric, Metric):
            metric.reset()


def _differing(mine: dict[str, list[int]], theirs: dict[str, list[int]]) -> str:
    """The first weights whose shapes differ, or that only one of two models has."""
    names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    differences = [
        f"{name} is {theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} here"
        for name in names[:_NAMED_WEIGHTS]
    ]
    rest = len(names) - len(differences)
    return ", ".join(differences) + (f", and {rest} more weights differ" if rest else "")
