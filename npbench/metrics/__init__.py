"""Metrics, whose sums add up over many batches and devices."""

from npbench.metrics.classification import (
    ClassificationMetrics,
    ExpectedCalibrationError,
    metrics_of,
)
from npbench.metrics.energy import EnergyScore, energy_score
from npbench.metrics.events import EventMetrics, MedianAbsoluteError, PerEvent
from npbench.metrics.regression import (
    CRPS,
    Coverage,
    IntervalScore,
    RegressionMetrics,
    StandardError,
    TaskMean,
)
from npbench.metrics.sequences import SequenceMetrics
from npbench.metrics.uniformity import KolmogorovSmirnov, PITHistogram

__all__ = [
    "CRPS",
    "ClassificationMetrics",
    "Coverage",
    "EnergyScore",
    "EventMetrics",
    "ExpectedCalibrationError",
    "IntervalScore",
    "KolmogorovSmirnov",
    "MedianAbsoluteError",
    "PITHistogram",
    "PerEvent",
    "RegressionMetrics",
    "SequenceMetrics",
    "StandardError",
    "TaskMean",
    "energy_score",
    "metrics_of",
]
