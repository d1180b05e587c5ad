"""Callbacks, which look and record, and never change training."""

from npbench.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from npbench.callbacks.degradation import MemoryDegradation
from npbench.callbacks.events import EventFigures
from npbench.callbacks.images import ImageFigures
from npbench.callbacks.memory import PeakMemoryProfiler
from npbench.callbacks.predictions import PredictionWriter
from npbench.callbacks.progress import ModelLine, ProgressBar
from npbench.callbacks.regression import PosteriorFigures

__all__ = [
    "BestCheckpoint",
    "EventFigures",
    "ImageFigures",
    "LastCheckpoint",
    "MemoryDegradation",
    "ModelLine",
    "PeakMemoryProfiler",
    "PosteriorFigures",
    "PredictionWriter",
    "ProgressBar",
]
