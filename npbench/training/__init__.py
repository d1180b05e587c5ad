"""LightningModules: what a step, an optimiser and a metric are."""

from typing import TYPE_CHECKING

from npbench.lazy import lazy_names

if TYPE_CHECKING:
    from npbench.training.event_prediction import EventPrediction
    from npbench.training.meta_regression import MetaRegression
    from npbench.training.sequence_classification import SequenceClassification

__all__ = ["EventPrediction", "MetaRegression", "SequenceClassification"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "npbench.training.event_prediction": ["EventPrediction"],
        "npbench.training.meta_regression": ["MetaRegression"],
        "npbench.training.sequence_classification": ["SequenceClassification"],
    },
)
