"""Neural processes: one file per family, `base.py` for the contract that they share."""

from npbench.models.base import NeuralProcess
from npbench.models.cmanp import CMANP, CMANPState

__all__ = ["CMANP", "CMANPState", "NeuralProcess"]
