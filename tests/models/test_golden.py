"""Every model computes what the paper's official implementation does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import GOLDEN, GOLDEN_NAMES, golden
from torch import Tensor

from npbench.interop import official
from npbench.models import NeuralProcess, State
from npbench.models.contracts.points import Points
from npbench.task import Task

# Of golden/README.md: absolute or relative, whichever is larger; and for joint quantities.
TOLERANCE, JOINT_TOLERANCE = 2e-5, 1e-4

Outputs = dict[str, Tensor]


def prediction(model: NeuralProcess, state: State, task: Task) -> Outputs:
    dist = model.query(state, task.xt)
    return {"mean": dist.mean, "std": dist.stddev}


def after_update(model: NeuralProcess, state: State, task: Task) -> Outputs:
    half = task.xc.shape[1] // 2
    state = model.condition(task.xc[:, :half], task.yc[:, :half])
    dist = model.query(model.update(state, task.xc[:, half:], task.yc[:, half:]), task.xt)
    return {"mean_after_update": dist.mean, "std_after_update": dist.stddev}


def joint(model: NeuralProcess, state: State, task: Task) -> Outputs:
    dist = model.query(state, task.xt)
    return {
        "joint_mean": dist.mean,
        "joint_cov": dist.covariance_matrix,
        "joint_log_prob": dist.log_prob(task.yt.flatten(1)),
    }


def teacher_forced(model: Any, state: State, task: Task) -> Outputs:
    dist = model.teacher_forced(state, Points(task.xt, task.yt))
    return {"teacher_forced_mean": dist.mean, "teacher_forced_std": dist.stddev}


def at_the_latent_mean(model: Any, state: State, task: Task) -> Outputs:
    latent = model.latent(state)
    dist = model.given(state, task.xt, latent.mean[None])
    return {
        "latent_mean": latent.mean,
        "latent_std": latent.stddev,
        "mean_at_latent_mean": dist.mean[0],
        "std_at_latent_mean": dist.stddev[0],
    }


def base(model: Any, state: State, task: Task) -> Outputs:
    dist = model.base(state, task.xt)
    return {"base_mean": dist.mean, "base_std": dist.stddev}


def likelihood(model: NeuralProcess, state: State, task: Task) -> Outputs:
    return {"tar_ll": model.log_likelihood(task).mean()}


def training(model: NeuralProcess, state: State, task: Task) -> Outputs:
    loss = model.train().loss(task)
    loss.backward()
    gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return {"train_loss": loss, "grad_norm": torch.stack(gradients).norm()}


HOW: dict[str, Callable[[Any, State, Task], Outputs]] = {
    "mean": prediction, "mean_after_update": after_update, "joint_mean": joint,
    "teacher_forced_mean": teacher_forced, "latent_mean": at_the_latent_mean, "base_mean": base,
    "tar_ll": likelihood, "train_loss": training,
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_model_computes_what_the_official_one_does(name: str) -> None:
    hparams, weights, inputs, outputs = golden(name)
    model = official.load(name, hparams, weights)
    task = Task(**inputs)
    state = model.condition(task.xc, task.yc)

    computed: Outputs = {}
    for key, compute in HOW.items():
        if key in outputs:
            computed |= compute(model, state, task)
    assert computed.keys() == outputs.keys()
    for key, expected in outputs.items():
        tolerance = JOINT_TOLERANCE if key in ("joint_cov", "joint_log_prob") else TOLERANCE
        torch.testing.assert_close(
            computed[key].detach(), expected, rtol=tolerance, atol=TOLERANCE, msg=key
        )


def test_the_golden_values_are_those_of_the_shared_folder(shared: Path) -> None:
    """Bit for bit, and none is missing."""
    originals = {path.stem: path for path in (shared / "golden").glob("*.npz")}
    assert sorted(originals) == GOLDEN_NAMES
    for name, path in originals.items():
        with np.load(path) as theirs, np.load(GOLDEN / path.name) as ours:
            assert theirs.files == ours.files, name
            for key in theirs.files:
                np.testing.assert_array_equal(ours[key], theirs[key], strict=True)
