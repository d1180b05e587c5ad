"""Neural processes and event models: one file a family; `contracts/` is what they share."""

from npbench.models.bootstrap import BANP, BNP
from npbench.models.causal_luna import CausalLuna, CausalLunaState
from npbench.models.cmanp import CMANP, CMANPState
from npbench.models.cmanpand import CMANPAND
from npbench.models.cmhp import CMHP, CMHPState
from npbench.models.conditional import CANP, CNP, CNPState
from npbench.models.contracts import (
    EventModel,
    EventState,
    NeuralProcess,
    SequenceClassifier,
    State,
)
from npbench.models.contracts.second_moment import SampledFunctions, SecondMomentState
from npbench.models.convcnp import ConvCNP, ConvState
from npbench.models.eqtnp import EQTNP
from npbench.models.fourier_moment import FourierMomentNP, FourierMomentState
from npbench.models.latent import ANP, NP
from npbench.models.lbanp import LBANP, LBANPND
from npbench.models.located import LocatedCMANP, LocatedState
from npbench.models.locatedand import LocatedCMANPAND
from npbench.models.luna import ConvLuna, Luna
from npbench.models.memory_transformer import MemoryTransformer, Transformer
from npbench.models.recurrent_memory import RMT, Memformer
from npbench.models.second_moment import SecondMomentJointNP, SecondMomentNP
from npbench.models.segments import Segment
from npbench.models.thp import THP
from npbench.models.tnp import TNPA, TNPD, TNPND
from npbench.models.tnpkr import TNPKR, KernelState
from npbench.models.tnpkrnd import TNPKRND

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
    "RMT",
    "THP",
    "TNPA",
    "TNPD",
    "TNPKR",
    "TNPKRND",
    "TNPND",
    "CMANPState",
    "CMHPState",
    "CNPState",
    "CausalLuna",
    "CausalLunaState",
    "ConvCNP",
    "ConvLuna",
    "ConvState",
    "EventModel",
    "EventState",
    "FourierMomentNP",
    "FourierMomentState",
    "KernelState",
    "LocatedCMANP",
    "LocatedCMANPAND",
    "LocatedState",
    "Luna",
    "Memformer",
    "MemoryTransformer",
    "NeuralProcess",
    "SampledFunctions",
    "SecondMomentJointNP",
    "SecondMomentNP",
    "SecondMomentState",
    "Segment",
    "SequenceClassifier",
    "State",
    "Transformer",
]
