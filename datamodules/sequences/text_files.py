"""Texts with a label, from folders of files and from tables."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from datamodules.loading import Part
from npbench.errors import InputError

TABLES = (".csv", ".tsv", ".parquet")
# What folders and tables of the parts may be called.
_PART_NAMES = {
    Part.TRAIN: ("train",),
    Part.VALIDATE: ("val", "valid", "validation", "dev"),
    Part.TEST: ("test",),
}


class LabelledText(NamedTuple):
    """A text, the name of its class, and where it stands: a file, and a line or row of a table."""

    text: bytes
    label: str
    where: str


def load_texts(
    path: Path, columns: tuple[str, str], classes: list[str] | None = None
) -> dict[Part | None, list[LabelledText]]:
    """The texts of each part; where the data have no parts, all are those of None.

    `path` is a table, or a folder: of the parts' tables (train.csv, test.csv) or folders (train,
    test), or of the classes' folders, in each of which a file is a text.

    Args:
        path: the table or folder.
        columns: what a table calls the text and the label.
        classes: folders of other names are left out, and other labels of a table are refused.

    Raises:
        InputError: if there is nothing, a text is empty, or a label is no class; names the file and
            the line.
    """
    if not path.exists():
        raise InputError(f"there is no {path}; give a folder of texts, or a table")
    if path.is_file():
        return {None: list(_of_table(path, columns, classes))}
    parts = {part: _part_in(path, names) for part, names in _PART_NAMES.items()}
    found = {part: file for part, file in parts.items() if file is not None}
    if not found:
        return {None: list(_of_folder(path, classes))}
    for part in (Part.TRAIN, Part.TEST):
        if part not in found:
            raise InputError(f"{path} has no {_PART_NAMES[part][0]} beside its other parts")
    return {
        part: list(
            _of_table(file, columns, classes) if file.is_file() else _of_folder(file, classes)
        )
        for part, file in found.items()
    }


def load_unlabelled(path: Path, column: str) -> list[LabelledText]:
    """The texts of a table, or of a folder in which each file is one; their label is "".

    Raises:
        InputError: if there is nothing, or a text is empty; names the file and the line.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        texts = [_checked(file.read_bytes(), "", str(file)) for file in files]
    elif path.is_file():
        rows = _rows_of(path, (column,))
        texts = [_checked(text.encode(), "", where) for (text,), where in rows]
    else:
        raise InputError(f"there is no {path}; give a folder of texts, or a table")
    if not texts:
        raise InputError(f"{path} has no texts")
    return texts


def _part_in(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The table or folder of a part."""
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", *TABLES)]
    return next((path for path in candidates if path.exists()), None)


def _of_folder(folder: Path, classes: list[str] | None) -> Iterator[LabelledText]:
    labels = sorted(path for path in folder.iterdir() if path.is_dir())
    labels = [path for path in labels if classes is None or path.name in classes]
    if not labels:
        wanted = "any name" if classes is None else ", ".join(classes)
        raise InputError(f"{folder} has no folder of a class of texts ({wanted})")
    for label in labels:
        for file in sorted(path for path in label.iterdir() if path.is_file()):
            yield _checked(file.read_bytes(), label.name, str(file))


def _of_table(
    path: Path, columns: tuple[str, str], classes: list[str] | None
) -> Iterator[LabelledText]:
    for (text, label), where in _rows_of(path, columns):
        if not label:
            raise InputError(f"{where}: there is no {columns[1]}")
        if classes is not None and label not in classes:
            raise InputError(
                f"{where}: the label {label!r} is none of the classes {', '.join(classes)}"
            )
        yield _checked(text.encode(), label, where)


def _rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[list[str], str]]:
    """What stands in these columns of each row of a table, and where."""
    if path.suffix not in TABLES:
        raise InputError(f"{path} is no table that can be read; give {', '.join(TABLES)}")
    return _of_parquet(path, columns) if path.suffix == ".parquet" else _of_csv(path, columns)


def _of_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[list[str], str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            header = next(rows, [])
            _check_columns(path, header, columns)
            indices = [header.index(name) for name in columns]
            line = rows.line_num + 1
            for row in rows:
                if row:
                    if len(row) != len(header):
                        raise InputError(
                            f"{path}, line {line}: there are {len(row)} columns, and the header "
                            f"has {len(header)}"
                        )
                    yield [row[index] for index in indices], f"{path}, line {line}"
                line = rows.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, line {rows.line_num + 1}: {error}") from error


def _of_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[list[str], str]]:
    try:
        table = pyarrow.parquet.read_table(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    _check_columns(path, table.column_names, columns)
    values = zip(*(table[name].to_pylist() for name in columns))
    for row, found in enumerate(values, start=1):
        yield ["" if value is None else str(value) for value in found], f"{path}, row {row}"


def _check_columns(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    for name in columns:
        if name not in header:
            raise InputError(
                f"{path} has no column {name!r}, only {', '.join(header) or 'none'}; set columns "
                f"to its names of the text and the label"
            )


def _checked(text: bytes, label: str, where: str) -> LabelledText:
    if not text.strip():
        raise InputError(f"{where}: the text is empty")
    return LabelledText(text, label, where)
