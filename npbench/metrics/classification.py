"""Metrics of predicted classes at targets."""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics import Metric

from npbench.metrics.regression import RegressionMetrics, StandardError, TaskMean
from npbench.models.contracts.process import Evaluation, NeuralProcess
from npbench.task import Task


class ExpectedCalibrationError(Metric):
    r"""How far confidence is from accuracy: $\sum_b \frac{n_b}{n} |\mathrm{acc}_b -
    \mathrm{conf}_b|$ over bins b of equal width of the largest probability.

    Args:
        num_bins: number of bins.

    Source: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017.

    Example:
        >>> metric = ExpectedCalibrationError()
        >>> metric.update(torch.full((4,), 0.9), torch.tensor([True, True, True, False]))
        >>> metric.compute()
        tensor(0.1500)
    """

    full_state_update = False
    confidence: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        for name in ("confidence", "correct", "count"):
            self.add_state(name, torch.zeros(num_bins), dist_reduce_fx="sum")

    def update(self, confidence: Float[Tensor, "values"], correct: Bool[Tensor, "values"]) -> None:
        bins = (confidence * self.num_bins).long().clamp(max=self.num_bins - 1)
        self.confidence.index_add_(0, bins, confidence.to(self.confidence.dtype))
        self.correct.index_add_(0, bins, correct.to(self.correct.dtype))
        self.count.index_add_(0, bins, torch.ones_like(confidence, dtype=self.count.dtype))

    def compute(self) -> Tensor:
        return (self.correct - self.confidence).abs().sum() / self.count.sum()


class ClassificationMetrics(nn.Module):
    """All that is measured of a model of classes on tasks, by name.

    `log_likelihood` and its standard error over tasks, `accuracy` of the likeliest class, and
    `calibration_error` (`ExpectedCalibrationError`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_task = nn.ModuleDict(
            {"log_likelihood": TaskMean(), "log_likelihood_stderr": StandardError()}
        )
        self.accuracy = TaskMean()
        self.calibration_error = ExpectedCalibrationError()

    def update(self, task: Task, evaluation: Evaluation, jointly: bool) -> dict[str, Metric]:
        """Add a batch; returns the metrics of it. Arguments as of `RegressionMetrics`."""
        measured: dict[str, Any] = dict(self.by_task.items())
        for metric in measured.values():
            metric.update(evaluation.log_likelihood)
        confidence, predicted = evaluation.mean.max(dim=-1)
        correct = predicted == cast(Tensor, task.yt).argmax(dim=-1)
        if task.target_mask is not None:
            confidence, correct = confidence[task.target_mask], correct[task.target_mask]
        self.accuracy.update(correct.flatten().to(confidence.dtype))
        self.calibration_error.update(confidence.flatten(), correct.flatten())
        measured |= {"accuracy": self.accuracy, "calibration_error": self.calibration_error}
        return measured


def metrics_of(model: NeuralProcess) -> RegressionMetrics | ClassificationMetrics:
    """What is measured of this model."""
    return ClassificationMetrics() if model.predicts_classes else RegressionMetrics()
