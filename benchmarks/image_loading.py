"""Images per second of CelebA tasks: from the cache, and decoded each time.

    python -m benchmarks.image_loading                          # 128×128, as configs/celeba has it
    python -m benchmarks.image_loading --resolution 32 --workers 0 2

Writes pictures of CelebA's size (178×218 JPEG) into a temporary folder, in its official format,
and loads training batches of 100 from it; beside them, what one training step of the paper's CMANP
on such a batch takes on the same machine.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from datamodules import CelebADataModule
from datamodules.loading import Part
from npbench import Task
from npbench.models import CMANP


class DecodedEachTime:
    """In place of an `ImageSet`: decodes and resizes pictures whenever they are asked for."""

    def __init__(self, data: CelebADataModule, rows: np.ndarray) -> None:
        folder = data.root / "img_align_celeba"
        self.files = [folder / f"{row:06d}.jpg" for row in rows]
        self.decoder = data.decoder

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Iterable[int]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.decoder(self.files[index]) for index in indices]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Of DataLoader, where there are more workers than cores.
    warnings.filterwarnings("ignore", ".*worker processes in total.*")
    with tempfile.TemporaryDirectory() as folder:
        bytes_each = write_pictures(Path(folder), options.images)
        print(
            f"{options.images:,} JPEGs of 178×218 and {bytes_each / 1024:.1f} KiB on average, "
            f"{options.resolution}×{options.resolution}, batches of 100, {os.cpu_count()} cores"
        )
        start = time.perf_counter()
        loader_of(folder, options.resolution, 0)
        seconds = time.perf_counter() - start
        print(f"building the cache, once: {options.images / seconds:,.0f} images/s")
        for workers in options.workers:
            for decoded in (False, True):
                data = loader_of(folder, options.resolution, workers)
                if decoded:
                    rows = data.image_sets[Part.TRAIN].rows
                    data.image_sets[Part.TRAIN] = DecodedEachTime(data, rows)
                rate = images_per_second(data, options.batches)
                name = "decoded each time" if decoded else "from the cache"
                print(f"{name:<20}{workers} workers{rate:10,.0f} images/s")
        print(f"{'training CMANP':<29}{training_rate(data):10,.1f} images/s on this CPU")


def write_pictures(root: Path, number: int) -> float:
    """CelebA's files, with pictures as smooth as faces are; returns the mean size of a JPEG."""
    folder = root / "img_align_celeba"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for place in range(number):
        patches = Image.fromarray(draw.integers(0, 256, (11, 9, 3), dtype=np.uint8))
        picture = patches.resize((178, 218), Image.Resampling.BICUBIC)
        noise = draw.normal(0, 6, (218, 178, 1))
        grainy = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
        grainy = Image.fromarray(grainy).filter(ImageFilter.GaussianBlur(0.7))
        grainy.save(folder / f"{place:06d}.jpg", quality=80)
    names = [f"{place:06d}.jpg" for place in range(number)]
    for file, numbers in {
        "list_eval_partition.txt": [max(0, place % 10 - 7) for place in range(number)],
        "identity_CelebA.txt": range(number),
    }.items():
        (root / file).write_text("".join(f"{n} {v}\n" for n, v in zip(names, numbers)))
    return sum(file.stat().st_size for file in folder.iterdir()) / number


def loader_of(folder: str, resolution: int, workers: int) -> CelebADataModule:
    data = CelebADataModule(folder, resolution, num_val_tasks=10, num_workers=workers)
    data.setup()
    return data


def images_per_second(data: CelebADataModule, batches: int) -> float:
    def endless() -> Iterable[Task]:
        while True:
            yield from data.train_dataloader()

    tasks = endless()
    for _ in range(3):
        next(tasks)
    start = time.perf_counter()
    for _ in range(batches):
        next(tasks)
    return batches * data.batch_size / (time.perf_counter() - start)


def training_rate(data: CelebADataModule) -> float:
    model = CMANP(dim_x=2, dim_y=3)
    tasks = [data.training_batch(index) for index in range(3)]
    start = time.perf_counter()
    for task in tasks:
        model.loss(task).backward()
    return sum(task.batch_size for task in tasks) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
