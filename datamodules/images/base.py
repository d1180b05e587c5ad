"""What all data modules of images share: which image and which pixels make which task."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.gaussian_process import outliers
from datamodules.images.pixels import PixelDraw, images_to_task
from datamodules.loading import Part, TaskDataModule, at_least_one, check_range
from datamodules.sampling import ContextTargetSplit, TaskSizes
from datamodules.seeding import seeded
from npbench.errors import InputError
from npbench.task import Task


@dataclass(frozen=True)
class ImageSet:
    """Some images of an array, which may be a memory-mapped file.

    Args:
        array: all images.
        rows: indices of those in the set.
    """

    array: UInt8[np.ndarray, "all channels height width"]
    rows: Int[np.ndarray, "images"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(
        self, indices: Sequence[int] | Int[np.ndarray, "batch"]
    ) -> UInt8[Tensor, "batch channels height width"]:
        return torch.from_numpy(np.asarray(self.array[self.rows[np.asarray(indices)]]))


class ImageDataModule(TaskDataModule):
    """Makes tasks from images: predict the colour of some pixels from others (`images_to_task`).

    Training passes over the images in an order that is drawn anew for each pass. One pass follows
    another in the middle of a batch, so that each takes every image once and all batches are full.
    The batch of step i on rank r is a function of (seed, number of ranks, r, i), and evaluation
    task i is the i-th image with pixels drawn from (eval_seed, i). Both are the same with any
    number of workers, and after a resume too.

    Args:
        num_pixels: number of pixels of an image.
        batch_size: tasks a training step, on each rank.
        eval_batch_size: tasks an evaluation step; it changes no result.
        min_num_points: fewest context points N, and fewest targets M.
        max_num_points: N + M stays below; N ~ U{min, …, max − min − 1}, M ~ U{min, …, max − 1 − N}.
        max_num_targets: most targets of a training task.
        vary_sizes: the tasks of a training batch differ in N and M, with masks; officially they
            share both.
        num_test_tasks: number of test tasks of each kind; by default as many as there are images.
        num_predict_tasks: number of test images for `predict`; the targets are all pixels that are
            not in the context.
        t_noise: contaminate all values with `t_noise`·StudentT(2.1), the official
            out-of-distribution setting.
        seed: seed of the training tasks.
        eval_seed: seed of the validation, test and prediction tasks.
        num_workers: processes that make tasks; 0 makes them in the training process.
        x_range: where the first and the last pixel of a row and of a column lie. For tests on
            shifted domains: (9, 11). Images with twice as many pixels on a side have them as far
            apart on (−2, 2).
    """

    def __init__(
        self,
        num_pixels: int,
        batch_size: int,
        eval_batch_size: int,
        min_num_points: int,
        max_num_points: int,
        max_num_targets: int | None,
        vary_sizes: bool,
        num_test_tasks: int | None,
        num_predict_tasks: int,
        t_noise: float | None,
        seed: int,
        eval_seed: int,
        num_workers: int,
        x_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(eval_batch_size, num_workers)
        check_range(x_range)
        at_least_one(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_predict_tasks=num_predict_tasks,
        )
        if num_test_tasks is not None:
            at_least_one(num_test_tasks=num_test_tasks)
        self.sizes = TaskSizes(min_num_points, max_num_points, max_num_targets, vary=vary_sizes)
        if max_num_points > num_pixels:
            raise InputError(
                f"max_num_points={max_num_points} exceeds the {num_pixels} pixels of an image"
            )
        self.num_pixels = num_pixels
        self.batch_size = batch_size
        self.num_test_tasks = num_test_tasks
        self.num_predict_tasks = num_predict_tasks
        self.t_noise = t_noise
        self.seed = seed
        self.eval_seed = eval_seed
        self.x_range = x_range

    @property
    def max_num_points(self) -> int:
        """N + M of a task stays below."""
        return self.sizes.max

    @property
    def max_num_targets(self) -> int | None:
        """Most targets of a training task, if they are bounded."""
        return self.sizes.max_targets

    @abstractmethod
    def _load_images(self) -> dict[Part, ImageSet]:
        """Load the images of every part."""

    @cached_property
    def image_sets(self) -> dict[Part, ImageSet]:
        """The images for training, validation and tests, and perhaps for `TEST_UNSEEN`."""
        return self._load_images()

    def prepare_data(self) -> None:
        """Load the images in one process first, so that one downloads and builds caches for all.

        Raises:
            InputError, OSError: if the files are not what the data module says they must be.
        """
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the images, in every process."""
        _ = self.image_sets

    def training_batch(self, index: int, rank: int = 0) -> Task:
        """The batch of training step `index` on `rank`."""
        images = self.image_sets[Part.TRAIN]
        _, world_size = self._rank_and_world_size()
        first = (index * world_size + rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        with seeded(Part.TRAIN, self.seed, rank, index):
            draw = self._draw(self.sizes.draw(self.batch_size))
        chosen = images[_shuffled(positions, len(images), self.seed)]
        return images_to_task(chosen, draw, self.x_range)

    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> Task:
        """The fixed evaluation tasks of these indices.

        The targets of `Part.PREDICT` are all pixels that are not in the context.
        """
        draws = []
        for index in indices:
            with seeded(part, self.eval_seed, index):
                sizes = self.sizes.evaluation.draw(1)
                if part == Part.PREDICT:
                    sizes = self._all_others(sizes.num_context)
                draws.append(self._draw(sizes))
        images = self.image_sets[Part.TEST if part == Part.PREDICT else part]
        return images_to_task(images[indices], PixelDraw.stack(draws), self.x_range)

    def completion_task(self, index: int = 0, num_context: int = 50) -> Task:
        """A task for figures, whose targets are all pixels that are not in the context.

        The images are test images, of seen and unseen kinds by turns. A larger context of an image
        contains the smaller ones.

        Raises:
            InputError: if the context leaves no pixel.
        """
        if not 1 <= num_context < self.num_pixels:
            raise InputError(
                f"num_context={num_context} must be 1 or more, and below the {self.num_pixels} "
                f"pixels of an image"
            )
        kinds = [
            self.image_sets[kind]
            for kind in (Part.TEST, Part.TEST_UNSEEN)
            if kind in self.image_sets
        ]
        images, number = kinds[index % len(kinds)], index // len(kinds)
        with seeded(Part.FIGURES, self.eval_seed, index):
            draw = self._draw(self._all_others(torch.tensor([num_context])))
        return images_to_task(images[[number % len(images)]], draw, self.x_range)

    def _all_others(self, num_context: Int[Tensor, "batch"]) -> ContextTargetSplit:
        """The sizes of tasks whose targets are all pixels that are not in the context."""
        return ContextTargetSplit(num_context, self.num_pixels - num_context)

    def _draw(self, sizes: ContextTargetSplit) -> PixelDraw:
        """Draw the pixels and the noise of tasks of these sizes from torch's generator."""
        batch_size = len(sizes.num_context)
        key = torch.randint(2**63 - 1, [batch_size])
        noise = None
        if self.t_noise is not None:
            channels = self.image_sets[Part.TEST].array.shape[1]
            most = max(self.sizes.max, sizes.num_points)
            noise = outliers(torch.Size([batch_size, most, channels]), self.t_noise)
        return PixelDraw(sizes.num_context, sizes.num_target, key, noise)

    def train_dataloader(self) -> DataLoader:
        _, world_size = self._rank_and_world_size()
        steps = len(self.image_sets[Part.TRAIN]) // (world_size * self.batch_size)
        return self._training_loader(max(1, steps))

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.image_sets[Part.VALIDATE]), Part.VALIDATE)

    def test_dataloader(self) -> DataLoader | dict[str, DataLoader]:
        return self._test_loader(Part.TEST)

    def predict_dataloader(self) -> DataLoader:
        number = min(self.num_predict_tasks, len(self.image_sets[Part.TEST]))
        return self._evaluation_loader(number, Part.PREDICT)

    def _test_loader(self, part: Part) -> DataLoader:
        number = len(self.image_sets[part])
        return self._evaluation_loader(min(number, self.num_test_tasks or number), part)


def evenly_spaced(num_images: int, number: int) -> Bool[np.ndarray, "images"]:
    """Which of so many images are chosen, if `number` of them are, evenly spaced from the first."""
    chosen = np.zeros(num_images, bool)
    chosen[np.arange(number) * num_images // number] = True
    return chosen


def _shuffled(positions: range, num_images: int, seed: int) -> Int[np.ndarray, "batch"]:
    """The images at these positions of the endless sequence of passes over all of them."""
    return np.array(
        [_order_of_pass(num_images, seed, p // num_images)[p % num_images] for p in positions]
    )


@lru_cache(maxsize=2)
def _order_of_pass(num_images: int, seed: int, number: int) -> Int[np.ndarray, "images"]:
    with seeded(Part.TRAIN, seed, number):
        return torch.randperm(num_images).numpy()
