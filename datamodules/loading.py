"""Loaders whose batches are functions of their indices, whatever process asks for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from npbench.errors import InputError
from npbench.events import EventSequences
from npbench.task import Task


class Part(IntEnum):
    """A part of the data. Its number is the first of every random key of its tasks (`seeded`).

    `FIGURES` are tasks that are drawn for figures alone; `TEST_UNSEEN` are tests on classes that no
    model was trained on.
    """

    TRAIN = 0
    VALIDATE = 1
    TEST = 2
    PREDICT = 3
    FIGURES = 4
    TEST_UNSEEN = 5


class TaskDataModule(L.LightningDataModule, ABC):
    """Makes loaders of training batches and of fixed evaluation tasks.

    A subclass says what batch belongs to an index. The loaders give the same batches with any
    number of workers, and give every rank its share. A run that resumes goes on with the batch
    after the last one that it trained on.

    Args:
        eval_batch_size: tasks an evaluation step; it changes no result.
        num_workers: processes that make tasks; 0 makes them in the training process. Workers are
            forked, which takes Linux; take 0 on macOS and Windows.
    """

    def __init__(self, eval_batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers

    @abstractmethod
    def training_batch(self, index: int, rank: int = 0) -> Task | EventSequences:
        """The batch of training step `index` on `rank`."""

    @abstractmethod
    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> Task | EventSequences:
        """The fixed evaluation tasks of these indices."""

    def _training_loader(self, steps_per_epoch: int) -> DataLoader:
        rank, _ = self._rank_and_world_size()
        length = steps_per_epoch
        if self.trainer is not None and self.trainer.max_steps > 0:
            # So a run that is shorter than an epoch ends with a validation too.
            length = min(length, self.trainer.max_steps * self.trainer.accumulate_grad_batches)
        batches = _Batches(lambda index: self.training_batch(index, rank), length)
        return _ResumableLoader(batches, self._batches_done, **self._loader_options())

    def _evaluation_loader(self, num_tasks: int, part: Part, first: int = 0) -> DataLoader:
        """A loader of the fixed tasks of this rank: every `world_size`-th one, from `first` on.

        All ranks together have each task once.
        """
        rank, world_size = self._rank_and_world_size()
        if num_tasks < world_size:
            raise InputError(
                f"{num_tasks} evaluation tasks cannot be shared out among {world_size} processes; "
                f"take as many tasks at least, or fewer processes"
            )
        chunks = self._chunks(range(first + rank, first + num_tasks, world_size), part)
        batches = _Batches(lambda i: self.evaluation_batch(chunks[i], part), len(chunks))
        return DataLoader(batches, **self._loader_options())

    def _chunks(self, indices: range, part: Part) -> list[range]:
        """The indices of each evaluation batch."""
        size = self.eval_batch_size
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _loader_options(self) -> dict[str, Any]:
        # Each pass of a loader draws a seed for its workers. It takes that from a generator of its
        # own, so that torch's random state stays as it is.
        options = {"batch_size": None, "generator": torch.Generator()}
        if self.num_workers:
            # Other ways to start a worker would pickle GPyTorch's priors, which cannot be pickled.
            options |= {"num_workers": self.num_workers, "multiprocessing_context": "fork"}
        return options

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _batches_done(self) -> int:
        """The number of batches that this run has trained on, with those before a resume."""
        if self.trainer is None:
            return 0
        # An inner part of Lightning; see `npbench.training.lightning_parts`.
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready


class DrawnTaskDataModule(TaskDataModule):
    """Draws new tasks at every training step, and has fixed ones for everything else.

    Args:
        steps_per_epoch: training batches an epoch; a validation follows each epoch.
        num_val_tasks: number of fixed validation tasks.
        num_test_tasks: number of fixed test tasks.
        num_predict_tasks: number of fixed tasks for `predict`.
        eval_batch_size: tasks an evaluation step; it changes no result.
        num_workers: processes that draw tasks; 0 draws in the training process.

    Raises:
        InputError: if one of the numbers is below 1.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        num_val_tasks: int,
        num_test_tasks: int,
        num_predict_tasks: int,
        eval_batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__(eval_batch_size, num_workers)
        at_least_one(
            steps_per_epoch=steps_per_epoch,
            num_val_tasks=num_val_tasks,
            num_test_tasks=num_test_tasks,
            num_predict_tasks=num_predict_tasks,
            eval_batch_size=eval_batch_size,
        )
        self.steps_per_epoch = steps_per_epoch
        self.num_val_tasks = num_val_tasks
        self.num_test_tasks = num_test_tasks
        self.num_predict_tasks = num_predict_tasks

    def train_dataloader(self) -> DataLoader:
        return self._training_loader(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_val_tasks, Part.VALIDATE)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_test_tasks, Part.TEST)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.num_predict_tasks, Part.PREDICT)


def check_range(x_range: tuple[float, float]) -> None:
    """Check that a range of inputs goes upwards.

    Raises:
        InputError: if it does not.
    """
    if not x_range[0] < x_range[1]:
        raise InputError(f"x_range={x_range} must go from a number to a greater one")


def at_least_one(**arguments: int) -> None:
    """Check that each of these arguments is 1 or more.

    Raises:
        InputError: if one is below 1; names it.
    """
    for name, value in arguments.items():
        if value < 1:
            raise InputError(f"{name}={value} must be 1 or more")


class _Batches(IterableDataset):
    """Yields `batch(first), batch(first + 1), …`; the workers of a loader take turns in order."""

    def __init__(self, batch: Callable[[int], Task | EventSequences], length: int) -> None:
        self.batch = batch
        self.length = length
        self.first = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Task | EventSequences]:
        worker = get_worker_info()
        offset, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(self.first + offset, self.first + self.length, step):
            yield self.batch(index)


class _ResumableLoader(DataLoader):
    """A loader that begins each epoch at the batch that the run has come to.

    The trainer knows that batch, and its checkpoints hold it. Lightning resumes a run in the middle
    of an epoch only if the loader has `state_dict` and `load_state_dict`.
    """

    def __init__(self, batches: _Batches, batches_done: Callable[[], int], **options: Any) -> None:
        super().__init__(batches, **options)
        self.batches_done = batches_done

    def __iter__(self) -> Iterator[Task | EventSequences]:
        # This runs when the first batch is taken, and not when Lightning asks for an iterator: it
        # asks before it has restored its progress, to count the steps of a schedule.
        self.dataset.first = self.batches_done()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        return {"batches_done": self.batches_done()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Do nothing, because the trainer restores its progress itself."""
