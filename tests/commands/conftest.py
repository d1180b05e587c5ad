"""Checkpoints of small models, as `npbench fit` leaves them."""

import logging
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import small, small_cmanp

from npbench.models import CMANP, NeuralProcess
from npbench.training import MetaRegression


@pytest.fixture(scope="session")
def save_checkpoint() -> Callable[[NeuralProcess, Path], Path]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")

    def save(model: NeuralProcess, path: Path) -> Path:
        trainer.strategy.connect(MetaRegression(model))
        trainer.save_checkpoint(path, weights_only=False)
        return path

    return save


@pytest.fixture(scope="session")
def model() -> CMANP:
    """The model of `checkpoint`: two inputs, one output; no test's own is like it."""
    torch.manual_seed(1)
    return small_cmanp(dim_x=2, dim_y=1)


@pytest.fixture(scope="session")
def checkpoint(
    model: CMANP, save_checkpoint: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_checkpoint(model, tmp_path_factory.mktemp("run") / "cmanp.ckpt")


@pytest.fixture(scope="session")
def tnpd_checkpoint(save_checkpoint: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose state is its context."""
    return save_checkpoint(small("TNPD"), tmp_path_factory.mktemp("run") / "tnpd.ckpt")
