"""Data modules. Every batch of theirs is an `npbench.Task` or an `npbench.EventSequences`."""

from datamodules.epidemics import SIRDataModule
from datamodules.events import (
    EventSequenceDataModule,
    HawkesProcess,
    PointProcess,
    PoissonProcess,
    RenewalProcess,
    SyntheticEventDataModule,
)
from datamodules.gp import Curriculum, GPDataModule
from datamodules.images import (
    CelebADataModule,
    CIFAR10DataModule,
    EMNISTDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
)
from datamodules.tables import TableDataModule

__all__ = [
    "CIFAR10DataModule",
    "CelebADataModule",
    "Curriculum",
    "EMNISTDataModule",
    "EventSequenceDataModule",
    "GPDataModule",
    "HawkesProcess",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "PointProcess",
    "PoissonProcess",
    "RenewalProcess",
    "SIRDataModule",
    "SyntheticEventDataModule",
    "TableDataModule",
]
