"""Sequences of events that come from files."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import DataLoader

from datamodules.events.base import EventDataModule, EventWindows
from datamodules.events.formats.detect import EventFormat, load_events
from datamodules.events.formats.event_table import (
    EventTable,
    OnDisorder,
    OnDuplicates,
    UnknownMarks,
    Vocabulary,
    first_true,
)
from datamodules.loading import Part, at_least_one
from npbench.errors import InputError


class EventSequenceDataModule(EventDataModule):
    """Loads sequences of marked events from files, in the formats of the field.

    - text: a folder of `time-K-train.txt`, `event-K-train.txt` and the same for test (Du et al.,
      KDD 2016), where a line is a sequence. Where there are no training files, fold K is trained on
      the test files of all others, as with Stack Overflow.
    - easytpp: a folder of train, dev and test as `.json` or `.pkl`, or one file of all three
      (Gatech, EasyTPP). Pickles may hold plain containers and numbers, and nothing that runs.
    - table: a long table as `.csv`, `.csv.gz` or `.parquet`, where a row is an event; or a folder
      of three tables, train, val and test.
    - huggingface: the name of a data set, `easytpp/…`; it takes the package datasets.

    Where the data have no part for validation, a hash says which sequences it gets, and where a
    file has no parts at all, also which are for testing. The hash is that of the times of a
    sequence, or of its name in a table. Once every part has a sequence, added ones move no other.
    Batches are made as `PassDataModule` says. Each window begins at time 0, the time of its first
    event. Sequences of fewer than two events say nothing and are left out; with an `end`, only
    empty ones are.

    Marks become 0, 1, … in the order of the vocabulary. It holds all marks that the file announces
    (`dim_process`), or else those of the training sequences, in order, before a share of them is
    held out. `EventPrediction` keeps the vocabulary of its training, in its checkpoints too, and
    sets it in every data module that it is given later.

    Predictions of the test sequences are in the data's own terms: the name of a sequence in a table
    or else the number of its line, the position of the event in it, the time on its clock, and the
    marks of the file. All times and intervals count in `time_unit`.

    Args:
        path: a folder, a file, or the name of a data set on the Hugging Face hub.
        format: the format; by default it is found out from what lies there.
        fold: the fold of text pairs that is tested on.
        batch_size: sequences a training step, on each rank.
        max_length: most events of a sequence; longer ones are cut into windows. Each window begins
            with the last event of the one before, as history, so that every event but the first of
            a sequence is predicted once. By default sequences stay whole.
        end: the time until which every sequence was observed, by the data's own clock.
        time_unit: all times are divided by it: 86400 makes days of seconds.
        time_name: what such a unit is called in figures, such as "days".
        val_share: share of the training sequences for validation, where the data have no part for
            it; the share of all sequences, where a file has no parts.
        test_share: share of the sequences for testing, where a file has no parts; with 1 a trained
            model is tested on all of them, or predicts what comes next in all.
        columns: what a table calls the sequence, the time and the mark.
        on_disorder: raise an error where a time is below the one before it, or sort each sequence
            by time; events of one time stay in the order of the file.
        on_duplicates: raise an error where a time equals the one before it, keep both events, or
            drop the second.
        unknown_marks: raise an error at a mark that is not in the vocabulary, or drop the event.
        eval_batch_size: sequences an evaluation step; it changes no result.
        seed: seed of the order of the training sequences.
        num_workers: processes that make batches; 0 makes them in the training process.

    Example:
        >>> data = EventSequenceDataModule("data/stackoverflow", fold=2, time_unit=86400.0)
        >>> data.fold
        2
    """

    def __init__(
        self,
        path: str | Path,
        format: EventFormat = "auto",
        fold: int = 1,
        batch_size: int = 32,
        max_length: int | None = None,
        end: float | None = None,
        time_unit: float = 1.0,
        time_name: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        columns: Sequence[str] = ("sequence", "time", "mark"),
        on_disorder: OnDisorder = "error",
        on_duplicates: OnDuplicates = "error",
        unknown_marks: UnknownMarks = "error",
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, num_workers)
        at_least_one(fold=fold)
        if max_length is not None and max_length < 2:
            raise InputError(f"max_length={max_length} must be 2 or more: the first is history")
        if not time_unit > 0:
            raise InputError(f"time_unit={time_unit} must be above 0")
        leave_some = val_share > 0 and test_share > 0 and val_share + test_share < 1
        if not (leave_some or test_share == 1):
            raise InputError(
                f"val_share={val_share} and test_share={test_share} must be above 0 and leave some "
                f"sequences to train on; or test_share 1, to test on all"
            )
        if len(columns) != 3:
            raise InputError(f"columns={columns} must be those of sequence, time and mark")
        self.path = path
        self.format = format
        self.fold = fold
        self.max_length = max_length
        self.end = end
        self.time_unit = time_unit
        self.time_name = time_name
        self.val_share = val_share
        self.test_share = test_share
        self.columns = columns
        self.on_disorder = on_disorder
        self.on_duplicates = on_duplicates
        self.unknown_marks = unknown_marks
        self._given: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The marks as the data have them, in the order of their indices.

        It is that of the training sequences, until another one is set.
        """
        return self._loaded[0] if self._given is None else self._given

    @vocabulary.setter
    def vocabulary(self, vocabulary: Vocabulary) -> None:
        if vocabulary != self._given:
            self._given = vocabulary
            self._windows.clear()

    @property
    def num_marks(self) -> int:
        return len(self.vocabulary)

    def named_predictions(self, table: pa.Table) -> pa.Table:
        """The predictions of the test sequences, in the data's own terms.

        What comes after the last event of a window is kept for the last window of a sequence alone;
        for the others the next window predicts it.

        Args:
            table: predictions with the columns `sequence`, `event`, `time`, `mark` and
                `mark_predicted`, which hold numbers of windows, times by their clocks and indices
                of marks; `time` and `mark` are null where the event is unknown.
        """
        windows, labels = self.windows(Part.PREDICT), pa.array(self._loaded[1][Part.TEST].labels)
        is_last = np.diff(windows.sequence, append=-1) != 0
        known = pc.is_valid(table["time"]).to_numpy()
        table = table.filter(pa.array(known | is_last[table["sequence"].to_numpy()]))
        window, vocabulary = table["sequence"].to_numpy(), pa.array(self.vocabulary)
        named = {
            "sequence": labels.take(pa.array(windows.sequence[window])),
            "event": pc.add(table["event"], windows.position[window]),
            "time": pc.add(table["time"], windows.origin[window]),
            "mark": vocabulary.take(table["mark"]),
            "mark_predicted": vocabulary.take(table["mark_predicted"]),
        }
        for name, column in named.items():
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    @cached_property
    def _loaded(self) -> tuple[Vocabulary, dict[Part, EventTable]]:
        """The vocabulary, and the sequences of each part, with marks as the data have them."""
        found = load_events(self.path, self.format, self.fold, self.columns)
        if isinstance(found, EventTable):
            whole = found.mended(self.on_disorder, self.on_duplicates)
            test, others = whole.split_off(self.test_share)
            val, train = others.split_off(self.test_share + self.val_share)
            return whole.vocabulary, {Part.TRAIN: train, Part.VALIDATE: val, Part.TEST: test}
        parts = {
            part: table.mended(self.on_disorder, self.on_duplicates)
            for part, table in found.items()
        }
        vocabulary = parts[Part.TRAIN].vocabulary
        if Part.VALIDATE not in parts:
            parts[Part.VALIDATE], parts[Part.TRAIN] = parts[Part.TRAIN].split_off(self.val_share)
        return vocabulary, parts

    def prepare_data(self) -> None:
        """Load the files in one process first, so that one downloads for all."""
        _ = self._loaded

    def setup(self, stage: str | None = None) -> None:
        """Load the files, in every process.

        Raises:
            InputError, OSError: if they are not what they must be.
        """
        if stage is None:
            super().setup()
        else:  # the module sets its vocabulary after this, and marks are counted by it
            _ = self._loaded

    def train_dataloader(self) -> DataLoader:
        self.setup()  # so that a mistake in the test data shows before the training
        return super().train_dataloader()

    def _make_windows(self, part: Part) -> EventWindows:
        owner = "the training sequences" if self._given is None else "the model"
        held = Part.TEST if part == Part.PREDICT else part
        table, marks = self._loaded[1][held].indexed(self.vocabulary, self.unknown_marks, owner)
        end = self.end
        if end is not None:
            if (event := first_true(table.times > end)) is not None:
                raise InputError(
                    f"{table.where(event)}: time {float(table.times[event])!r} lies behind "
                    f"end={end}, until when every sequence was observed"
                )
            end = end / self.time_unit
        times = table.times / self.time_unit
        least = 2 if end is None and part != Part.PREDICT else 1
        windows = EventWindows.cut(times, marks, table.lengths, self.max_length, end, least)
        if not len(windows):
            purposes = {Part.TRAIN: "training", Part.VALIDATE: "validation", Part.TEST: "testing"}
            raise InputError(
                f"{self.path} has {len(table)} sequences for {purposes[held]}, none of two events "
                f"or more; add some, or change val_share or test_share"
            )
        return windows
