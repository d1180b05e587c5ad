"""LightningModules: what a step, an optimiser and a metric are."""

from npbench.training.event_prediction import EventPrediction
from npbench.training.meta_regression import MetaRegression

__all__ = ["EventPrediction", "MetaRegression"]
