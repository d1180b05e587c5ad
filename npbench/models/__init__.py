"""Neural processes: one file per family, `base.py` for the contract that they share."""

from npbench.models.base import NeuralProcess
from npbench.models.cmanp import CMANP, CMANPState
from npbench.models.cnp import CNP, CNPState

__all__ = ["CMANP", "CNP", "CMANPState", "CNPState", "NeuralProcess"]
