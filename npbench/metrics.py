"""Metrics over many batches and devices: sums that add up across both."""

from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class TaskMean(Metric):
    """The mean over tasks of one number a task, such as its log-likelihood.

    Example:
        >>> metric = TaskMean()
        >>> metric.update(torch.tensor([1.0, 2.0]))
        >>> metric.update(torch.tensor([6.0]))
        >>> metric.compute()
        tensor(3.)
    """

    full_state_update = False
    total: Tensor
    total_squared: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "total_squared", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, "batch"]) -> None:
        self.total += values.sum()
        self.total_squared += values.square().sum()
        self.count += len(values)

    def compute(self) -> Tensor:
        return self.total / self.count


class StandardError(TaskMean):
    r"""The standard error of `TaskMean`: $\sqrt{\mathrm{Var} / n}$, with the unbiased variance."""

    def compute(self) -> Tensor:
        spread = self.total_squared - self.total.square() / self.count
        return (spread.clamp(min=0.0) / (self.count * (self.count - 1))).sqrt()


class Coverage(Metric):
    """The share of values inside the central interval that should hold `level` of them.

    Calibrated predictions have a coverage equal to the level; below it they are too sure of
    themselves.

    Args:
        level: probability of the interval, between 0 and 1.

    Example:
        >>> metric = Coverage(0.95)
        >>> metric.update(torch.zeros(4), torch.ones(4), torch.tensor([0.0, 1.0, -1.9, 3.0]))
        >>> metric.compute()
        tensor(0.7500)
    """

    full_state_update = False
    inside: Tensor
    count: Tensor

    def __init__(self, level: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < level < 1.0:
            raise ValueError(f"level={level} must lie between 0 and 1")
        self.half_width = NormalDist().inv_cdf((1 + level) / 2)
        self.add_state("inside", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(
        self,
        mean: Float[Tensor, "*shape"],
        std: Float[Tensor, "*shape"],
        y: Float[Tensor, "*shape"],
    ) -> None:
        self.inside += ((y - mean).abs() <= self.half_width * std).sum()
        self.count += y.numel()

    def compute(self) -> Tensor:
        return self.inside / self.count
