"""LightningModules: what a step, an optimiser and a metric are."""

from npbench.training.meta_regression import MetaRegression

__all__ = ["MetaRegression"]
