"""Images as tasks: the colour of some pixels from that of others."""

from datamodules.images.celeba import CelebADataModule
from datamodules.images.emnist import EMNISTDataModule
from datamodules.images.folder import ImageFolderDataModule

__all__ = ["CelebADataModule", "EMNISTDataModule", "ImageFolderDataModule"]
