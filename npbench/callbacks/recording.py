"""Figures for TensorBoard and files, which leave no trace in training."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import nn

from npbench.errors import InputError
from npbench.files import output_file
from npbench.models.contracts.process import evaluating

Offer = TypeVar("Offer")
Seen = TypeVar("Seen")


class Onlooker(L.Callback):
    """A callback that only looks: what fails in it must not end a run.

    What it needs is checked before the run starts; see `check`. Where it fails later, it warns once
    and looks no more.
    """

    _stands_aside = False

    def check(self, trainer: L.Trainer) -> None:
        """Refuse a run in which there is nothing to look at.

        Raises:
            InputError: if the data module does not offer what this callback needs.
        """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "predict":
            self.check(trainer)

    def look(self, function: Callable[[], Seen]) -> Seen | None:
        """What a function returns; None if it fails now, or one has failed before."""
        if self._stands_aside:
            return None
        try:
            return function()
        except Exception as error:
            self._stands_aside = True
            warnings.warn(
                f"{type(self).__name__} failed ({type(error).__name__}: {error}) and stands aside "
                f"for the rest of this run, which goes on without it",
                stacklevel=2,
            )
            return None


class FigureCallback(Onlooker, ABC):
    """Draws a figure after validations and after the test.

    It goes to TensorBoard, and to `figures/step-….png` or `figures/test.png` in the run's folder.

    Args:
        tag: name of the figure in TensorBoard.
        every_n_validations: how often to draw.
    """

    def __init__(self, tag: str, every_n_validations: int) -> None:
        self.tag = tag
        self.every_n_validations = every_n_validations
        self._validations = 0

    @abstractmethod
    def figure(self, trainer: L.Trainer, model: nn.Module) -> Figure | None:
        """What to record, if anything; leaves the model and torch's random state as they were."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._record(trainer, pl_module, f"step-{trainer.global_step:06d}")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record(trainer, pl_module, "test")

    def _record(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        self._write(trainer, name, self.tag, lambda: self.figure(trainer, pl_module.model))

    def _write(
        self, trainer: L.Trainer, name: str, tag: str, draw: Callable[[], Figure | None]
    ) -> None:
        """Write a figure into the run's folder and to TensorBoard, if there is one."""
        folder = trainer.log_dir  # which all processes must ask for together
        if not trainer.is_global_zero:
            return
        figure = self.look(draw)
        if figure is None:
            return
        if folder is not None:
            with output_file(Path(folder) / "figures" / f"{name}.png") as file:
                figure.savefig(file, format="png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(tag, figure, trainer.global_step)

    def _data_module(self, trainer: L.Trainer, offer: type[Offer]) -> Offer:
        """The data module of a run, which must offer what to draw.

        Raises:
            InputError: if it does not make the offer, a protocol of `npbench.offers`.
        """
        if not isinstance(trainer.datamodule, offer):
            names = " and ".join(name for name in vars(offer) if not name.startswith("_"))
            raise InputError(
                f"{type(self).__name__} needs a data module with {names}; "
                f"{type(trainer.datamodule).__name__} does not offer it (see npbench.offers)"
            )
        return trainer.datamodule


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation without gradients, after which modes and torch's random state are as before."""
    devices = [device] if device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        yield
