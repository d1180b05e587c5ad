"""Callbacks: they read and record, and never change training."""

from npbench.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from npbench.callbacks.figures import PosteriorFigures
from npbench.callbacks.predictions import PredictionWriter

__all__ = ["BestCheckpoint", "LastCheckpoint", "PosteriorFigures", "PredictionWriter"]
