"""A short training that the tests of callbacks share."""

import torch

from datamodules import GPDataModule
from npbench.models import CMANP
from npbench.training import MetaRegression


def data(**options: object) -> GPDataModule:
    sizes = {"batch_size": 2, "steps_per_epoch": 4, "num_val_tasks": 4, "num_predict_tasks": 5}
    return GPDataModule(**(sizes | options))


def module() -> MetaRegression:
    torch.manual_seed(0)
    # Dropout draws from torch's generator at every step: whoever disturbs it shows.
    sizes = {"dim_model": 16, "num_layers": 1, "num_latents": 4, "num_block_latents": 4}
    return MetaRegression(CMANP(1, 1, dropout=0.2, **sizes))
