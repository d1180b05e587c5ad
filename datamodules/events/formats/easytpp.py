"""Loads event sequences as Gatech and EasyTPP publish them: JSON, pickles, sets on a hub."""

import json
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from datamodules.events.formats.event_table import EventTable, first_true, not_whole
from datamodules.events.formats.restricted_pickle import load_plain
from npbench.errors import InputError

_TIMES, _INTERVALS, _MARKS = "time_since_start", "time_since_last_event", "type_event"

# Files round: times and intervals may differ by this share of the latest time of a sequence.
_ROUNDING = 1e-4


def load_easytpp(path: Path) -> EventTable | dict[str, EventTable]:
    """Load the sequences of a file, by the names of its parts where it has parts.

    A file is a list of sequences, or has one sequence in each line, or is `{"train": [...], …}`. A
    sequence is an object with lists `time_since_start` and `type_event`, or a list of objects with
    one of each. `dim_process`, in the file or its sequences, is the number of marks.

    Raises:
        InputError: if the file holds something else; the message names file and sequence.
    """
    content = load_plain(path) if path.suffix in (".pkl", ".pickle") else _load_json(path)
    if isinstance(content, Mapping) and _TIMES in content:
        content = [content]
    if isinstance(content, Mapping):
        num_marks = content.get("dim_process")
        parts = {
            name: value
            for name, value in content.items()
            if isinstance(value, list) and (not value or isinstance(value[0], list | Mapping))
        }
        if not parts:
            raise InputError(f"{path} holds {', '.join(map(str, content))}, and no sequences")
        return {
            name: _table(sequences, f"{path}, {name}, sequence", num_marks)
            for name, sequences in parts.items()
        }
    if not isinstance(content, list):
        raise InputError(f"{path} holds no list of sequences but {_short(content)}")
    return _table(content, f"{path}, sequence")


def load_hub(name: str) -> dict[str, EventTable]:
    """Load the sequences of a data set on the Hugging Face hub, by the names of its parts.

    Raises:
        InputError: if the package `datasets` is missing, or the data set not of EasyTPP's format.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"reading {name} from the Hugging Face hub takes the package datasets: "
            f"pip install 'npbench[hub]'"
        ) from error
    return {
        part: _table(rows, f"{name}, {part}, sequence") for part, rows in load_dataset(name).items()
    }


def _short(value: Any) -> str:
    """The beginning of a value's text, however deeply it is nested."""
    return f"{reprlib.repr(value):.50}"


def _load_json(path: Path) -> Any:
    try:
        return _parse(path, path.read_text("utf-8-sig", "replace"))
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply for sequences of events") from error


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise InputError(f"{path} is no JSON: {error}") from error
    # The file has an object in each line.
    objects = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            objects += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is no JSON: {error}") from error
    return objects


def _table(sequences: Iterable[Any], source: str, num_marks: Any = None) -> EventTable:
    times, marks = [np.empty(0)], [np.empty(0, np.int64)]
    for number, sequence in enumerate(sequences, start=1):
        where = f"{source} {number}"
        columns = _columns(sequence, where)
        found = _numbers(columns[_TIMES], f"{where}, {_TIMES}")
        kinds = _numbers(columns[_MARKS], f"{where}, {_MARKS}")
        _check_lengths(columns, len(found), len(kinds), where)
        if (event := first_true(not_whole(kinds))) is not None:
            raise InputError(f"{where}, event {event + 1}: mark {kinds[event]} is no whole number")
        if _INTERVALS in columns:
            _check_intervals(found, _numbers(columns[_INTERVALS], f"{where}, {_INTERVALS}"), where)
        announced = columns.get("dim_process", num_marks)
        if announced != num_marks and num_marks is not None:
            raise InputError(f"{where}: dim_process is {announced}, after {num_marks} before")
        num_marks = announced
        times.append(found)
        marks.append(kinds.astype(np.int64))
    if num_marks is not None and not (isinstance(num_marks, int) and num_marks > 0):
        raise InputError(f"{source} 1: dim_process is {num_marks!r}, not a number of marks")
    lengths = np.array([len(each) for each in times[1:]], dtype=np.int64)
    return EventTable.of_lines(
        np.concatenate(times), np.concatenate(marks), lengths, source, num_marks
    )


def _columns(sequence: Any, where: str) -> Mapping[str, Any]:
    """The lists of a sequence by name, whichever of the two forms it has."""
    if isinstance(sequence, list) and all(isinstance(event, Mapping) for event in sequence):
        names = [_TIMES, _MARKS]
        names += [_INTERVALS] if sequence and _INTERVALS in sequence[0] else []
        columns = {}
        for name in names:
            for position, event in enumerate(sequence, start=1):
                if name not in event:
                    raise InputError(f"{where}, event {position} has no {name}")
            columns[name] = [event[name] for event in sequence]
        return columns
    if not isinstance(sequence, Mapping):
        raise InputError(f"{where} is neither an object nor a list of events: {_short(sequence)}")
    for name in (_TIMES, _MARKS):
        if name not in sequence:
            raise InputError(f"{where} has no {name}, only {', '.join(map(str, sequence))}")
    return sequence


def _numbers(values: Any, where: str) -> Float64[np.ndarray, "events"]:
    try:
        return np.array(values, dtype=np.float64).reshape(len(values))
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is no list of numbers: {error}") from error


def _check_lengths(columns: Mapping[str, Any], times: int, marks: int, where: str) -> None:
    announced = columns.get("seq_len", times)
    if not times == marks == announced:
        raise InputError(f"{where} has {times} times, {marks} marks and seq_len {announced}")


def _check_intervals(
    times: Float64[np.ndarray, "events"], intervals: Float64[np.ndarray, "announced"], where: str
) -> None:
    if len(intervals) != len(times):
        raise InputError(f"{where} has {len(times)} times and {len(intervals)} {_INTERVALS}")
    wrong = np.abs(np.diff(times, prepend=0) - intervals) > _ROUNDING * np.abs(times).max(initial=0)
    wrong[:1] = False  # publishers differ in what they count the first interval from
    if (event := first_true(wrong)) is not None:
        raise InputError(
            f"{where}, event {event + 1}: {_INTERVALS} is {intervals[event]}, but {_TIMES} goes "
            f"from {times[event - 1]} to {times[event]}"
        )
