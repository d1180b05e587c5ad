"""Peak memory and time, on CUDA and on a CPU: of one call, and of the phases of a model."""

from npbench.profiling.figures import profile_figure
from npbench.profiling.measurement import LiveTensors, Measurement, measure
from npbench.profiling.phases import PHASES, PointPhases, profile

__all__ = [
    "PHASES",
    "LiveTensors",
    "Measurement",
    "PointPhases",
    "measure",
    "profile",
    "profile_figure",
]
