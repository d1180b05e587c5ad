"""Metrics of the predicted classes of sequences."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from npbench.metrics.classification import ExpectedCalibrationError


class SequenceMetrics(nn.Module):
    """All that is measured of a classifier of sequences, by name.

    `nll`, the negative log-probability of the true class, `accuracy` of the likeliest class, and
    `calibration_error` (`ExpectedCalibrationError`), each over all sequences.

    Args:
        num_classes: number of classes.

    Example:
        >>> metrics = SequenceMetrics(num_classes=3)
        >>> found = metrics.update(torch.eye(3) * 9, torch.tensor([0, 1, 1]))
        >>> round(float(found["accuracy"].compute()), 3)
        0.667
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.nll = MeanMetric()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.calibration_error = ExpectedCalibrationError()

    def update(
        self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]
    ) -> dict[str, Metric]:
        """Add a batch; returns the metrics by name."""
        confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
        self.nll.update(F.cross_entropy(logits, labels, reduction="none"))
        self.accuracy.update(predicted, labels)
        self.calibration_error.update(confidence, predicted == labels)
        return {
            "nll": self.nll,
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
        }
