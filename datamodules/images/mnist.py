"""MNIST: handwritten digits."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torchvision.datasets import MNIST

from datamodules.images.idx import find_idx, load_idx
from datamodules.images.official_split import OfficialSplitDataModule
from npbench.errors import InputError

_FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
_SOURCE = MNIST.mirrors[0]


class MNISTDataModule(OfficialSplitDataModule):
    """Image completion on MNIST: 28×28 grey pixels, 60,000 images to train on and 10,000 for tests.

    The files are those that `torchvision.datasets.MNIST` keeps in `root`, gzipped or not:
    `MNIST/raw/{train,t10k}-images-idx3-ubyte`. Labels are not needed.

    The arguments are those of `OfficialSplitDataModule`.

    Source: LeCun et al., *Gradient-based learning applied to document recognition*, 1998.

    Example:
        >>> data = MNISTDataModule("data", max_num_points=100)
        >>> next(iter(data.val_dataloader())).yc.shape[-1]  # doctest: +SKIP
        1
    """

    size = 28

    def _load(self, split: str) -> UInt8[np.ndarray, "images channels height width"]:
        file = find_idx(self._folder / _FILES[split])
        assert file is not None, "`_missing` is asked first"
        images = load_idx(file, num_dims=3)
        if not len(images) or images.shape[1:] != (self.size, self.size):
            raise InputError(
                f"{file} holds images of shape {images.shape}, expected (images, {self.size}, "
                f"{self.size})"
            )
        return images[:, None]

    def _missing(self) -> str:
        missing = [name for name in _FILES.values() if find_idx(self._folder / name) is None]
        if not missing:
            return ""
        return (
            f"{self._folder} lacks {', '.join(missing)}: set download to true, or get these files "
            f"from {_SOURCE} and put them, gzipped or not, there"
        )

    def _download(self) -> None:
        try:
            MNIST(self.root, download=True)
        except Exception as error:  # the network, the server, the disk or the archive fails
            raise OSError(f"MNIST cannot be downloaded ({error}); get it from {_SOURCE}") from error

    @property
    def _folder(self) -> Path:
        return self.root / "MNIST" / "raw"
