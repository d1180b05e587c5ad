"""Which files hold points, and how numbers stand in them: separators, decimal marks, dates."""

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from npbench.errors import InputError

_ENDINGS = ".parquet", ".pq", ".csv", ".csv.gz"
_SUFFIXES = ".parquet, .pq, .csv or .csv.gz"
_SEPARATORS = ",", ";", "\t", "|"
_COMMA, _POINT = re.compile(r"\s*[-+]?\d*,\d+\s*"), re.compile(r"\s*[-+]?\d*\.\d+\s*")
_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}
_DATES = re.compile(rf"({'|'.join(_SECONDS)}) since (\S+(?: \S+)?)")


@dataclass(frozen=True)
class Dialect:
    """What stands between the columns of a CSV file, and before the decimals of a number."""

    separator: str
    decimal: str


def dialect_of(
    text: str, names: Sequence[str], separator: str | None = None, decimal: str | None = None
) -> Dialect:
    """The dialect of a CSV file.

    Its separator is a comma, semicolon, tab or bar: the first that makes columns of the wanted
    names. Its decimal mark is a comma where the wanted columns have numbers such as 2,5 and none
    such as 2.5; but a point where commas separate the columns, since 1,500 would be 1500 there.

    Args:
        text: the beginning of the file, cut anywhere.
        names: the columns that are wanted.
        separator: what is known of it.
        decimal: likewise.

    Example:
        >>> dialect_of("x;y\\n0,5;1\\n", ["x", "y"])
        Dialect(separator=';', decimal=',')
    """
    *lines, rest = text.removeprefix("\ufeff").splitlines(keepends=True) or [""]
    lines = [*lines, rest] if not lines or rest.endswith("\n") else lines

    def rows(separator: str) -> list[list[str]]:
        return list(csv.reader(lines, delimiter=separator))

    if separator is None:
        headers = {each: next(iter(rows(each)), []) for each in _SEPARATORS}
        whole = [each for each, header in headers.items() if {*names} <= {*header}]
        # Where none fits, the message that a column is missing shows the most columns.
        separator = whole[0] if whole else max(_SEPARATORS, key=lambda each: len(headers[each]))
    if decimal is None and separator == ",":
        decimal = "."
    elif decimal is None:
        header, *values = rows(separator) or [[]]
        wanted = [index for index, name in enumerate(header) if name in names]
        numbers = [row[index] for row in values for index in wanted if index < len(row)]
        commas = any(_COMMA.fullmatch(number) for number in numbers)
        decimal = "," if commas and not any(map(_POINT.fullmatch, numbers)) else "."
    return Dialect(separator, decimal)


@dataclass(frozen=True)
class DateUnit:
    """What dates count as numbers: so many seconds each, since an origin."""

    seconds: int
    origin: np.datetime64

    @classmethod
    def parse(cls, text: str) -> "DateUnit":
        """The unit that a text such as "days since 2020-01-01" names, as netCDF files do.

        Raises:
            InputError: if it names none.

        Example:
            >>> unit = DateUnit.parse("hours since 2020-01-01")
            >>> noon = np.array(["2020-01-01T12:00"], "datetime64[us]")
            >>> unit.numbers(noon.astype(np.int64))
            array([12.])
        """
        match = _DATES.fullmatch(text.strip())
        try:
            if match:
                return cls(_SECONDS[match[1]], np.datetime64(match[2], "us"))
        except ValueError:
            pass
        raise InputError(
            f'"{text}" is no unit of dates: write it as "days since 2020-01-01", or with hours, '
            f"minutes or seconds"
        )

    def numbers(self, microseconds: Int[np.ndarray, "rows"]) -> Float[np.ndarray, "rows"]:
        """Dates, in microseconds since 1970, as numbers of this unit."""
        since = microseconds - self.origin.astype(np.int64)
        return since / (self.seconds * 1e6)


def files_in(path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """The files of points that a path, or several, stand for: those of a folder or of a pattern,
    in the order of their names, or the file itself.

    Raises:
        InputError: if a folder or a pattern has none, or a file stands twice among all.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    files = [file for each in map(Path, paths) for file in _files(each)]
    for file in files:
        if files.count(file) > 1:
            raise InputError(f"{file} is named twice, and its points would count twice")
    return files


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(_ENDINGS)]
        if not files:
            raise InputError(f"there is no file of points in the folder {path}: {_SUFFIXES}")
        return files
    if any(sign in path.name for sign in "*?[") and not path.exists():
        files = sorted(path.parent.glob(path.name))
        if not files:
            raise InputError(f"no file is named as in {path}")
        return files
    return [path]


def format_of(path: str | os.PathLike) -> str:
    """The format of a file of points by its name, "parquet" or "csv".

    Raises:
        InputError: if it is none of the two.
    """
    name = Path(path).name.lower()
    if name.endswith(_ENDINGS):
        return "parquet" if name.endswith(_ENDINGS[:2]) else "csv"
    raise InputError(f"{path} is neither a Parquet nor a CSV file by its name: {_SUFFIXES}")


def compression_of(path: str | os.PathLike) -> str | None:
    """The compression of a file by its name, "gzip" or none."""
    return "gzip" if Path(path).name.lower().endswith(".gz") else None
