"""Neural processes: one file per family, `base.py` for the contract that they share."""

from npbench.models.bootstrap import BANP, BNP
from npbench.models.cmanp import CMANP, CMANPState
from npbench.models.cmanpand import CMANPAND
from npbench.models.cmhp import CMHP, CMHPState
from npbench.models.conditional import CANP, CNP, CNPState
from npbench.models.contracts.events import EventModel, EventState
from npbench.models.contracts.process import NeuralProcess, State
from npbench.models.eqtnp import EQTNP
from npbench.models.latent import ANP, NP
from npbench.models.lbanp import LBANP, LBANPND
from npbench.models.thp import THP
from npbench.models.tnp import TNPA, TNPD, TNPND

__all__ = [
    "ANP",
    "BANP",
    "BNP",
    "CANP",
    "CMANP",
    "CMANPAND",
    "CMHP",
    "CNP",
    "EQTNP",
    "LBANP",
    "LBANPND",
    "NP",
    "THP",
    "TNPA",
    "TNPD",
    "TNPND",
    "CMANPState",
    "CMHPState",
    "CNPState",
    "EventModel",
    "EventState",
    "NeuralProcess",
    "State",
]
