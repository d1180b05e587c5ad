"""Metrics, whose sums add up over many batches and devices."""

from npbench.metrics.classification import (
    ClassificationMetrics,
    ExpectedCalibrationError,
    metrics_of,
)
from npbench.metrics.events import EventMetrics, KolmogorovSmirnov, MedianAbsoluteError, PerEvent
from npbench.metrics.regression import (
    CRPS,
    Coverage,
    IntervalScore,
    RegressionMetrics,
    StandardError,
    TaskMean,
)
from npbench.metrics.sequences import SequenceMetrics

__all__ = [
    "CRPS",
    "ClassificationMetrics",
    "Coverage",
    "EventMetrics",
    "ExpectedCalibrationError",
    "IntervalScore",
    "KolmogorovSmirnov",
    "MedianAbsoluteError",
    "PerEvent",
    "RegressionMetrics",
    "SequenceMetrics",
    "StandardError",
    "TaskMean",
    "metrics_of",
]
