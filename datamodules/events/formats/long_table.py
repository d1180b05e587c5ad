"""Loads event sequences from one long table, which has an event in each row."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from datamodules.events.formats.event_table import EventTable, not_whole
from npbench.errors import InputError
from npbench.point_files import dialect_of

# Characters of a CSV file that tell its dialect.
_SEEN = 2**16
# Pandas below 3 loses the last digit of a time unless it is told not to.
_EXACTLY: Any = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
_WHOLE = r"\s*(0|-?[1-9]\d*)(\.0*)?\s*"


def load_table(path: Path, columns: Sequence[str]) -> EventTable:
    """Load the sequences of a table, in the order of their first rows.

    The rows of different sequences may be mixed. Times are numbers; or dates, which count as
    seconds since 1970, and in Parquet durations, which count as seconds. What separates the columns
    of a CSV file, and a decimal comma, are recognised, and so are its dates in ISO 8601. Sequences
    and marks of a CSV file are text as the file spells them; its marks are numbers where all of
    them are whole, none has leading zeros and none is spelled in two ways.

    Args:
        path: a `.csv` file, which may be zipped, or a `.parquet` file.
        columns: what the table calls the sequence, the time and the mark.

    Raises:
        InputError: if something is missing or is no number; the message names the line.
    """
    sequence, time, mark = columns
    frame, source = _load_frame(path, columns)
    for name in columns:
        if name not in frame.columns:
            raise InputError(
                f"{path} has no column {name!r}, only {', '.join(map(str, frame.columns))}; set "
                f"columns to its names of the sequence, the time and the mark"
            )
    for name in columns:
        for line in frame.index[frame[name].isna()][:1]:
            raise InputError(f"{source} {line}: there is no {name}")
    times = _times(frame[time], source)
    marks = _marks(frame[mark], source)
    codes, names = pd.factorize(frame[sequence])
    order = np.argsort(codes, kind="stable")
    names = np.array([str(name) for name in names], dtype=object)
    return EventTable(
        times=times[order],
        marks=marks[order],
        lengths=np.bincount(codes, minlength=len(names)),
        names=names,
        labels=names,
        sources=np.full(len(names), source, dtype=object),
        lines=frame.index.to_numpy(np.int64)[order],
        positions=np.zeros(len(frame), np.int64),
    )


def _load_frame(path: Path, columns: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The table, whose index numbers the rows as the file does, and what these numbers count."""
    sequence, _, mark = columns
    try:
        if path.suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
            frame.index = pd.RangeIndex(1, len(frame) + 1)
            return frame, f"{path}, row"
        # A mark may be called NA, which pandas would take for a missing value.
        dialect = dialect_of(_beginning(path), columns)
        frame = pd.read_csv(
            path,
            sep=dialect.separator,
            decimal=dialect.decimal,
            dtype={sequence: str, mark: str},
            keep_default_na=False,
            na_values=[""],
            skip_blank_lines=False,
            low_memory=False,
            **_EXACTLY,
        )
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    frame.index = pd.RangeIndex(2, len(frame) + 2)
    if mark in frame.columns:
        frame[mark] = _numbers_or_text(frame[mark])
    return frame.dropna(how="all"), f"{path}, line"


def _beginning(path: Path) -> str:
    """The first characters of a CSV file."""
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", encoding="utf-8", errors="replace", newline="") as file:
        return file.read(_SEEN)


def _numbers_or_text(column: pd.Series) -> pd.Series:
    """The marks of a CSV file, as numbers where that is faithful and as text otherwise.

    They are numbers where all are whole and no two fall together, and also where all are numbers
    and some are fractions, so that `_marks` refuses them.
    """
    texts = column.dropna().drop_duplicates()
    numbers = pd.to_numeric(texts, errors="coerce")
    faithful = texts.str.fullmatch(_WHOLE).all() and numbers.is_unique
    if faithful or (numbers.notna().all() and not_whole(numbers.to_numpy()).any()):
        return column.map(dict(zip(texts, numbers)))
    return column


def _times(column: pd.Series, source: str) -> Float64[np.ndarray, "events"]:
    if pd.api.types.is_datetime64_any_dtype(column):
        column = column - pd.Timestamp(0, tz=column.dt.tz)
    if pd.api.types.is_timedelta64_dtype(column):
        return (column / pd.Timedelta(seconds=1)).to_numpy(np.float64)
    if pd.api.types.infer_dtype(column) == "boolean":
        column = column.astype(str)  # otherwise True would count as 1
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.isna().all():
        dates = pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
        if dates.notna().any():
            numbers = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    for line in column.index[numbers.isna()][:1]:
        raise InputError(f"{source} {line}: time {column[line]!r} is no number, nor date")
    return numbers.to_numpy(np.float64)


def _marks(column: pd.Series, source: str) -> Shaped[np.ndarray, "events"]:
    """The marks as whole numbers or as text, whichever the column holds."""
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return column.astype(str).to_numpy().astype(np.str_)
    marks = column.to_numpy()
    for line in column.index[not_whole(marks)][:1]:
        raise InputError(f"{source} {line}: mark {column[line]} is neither whole number nor text")
    return marks.astype(np.int64)
