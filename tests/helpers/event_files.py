"""Small data sets of event sequences in the formats of the field, written for the tests."""

from pathlib import Path

import numpy as np
import pandas as pd

from datamodules import EventSequenceDataModule
from datamodules.events.base import EventDataModule
from datamodules.loading import Part
from npbench import EventSequences

# Times and marks of one sequence.
Events = tuple[list[float], list[int]]


def random_events(number: int, seed: int = 0, longest: int = 12, marks: int = 3) -> list[Events]:
    """Sequences of 2 to `longest` events, the first with all marks 1, 2, …."""
    draw = np.random.default_rng(seed)
    sequences = []
    for _ in range(number):
        length = int(draw.integers(2, longest + 1))
        times = np.cumsum(draw.exponential(size=length)) + 1e9
        sequences.append((times.tolist(), draw.integers(1, marks + 1, length).tolist()))
    covering = 1e9 + np.arange(marks) * (1 + seed / 7)
    sequences[0] = covering.tolist(), list(range(1, marks + 1))
    return sequences


def write_text(folder: Path, **parts: list[Events]) -> Path:
    """Text pairs; the parts are named `test_1`, `train_1`, `test_2`, …."""
    folder.mkdir(exist_ok=True)
    for name, sequences in parts.items():
        part, fold = name.split("_")
        for column, kind in enumerate(("time", "event")):
            lines = [" ".join(map(str, sequence[column])) for sequence in sequences]
            (folder / f"{kind}-{fold}-{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_folds(folder: Path, folds: int = 3, number: int = 40, **options: int) -> Path:
    """Folds of random sequences, as many in each, without training files."""
    parts = {f"test_{k}": random_events(number, k, **options) for k in range(1, folds + 1)}
    return write_text(folder, **parts)


def easytpp(sequences: list[Events], num_marks: int = 4) -> list[dict]:
    """Objects of lists, as EasyTPP publishes them."""
    return [
        {
            "dim_process": num_marks,
            "seq_idx": number,
            "seq_len": len(times),
            "time_since_start": [time - times[0] for time in times],
            "time_since_last_event": np.diff(times, prepend=times[0]).tolist(),
            "type_event": marks,
        }
        for number, (times, marks) in enumerate(sequences)
    ]


def gatech(sequences: list[Events]) -> list[list[dict]]:
    """Lists of objects, as Gatech publishes them."""
    names = "time_since_start", "time_since_last_event", "type_event"
    return [
        [dict(zip(names, event)) for event in zip(*(sequence[name] for name in names))]
        for sequence in easytpp(sequences)
    ]


def long_table(sequences: list[Events], prefix: str = "user") -> pd.DataFrame:
    rows = [
        (f"{prefix}{number}", time, mark)
        for number, sequence in enumerate(sequences)
        for time, mark in zip(*sequence)
    ]
    return pd.DataFrame(rows, columns=["sequence", "time", "mark"])


def events(path: Path, **options: object) -> EventSequenceDataModule:
    """In batches that end in the middle of things."""
    return EventSequenceDataModule(path, **({"batch_size": 8, "eval_batch_size": 7} | options))


def rows(*batches: EventSequences) -> list[tuple[tuple[float, ...], tuple[int, ...]]]:
    """The sequences of some batches, without padding."""
    return [
        (tuple(times[mask].tolist()), tuple(marks[mask].tolist()))
        for batch in batches
        for times, marks, mask in zip(batch.times, batch.marks, batch.mask)
    ]


def whole(data: EventDataModule, part: Part = Part.TEST) -> EventSequences:
    return data.evaluation_batch(range(len(data.windows(part))), part)
