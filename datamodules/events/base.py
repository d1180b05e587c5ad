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

# Number of batches whose training sequences are sorted by length together. More of them leave less
# padding.
_POOL = 50

# Intervals τ are at least this long when their logarithm is taken.
_SHORTEST = 1e-8


class IntervalStatistics(NamedTuple):
    """Statistics of the intervals τ between the events of a training set; models normalise by them.

    Args:
        mean: mean of τ.
        log_mean: mean of log τ.
        log_std: standard deviation of log τ; 1 where all intervals are the same.
    """

    mean: float
    log_mean: float
    log_std: float


@dataclass(frozen=True, eq=False)
class EventWindows:
    """Sequences, or windows of long ones, whose events lie one after another in memory.

    Args:
        times: times of all events.
        marks: marks of all events, from 0 to K − 1.
        first: index of the first event of each window.
        stop: index after the last event of each window.
        origin: the time that is 0 in each window.
        sequence: index of the sequence that each window was cut from.
        position: position in that sequence of the first event of each window.
        end: the time until which each window was observed, if that is known.
        exact: log-likelihood of each event, if that is known.
    """

    times: Float64[np.ndarray, "events"]
    marks: Int64[np.ndarray, "events"]
    first: Int64[np.ndarray, "windows"]
    stop: Int64[np.ndarray, "windows"]
    origin: Float64[np.ndarray, "windows"]
    sequence: Int64[np.ndarray, "windows"]
    position: Int64[np.ndarray, "windows"]
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
        """Cut sequences that lie one after another into windows whose first event is at time 0.

        The last event of a window is also the first of the next one, as history only, so that each
        interval is predicted once.

        Args:
            times: times of all events.
            marks: marks of all events.
            lengths: number of events of each sequence.
            max_length: most events of a window; by default a sequence is one window.
            end: the time until which all sequences were observed. A window that another one follows
                ends at its last event, where an end says nothing.
            least: fewest events of a sequence; shorter ones are left out.
        """
        step = max(2, lengths.max(initial=0) if max_length is None else max_length) - 1
        pieces = np.maximum(1, -(-(lengths - 1) // step))
        pieces[lengths < least] = 0
        sequence = np.repeat(np.arange(len(lengths)), pieces)
        position = step * (np.arange(len(sequence)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        after = np.cumsum(lengths)[sequence]
        first = after - lengths[sequence] + position
        stop = np.minimum(first + step + 1, after)
        origin = times[first]
        ends = None if end is None else np.where(stop == after, end, times[stop - 1]) - origin
        return cls(times, marks, first, stop, origin, sequence, position, ends)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> Int64[np.ndarray, "windows"]:
        """Number of events of each window."""
        return self.stop - self.first

    @cached_property
    def by_length(self) -> Int64[np.ndarray, "windows"]:
        """The indices of the windows, short ones first."""
        return np.argsort(self.lengths, kind="stable")

    @cached_property
    def interval_statistics(self) -> IntervalStatistics:
        """Statistics of the intervals that are predicted.

        Raises:
            InputError: if there are none.
        """
        # The running sum of `edges` is 1 at predicted events and 0 elsewhere, because no event is
        # predicted in two windows.
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
        """The batch of these windows, padded to the longest one and to two events at least."""
        first, stop = (each[windows, None] for each in (self.first, self.stop))
        event = first + np.arange(max(2, int((stop - first).max())))
        mask = event < stop
        event = np.minimum(event, stop - 1)
        times = self.times[event] - self.origin[windows, None]
        exact = self.exact
        if exact is not None:
            exact = torch.from_numpy(np.where(mask, exact[event], 0.0)[:, 1:])
        return EventSequences(
            torch.from_numpy(times),
            torch.from_numpy(np.where(mask, self.marks[event], 0)),
            torch.from_numpy(mask),
            None if self.end is None else torch.from_numpy(self.end[windows]),
            exact,
        )


class EventDataModule(TaskDataModule):
    """Makes batches of sequences of events, padded on the right.

    Training passes over the sequences in an order that is drawn anew for each pass. Sequences of
    similar length share a batch, which saves padding: the sequences of some batches are sorted by
    length together and cut, and the batches are shuffled. Sequences at the end of a pass that would
    not fill a batch on every rank are left out of that pass. The batch of step i on rank r is a
    function of (seed, number of ranks, r, i): it is the same with any number of workers, and after
    a resume too.

    Evaluation takes every sequence once, short ones first. Prediction takes them in their order.

    Args:
        batch_size: sequences a training step, on each rank.
        eval_batch_size: sequences an evaluation step; it changes no result.
        seed: seed of the order of the training sequences.
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
        """Make the windows of a part, from files or a process."""

    def windows(self, part: Part) -> EventWindows:
        """The sequences of a part, made when they are first asked for.

        Those of `Part.PREDICT` are the test sequences, and also those of a single event, after
        which there is something to predict.
        """
        if part not in self._windows:
            self._windows[part] = self._make_windows(part)
        return self._windows[part]

    @property
    def interval_statistics(self) -> IntervalStatistics:
        """Statistics of the intervals of the training sequences, in the unit of the times."""
        return self.windows(Part.TRAIN).interval_statistics

    def prepare_data(self) -> None:
        """Load the events in one process first, so that one downloads for all.

        Raises:
            InputError, OSError: if the files are not what the data module says they must be.
        """
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the events, in every process."""
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
        """The sequences of these indices, short ones first, or in their order for `PREDICT`."""
        windows = self.windows(part)
        rows = np.array(indices)
        return windows.batch(rows if part == Part.PREDICT else windows.by_length[rows])

    def figure_sequences(self, num_sequences: int = 64, test: bool = False) -> EventSequences:
        """Sequences for figures, of the validation data or of the test data.

        There are at most so many, of all lengths, and the longest is among them.
        """
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
    """The windows of each batch. A window comes twice only where all would not fill one batch."""
    with seeded(Part.TRAIN, seed, number):
        steps = max(1, len(windows) // size)
        order = np.resize(torch.randperm(len(windows)).numpy(), steps * size)
        for start in range(0, len(order), _POOL * size):
            pool = order[start : start + _POOL * size]
            pool[:] = pool[np.argsort(windows.lengths[pool], kind="stable")]
        return order.reshape(steps, size)[torch.randperm(steps).numpy()]
