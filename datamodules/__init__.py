"""Data modules: every batch that they give is an `npbench.Task`."""

from datamodules.celeba import CelebADataModule
from datamodules.emnist import EMNISTDataModule
from datamodules.gp import Curriculum, GPDataModule
from datamodules.image_folder import ImageFolderDataModule

__all__ = [
    "CelebADataModule",
    "Curriculum",
    "EMNISTDataModule",
    "GPDataModule",
    "ImageFolderDataModule",
]
