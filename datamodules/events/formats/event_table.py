"""Sequences of events as files have them."""

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
    """Sequences of events one behind another, with the place where each event stands in its file.

    Args:
        times: of the events, by the data's own clock.
        marks: of the events, whole numbers or strings.
        lengths: number of events of each sequence.
        names: of the sequences, which decide to what split one belongs.
        labels: what predictions call the sequences.
        sources: the file of each sequence and what it counts: "events.csv, line".
        lines: of each event, the number of its line (or row, or sequence) in the file.
        places: of each event, its number in the line; 0 in files of one event a line.
        num_marks: number of kinds of events, if the file says it: then they are 0, 1, ….
    """

    times: Float64[np.ndarray, "events"]
    marks: Shaped[np.ndarray, "events"]
    lengths: Int64[np.ndarray, "sequences"]
    names: Shaped[np.ndarray, "sequences"]
    labels: Shaped[np.ndarray, "sequences"]
    sources: Shaped[np.ndarray, "sequences"]
    lines: Int64[np.ndarray, "events"]
    places: Int64[np.ndarray, "events"]
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
        """A file of one sequence a line: its label; a hash of its times is its name."""
        ends = np.cumsum(lengths)
        names = [
            hashlib.sha256(times[end - length : end].tobytes()).hexdigest()
            for end, length in zip(ends.tolist(), lengths.tolist())
        ]
        labels = np.arange(1, len(lengths) + 1)
        lines = np.repeat(labels, lengths)
        places = np.arange(1, len(times) + 1) - np.repeat(ends - lengths, lengths)
        sources = np.full(len(lengths), source, dtype=object)
        names = np.array(names, dtype=object)
        return cls(times, marks, lengths, names, labels, sources, lines, places, num_marks)

    @classmethod
    def joined(cls, tables: Sequence["EventTable"]) -> "EventTable":
        """Their sequences, one table's behind another's; marks of some as text make all text."""
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
        """The place of an event, for messages."""
        line = f"{self.sources[self.sequence_of[event]]} {self.lines[event]}"
        return f"{line}, event {self.places[event]}" if self.places[event] else line

    def select(self, sequences: Bool[np.ndarray, "sequences"]) -> "EventTable":
        """These sequences only."""
        kept = self.keep(np.repeat(sequences, self.lengths))
        return replace(
            kept,
            lengths=self.lengths[sequences],
            names=self.names[sequences],
            labels=self.labels[sequences],
            sources=self.sources[sequences],
        )

    def keep(self, events: Bool[np.ndarray, "events"]) -> "EventTable":
        """These events only, of all sequences."""
        return replace(
            self._take(np.flatnonzero(events)),
            lengths=np.bincount(self.sequence_of[events], minlength=len(self)),
        )

    def _take(self, events: Int64[np.ndarray, "taken"]) -> "EventTable":
        columns = "times", "marks", "lines", "places"
        return replace(self, **{name: getattr(self, name)[events] for name in columns})

    def split_off(self, share: float) -> tuple["EventTable", "EventTable"]:
        """The sequences of which a hash of the name is below `share`, and the others.

        Of two sequences or more, at least one is on either side, unless the share is 1.
        """
        places = np.array([uniform_hash(name) for name in self.names])
        below = places < share
        if len(self) > 1 and share < 1:
            below[[places.argmin(), places.argmax()]] = True, False
        return self.select(below), self.select(~below)

    def mended(self, on_disorder: OnDisorder, on_duplicates: OnDuplicates) -> "EventTable":
        """With times that do not fall in a sequence, nor stand still unless duplicates are kept.

        Args:
            on_disorder: raise an error where a time is below that before it, or sort each
                sequence by time, events of one time as they were.
            on_duplicates: raise an error where a time is that before it, keep both events, or the
                first.

        Raises:
            InputError: with the place in the file.
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
        """From the event before in the sequence; not a number where there is none."""
        steps = np.diff(self.times, prepend=np.nan)
        steps[np.flatnonzero(np.diff(self.sequence_of, prepend=-1))] = np.nan
        return steps

    @property
    def vocabulary(self) -> Vocabulary:
        """The marks in order; those that the file announces, or else those that are in it."""
        if self.num_marks is not None:
            return list(range(self.num_marks))
        return np.unique(self.marks).tolist()

    def indexed(
        self, vocabulary: Vocabulary, unknown_marks: UnknownMarks, of: str
    ) -> tuple["EventTable", Int64[np.ndarray, "events"]]:
        """The marks' places in a vocabulary, and the table, without unknown ones where so asked.

        Args:
            vocabulary: all known marks.
            unknown_marks: raise an error at marks that are not there, or leave those events out.
            of: whose vocabulary it is, for the message.

        Raises:
            InputError: with the place in the file.
        """
        known, marks = np.array(vocabulary), self.marks
        if known.dtype.kind != marks.dtype.kind:  # numbers on one side, text on the other
            known, marks = known.astype(str), marks.astype(str)
        places = pd.Index(known).get_indexer(marks).astype(np.int64)
        if unknown_marks == "drop":
            return self.keep(places >= 0), places[places >= 0]
        if (event := first_true(places < 0)) is not None:
            raise InputError(
                f"{self.where(event)}: mark {marks[event].item()!r} is none of the "
                f"{len(vocabulary)} of {of} ({_some(vocabulary)}); mend the file, or set "
                f"unknown_marks to drop such events"
            )
        return self, places


def first_true(values: Bool[np.ndarray, "events"]) -> int | None:
    """The place of the first True."""
    return next(iter(np.flatnonzero(values).tolist()), None)


def not_whole(marks: np.ndarray) -> Bool[np.ndarray, "events"]:
    """Whether floats are anything but whole numbers that they can count."""
    return ~(np.abs(marks) < 2**53) | (marks != np.round(marks))


def _some(vocabulary: Vocabulary) -> str:
    shown = ", ".join(map(str, vocabulary[:3]))
    return shown if len(vocabulary) <= 3 else f"{shown}, …, {vocabulary[-1]}"
