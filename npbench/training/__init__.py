"""LightningModules: what a step, an optimiser and a metric are."""

from typing import TYPE_CHECKING

from npbench.lazy import lazy_names

if TYPE_CHECKING:
    from npbench.training.event_prediction import EventPrediction
    from npbench.training.meta_regression import MetaRegression

__all__ = ["EventPrediction", "MetaRegression"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "npbench.training.event_prediction": ["EventPrediction"],
        "npbench.training.meta_regression": ["MetaRegression"],
    },
)
