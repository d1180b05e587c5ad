"""Data modules, whose batches are `npbench.Task`, `EventSequences` or `TokenSequences`."""

from typing import TYPE_CHECKING

from npbench.lazy import lazy_names

if TYPE_CHECKING:
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
    from datamodules.sequences import ListOpsDataModule, TextClassificationDataModule
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
    "ListOpsDataModule",
    "MNISTDataModule",
    "PointProcess",
    "PoissonProcess",
    "RenewalProcess",
    "SIRDataModule",
    "SyntheticEventDataModule",
    "TableDataModule",
    "TextClassificationDataModule",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "datamodules.epidemics": ["SIRDataModule"],
        "datamodules.events": [
            "EventSequenceDataModule",
            "HawkesProcess",
            "PointProcess",
            "PoissonProcess",
            "RenewalProcess",
            "SyntheticEventDataModule",
        ],
        "datamodules.gp": ["Curriculum", "GPDataModule"],
        "datamodules.images": [
            "CIFAR10DataModule",
            "CelebADataModule",
            "EMNISTDataModule",
            "ImageFolderDataModule",
            "MNISTDataModule",
        ],
        "datamodules.sequences": ["ListOpsDataModule", "TextClassificationDataModule"],
        "datamodules.tables": ["TableDataModule"],
    },
)
