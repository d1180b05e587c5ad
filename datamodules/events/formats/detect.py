"""Finding out the format of event sequences, and reading it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datamodules.events.formats.easytpp import read_easytpp, read_hub
from datamodules.events.formats.event_table import EventTable
from datamodules.events.formats.long_table import read_table
from datamodules.events.formats.text_pairs import folds_in, read_text
from npbench.errors import InputError

EventFormat = Literal["auto", "text", "easytpp", "table", "huggingface"]

_TABLES = ".csv", ".csv.gz", ".parquet", ".pq"
_OBJECTS = ".json", ".jsonl", ".pkl", ".pickle"
_FORMATS = (
    "The formats are: text, a folder of time-K-test.txt and event-K-test.txt, perhaps with -train; "
    f"easytpp, a folder of train, dev and test ({' '.join(_OBJECTS)}), or one such file; table, a "
    f"folder of train, val and test ({' '.join(_TABLES)}), or one such file; huggingface, the name "
    f"of a data set, easytpp/…"
)
_NAMES = {"train": ["train"], "val": ["val", "dev", "valid", "validation"], "test": ["test"]}


def read_events(
    path: str | Path,
    format: EventFormat = "auto",
    fold: int = 1,
    columns: Sequence[str] = ("sequence", "time", "mark"),
) -> dict[str, EventTable]:
    """The sequences for "train", perhaps "val", and "test"; or "all" where the data say no more.

    A part for validation that holds no events counts as none.

    Args:
        path: a folder, a file, or the name of a data set on the Hugging Face hub.
        format: as `EventSequenceDataModule` says.
        fold: of text pairs.
        columns: of a table: what it calls the sequence, the time and the mark.

    Raises:
        InputError: if the files are not of the format, which names file and line; if they hold no
            events; if a package is missing.
        FileNotFoundError: if there are none.
    """
    found = _read(path, format, fold, columns)
    if "val" in found and not len(found["val"].times):
        del found["val"]
    for split, table in found.items():
        if not len(table.times):
            raise InputError(f"{path} holds no events{'' if split == 'all' else f' for {split}'}")
    return found


def _read(
    path: str | Path, format: EventFormat, fold: int, columns: Sequence[str]
) -> dict[str, EventTable]:
    if format == "auto":
        format = _find_format(path)
    if format == "huggingface":
        return _by_split(read_hub(str(path)), str(path))
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}. {_FORMATS}")
    if format == "text":
        return read_text(path, fold)
    if format == "easytpp":
        if path.is_file():
            return _by_split(read_easytpp(path), str(path))
        files = _split_files(path, _OBJECTS)
        return {split: _only(read_easytpp(file), split) for split, file in files.items()}
    if path.is_file():
        return {"all": read_table(path, columns)}
    files = _split_files(path, _TABLES)
    return {split: read_table(file, columns) for split, file in files.items()}


def _find_format(path: str | Path) -> EventFormat:
    place = Path(path)
    if place.is_dir():
        names = sorted(file.name for file in place.iterdir())
        if folds_in(place):
            return "text"
        for format, suffixes in (("easytpp", _OBJECTS), ("table", _TABLES)):
            if any(f"train{suffix}" in names for suffix in suffixes):
                return format
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise InputError(f"{path} holds {listed or 'nothing'}, of no known format. {_FORMATS}")
    if not place.exists():
        if str(path).startswith("easytpp/"):
            return "huggingface"
        raise FileNotFoundError(f"there is no {path}. {_FORMATS}")
    for format, suffixes in (("easytpp", _OBJECTS), ("table", _TABLES)):
        if place.name.endswith(suffixes):
            return format
    raise InputError(f"{path} is a file of no known format. {_FORMATS}")


def _split_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found = {}
    for split, names in _NAMES.items():
        candidates = [folder / f"{name}{suffix}" for name in names for suffix in suffixes]
        present = [file for file in candidates if file.is_file()]
        if len(present) > 1:
            raise InputError(
                f"{folder} holds {', '.join(file.name for file in present)}, and one file is to be "
                f"read: put the others elsewhere"
            )
        if present:
            found[split] = present[0]
        elif split != "val":
            raise FileNotFoundError(
                f"{folder} lacks {split} ({' '.join(f'{split}{suffix}' for suffix in suffixes)})"
            )
    return found


def _by_split(found: dict[str, EventTable], source: str) -> dict[str, EventTable]:
    """By our names of the splits."""
    if "all" in found:
        return found
    named = {
        split: found[name] for split, names in _NAMES.items() for name in names if name in found
    }
    if missing := {"train", "test"} - named.keys():
        raise InputError(f"{source} holds {', '.join(found)}, and lacks {', '.join(missing)}")
    return named


def _only(found: dict[str, EventTable], split: str) -> EventTable:
    """Of a file of one split, which may tell its own name (Gatech's do) and those of others."""
    names = [name for name in (*_NAMES[split], "all") if name in found]
    if not names:
        raise InputError(f"a file for {split} holds {', '.join(found)} in its stead")
    return found[names[0]]
