"""EMNIST: handwritten digits and letters."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from torch.utils.data import DataLoader
from torchvision.datasets import EMNIST

from datamodules.images.idx import find_idx, load_idx
from datamodules.images.official_split import OfficialSplitDataModule
from datamodules.loading import Part
from npbench.errors import InputError

_NUM_CLASSES = 47
_KINDS = ("images-idx3", "labels-idx1")


class EMNISTDataModule(OfficialSplitDataModule):
    """Image completion on EMNIST balanced: 47 classes of 28×28 grey pixels, upright.

    Models are trained on the classes in `class_range`, and tested on them ("seen") and on all
    others ("unseen") apart. Validation holds out some of the training images.

    The files are those that `torchvision.datasets.EMNIST` keeps in `root`, gzipped or not:
    `EMNIST/raw/emnist-balanced-{train,test}-{images-idx3,labels-idx1}-ubyte`.

    Args:
        root: the folder that holds `EMNIST/`.
        class_range: the first class to train on, and the one after the last; 0–9 are digits, 10–46
            are letters.
        download: get the files (560 MB) if they are missing.

    The other arguments are those of `OfficialSplitDataModule`.

    Source: Cohen et al., *EMNIST: an extension of MNIST to handwritten letters*, 2017; protocol of
    Feng et al., ICML 2024, but for the validation.

    Example:
        >>> data = EMNISTDataModule("data", class_range=(0, 10))
        >>> next(iter(data.val_dataloader())).xc.shape[-1]  # doctest: +SKIP
        2
    """

    size = 28

    def __init__(
        self,
        root: str | Path,
        class_range: tuple[int, int] = (0, 10),
        batch_size: int = 100,
        max_num_points: int = 200,
        eval_seed: int = 0,
        download: bool = False,
        eval_batch_size: int = 16,
        min_num_points: int = 3,
        max_num_targets: int | None = None,
        vary_sizes: bool = False,
        num_val_tasks: int = 1000,
        num_test_tasks: int | None = None,
        num_predict_tasks: int = 16,
        t_noise: float | None = None,
        seed: int = 0,
        num_workers: int = 0,
        x_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            max_num_points=max_num_points,
            eval_seed=eval_seed,
            download=download,
            eval_batch_size=eval_batch_size,
            min_num_points=min_num_points,
            max_num_targets=max_num_targets,
            vary_sizes=vary_sizes,
            num_val_tasks=num_val_tasks,
            num_test_tasks=num_test_tasks,
            num_predict_tasks=num_predict_tasks,
            t_noise=t_noise,
            seed=seed,
            num_workers=num_workers,
            x_range=x_range,
        )
        first, end = class_range
        if not 0 <= first < end <= _NUM_CLASSES:
            raise InputError(
                f"class_range=({first}, {end}) must be the first class and the one after the last, "
                f"0 ≤ first < end ≤ {_NUM_CLASSES}: the classes are 0–{_NUM_CLASSES - 1}"
            )
        self.class_range = (first, end)

    def test_dataloader(self) -> dict[str, DataLoader]:
        """The loaders of the classes that were trained on ("seen") and of others ("unseen")."""
        names = {"seen": Part.TEST, "unseen": Part.TEST_UNSEEN}
        return {n: self._test_loader(kind) for n, kind in names.items() if kind in self.image_sets}

    def _load(self, split: str) -> UInt8[np.ndarray, "images channels height width"]:
        """Load the images upright; the files hold each transposed."""
        file = self._file(split, "images-idx3")
        images, num_labels = load_idx(file, num_dims=3), len(self._labels(split))
        if images.shape != (num_labels, self.size, self.size):
            raise InputError(
                f"{file} holds images of shape {images.shape}, expected ({num_labels}, "
                f"{self.size}, {self.size}) for the {num_labels} labels in "
                f"{self._file(split, 'labels-idx1')}"
            )
        return images.transpose(0, 2, 1)[:, None]

    def _are_seen(self, split: str, images: np.ndarray) -> Bool[np.ndarray, "images"]:
        labels = self._labels(split)
        return (self.class_range[0] <= labels) & (labels < self.class_range[1])

    @property
    def _of_classes(self) -> str:
        return f" of classes {self.class_range[0]}–{self.class_range[1] - 1}"

    def _labels(self, split: str) -> np.ndarray:
        return load_idx(self._file(split, "labels-idx1"), num_dims=1)

    def _file(self, split: str, kind: str) -> Path:
        file = find_idx(self._folder / _name(split, kind))
        assert file is not None, "`_missing` is asked first"
        return file

    @property
    def _folder(self) -> Path:
        return self.root / "EMNIST" / "raw"

    def _missing(self) -> str:
        names = [_name(split, kind) for split in ("train", "test") for kind in _KINDS]
        missing = [name for name in names if find_idx(self._folder / name) is None]
        if not missing:
            return ""
        return (
            f"{self._folder} lacks {', '.join(missing)}: set download to true, or unpack "
            f"{EMNIST.url} and put these files, gzipped or not, there"
        )

    def _download(self) -> None:
        try:
            EMNIST(self.root, split="balanced", download=True)
        except Exception as error:  # the network, the server, the disk or the archive fails
            raise OSError(
                f"EMNIST cannot be downloaded ({error}); get it from {EMNIST.url}"
            ) from error


def _name(split: str, kind: str) -> str:
    return f"emnist-balanced-{split}-{kind}-ubyte"
