"""Finds out the format of event sequences, and loads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datamodules.events.formats.easytpp import load_easytpp, load_hub
from datamodules.events.formats.event_table import EventTable
from datamodules.events.formats.long_table import load_table
from datamodules.events.formats.text_pairs import folds_in, load_text_pairs
from datamodules.loading import Part
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
# The names that files and data sets give to a part; messages use the first.
_NAMES = {
    Part.TRAIN: ["train"],
    Part.VALIDATE: ["val", "dev", "valid", "validation"],
    Part.TEST: ["test"],
}


def load_events(
    path: str | Path,
    format: EventFormat = "auto",
    fold: int = 1,
    columns: Sequence[str] = ("sequence", "time", "mark"),
) -> EventTable | dict[Part, EventTable]:
    """Load the sequences for training, for tests and, where there are some, for validation.

    Where the data have no parts, the result is one table of all sequences. A part for validation
    that holds no events is left out.

    Args:
        path: a folder, a file, or the name of a data set on the Hugging Face hub.
        format: as `EventSequenceDataModule` says.
        fold: the fold of text pairs that is tested on.
        columns: what a table calls the sequence, the time and the mark.

    Raises:
        InputError: if the files are not of the format (the message names file and line), if they
            hold no events, or if a package is missing.
        FileNotFoundError: if there are no files.
    """
    found = _load(path, format, fold, columns)
    if isinstance(found, EventTable):
        if not len(found.times):
            raise InputError(f"{path} holds no events")
        return found
    if Part.VALIDATE in found and not len(found[Part.VALIDATE].times):
        del found[Part.VALIDATE]
    for part, table in found.items():
        if not len(table.times):
            raise InputError(f"{path} holds no events for {_NAMES[part][0]}")
    return found


def _load(
    path: str | Path, format: EventFormat, fold: int, columns: Sequence[str]
) -> EventTable | dict[Part, EventTable]:
    if format == "auto":
        format = _find_format(path)
    if format == "huggingface":
        return _by_part(load_hub(str(path)), str(path))
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}. {_FORMATS}")
    if format == "text":
        return load_text_pairs(path, fold)
    if format == "easytpp":
        if path.is_file():
            return _by_part(load_easytpp(path), str(path))
        files = _files_by_part(path, _OBJECTS)
        return {part: _only(load_easytpp(file), part) for part, file in files.items()}
    if path.is_file():
        return load_table(path, columns)
    files = _files_by_part(path, _TABLES)
    return {part: load_table(file, columns) for part, file in files.items()}


def _find_format(path: str | Path) -> EventFormat:
    found = Path(path)
    if found.is_dir():
        names = sorted(file.name for file in found.iterdir())
        if folds_in(found):
            return "text"
        for format, suffixes in (("easytpp", _OBJECTS), ("table", _TABLES)):
            if any(f"train{suffix}" in names for suffix in suffixes):
                return format
        listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise InputError(f"{path} holds {listed or 'nothing'}, of no known format. {_FORMATS}")
    if not found.exists():
        if str(path).startswith("easytpp/"):
            return "huggingface"
        raise FileNotFoundError(f"there is no {path}. {_FORMATS}")
    for format, suffixes in (("easytpp", _OBJECTS), ("table", _TABLES)):
        if found.name.endswith(suffixes):
            return format
    raise InputError(f"{path} is a file of no known format. {_FORMATS}")


def _files_by_part(folder: Path, suffixes: Sequence[str]) -> dict[Part, Path]:
    found = {}
    for part, names in _NAMES.items():
        candidates = [folder / f"{name}{suffix}" for name in names for suffix in suffixes]
        present = [file for file in candidates if file.is_file()]
        if len(present) > 1:
            raise InputError(
                f"{folder} holds {', '.join(file.name for file in present)}, and one file is to be "
                f"read: put the others elsewhere"
            )
        if present:
            found[part] = present[0]
        elif part != Part.VALIDATE:
            name = names[0]
            raise FileNotFoundError(
                f"{folder} lacks {name} ({' '.join(f'{name}{suffix}' for suffix in suffixes)})"
            )
    return found


def _by_part(
    found: EventTable | dict[str, EventTable], source: str
) -> EventTable | dict[Part, EventTable]:
    """The tables of a file or a data set by part, whatever it calls them."""
    if isinstance(found, EventTable):
        return found
    named = {part: found[name] for part, names in _NAMES.items() for name in names if name in found}
    if missing := [_NAMES[part][0] for part in (Part.TRAIN, Part.TEST) if part not in named]:
        raise InputError(f"{source} holds {', '.join(found)}, and lacks {', '.join(missing)}")
    return named


def _only(found: EventTable | dict[str, EventTable], part: Part) -> EventTable:
    """The table of a file for one part, which may name that part (Gatech's do) and others."""
    if isinstance(found, EventTable):
        return found
    names = [name for name in _NAMES[part] if name in found]
    if not names:
        raise InputError(f"a file for {_NAMES[part][0]} holds {', '.join(found)} in its stead")
    return found[names[0]]
