"""Prediction heads: from an encoding to a distribution."""

from npbench.likelihoods.gaussian import (
    DiagonalGaussian,
    JointGaussian,
    equal_mixture,
    independent_normal,
)
from npbench.likelihoods.mixture import MixtureCorrection, NormalMixture
from npbench.likelihoods.next_event import NextEvent, NextEventHead

__all__ = [
    "DiagonalGaussian",
    "JointGaussian",
    "MixtureCorrection",
    "NextEvent",
    "NextEventHead",
    "NormalMixture",
    "equal_mixture",
    "independent_normal",
]
