"""Event sequences as pairs of text files (Du et al., KDD 2016)."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.events.formats.event_table import EventTable
from datamodules.loading import Part
from npbench.errors import InputError


def folds_in(folder: Path) -> list[int]:
    """The numbers K for which the folder has a `time-K-test.txt`."""
    names = (re.fullmatch(r"time-(\d+)-test\.txt", file.name) for file in folder.iterdir())
    return sorted(int(name[1]) for name in names if name)


def load_text_pairs(folder: Path, fold: int) -> dict[Part, EventTable]:
    """Load the sequences of one fold.

    Times are in `time-K-train.txt` and `time-K-test.txt`, marks in `event-K-….txt`. A line of
    numbers with spaces between them is a sequence. Where a fold has no training files, its training
    sequences are the test sequences of all other folds.

    Raises:
        FileNotFoundError: if the fold is not there.
        InputError: if two files do not fit together, or hold something else; the message names file
            and line.
    """
    folds = folds_in(folder)
    if fold not in folds:
        raise FileNotFoundError(f"{folder} has no time-{fold}-test.txt; set fold to one of {folds}")
    train = folder / f"time-{fold}-train.txt"
    if train.is_file():
        sources = [train]
    else:
        sources = [folder / f"time-{other}-test.txt" for other in folds if other != fold]
    if not sources:
        raise FileNotFoundError(f"{folder} lacks {train.name}, and has no other fold to train on")
    return {
        Part.TRAIN: EventTable.joined([_load_pair(source) for source in sources]),
        Part.TEST: _load_pair(folder / f"time-{fold}-test.txt"),
    }


def _load_pair(time_file: Path) -> EventTable:
    mark_file = time_file.with_name(time_file.name.replace("time", "event", 1))
    if not mark_file.is_file():
        raise FileNotFoundError(f"{time_file} has no {mark_file.name} beside it")
    time_lines, mark_lines = (
        [line.split() for line in file.read_text("utf-8-sig", "replace").rstrip().splitlines()]
        for file in (time_file, mark_file)
    )
    for line, (times, marks) in enumerate(zip(time_lines, mark_lines), start=1):
        if len(times) != len(marks):
            raise InputError(
                f"{mark_file}, line {line}: {len(marks)} marks, where {time_file.name} has "
                f"{len(times)} times"
            )
    if len(time_lines) != len(mark_lines):
        raise InputError(
            f"{time_file} has {len(time_lines)} lines and {mark_file.name} {len(mark_lines)}: line "
            f"{min(len(time_lines), len(mark_lines)) + 1} is missing from one"
        )
    return EventTable.of_lines(
        times=_parse(time_file, time_lines, float, np.dtype(np.float64)),
        marks=_parse(mark_file, mark_lines, int, np.dtype(np.int64)),
        lengths=np.array([len(line) for line in time_lines], dtype=np.int64),
        source=f"{time_file} (with {mark_file.name}), line",
    )


def _parse(file: Path, lines: Sequence[list[str]], number: type, dtype: np.dtype) -> np.ndarray:
    try:
        return np.array([number(word) for line in lines for word in line], dtype)
    except (ValueError, OverflowError):
        for number_of_line, line in enumerate(lines, start=1):
            for position, word in enumerate(line, start=1):
                try:
                    np.array(number(word), dtype)
                except (ValueError, OverflowError) as error:
                    kind = "number" if number is float else "whole number"
                    raise InputError(
                        f"{file}, line {number_of_line}, event {position}: {word!r} is no {kind}"
                    ) from error
        raise
