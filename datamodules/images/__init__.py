"""Images as tasks: the colour of some pixels from that of others."""

from datamodules.images.celeba import CelebADataModule
from datamodules.images.cifar10 import CIFAR10DataModule
from datamodules.images.emnist import EMNISTDataModule
from datamodules.images.folder import ImageFolderDataModule
from datamodules.images.mnist import MNISTDataModule

__all__ = [
    "CIFAR10DataModule",
    "CelebADataModule",
    "EMNISTDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
]
