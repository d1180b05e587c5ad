"""Prediction heads: from an encoding to a distribution."""

from npbench.likelihoods.calibration import Calibration, Deviations
from npbench.likelihoods.categorical import CategoricalHead, Likelihood, target_head
from npbench.likelihoods.gaussian import (
    DiagonalGaussian,
    GaussianHead,
    JointGaussian,
    equal_mixture,
    independent_normal,
)
from npbench.likelihoods.located import LocatedJointGaussian
from npbench.likelihoods.mixture import MixtureCorrection, NormalMixture
from npbench.likelihoods.next_event import NextEvent, NextEventHead
from npbench.likelihoods.units import in_units, moments_in_units

__all__ = [
    "Calibration",
    "CategoricalHead",
    "Deviations",
    "DiagonalGaussian",
    "GaussianHead",
    "JointGaussian",
    "Likelihood",
    "LocatedJointGaussian",
    "MixtureCorrection",
    "NextEvent",
    "NextEventHead",
    "NormalMixture",
    "equal_mixture",
    "in_units",
    "independent_normal",
    "moments_in_units",
    "target_head",
]
