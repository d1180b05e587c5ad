"""Metrics of predictions at targets."""

from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric

from npbench.errors import InputError
from npbench.likelihoods import NormalMixture
from npbench.metrics.energy import EnergyScore
from npbench.metrics.means import CountedMean
from npbench.metrics.uniformity import KolmogorovSmirnov, PITHistogram
from npbench.models.contracts.process import Evaluation
from npbench.task import Task


class TaskMean(CountedMean):
    """The mean over tasks of one number a task, such as its log-likelihood.

    Example:
        >>> metric = TaskMean()
        >>> metric.update(torch.tensor([1.0, 2.0]))
        >>> metric.update(torch.tensor([6.0]))
        >>> metric.compute()
        tensor(3.)
    """

    total_squared: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total_squared", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, "batch"]) -> None:
        self.total += values.sum()
        self.total_squared += values.square().sum()
        self.count += len(values)


class StandardError(TaskMean):
    r"""The standard error of `TaskMean`: $\sqrt{\mathrm{Var} / n}$, with the unbiased variance."""

    def compute(self) -> Tensor:
        spread = self.total_squared - self.total.square() / self.count
        return (spread.clamp(min=0.0) / (self.count * (self.count - 1))).sqrt()


class Coverage(CountedMean):
    """The share of values inside the central interval that should hold `level` of them.

    Calibrated predictions have a coverage equal to the level; predictions whose coverage is below
    it are too sure of themselves.

    Args:
        level: probability of the interval, between 0 and 1.

    Example:
        >>> metric = Coverage(0.95)
        >>> metric.update(torch.zeros(4), torch.ones(4), torch.tensor([0.0, 1.0, -1.9, 3.0]))
        >>> metric.compute()
        tensor(0.7500)
    """

    def __init__(self, level: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < level < 1.0:
            raise InputError(f"level={level} must lie between 0 and 1")
        self.half_width = NormalDist().inv_cdf((1 + level) / 2)

    def update(
        self,
        mean: Float[Tensor, "*shape"],
        std: Float[Tensor, "*shape"],
        y: Float[Tensor, "*shape"],
    ) -> None:
        self.total += ((y - mean).abs() <= self.half_width * std).sum()
        self.count += y.numel()


class CRPS(CountedMean):
    """The continuous ranked probability score, a mean over values in their unit; less is better.

    See `NormalMixture.crps` for the formula, which is exact for mixtures of normals.

    Example:
        >>> metric = CRPS()
        >>> normal = NormalMixture.of_moments(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))
        >>> metric.update(normal, torch.tensor([[[0.0], [1.0]]]))
        >>> metric.compute()
        tensor(0.4181)
    """

    higher_is_better = False

    def update(
        self,
        mixture: NormalMixture,
        y: Float[Tensor, "batch target dim_y"],
        mask: Bool[Tensor, "batch target"] | None = None,
    ) -> None:
        scores = mixture.crps(y)
        self.total += (scores if mask is None else scores[mask]).sum()
        self.count += y.numel() if mask is None else y.shape[-1] * mask.sum()


class IntervalScore(CountedMean):
    r"""The score of central intervals [l, u] of a probability 1 − α, a mean over values in their
    unit; less is better.

    $$(u - l) + \tfrac 2 \alpha (l - y)_+ + \tfrac 2 \alpha (y - u)_+$$

    It is least in the mean for the true quantiles: narrow intervals are rewarded, and a value that
    lies outside costs its distance.

    Args:
        level: probability of the interval, between 0 and 1.

    Source: Gneiting and Raftery, *Strictly Proper Scoring Rules, Prediction, and Estimation*, 2007.

    Example:
        >>> metric = IntervalScore(0.95)
        >>> metric.update(torch.zeros(2), torch.ones(2), torch.tensor([0.0, 2.96]))
        >>> metric.compute()  # (3.92 + 3.92 + 40 · 1) / 2
        tensor(23.9207)
    """

    higher_is_better = False

    def __init__(self, level: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < level < 1.0:
            raise InputError(f"level={level} must lie between 0 and 1")
        self.half_width = NormalDist().inv_cdf((1 + level) / 2)
        self.weight = 2 / (1 - level)

    def update(
        self,
        mean: Float[Tensor, "*shape"],
        std: Float[Tensor, "*shape"],
        y: Float[Tensor, "*shape"],
    ) -> None:
        half = self.half_width * std
        outside = ((y - mean).abs() - half).clamp(min=0.0)
        self.total += (2 * half + self.weight * outside).sum()
        self.count += y.numel()


class RegressionMetrics(nn.Module):
    """All that is measured of a model on tasks, by name.

    `log_likelihood` and its standard error over tasks, `rmse`; of the normals with the predicted
    means and standard deviations the `crps`, the coverage of the central 50, 80 and 95 % intervals
    and the `interval_score_95`, in the units of the outputs; `pit_ks`, the Kolmogorov–Smirnov
    distance from uniform of the probability integral transforms of the predicted distributions,
    mixtures as they are, whose histogram is `pit`; for tasks that know their exact answer
    the `gap` to it, and for those that know the best answer without their hyper-parameters
    `gap_bayes`, the gap to that.

    Of joint models `update_samples` measures the `energy_score`, and `sampling_ms`, the time that
    the draws of a task have taken, a mean over tasks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_task = nn.ModuleDict(
            {"log_likelihood": TaskMean(), "log_likelihood_stderr": StandardError()}
        )
        self.gaps = nn.ModuleDict({"gap": TaskMean(), "gap_bayes": TaskMean()})
        self.rmse = MeanSquaredError(squared=False)
        self.crps = CRPS()
        self.interval_score_95 = IntervalScore(0.95)
        self.pit = PITHistogram()
        self.pit_ks = KolmogorovSmirnov()
        self.energy_score = EnergyScore()
        self.sampling_ms = MeanMetric()
        self.coverage = nn.ModuleDict(
            {f"coverage_{percent}": Coverage(percent / 100) for percent in (50, 80, 95)}
        )

    def update(self, task: Task, evaluation: Evaluation, jointly: bool) -> dict[str, Metric]:
        """Add a batch; returns the metrics that apply to it.

        Args:
            task: the tasks, with their targets' true values.
            evaluation: what the model says of them.
            jointly: whether the model scores all targets together, so that the gaps are those to
                the joint log-likelihoods.
        """
        mean, std, y, pit = evaluation.mean, evaluation.std, task.yt, evaluation.pit
        if pit is None:
            pit = NormalMixture.of_moments(mean, std).cdf(y)
        if task.target_mask is not None:
            mean, std, y, pit = (values[task.target_mask] for values in (mean, std, y, pit))
        for metric in self.by_task.values():
            metric.update(evaluation.log_likelihood)
        self.rmse.update(mean.flatten(), y.flatten())
        self.interval_score_95.update(mean, std, y)
        flat = (z.reshape(1, -1, z.shape[-1]) for z in (mean, std, y))
        means, stds, values = flat
        self.crps.update(NormalMixture.of_moments(means, stds), values)
        for metric in self.coverage.values():
            metric.update(mean, std, y)
        metrics: dict[str, Metric] = {**self.by_task, "rmse": self.rmse, **self.coverage}
        metrics |= {"crps": self.crps, "interval_score_95": self.interval_score_95}
        for uniformity in (self.pit, self.pit_ks):
            uniformity.update(pit.flatten())
        metrics["pit_ks"] = self.pit_ks
        ceilings = {"gap": task.exact, "gap_bayes": task.bayes}
        for name, of in ceilings.items():
            if of is not None:
                ceiling = of.joint_log_likelihood if jointly else of.log_likelihood
                self.gaps[name].update(ceiling - evaluation.log_likelihood)
                metrics[name] = self.gaps[name]
        return metrics

    def update_samples(
        self,
        samples: Float[Tensor, "samples 1 target dim_y"],
        y: Float[Tensor, "1 target dim_y"],
        seconds: float,
    ) -> dict[str, Metric]:
        """Add draws of all targets of a task together; returns the metrics of them.

        Args:
            samples: the draws.
            y: the true values.
            seconds: that the draws have taken.
        """
        self.energy_score.update(samples.flatten(-2), y.flatten(-2))
        self.sampling_ms.update(1000 * seconds)
        return {"energy_score": self.energy_score, "sampling_ms": self.sampling_ms}
