"""Metrics, whose sums add up over many batches and devices."""

from npbench.metrics.events import EventMetrics, KolmogorovSmirnov, MedianAbsoluteError, PerEvent
from npbench.metrics.regression import Coverage, RegressionMetrics, StandardError, TaskMean

__all__ = [
    "Coverage",
    "EventMetrics",
    "KolmogorovSmirnov",
    "MedianAbsoluteError",
    "PerEvent",
    "RegressionMetrics",
    "StandardError",
    "TaskMean",
]
