"""Pictures of your own, in a folder."""

from pathlib import Path

import numpy as np

from datamodules.images.base import ImageDataModule, ImageSet
from datamodules.images.cache import Decoder, ImageCache, OnCorrupt
from datamodules.loading import Part
from datamodules.seeding import uniform_hash
from npbench.errors import InputError

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


class ImageFolderDataModule(ImageDataModule):
    """Image completion on a folder of pictures of any size; its subfolders count too.

    A hash of the path of a picture in the folder says whether it is for training, validation or
    testing, so that added pictures move no other. The pictures are decoded once: their central
    squares are resized, into a cache that all processes share. It is built anew when a picture is
    added, removed or changed.

    Args:
        root: the folder.
        resolution: rows and columns to which the pictures are resized.
        num_channels: 1 for grey, 3 for RGB; the model's `dim_y`.
        batch_size: tasks a training step, on each rank.
        max_num_points: N + M stays below; N ~ U{3, …, max − 4}, M ~ U{3, …, max − 1 − N}. By
            default a fifth of the pixels, as with CelebA.
        eval_seed: seed of the validation, test and prediction tasks.
        val_share: share of the pictures for validation.
        test_share: share of the pictures for testing.
        center_crop: cut out the central square; otherwise the whole picture is squeezed.
        on_corrupt: leave out pictures that cannot be decoded, with a warning, or raise an error.
        cache_dir: where to keep the cache; by default it is `npbench-cache` in the folder.

    The other arguments are those of `ImageDataModule`.

    Example:
        >>> data = ImageFolderDataModule("pictures", resolution=64, num_channels=1)
        >>> data.max_num_points
        819
    """

    def __init__(
        self,
        root: str | Path,
        resolution: int = 32,
        num_channels: int = 3,
        batch_size: int = 100,
        max_num_points: int | None = None,
        eval_seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.1,
        eval_batch_size: int = 16,
        min_num_points: int = 3,
        max_num_targets: int | None = None,
        vary_sizes: bool = False,
        num_test_tasks: int | None = None,
        num_predict_tasks: int = 16,
        t_noise: float | None = None,
        center_crop: bool = True,
        on_corrupt: OnCorrupt = "skip",
        cache_dir: str | Path | None = None,
        seed: int = 0,
        num_workers: int = 0,
        x_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        decoder = Decoder(resolution, num_channels, center_crop)
        super().__init__(
            num_pixels=resolution**2,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            min_num_points=min_num_points,
            max_num_points=resolution**2 // 5 if max_num_points is None else max_num_points,
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
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise InputError(
                f"val_share={val_share} and test_share={test_share} must be above 0 and leave some "
                f"pictures to train on"
            )
        self.root = Path(root)
        self.decoder = decoder
        self.val_share = val_share
        self.test_share = test_share
        self.on_corrupt = on_corrupt
        self.cache_dir = self.root / "npbench-cache" if cache_dir is None else Path(cache_dir)

    def _load_images(self) -> dict[Part, ImageSet]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder {self.root}; put pictures there")
        files = {
            file.relative_to(self.root).as_posix(): file.stat()
            for file in sorted(self.root.rglob("*"))
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
        }
        if not files:
            raise InputError(f"{self.root} holds no pictures ({' '.join(sorted(_SUFFIXES))})")
        changes = [(stat.st_size, stat.st_mtime_ns) for stat in files.values()]
        cache = ImageCache.of(
            self.root,
            list(files),
            self.decoder,
            self.cache_dir,
            self.on_corrupt,
            fingerprint=repr(changes),
        )
        hashes = np.array([uniform_hash(name) for name in cache.names])
        chosen = {
            Part.TEST: hashes < self.test_share,
            Part.VALIDATE: (hashes >= self.test_share)
            & (hashes < self.test_share + self.val_share),
            Part.TRAIN: hashes >= self.test_share + self.val_share,
        }
        sets = {
            part: ImageSet(cache.images, np.flatnonzero(is_in)) for part, is_in in chosen.items()
        }
        if not all(len(images) for images in sets.values()):
            counts = [len(sets[part]) for part in (Part.TRAIN, Part.VALIDATE, Part.TEST)]
            raise InputError(
                f"the {len(hashes)} pictures in {self.root} come apart into {counts} for training, "
                f"validation and testing; each takes 1 or more: add pictures, or change val_share "
                f"or test_share"
            )
        return sets
