"""Sequences of events that a known process draws, with the ceiling of any model."""

from dataclasses import replace

import numpy as np
import torch

from datamodules.events.base import EventDataModule, EventWindows
from datamodules.events.point_processes import PointProcess
from datamodules.loading import Part, at_least_one
from datamodules.seeding import seeded
from npbench.errors import InputError

# Number of sequences that are drawn together, always, so that a larger data set begins with the
# smaller one.
_TOGETHER = 256


class SyntheticEventDataModule(EventDataModule):
    """Draws sequences of events from a process, with their log-likelihood under it (`exact`).

    The training sequences are a fixed data set, a function of `seed`; a larger data set begins with
    the smaller one. Training passes over it as `PassDataModule` says. The sequences of evaluation
    are functions of `eval_seed`. The clock is that of the process, which begins at 0, before the
    first event.

    Args:
        process: any `PointProcess`.
        num_events: number of events of each sequence, where no `end` is given.
        end: the time until which each sequence is observed; it has as many events as happen by
            then. Sequences without any event are left out.
        num_train: number of training sequences.
        num_val: number of validation sequences.
        num_test: number of test sequences.
        batch_size: sequences a training step, on each rank.
        eval_batch_size: sequences an evaluation step; it changes no result.
        seed: seed of the training sequences and of their order.
        eval_seed: seed of the validation and test sequences.
        num_workers: processes that make batches; 0 makes them in the training process.

    Example:
        >>> process = HawkesProcess([0.2, 0.1], [[0.3, 0.2], [0.1, 0.4]])
        >>> data = SyntheticEventDataModule(process, num_train=100)
        >>> next(iter(data.test_dataloader())).exact.shape
        torch.Size([64, 63])
    """

    def __init__(
        self,
        process: PointProcess,
        num_events: int = 64,
        end: float | None = None,
        num_train: int = 4000,
        num_val: int = 500,
        num_test: int = 1000,
        batch_size: int = 64,
        eval_batch_size: int = 64,
        seed: int = 0,
        eval_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        at_least_one(num_train=num_train, num_val=num_val, num_test=num_test)
        if num_events < 2:
            raise InputError(f"num_events={num_events} must be 2 or more: the first is history")
        if end is not None and not end > 0:
            raise InputError(f"end={end} must be above 0")
        self.process = process
        self.num_events = num_events
        self.end = end
        self.num_train = num_train
        self.num_val = num_val
        self.num_test = num_test
        self.eval_seed = eval_seed

    @property
    def num_marks(self) -> int:
        return self.process.num_marks

    def _make_windows(self, part: Part) -> EventWindows:
        if part == Part.PREDICT:
            return self.windows(Part.TEST)
        number = {
            Part.TRAIN: self.num_train,
            Part.VALIDATE: self.num_val,
            Part.TEST: self.num_test,
        }[part]
        seed = self.seed if part == Part.TRAIN else self.eval_seed
        times, marks, exact, lengths = [], [], [], []
        number_of_events = self.num_events if self.end is None else None
        for block in range(-(-number // _TOGETHER)):
            # The −1 keeps these keys apart from those of the order of a pass.
            with seeded(part, seed, -1, block):
                drawn = self.process.sample(_TOGETHER, number_of_events, self.end)
            wanted = drawn.mask.clone()
            wanted[number - block * _TOGETHER :] = False
            likelihood = torch.nn.functional.pad(self.process.log_likelihood(drawn), (1, 0))
            times.append(drawn.times[wanted])
            marks.append(drawn.marks[wanted])
            exact.append(likelihood[wanted])
            lengths.append(wanted.sum(-1))
        times, marks, exact, lengths = (
            torch.cat(each).numpy() for each in (times, marks, exact, lengths)
        )
        least = 2 if self.end is None else 1
        windows = EventWindows.cut(times, marks, lengths, end=self.end, least=least)
        if not len(windows):
            raise InputError(f"no sequence has an event until end={self.end}; take a later one")
        end = None if self.end is None else np.full(len(windows), float(self.end))
        return replace(windows, origin=np.zeros(len(windows)), end=end, exact=exact)
