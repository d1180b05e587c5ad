"""CelebA: faces of celebrities."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CelebA

from datamodules.images.base import ImageDataModule, ImageSet
from datamodules.images.cache import Decoder, ImageCache, OnCorrupt
from datamodules.loading import Part, at_least_one
from npbench.errors import InputError

# The paper's numbers by resolution: N + M stays below the first, and a training task has at most
# so many targets as the second says.
_PROTOCOL = {32: (200, None), 64: (800, 400), 128: (1600, 400)}

_PICTURES, _PARTITION, _IDENTITY = (
    "img_align_celeba",
    "list_eval_partition.txt",
    "identity_CelebA.txt",
)
_HOME = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class CelebADataModule(ImageDataModule):
    """Image completion on CelebA at 32×32, 64×64 or 128×128 RGB pixels.

    The official partition splits the pictures as the paper's code does it: partition 2 is for
    tests, partitions 0 and 1 are for training. Only the first persons (by number) of partition 1
    are taken out; `num_val_tasks` of their pictures are for validation, so that no person is in two
    parts.

    The files are `img_align_celeba/`, `list_eval_partition.txt` and `identity_CelebA.txt`, as they
    are published, in `root` or in `root/celeba`, where torchvision keeps them. The pictures are
    decoded once and resized (bicubic), into a cache of 0.6, 2.3 or 9.3 GiB that all processes
    share. The official code resizes all 178×218 pixels; that is `center_crop=False`, which the
    configurations of the paper's models set.

    Args:
        root: the folder that holds these files, or `celeba/` with them.
        resolution: 32, 64 or 128.
        batch_size: tasks a training step, on each rank.
        max_num_points: N + M stays below; N ~ U{3, …, max − 4}, M ~ U{3, …, max − 1 − N}. By
            default 200, 800 or 1600, by the resolution.
        eval_seed: seed of the validation, test and prediction tasks.
        download: get the files (1.4 GB) if they are missing; this takes the package gdown.
        max_num_targets: most targets of a training task; by default 400 above resolution 32.
        num_val_tasks: number of validation tasks.
        center_crop: cut out the central 178×178 pixels first, so that faces keep their proportions;
            otherwise the whole picture is squeezed. Each of the two has a cache of its own.
        on_corrupt: leave out pictures that cannot be decoded, with a warning, or raise an error.
        cache_dir: where to keep the cache; by default it is `npbench-cache` beside the pictures.
            One folder may hold caches of several resolutions and sets of pictures.

    The other arguments are those of `ImageDataModule`.

    Source: Liu et al., *Deep Learning Face Attributes in the Wild*, ICCV 2015; protocol of Feng et
    al., ICML 2024, but for the validation.

    Example:
        >>> data = CelebADataModule("data", resolution=64)
        >>> data.max_num_points, data.max_num_targets
        (800, 400)
    """

    def __init__(
        self,
        root: str | Path,
        resolution: int = 32,
        batch_size: int = 100,
        max_num_points: int | None = None,
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
        center_crop: bool = True,
        on_corrupt: OnCorrupt = "skip",
        cache_dir: str | Path | None = None,
        seed: int = 0,
        num_workers: int = 0,
        x_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        if resolution not in _PROTOCOL:
            raise InputError(f"resolution={resolution} must be 32, 64 or 128")
        most_points, most_targets = _PROTOCOL[resolution]
        super().__init__(
            num_pixels=resolution**2,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            min_num_points=min_num_points,
            max_num_points=most_points if max_num_points is None else max_num_points,
            max_num_targets=most_targets if max_num_targets is None else max_num_targets,
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
        self.decoder = Decoder(resolution, num_channels=3, center_crop=center_crop)
        self.download = download
        self.num_val_tasks = num_val_tasks
        self.on_corrupt = on_corrupt
        self.cache_dir = None if cache_dir is None else Path(cache_dir)

    def prepare_data(self) -> None:
        """Download what is missing, where that is asked for, and build the cache."""
        if self.download and self._missing():
            _download(self.root)
        super().prepare_data()

    def _load_images(self) -> dict[Part, ImageSet]:
        if missing := self._missing():
            raise FileNotFoundError(
                f"{self._folder} lacks {', '.join(missing)}: set download to true, or get the "
                f"aligned pictures, the partition and the identities from {_HOME} and put them "
                f"there"
            )
        partition_of, person_of = (
            _parse_list(self._folder / name) for name in (_PARTITION, _IDENTITY)
        )
        if unknown := partition_of.keys() - person_of.keys():
            raise InputError(
                f"{self._folder / _IDENTITY} lacks {len(unknown)} of the pictures that "
                f"{_PARTITION} names: {min(unknown)}, …"
            )
        cache = ImageCache.of(
            self._folder / _PICTURES,
            sorted(partition_of),
            self.decoder,
            self.cache_dir or self._folder / "npbench-cache",
            self.on_corrupt,
        )
        partition, person = (
            np.array([number[name] for name in cache.names]) for number in (partition_of, person_of)
        )
        held_out = self._held_out(partition, person)
        rows = {
            Part.TRAIN: np.flatnonzero((partition != 2) & ~np.isin(person, person[held_out])),
            Part.VALIDATE: held_out,
            Part.TEST: np.flatnonzero(partition == 2),
        }
        for kind, name in ((Part.TRAIN, "train on"), (Part.TEST, "test on")):
            if not len(rows[kind]):
                raise InputError(f"{self._folder / _PARTITION} leaves no picture to {name}")
        return {kind: ImageSet(cache.images, chosen) for kind, chosen in rows.items()}

    def _held_out(self, partition: np.ndarray, person: np.ndarray) -> np.ndarray:
        """The rows of the validation pictures: partition 1, by number of the person."""
        candidates = np.flatnonzero(partition == 1)
        if len(candidates) < self.num_val_tasks:
            raise InputError(
                f"num_val_tasks={self.num_val_tasks} exceeds the {len(candidates)} pictures of "
                f"partition 1 in {self._folder / _PARTITION}"
            )
        return candidates[np.argsort(person[candidates], kind="stable")][: self.num_val_tasks]

    @property
    def _folder(self) -> Path:
        inner = self.root / CelebA.base_folder
        return inner if inner.is_dir() else self.root

    def _missing(self) -> list[str]:
        names = [_PARTITION, _IDENTITY, _PICTURES]
        return [name for name in names if not (self._folder / name).exists()]


def _parse_list(path: Path) -> dict[str, int]:
    """The number of each picture; each line of the file is like `000001.jpg 0`."""
    numbers = {}
    for number_of_line, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            name, number = line.split()
            numbers[name] = int(number)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number_of_line}: {line!r} is not a picture and a number"
            ) from error
    return numbers


def _download(root: Path) -> None:
    try:
        CelebA(root, split="all", target_type="identity", download=True)
    except Exception as error:  # the network, the server, the disk or the archive fails
        raise OSError(f"CelebA cannot be downloaded ({error}); get it from {_HOME}") from error
