"""Data modules: every batch that they give is an `npbench.Task`, or `npbench.EventSequences`."""

from datamodules.celeba import CelebADataModule
from datamodules.emnist import EMNISTDataModule
from datamodules.events import EventSequenceDataModule
from datamodules.gp import Curriculum, GPDataModule
from datamodules.hawkes import HawkesProcess
from datamodules.image_folder import ImageFolderDataModule
from datamodules.point_processes import PointProcess, PoissonProcess, RenewalProcess
from datamodules.synthetic_events import SyntheticEventDataModule

__all__ = [
    "CelebADataModule",
    "Curriculum",
    "EMNISTDataModule",
    "EventSequenceDataModule",
    "GPDataModule",
    "HawkesProcess",
    "ImageFolderDataModule",
    "PointProcess",
    "PoissonProcess",
    "RenewalProcess",
    "SyntheticEventDataModule",
]
