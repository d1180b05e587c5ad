"""CIFAR-10: small pictures of animals and vehicles."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torchvision.datasets import CIFAR10

from datamodules.events.formats.restricted_pickle import KeptArray, load_plain
from datamodules.images.official_split import OfficialSplitDataModule
from npbench.errors import InputError

_FILES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_PICKLES, _BINARY = CIFAR10.base_folder, "cifar-10-batches-bin"
_NUM_VALUES = 3 * 32 * 32


class CIFAR10DataModule(OfficialSplitDataModule):
    """Image completion on CIFAR-10: 32×32 RGB pixels, 50,000 pictures to train on and 10,000 more.

    The files are those of either official version, unpacked in `root`: the pickles in
    `cifar-10-batches-py/`, where torchvision keeps them, or `cifar-10-batches-bin/*.bin`. Of a
    pickle only plain arrays are loaded, and nothing in it is run.

    The arguments are those of `OfficialSplitDataModule`. `num_val_tasks=5000` holds out a tenth of
    the training pictures.

    Source: Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.

    Example:
        >>> data = CIFAR10DataModule("data", num_val_tasks=5000)
        >>> next(iter(data.val_dataloader())).yc.shape[-1]  # doctest: +SKIP
        3
    """

    size = 32

    def _load(self, split: str) -> UInt8[np.ndarray, "images channels height width"]:
        load, suffix = (_load_binary, ".bin") if self._is_binary else (_load_pickle, "")
        values = [load(self._folder / f"{name}{suffix}") for name in _FILES[split]]
        return np.concatenate(values).reshape(-1, 3, self.size, self.size)

    def _missing(self) -> str:
        suffix = ".bin" if self._is_binary else ""
        names = [f"{name}{suffix}" for files in _FILES.values() for name in files]
        missing = [name for name in names if not (self._folder / name).is_file()]
        if not missing:
            return ""
        return (
            f"{self._folder} lacks {', '.join(missing)}: set download to true, or unpack "
            f"{CIFAR10.url} in {self.root}"
        )

    def _download(self) -> None:
        try:
            CIFAR10(self.root, download=True)
        except Exception as error:  # the network, the server, the disk or the archive fails
            raise OSError(
                f"CIFAR-10 cannot be downloaded ({error}); get it from {CIFAR10.url}"
            ) from error

    @property
    def _is_binary(self) -> bool:
        """Whether the binary version is there, and the pickles are not."""
        return (self.root / _BINARY).is_dir() and not (self.root / _PICKLES).is_dir()

    @property
    def _folder(self) -> Path:
        return self.root / (_BINARY if self._is_binary else _PICKLES)


def _load_binary(path: Path) -> UInt8[np.ndarray, "images values"]:
    """Load records of a label and the red, green and blue values, of one byte each."""
    records = np.fromfile(path, np.uint8)
    if not len(records) or len(records) % (1 + _NUM_VALUES):
        raise InputError(
            f"{path} holds {len(records):,} bytes, which are no records of {1 + _NUM_VALUES} "
            f"bytes: it is cut off or damaged; get it again"
        )
    return records.reshape(-1, 1 + _NUM_VALUES)[:, 1:]


def _load_pickle(path: Path) -> UInt8[np.ndarray, "images values"]:
    """Load the array `data` of a pickled dictionary."""
    content = load_plain(path, keep_arrays=True)
    values = content.get("data") if isinstance(content, dict) else None
    if not isinstance(values, KeptArray) or values.array.dtype != np.uint8:
        raise InputError(f"{path} holds no dictionary with an array of bytes called data")
    if values.array.ndim != 2 or values.array.shape[1] != _NUM_VALUES or not len(values.array):
        raise InputError(
            f"{path} holds pictures of shape {values.array.shape}, expected (pictures, "
            f"{_NUM_VALUES})"
        )
    return values.array
