"""Sequences of marked events, from files or drawn from known processes."""

from datamodules.events.hawkes import HawkesProcess
from datamodules.events.point_processes import PointProcess, PoissonProcess, RenewalProcess
from datamodules.events.sequences import EventSequenceDataModule
from datamodules.events.synthetic import SyntheticEventDataModule

__all__ = [
    "EventSequenceDataModule",
    "HawkesProcess",
    "PointProcess",
    "PoissonProcess",
    "RenewalProcess",
    "SyntheticEventDataModule",
]
