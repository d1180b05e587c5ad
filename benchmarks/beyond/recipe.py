"""The recipe that all experiments share: how a model is trained, and what it scores."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.distributions import Normal

from benchmarks.levers import rate
from datamodules import GPDataModule
from datamodules.loading import Part
from npbench.models import NeuralProcess
from npbench.models.contracts.points import Points
from npbench.models.contracts.process import masked_mean
from npbench.optim import MuonAdam

_TOGETHER = 32


@dataclass(frozen=True)
class Experiment:
    """A model, its tasks, and the learning rate of its matrices.

    Args:
        about: what it is, for `--list`.
        model: makes it, untrained.
        data: arguments of `GPDataModule` beside those of the recipe.
        lr: learning rate of Muon.
        tasks_class: draws the tasks.
    """

    about: str
    model: Callable[[], NeuralProcess]
    data: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.01
    tasks_class: type[GPDataModule] = GPDataModule

    def tasks(self, seed: int) -> GPDataModule:
        options = {"vary_sizes": True, "num_targets": 64, "seed": seed} | self.data
        return self.tasks_class(**options)


def train(model: NeuralProcess, data: GPDataModule, steps: int, lr: float = 0.01) -> float:
    """Train in place; returns the CPU seconds, those of drawing tasks included."""
    optimizer = MuonAdam(model.parameters(), lr=lr, adam_lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(i, steps, "linear"))
    model.train()
    start = time.process_time()
    for step in range(steps):
        loss = model.loss(data.training_batch(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return time.process_time() - start


@dataclass(frozen=True)
class Scores:
    """Nats per target of each task.

    `alone` scores each target by itself, which differs from `model` where that scores them jointly;
    `exact` are those of the process that made the task, and `sizes` the numbers of context points.
    """

    model: Float[Tensor, "tasks"]
    alone: Float[Tensor, "tasks"]
    exact: Float[Tensor, "tasks"]
    sizes: Integer[Tensor, "tasks"]


@torch.no_grad()
def score(model: NeuralProcess, data: GPDataModule, part: Part, number: int) -> Scores:
    """The scores of the first evaluation tasks."""
    model.eval()
    found = []
    for start in range(0, number, _TOGETHER):
        task = data.evaluation_batch(range(start, min(start + _TOGETHER, number)), part)
        mine = alone = model.log_likelihood(task)
        exact = task.exact.log_likelihood
        if model.scores_jointly:
            exact = task.exact.joint_log_likelihood
            state = model.condition(task.xc, task.yc, task.context_mask)
            normal = Normal(*model.marginals(state, task.xt, task.target_mask), validate_args=False)
            alone = masked_mean(normal.log_prob(task.yt).sum(dim=-1), task.target_mask)
        found.append((mine, alone, exact, Points(task.xc, task.yc, task.context_mask).count))
    return Scores(*(torch.cat(parts) for parts in zip(*found)))


def written(values: Float[Tensor, "tasks"]) -> str:
    """The mean over tasks, ± its standard error."""
    return f"{values.mean():.4f} ± {values.std() / len(values) ** 0.5:.4f}"
