"""Images that are published as a training set and a test set."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, UInt8

from datamodules.images.base import ImageDataModule, ImageSet, evenly_spaced
from datamodules.loading import Part, at_least_one
from npbench.errors import InputError


class OfficialSplitDataModule(ImageDataModule):
    """Image completion on the training and the test images of a published data set.

    Validation holds out some of the training images. A subclass says which files hold the images.

    Args:
        root: the folder that holds the folder of the official files.
        batch_size: tasks a training step, on each rank.
        max_num_points: N + M stays below; N ~ U{3, …, max − 4}, M ~ U{3, …, max − 1 − N}.
        eval_seed: seed of the validation, test and prediction tasks.
        download: get the files if they are missing.
        num_val_tasks: number of training images held out for validation, evenly spaced.

    The other arguments are those of `ImageDataModule`.
    """

    size: ClassVar[int]
    """Rows and columns of an image."""

    def __init__(
        self,
        root: str | Path,
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
            num_pixels=self.size**2,
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
            x_range=x_range,
        )
        at_least_one(num_val_tasks=num_val_tasks)
        self.root = Path(root)
        self.download = download
        self.num_val_tasks = num_val_tasks

    def prepare_data(self) -> None:
        """Download what is missing, where that is asked for, and load the images."""
        if self.download and self._missing():
            self._download()
        super().prepare_data()

    def _load_images(self) -> dict[Part, ImageSet]:
        if missing := self._missing():
            raise FileNotFoundError(missing)
        train, test = self._load("train"), self._load("test")
        rows, seen = np.flatnonzero(self._are_seen("train", train)), self._are_seen("test", test)
        if len(rows) <= self.num_val_tasks:
            raise InputError(
                f"num_val_tasks={self.num_val_tasks} leaves none to train on of the {len(rows)} "
                f"training images{self._of_classes}"
            )
        if not seen.any():
            raise InputError(f"there is no test image{self._of_classes}")
        held_out = evenly_spaced(len(rows), self.num_val_tasks)
        sets = {
            Part.TRAIN: ImageSet(train, rows[~held_out]),
            Part.VALIDATE: ImageSet(train, rows[held_out]),
            Part.TEST: ImageSet(test, np.flatnonzero(seen)),
            Part.TEST_UNSEEN: ImageSet(test, np.flatnonzero(~seen)),
        }
        return {part: images for part, images in sets.items() if len(images)}

    def _are_seen(self, split: str, images: np.ndarray) -> Bool[np.ndarray, "images"]:
        """Which images of a split are of kinds that are trained on: by default all."""
        return np.ones(len(images), bool)

    @property
    def _of_classes(self) -> str:
        """What messages say of the classes that are trained on, where these are some of them."""
        return ""

    @abstractmethod
    def _load(self, split: str) -> UInt8[np.ndarray, "images channels height width"]:
        """Load the images of the split "train" or "test"."""

    @abstractmethod
    def _missing(self) -> str:
        """One sentence that names the missing files and their source; empty if none is missing."""

    @abstractmethod
    def _download(self) -> None:
        """Download the files.

        Raises:
            OSError: if that fails; names the source.
        """
