"""Checkpoints of small models, as `npbench fit` leaves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import small, small_cmanp

from npbench.models import CMANP, NeuralProcess
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained


@pytest.fixture(scope="session")
def save_checkpoint() -> Callable[[NeuralProcess, Path], Path]:
    def save(model: NeuralProcess, path: Path) -> Path:
        save_untrained(MetaRegression(model), path)
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
