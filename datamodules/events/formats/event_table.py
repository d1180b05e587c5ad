"""Sequences of events, with the marks, the times and the order of a file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped

from datamodules.seeding import uniform_hash
from npbench.errors import InputError

OnDisorder = Literal["error", "sort"]
OnDuplicates = Literal["error", "keep", "drop"]
UnknownMarks = Literal["error", "drop"]
Vocabulary = list[int] | list[str]


@dataclass(frozen=True, eq=False)
class EventTable:
    """Sequences of events one after another, each event with its line in the file.

    Args:
        times: times of the events, by the data's own clock.
        marks: marks of the events, whole numbers or strings.
        lengths: number of events of each sequence.
        names: names of the sequences, which decide to what part of the data one belongs.
        labels: what predictions call the sequences.
        sources: the file of each sequence and what it counts, such as "events.csv, line".
        lines: number of the line (or row, or sequence) of each event in its file.
        positions: number of each event in its line; 0 in files that have one event in a line.
        num_marks: number of kinds of events, if the file says it; the marks are 0, 1, … then.
    """

    times: Float64[np.ndarray, "events"]
    marks: Shaped[np.ndarray, "events"]
    lengths: Int64[np.ndarray, "sequences"]
    names: Shaped[np.ndarray, "sequences"]
    labels: Shaped[np.ndarray, "sequences"]
    sources: Shaped[np.ndarray, "sequences"]
    lines: Int64[np.ndarray, "events"]
    positions: Int64[np.ndarray, "events"]
    num_marks: int | None = None

    @classmethod
    def of_lines(
        cls,
        times: Float64[np.ndarray, "events"],
        marks: Shaped[np.ndarray, "events"],
        lengths: Int64[np.ndarray, "sequences"],
        source: str,
        num_marks: int | None = None,
    ) -> "EventTable":
        """The table of a file that has one sequence in each line.

        The number of its line labels a sequence, and a hash of its times names it.
        """
        ends = np.cumsum(lengths)
        names = [
            hashlib.sha256(times[end - length : end].tobytes()).hexdigest()
            for end, length in zip(ends.tolist(), lengths.tolist())
        ]
        labels = np.arange(1, len(lengths) + 1)
        lines = np.repeat(labels, lengths)
        positions = np.arange(1, len(times) + 1) - np.repeat(ends - lengths, lengths)
        sources = np.full(len(lengths), source, dtype=object)
        names = np.array(names, dtype=object)
        return cls(times, marks, lengths, names, labels, sources, lines, positions, num_marks)

    @classmethod
    def joined(cls, tables: Sequence["EventTable"]) -> "EventTable":
        """Join tables into one. Where the marks of some are text, all marks become text."""
        first, *_ = tables
        columns = {
            field.name: np.concatenate([getattr(table, field.name) for table in tables])
            for field in fields(cls)
            if field.name != "num_marks"
        }
        return cls(**columns, num_marks=first.num_marks)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def sequence_of(self) -> Int64[np.ndarray, "events"]:
        """The sequence of each event."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def where(self, event: int) -> str:
        """Where an event stands in its file, for messages."""
        line = f"{self.sources[self.sequence_of[event]]} {self.lines[event]}"
        return f"{line}, event {self.positions[event]}" if self.positions[event] else line

    def select(self, sequences: Bool[np.ndarray, "sequences"]) -> "EventTable":
        """The table of these sequences alone."""
        kept = self.keep(np.repeat(sequences, self.lengths))
        return replace(
            kept,
            lengths=self.lengths[sequences],
            names=self.names[sequences],
            labels=self.labels[sequences],
            sources=self.sources[sequences],
        )

    def keep(self, events: Bool[np.ndarray, "events"]) -> "EventTable":
        """The table of these events alone; it keeps all sequences, even empty ones."""
        return replace(
            self._take(np.flatnonzero(events)),
            lengths=np.bincount(self.sequence_of[events], minlength=len(self)),
        )

    def _take(self, events: Int64[np.ndarray, "taken"]) -> "EventTable":
        columns = "times", "marks", "lines", "positions"
        return replace(self, **{name: getattr(self, name)[events] for name in columns})

    def split_off(self, share: float) -> tuple["EventTable", "EventTable"]:
        """Split the sequences by a hash of their names: those where it is below `share` come first.

        If there are two sequences or more, each side gets at least one, unless the share is 1.
        """
        hashes = np.array([uniform_hash(name) for name in self.names])
        below = hashes < share
        if len(self) > 1 and share < 1:
            below[[hashes.argmin(), hashes.argmax()]] = True, False
        return self.select(below), self.select(~below)

    def mended(self, on_disorder: OnDisorder, on_duplicates: OnDuplicates) -> "EventTable":
        """The table with times that rise in each sequence, or stay equal where that is allowed.

        Args:
            on_disorder: raise an error where a time is below the one before it, or sort each
                sequence by time; events of one time keep their order.
            on_duplicates: raise an error where a time equals the one before it, keep both events,
                or keep the first.

        Raises:
            InputError: if a time is not finite, or breaks these rules; the message names the line.
        """
        if (event := first_true(~np.isfinite(self.times))) is not None:
            raise InputError(f"{self.where(event)}: time {self.times[event]} is not finite")
        table = self
        if (event := first_true(self._steps() < 0)) is not None:
            if on_disorder == "error":
                raise InputError(
                    f"{self.where(event)}: time {float(self.times[event])!r} lies before "
                    f"{float(self.times[event - 1])!r}, the time of the event before; mend the "
                    f"file, or set on_disorder to sort"
                )
            table = self._take(np.lexsort((self.times, self.sequence_of)))
        stands = table._steps() == 0
        if on_duplicates == "drop":
            return table.keep(~stands)
        if on_duplicates == "error" and (event := first_true(stands)) is not None:
            raise InputError(
                f"{table.where(event)}: time {float(table.times[event])!r} is that of the event "
                f"before; mend the file, or set on_duplicates to keep both events, or to drop the "
                f"second"
            )
        return table

    def _steps(self) -> Float64[np.ndarray, "events"]:
        """Time since the event before in the sequence; NaN at the first event of each."""
        steps = np.diff(self.times, prepend=np.nan)
        steps[np.flatnonzero(np.diff(self.sequence_of, prepend=-1))] = np.nan
        return steps

    @property
    def vocabulary(self) -> Vocabulary:
        """The marks in order: all that the file announces, or else those that occur in it."""
        if self.num_marks is not None:
            return list(range(self.num_marks))
        return np.unique(self.marks).tolist()

    def indexed(
        self, vocabulary: Vocabulary, unknown_marks: UnknownMarks, of: str
    ) -> tuple["EventTable", Int64[np.ndarray, "events"]]:
        """The table, and the index of each of its marks in a vocabulary.

        Args:
            vocabulary: all known marks.
            unknown_marks: raise an error at marks that the vocabulary lacks, or drop their events.
            of: whose vocabulary it is, for the message.

        Raises:
            InputError: if the vocabulary lacks a mark; the message names the line.
        """
        known, marks = np.array(vocabulary), self.marks
        if known.dtype.kind != marks.dtype.kind:  # one holds numbers and the other text
            known, marks = known.astype(str), marks.astype(str)
        indices = pd.Index(known).get_indexer(marks).astype(np.int64)
        if unknown_marks == "drop":
            return self.keep(indices >= 0), indices[indices >= 0]
        if (event := first_true(indices < 0)) is not None:
            raise InputError(
                f"{self.where(event)}: mark {marks[event].item()!r} is none of the "
                f"{len(vocabulary)} of {of} ({_some(vocabulary)}); mend the file, or set "
                f"unknown_marks to drop such events"
            )
        return self, indices


def first_true(values: Bool[np.ndarray, "events"]) -> int | None:
    """The index of the first True, or None."""
    return next(iter(np.flatnonzero(values).tolist()), None)


def not_whole(marks: np.ndarray) -> Bool[np.ndarray, "events"]:
    """True where a float is no whole number, or too large to tell it from its neighbours."""
    return ~(np.abs(marks) < 2**53) | (marks != np.round(marks))


def _some(vocabulary: Vocabulary) -> str:
    shown = ", ".join(map(str, vocabulary[:3]))
    return shown if len(vocabulary) <= 3 else f"{shown}, …, {vocabulary[-1]}"
