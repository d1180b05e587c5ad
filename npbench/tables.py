"""Points in files: Parquet and CSV, read and written a piece at a time."""

import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Float

from npbench.errors import InputError
from npbench.files import only_writer, whole_file
from npbench.point_files import DateUnit, Dialect, compression_of, dialect_of, files_in, format_of

# Bytes of a CSV file that tell its dialect.
_SEEN = 2**16
# Bytes that are read at a time; no row of a CSV file is longer.
_BLOCK = 2**20
_LARGEST = np.finfo(np.float32).max
# Microseconds.
_HOUR = 3.6e9
# What Arrow says of a value that does not have the type of its column.
_WRONG_VALUE = re.compile(
    r"In CSV column #(\d+): row ([\d,]+): CSV conversion error to (\S+): invalid value '(.*)'$"
)
_LIKE_A_DATE = re.compile(r"\d+[-/.]\d+[-/.]\d+")
_NUMBERS = pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal


@dataclass(frozen=True)
class PointTable:
    """The points of Parquet or CSV files: one a row, their inputs and outputs in named columns.

    Iterating gives (x, y) chunks, or x alone where no outputs are named, as arrays
    [rows, columns]: what `NeuralProcess.condition` and `query` take. Memory does not depend on how
    long the file is, nor the chunks on how it is laid out.

    Args:
        path: a `.parquet` (or `.pq`), `.csv` or `.csv.gz` file; a folder of such files, or a
            pattern such as `2024-*.csv`, whose files come in the order of their names; or several
            of these. A CSV file has a header.
        x: columns of the inputs, in the model's order.
        y: columns of the outputs.
        skip: rows to leave out at the beginning.
        chunk_size: most rows of a chunk.
        separator: what stands between the columns of a CSV file; by default it is recognised.
        decimal: what stands before the decimals in a CSV file; by default it is recognised.
        dates: what dates are as numbers, such as "days since 2020-01-01"; without it they are
            refused. Times of day, such as 14:30, are hours.
        missing: leave outputs that are missing NaN, in place of an error.

    Raises:
        InputError: while iterating: on a column that is not there or does not hold numbers, and on
            a value that is missing, NaN, infinite or too large for float32, whose row is named (the
            first row is 1).

    Example:
        >>> weather = PointTable("weather.parquet", x=["lat", "lon"], y=["temperature"])
        >>> state = model.condition(weather)  # doctest: +SKIP
    """

    path: str | os.PathLike | Sequence[str | os.PathLike]
    x: Sequence[str]
    y: Sequence[str] = ()
    skip: int = 0
    chunk_size: int = 16_384
    separator: str | None = None
    decimal: str | None = None
    dates: str | None = None
    missing: bool = False

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise InputError(f"chunk_size={self.chunk_size} must be 1 or more")
        if self.dates is not None:
            DateUnit.parse(self.dates)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray] | np.ndarray]:
        for _, *xy in self.batches(list(dict.fromkeys([*self.x, *self.y]))):
            yield tuple(xy) if self.y else xy[0]

    def batches(
        self, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray]]:
        """The same chunks with the rows that they are of: their `columns`, or all of them."""
        skip = self.skip
        for path in files_in(self.path):
            file = replace(self, path=path, skip=max(0, skip))
            skip -= yield from file._batches_of_file(columns)

    @property
    def name(self) -> str:
        """What errors call the files."""
        return ", ".join(str(file) for file in files_in(self.path))

    def num_rows(self) -> int | None:
        """Rows of the files, `skip` included; None for CSV, of which it would take a whole pass."""
        numbers = []
        for path in files_in(self.path):
            with replace(self, path=path)._open(columns=None) as file:
                if not isinstance(file, pa.parquet.ParquetFile):
                    return None
                numbers.append(file.metadata.num_rows)
        return sum(numbers)

    def _batches_of_file(
        self, columns: Sequence[str] | None
    ) -> Generator[tuple[pa.Table, np.ndarray, np.ndarray], None, int]:
        """The chunks of a single file; returns the number of its rows."""
        row = 0
        for rows in self._batches(columns):
            rest = rows[max(0, self.skip - row) :]
            row += len(rows)
            if len(rest):
                start = row - len(rest)
                yield rest, self.values(rest, self.x, start), self.values(rest, self.y, start)
        return row

    def _batches(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """All rows, `chunk_size` at a time however the file is laid out."""
        with self._open(columns) as file:
            if isinstance(file, pa.parquet.ParquetFile):
                for batch in file.iter_batches(self.chunk_size, columns=columns):
                    yield pa.Table.from_batches([batch])
                return
            rows = pa.Table.from_batches([], file.schema)
            for block in file:
                rows = pa.concat_tables([rows, pa.Table.from_batches([block])])
                while len(rows) >= self.chunk_size:
                    yield rows[: self.chunk_size]
                    rows = rows[self.chunk_size :]
            yield rows

    @contextmanager
    def _open(
        self, columns: Sequence[str] | None
    ) -> Iterator[pyarrow.parquet.ParquetFile | pyarrow.csv.CSVStreamingReader]:
        """The file, which has the columns of inputs and outputs; errors name it."""
        form = format_of(self.path)
        if not Path(self.path).is_file():
            raise InputError(f"there is no file {self.path}")
        try:
            opened = self._open_parquet if form == "parquet" else self._open_csv
            with opened(columns) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            # Arrow counts the lines of a CSV file, and the header is the first.
            reason = re.sub(r"Row #(\d+)", lambda m: f"row {int(m[1]) - 1:,}", str(error))
            if wrong := _WRONG_VALUE.search(reason):
                reason = self._wrong_value(int(wrong[1]), *wrong.groups()[1:])
            raise InputError(f"{self.path} cannot be read: {reason}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path} names its columns in another encoding than UTF-8 ({error}); save it "
                f"in UTF-8"
            ) from error

    def _open_parquet(self, columns: Sequence[str] | None) -> pyarrow.parquet.ParquetFile:
        # Without a buffer, or reading ahead, whole row groups or the whole file would be in memory.
        file = pa.parquet.ParquetFile(self.path, buffer_size=_BLOCK, pre_buffer=False)
        self._check_columns(file.schema_arrow.names, columns)
        for name in (*self.x, *self.y):
            self._check_kind(name, file.schema_arrow.field(name).type)
        return file

    def _wrong_value(self, column: int, row: str, kind: str, value: str) -> str:
        """What is said of a value of a CSV file that does not have the type of its column."""
        parse = pa.csv.ParseOptions(delimiter=self._dialect().separator)
        with pa.csv.open_csv(self._stream(), parse_options=parse) as file:
            name = file.schema.names[column]
        expected = "no date as in the rows before" if kind.startswith("timestamp") else "no number"
        hint = ""
        if _LIKE_A_DATE.search(value):
            hint = (
                "; dates are taken where all of a column are written as 2024-01-31 or "
                "2024-01-31 14:05"
            )
        return f"column {name}, row {row}: invalid value {value!r}, which is {expected}{hint}"

    def _dialect(self) -> Dialect:
        with self._stream() as stream:
            text = stream.read(_SEEN).decode(errors="replace")
        return dialect_of(text, (*self.x, *self.y), self.separator, self.decimal)

    def _open_csv(self, columns: Sequence[str] | None) -> pyarrow.csv.CSVStreamingReader:
        # In one thread errors name the row, and come after all that is before it.
        read = pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK)
        dialect = self._dialect()
        parse = pa.csv.ParseOptions(delimiter=dialect.separator)
        with pa.csv.open_csv(self._stream(), read, parse) as file:
            self._check_columns(file.schema.names, columns)
            # The first rows do not tell the type: after 1 and 2 may come 2.5.
            empty = (field.name for field in file.schema if pa.types.is_null(field.type))
            types = dict.fromkeys(empty, pa.string())
            for name in (*self.x, *self.y):
                kind = file.schema.field(name).type
                types[name] = kind if pa.types.is_time(kind) else pa.float64()
                if self._are_dates(name, kind):
                    types[name] = pa.timestamp("us", getattr(kind, "tz", None))
        convert = pa.csv.ConvertOptions(
            column_types=types, include_columns=columns, decimal_point=dialect.decimal
        )
        return pa.csv.open_csv(self._stream(), read, parse, convert)

    def _check_kind(self, name: str, kind: pa.DataType) -> None:
        """Refuse a column that holds neither numbers nor dates, nor times of day."""
        if self.missing and name in self.y and pa.types.is_null(kind):
            return  # a column without any value has no type
        known = any(is_kind(kind) for is_kind in (*_NUMBERS, pa.types.is_time))
        if not known and not self._are_dates(name, kind):
            raise InputError(f"column {name} of {self.path} holds {kind} values, not numbers")

    def _are_dates(self, name: str, kind: pa.DataType) -> bool:
        """Whether a column holds dates.

        Raises:
            InputError: if it does, and nothing says what they are as numbers.
        """
        are = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
        if are and self.dates is None:
            raise InputError(
                f"column {name} of {self.path} holds dates: say what they are as numbers, such as "
                f'dates="days since 2020-01-01" (on the command line --dates)'
            )
        return are

    def _stream(self) -> pa.NativeFile:
        return pa.input_stream(self.path, compression_of(self.path))

    def _check_columns(self, names: Sequence[str], wanted: Sequence[str] | None = None) -> None:
        for name in dict.fromkeys([*self.x, *self.y, *(wanted or ())]):
            if names.count(name) != 1:
                number = "several columns" if name in names else "no column"
                raise InputError(
                    f"{self.path} has {number} {name}; its columns are {', '.join(names)}"
                )

    def values(
        self, rows: pa.Table, names: Sequence[str], start: int = 0
    ) -> Float[np.ndarray, "rows columns"]:
        """The numbers in columns of rows that somebody has read.

        Args:
            rows: those that come after the first `start` of the file.

        Raises:
            InputError: on a column that holds no numbers, and on a value that is missing, NaN,
                infinite or too large for float32.
        """
        values = np.empty((len(rows), len(names)))
        for column, name in zip(values.T, names, strict=True):
            array = rows.column(name)
            self._check_kind(name, array.type)
            may_miss = self.missing and name in self.y
            if array.null_count and not may_miss:
                row = start + pc.index(array.is_null(), True).as_py() + 1
                raise InputError(
                    f"column {name} of {self.path} has no value in row {row:,}; drop such rows"
                )
            if self._are_dates(name, array.type):
                microseconds = array.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
                column[:] = DateUnit.parse(self.dates).numbers(microseconds)
                continue
            if pa.types.is_time(array.type):
                microseconds = array.cast(pa.time64("us")).cast(pa.int64())
                column[:] = microseconds.cast(pa.float64()).to_numpy() / _HOUR
                continue
            column[:] = array.cast(pa.float64(), safe=False).to_numpy()
            usable = np.abs(column) <= _LARGEST  # NaN is not
            if may_miss:
                usable |= np.isnan(column)
            if not usable.all():
                index = int(usable.argmin())
                raise InputError(
                    f"column {name} of {self.path} is {column[index]} in row "
                    f"{start + index + 1:,}; drop such rows"
                )
        return values


class TableWriter:
    """Writes a Parquet or CSV file a piece at a time: complete, or not there at all.

    A context manager, for `close` at its end and `discard` on an error or an interrupt. Until then
    the rows are in an unfinished file beside `path`, and a file that was there before stays as it
    was; see `npbench.files.whole_file`. One process at a time writes a file.

    Args:
        path: the file; its suffix says which of the two it is.

    Raises:
        InputError: on another suffix, and on a folder.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.num_rows = 0
        self._format = format_of(path)
        if self.path.is_dir():
            raise InputError(f"{path} is a folder; name a file in it")
        self._files = ExitStack()
        self._writer: pyarrow.parquet.ParquetWriter | pyarrow.csv.CSVWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Append rows; those that come first say what the columns are.

        Raises:
            InputError: if they cannot be written, or another process is writing the file.
        """
        try:
            if self._writer is None:
                self._begin(rows.schema)
            elif rows.schema != self._schema:  # a CSVWriter would crash
                raise InputError(f"{self.path} has other columns than these rows")
            self._writer.write_table(rows)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        self.num_rows += len(rows)

    def close(self) -> None:
        """Put the file in its place: all rows are written.

        Raises:
            InputError: if the last of them cannot be written.
        """
        try:
            self._files.close()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        self._writer = None

    def discard(self) -> None:
        """Leave no trace of what `close` has not put in its place."""
        unwanted = InterruptedError(f"{self.path} is not wanted any more")
        with suppress(OSError, pa.ArrowException):  # what is discarded need not be writable
            self._files.__exit__(InterruptedError, unwanted, None)
        self._writer = None

    def _begin(self, schema: pa.Schema) -> None:
        make = pa.parquet.ParquetWriter if self._format == "parquet" else pa.csv.CSVWriter
        self._files.enter_context(only_writer(self.path))
        unfinished = self._files.enter_context(whole_file(self.path))
        sink = pa.output_stream(unfinished, compression_of(self.path))
        self._files.enter_context(sink)
        self._writer = self._files.enter_context(make(sink, schema))
        self._schema = schema

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close() if error is None else self.discard()
