"""Joint samples of a task's targets, and what they cost."""

import time
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from npbench.models.contracts.process import NeuralProcess, evaluating
from npbench.task import Task


class Drawn(NamedTuple):
    """Samples of all targets of a task together, their true values, and the seconds they took."""

    samples: Float[Tensor, "samples 1 target dim_y"]
    y: Float[Tensor, "1 target dim_y"]
    seconds: float


def joint_samples(model: NeuralProcess, task: Task, row: int, num_samples: int) -> Drawn:
    """Draws of the real targets of one task of a batch, given its context.

    They are the same in every run, and leave torch's random state as it was. The time is that of
    the draws, given the state; a draw before them warms up.

    Args:
        model: is in any mode.
        task: a batch of tasks whose targets are known.
        row: which of the tasks.
        num_samples: number of draws.

    Raises:
        InputError: if the state that the context makes is not finite.
    """
    assert task.yt is not None
    context, targets = (
        slice(None) if mask is None else mask[row] for mask in (task.context_mask, task.target_mask)
    )
    xc, yc, xt, yt = (
        points[row, which][None]
        for points, which in (
            (task.xc, context), (task.yc, context), (task.xt, targets), (task.yt, targets),
        )
    )  # fmt: skip
    devices = [xt.device] if xt.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(row)
        state = model.condition(xc, yc)
        model.sample(state, xt, 1)
        _wait_for(xt.device)
        start = time.perf_counter()
        samples = model.sample(state, xt, num_samples)
        _wait_for(xt.device)
        return Drawn(samples, yt, time.perf_counter() - start)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
