"""EMNIST: handwritten digits and letters."""

from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from torchvision.datasets import EMNIST

from datamodules.images.base import ImageDataModule, ImageSet, evenly_spaced
from datamodules.images.idx import find_idx, load_idx
from datamodules.loading import Part, at_least_one
from npbench.errors import InputError

_NUM_CLASSES = 47
_SIZE = 28


class EMNISTDataModule(ImageDataModule):
    """Image completion on EMNIST balanced: 47 classes of 28×28 grey pixels, upright.

    Models are trained on the classes in `class_range`, and tested on them ("seen") and on all
    others ("unseen") apart. Validation holds out some of the training images.

    The files are those that `torchvision.datasets.EMNIST` keeps in `root`, gzipped or not:
    `EMNIST/raw/emnist-balanced-{train,test}-{images-idx3,labels-idx1}-ubyte`.

    Args:
        root: the folder that holds `EMNIST/`.
        class_range: the first class to train on, and the one after the last; 0–9 are digits, 10–46
            are letters.
        batch_size: tasks a training step, on each rank.
        max_num_points: N + M stays below; N ~ U{3, …, max − 4}, M ~ U{3, …, max − 1 − N}.
        eval_seed: seed of the validation, test and prediction tasks.
        download: get the files (560 MB) if they are missing.
        num_val_tasks: number of training images held out for validation, evenly spaced.

    The other arguments are those of `ImageDataModule`.

    Source: Cohen et al., *EMNIST: an extension of MNIST to handwritten letters*, 2017; protocol of
    Feng et al., ICML 2024, but for the validation.

    Example:
        >>> data = EMNISTDataModule("data", class_range=(0, 10))
        >>> next(iter(data.val_dataloader())).xc.shape[-1]  # doctest: +SKIP
        2
    """

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
    ) -> None:
        super().__init__(
            num_pixels=_SIZE**2,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            min_num_points=min_num_points,
            max_num_points=max_num_points,
            max_num_targets=max_num_targets,
            vary_sizes=vary_sizes,
            num_test_tasks=num_test_tasks,
            num_predict_tasks=num_predict_tasks,
            t_noise=t_noise,
            seed=seed,
            eval_seed=eval_seed,
            num_workers=num_workers,
        )
        at_least_one(num_val_tasks=num_val_tasks)
        first, end = class_range
        if not 0 <= first < end <= _NUM_CLASSES:
            raise InputError(
                f"class_range=({first}, {end}) must be the first class and the one after the last, "
                f"0 ≤ first < end ≤ {_NUM_CLASSES}: the classes are 0–{_NUM_CLASSES - 1}"
            )
        self.root = Path(root)
        self.class_range = (first, end)
        self.download = download
        self.num_val_tasks = num_val_tasks

    def prepare_data(self) -> None:
        """Download what is missing, where that is asked for, and load the images."""
        if self.download and self._missing():
            _download(self.root)
        super().prepare_data()

    def test_dataloader(self) -> dict[str, DataLoader]:
        """The loaders of the classes that were trained on ("seen") and of others ("unseen")."""
        names = {"seen": Part.TEST, "unseen": Part.TEST_UNSEEN}
        return {n: self._test_loader(kind) for n, kind in names.items() if kind in self.image_sets}

    def _load_images(self) -> dict[Part, ImageSet]:
        if missing := self._missing():
            raise FileNotFoundError(
                f"{self._folder} lacks {', '.join(missing)}: set download to true, or unpack "
                f"{EMNIST.url} and put these files, gzipped or not, there"
            )
        train, train_label = self._load_file_pair("train")
        test, test_label = self._load_file_pair("test")
        rows = np.flatnonzero(self._is_seen(train_label))
        if len(rows) <= self.num_val_tasks:
            raise InputError(
                f"num_val_tasks={self.num_val_tasks} leaves none to train on of the {len(rows)} "
                f"training images of classes {self.class_range[0]}–{self.class_range[1] - 1}"
            )
        held_out = evenly_spaced(len(rows), self.num_val_tasks)
        seen = self._is_seen(test_label)
        if not seen.any():
            raise InputError(
                f"no test image is of classes {self.class_range[0]}–{self.class_range[1] - 1}"
            )
        sets = {
            Part.TRAIN: ImageSet(train, rows[~held_out]),
            Part.VALIDATE: ImageSet(train, rows[held_out]),
            Part.TEST: ImageSet(test, np.flatnonzero(seen)),
            Part.TEST_UNSEEN: ImageSet(test, np.flatnonzero(~seen)),
        }
        return {kind: images for kind, images in sets.items() if len(images)}

    def _is_seen(self, label: np.ndarray) -> np.ndarray:
        return (self.class_range[0] <= label) & (label < self.class_range[1])

    def _load_file_pair(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The images, upright, and their labels, of the files called train or test."""
        images_file, labels_file = (find_idx(self._folder / file) for file in _files(name))
        images, labels = load_idx(images_file, num_dims=3), load_idx(labels_file, num_dims=1)
        if images.shape != (len(labels), _SIZE, _SIZE):
            raise InputError(
                f"{images_file} holds images of shape {images.shape}, expected ({len(labels)}, "
                f"{_SIZE}, {_SIZE}) for the {len(labels)} labels in {labels_file}"
            )
        # The files hold each image transposed.
        return images.transpose(0, 2, 1)[:, None], labels

    @property
    def _folder(self) -> Path:
        return self.root / "EMNIST" / "raw"

    def _missing(self) -> list[str]:
        names = [*_files("train"), *_files("test")]
        return [name for name in names if find_idx(self._folder / name) is None]


def _files(name: str) -> tuple[str, str]:
    return tuple(f"emnist-balanced-{name}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))


def _download(root: Path) -> None:
    try:
        EMNIST(root, split="balanced", download=True)
    except Exception as error:  # the network, the server, the disk or the archive fails
        raise OSError(f"EMNIST cannot be downloaded ({error}); get it from {EMNIST.url}") from error
