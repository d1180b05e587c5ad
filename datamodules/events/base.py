"""What all data modules of events share: which events make which sequence of which batch."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from datamodules.loading import Part
from datamodules.passes import PassDataModule
from npbench.errors import InputError
from npbench.events import EventSequences

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


class EventDataModule(PassDataModule):
    """Makes batches of sequences of events, in the order that `PassDataModule` describes.

    Args:
        batch_size: sequences a training step, on each rank.
        eval_batch_size: sequences an evaluation step; it changes no result.
        seed: seed of the order of the training sequences.
        num_workers: processes that make batches; 0 makes them in the training process.
    """

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
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

    def rows(self, part: Part) -> EventWindows:
        return self.windows(part)

    @property
    def interval_statistics(self) -> IntervalStatistics:
        """Statistics of the intervals of the training sequences, in the unit of the times."""
        return self.windows(Part.TRAIN).interval_statistics

    def figure_sequences(self, num_sequences: int = 64, test: bool = False) -> EventSequences:
        """Sequences for figures, of the validation data or of the test data.

        There are at most so many, of all lengths, and the longest is among them.
        """
        part = Part.TEST if test else Part.VALIDATE
        total = len(self.windows(part))
        return self.evaluation_batch(range(total - 1, -1, total // -num_sequences), part)
