"""What models take and hold: peak memory and time of one call and of the phases of a model, and
whether the vectors of a memory become alike."""

from npbench.profiling.degradation import (
    MEASURES,
    attention_entropy,
    cosine_similarity,
    degradation_of,
    effective_rank,
)
from npbench.profiling.figures import profile_figure
from npbench.profiling.measurement import LiveTensors, Measurement, measure
from npbench.profiling.phases import PHASES, PointPhases, profile

__all__ = [
    "MEASURES",
    "PHASES",
    "LiveTensors",
    "Measurement",
    "PointPhases",
    "attention_entropy",
    "cosine_similarity",
    "degradation_of",
    "effective_rank",
    "measure",
    "profile",
    "profile_figure",
]
