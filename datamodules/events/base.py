"""What all data modules of events share: which events make which sequence of which batch."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch.utils.data import DataLoader

from datamodules.loading import Part, TaskDataModule, at_least_one
from datamodules.seeding import seeded
from npbench.errors import InputError
from npbench.events import EventSequences

# Batches of training sequences that are sorted by length together: the more, the less padding.
_POOL = 50

# Intervals τ below it are taken for it before their logarithm.
_SHORTEST = 1e-8


class IntervalStatistics(NamedTuple):
    """Of the intervals τ between the events of a training set, by which models normalise.

    Args:
        mean: of τ.
        log_mean: of log τ.
        log_std: standard deviation of log τ; 1 where all intervals are the same.
    """

    mean: float
    log_mean: float
    log_std: float


@dataclass(frozen=True, eq=False)
class EventWindows:
    """Sequences, or windows of long ones, among events that lie one behind another in memory.

    Args:
        times: of all events.
        marks: of all events, from 0 to K − 1.
        first: of each window, its first event.
        stop: of each window, the event behind its last.
        origin: of each window, the time that is its 0.
        sequence: of each window, the sequence that it is of.
        place: of each window, that of its first event in the sequence.
        end: of each window, until when it was observed, if that is known.
        exact: log-likelihood of each event, if that is known.
    """

    times: Float64[np.ndarray, "events"]
    marks: Int64[np.ndarray, "events"]
    first: Int64[np.ndarray, "windows"]
    stop: Int64[np.ndarray, "windows"]
    origin: Float64[np.ndarray, "windows"]
    sequence: Int64[np.ndarray, "windows"]
    place: Int64[np.ndarray, "windows"]
    end: Float64[np.ndarray, "windows"] | None = None
    exact: Float64[np.ndarray, "events"] | None = None

    @classmethod
    def cut(
        cls,
        times: Float64[np.ndarray, "events"],
        marks: Int64[np.ndarray, "events"],
        lengths: Int64[np.ndarray, "sequences"],
        max_length: int | None = None,
        end: float | None = None,
        least: int = 2,
    ) -> "EventWindows":
        """Cut sequences that lie one behind another into windows whose first event is at time 0.

        The last event of a window is the first, history only, of the next: each interval is
        predicted once.

        Args:
            times: of all events.
            marks: of all events.
            lengths: of the sequences.
            max_length: most events of a window; by default a sequence is one window.
            end: until when all sequences were observed. Of a window that another follows, the end
                is its last event, which says nothing.
            least: events of a sequence that is not left out.
        """
        step = max(2, lengths.max(initial=0) if max_length is None else max_length) - 1
        pieces = np.maximum(1, -(-(lengths - 1) // step))
        pieces[lengths < least] = 0
        sequence = np.repeat(np.arange(len(lengths)), pieces)
        place = step * (np.arange(len(sequence)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        after = np.cumsum(lengths)[sequence]
        first = after - lengths[sequence] + place
        stop = np.minimum(first + step + 1, after)
        origin = times[first]
        ends = None if end is None else np.where(stop == after, end, times[stop - 1]) - origin
        return cls(times, marks, first, stop, origin, sequence, place, ends)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> Int64[np.ndarray, "windows"]:
        return self.stop - self.first

    @cached_property
    def by_length(self) -> Int64[np.ndarray, "windows"]:
        """The windows, short ones first."""
        return np.argsort(self.lengths, kind="stable")

    @cached_property
    def interval_statistics(self) -> IntervalStatistics:
        # +1 where the predicted events of a window begin and −1 behind them: no event is in two.
        edges = np.zeros(len(self.times) + 1, np.int64)
        np.add.at(edges, self.first + 1, 1)
        np.add.at(edges, self.stop, -1)
        predicted = np.flatnonzero(np.cumsum(edges))
        intervals = self.times[predicted] - self.times[predicted - 1]
        if not len(intervals):
            raise InputError("no sequence has two events, so there is nothing to predict")
        logs = np.log(np.maximum(intervals, _SHORTEST))
        log_std = logs.std() if np.ptp(logs) else 1.0
        return IntervalStatistics(float(intervals.mean()), float(logs.mean()), float(log_std))

    def batch(self, windows: Int64[np.ndarray, "batch"]) -> EventSequences:
        """These windows, padded to the longest, and to two events at least."""
        first, stop = (each[windows, None] for each in (self.first, self.stop))
        place = first + np.arange(max(2, int((stop - first).max())))
        mask = place < stop
        place = np.minimum(place, stop - 1)
        times = self.times[place] - self.origin[windows, None]
        exact = self.exact
        if exact is not None:
            exact = torch.from_numpy(np.where(mask, exact[place], 0.0)[:, 1:])
        return EventSequences(
            torch.from_numpy(times),
            torch.from_numpy(np.where(mask, self.marks[place], 0)),
            torch.from_numpy(mask),
            None if self.end is None else torch.from_numpy(self.end[windows]),
            exact,
        )


class EventDataModule(TaskDataModule):
    """Batches of sequences of events, padded on the right.

    Training passes over the sequences in an order drawn anew for each pass. Those of like length
    come in one batch, to save padding: pools of some batches are sorted by length and cut, and the
    batches shuffled. What is left of a pass, and would not fill a batch on every rank, is left out
    of that pass. The batch of step i on rank r is a function of (seed, number of ranks, r, i): with
    any number of workers, and after a resume too.

    Evaluation takes every sequence once, short ones first, and prediction as they come.

    Args:
        batch_size: sequences a training step, on each rank.
        eval_batch_size: sequences an evaluation step; changes no result.
        seed: of the order of the training sequences.
        num_workers: processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__(eval_batch_size, num_workers)
        at_least_one(batch_size=batch_size, eval_batch_size=eval_batch_size)
        self.batch_size = batch_size
        self.seed = seed
        self._windows: dict[Part, EventWindows] = {}

    @property
    @abstractmethod
    def num_marks(self) -> int:
        """Number of kinds of events, K."""

    @abstractmethod
    def _make_windows(self, part: Part) -> EventWindows:
        """`windows`, from files or a process."""

    def windows(self, part: Part) -> EventWindows:
        """The sequences for training, validation or tests.

        Those of `PREDICT` are the test sequences, also those of one event: there is something to
        predict after it.
        """
        if part not in self._windows:
            self._windows[part] = self._make_windows(part)
        return self._windows[part]

    @property
    def interval_statistics(self) -> IntervalStatistics:
        """Of the training sequences, in the unit of the times."""
        return self.windows(Part.TRAIN).interval_statistics

    def prepare_data(self) -> None:
        """Read the events: first in one process, which leaves downloads to the others.

        Raises:
            InputError, OSError: as the data module says, where the files are not what they must be.
        """
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the events, in every process."""
        for part in (Part.TRAIN, Part.VALIDATE, Part.TEST):
            self.windows(part)

    def training_batch(self, index: int, rank: int = 0) -> EventSequences:
        """The batch of training step `index` on `rank`."""
        _, world_size = self._rank_and_world_size()
        number, step = divmod(index, self._steps_per_pass())
        size = self.batch_size * world_size
        windows = self.windows(Part.TRAIN)
        together = _batches_of_pass(windows, size, self.seed, number)[step]
        return windows.batch(together[rank::world_size])

    def evaluation_batch(self, indices: range, part: Part = Part.TEST) -> EventSequences:
        """The sequences of these indices, by length, or by their place for `Part.PREDICT`."""
        windows = self.windows(part)
        rows = np.array(indices)
        return windows.batch(rows if part == Part.PREDICT else windows.by_length[rows])

    def figure_sequences(self, num_sequences: int = 64, test: bool = False) -> EventSequences:
        """At most so many sequences of all lengths, the longest among them, of the validation or
        the test data."""
        part = Part.TEST if test else Part.VALIDATE
        total = len(self.windows(part))
        return self.evaluation_batch(range(total - 1, -1, total // -num_sequences), part)

    def _steps_per_pass(self) -> int:
        _, world_size = self._rank_and_world_size()
        return max(1, len(self.windows(Part.TRAIN)) // (world_size * self.batch_size))

    def train_dataloader(self) -> DataLoader:
        return self._training_loader(self._steps_per_pass())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.windows(Part.VALIDATE)), Part.VALIDATE)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.windows(Part.TEST)), Part.TEST)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(len(self.windows(Part.PREDICT)), Part.PREDICT)


@lru_cache(maxsize=2)
def _batches_of_pass(
    windows: EventWindows, size: int, seed: int, number: int
) -> Int64[np.ndarray, "steps size"]:
    """The windows of each batch; windows come again only where they would not fill one batch."""
    with seeded(Part.TRAIN, seed, number):
        steps = max(1, len(windows) // size)
        order = np.resize(torch.randperm(len(windows)).numpy(), steps * size)
        for start in range(0, len(order), _POOL * size):
            pool = order[start : start + _POOL * size]
            pool[:] = pool[np.argsort(windows.lengths[pool], kind="stable")]
        return order.reshape(steps, size)[torch.randperm(steps).numpy()]
