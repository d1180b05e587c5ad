"""Passes over a fixed data set of rows of different lengths, such as sequences."""

from abc import abstractmethod
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader

from datamodules.loading import Part, TaskDataModule, at_least_one
from datamodules.seeding import seeded

# Number of batches whose training rows are sorted by length together. More of them leave less
# padding.
_POOL = 50


@runtime_checkable
class Rows(Protocol):
    """A part of a data set."""

    def __hash__(self) -> int: ...

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Int64[np.ndarray, "rows"]:
        """The length of each row."""

    @property
    def by_length(self) -> Int64[np.ndarray, "rows"]:
        """The indices of the rows, short ones first."""

    def batch(self, rows: Int64[np.ndarray, "batch"]) -> Any:
        """The batch of these rows, padded to the longest one."""


class PassDataModule(TaskDataModule):
    """Makes batches of the rows of a fixed data set, padded on the right.

    Training passes over the rows in an order that is drawn anew for each pass. Rows of similar
    length share a batch, which saves padding: the rows of some batches are sorted by length
    together and cut, and the batches are shuffled. Rows at the end of a pass that would not fill a
    batch on every rank are left out of that pass. The batch of step i on rank r is a function of
    (seed, number of ranks, r, i): it is the same with any number of workers, and after a resume
    too.

    Evaluation takes every row once, short ones first. Prediction takes them in their order.

    Args:
        batch_size: rows a training step, on each rank.
        eval_batch_size: rows an evaluation step; it changes no result.
        seed: seed of the order of the training rows.
        num_workers: processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__(eval_batch_size, num_workers)
        at_least_one(batch_size=batch_size, eval_batch_size=eval_batch_size)
        self.batch_size = batch_size
        self.seed = seed

    @abstractmethod
    def rows(self, part: Part) -> Rows:
        """The rows of a part, which are made when they are first asked for."""

    def prepare_data(self) -> None:
        """Load the data in one process first, so that one downloads for all.

        Raises:
            InputError, OSError: if the files are not what the data module says they must be.
        """
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the data, in every process."""
        for part in (Part.TRAIN, Part.VALIDATE, Part.TEST):
            self.rows(part)

    def training_batch(self, index: int, rank: int = 0) -> Any:
        """The batch of training step `index` on `rank`."""
        _, world_size = self._rank_and_world_size()
        number, step = divmod(index, self._steps_per_pass())
        size = self.batch_size * world_size
        rows = self.rows(Part.TRAIN)
        together = _batches_of_pass(rows, size, self.seed, number)[step]
        return rows.batch(together[rank::world_size])

    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> Any:
        """The rows of these indices, short ones first, or in their order for `PREDICT`."""
        rows, chosen = self.rows(part), np.array(indices)
        return rows.batch(chosen if part == Part.PREDICT else rows.by_length[chosen])

    def _steps_per_pass(self) -> int:
        _, world_size = self._rank_and_world_size()
        return max(1, len(self.rows(Part.TRAIN)) // (world_size * self.batch_size))

    def train_dataloader(self) -> DataLoader:
        return self._training_loader(self._steps_per_pass())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.rows(Part.VALIDATE)), Part.VALIDATE)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.rows(Part.TEST)), Part.TEST)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.rows(Part.PREDICT)), Part.PREDICT)


@lru_cache(maxsize=2)
def _batches_of_pass(
    rows: Rows, size: int, seed: int, number: int
) -> Int64[np.ndarray, "steps size"]:
    """The rows of each batch. A row comes twice only where all would not fill one batch."""
    with seeded(Part.TRAIN, seed, number):
        steps = max(1, len(rows) // size)
        order = np.resize(torch.randperm(len(rows)).numpy(), steps * size)
        for start in range(0, len(order), _POOL * size):
            pool = order[start : start + _POOL * size]
            pool[:] = pool[np.argsort(rows.lengths[pool], kind="stable")]
        return order.reshape(steps, size)[torch.randperm(steps).numpy()]
