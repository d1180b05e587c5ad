"""The rows of a table in memory, and which of them are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from datamodules.seeding import uniform_hash
from npbench.errors import InputError
from npbench.tables import PointTable

# What errors call a table that has no file.
IN_MEMORY = "the table"
# Blocks of a field, of which some are held out: most, and fewest unless they would be too small.
_MOST_BLOCKS, _FEWEST_BLOCKS = 40, 7


@dataclass(frozen=True, eq=False)
class Rows:
    """Points of a table in float64, and the group of each: a task of the table, or a block of the
    field. An output that is missing is NaN."""

    x: Float[np.ndarray, "rows dim_x"]
    y: Float[np.ndarray, "rows dim_y"]
    group: Int[np.ndarray, "rows"]
    names: Sequence[str]
    """Of the groups."""

    def __len__(self) -> int:
        return len(self.x)

    def where(self, kept: Bool[np.ndarray, "rows"]) -> "Rows":
        """Some of the rows."""
        return Rows(self.x[kept], self.y[kept], self.group[kept], self.names)

    def of_output(self, index: int) -> "Rows":
        """The rows in which one output is known, with this output alone."""
        y = self.y[:, index : index + 1]
        return Rows(self.x, y, self.group, self.names).where(np.isfinite(y[:, 0]))

    def in_blocks(self, number: int) -> "Rows":
        """The same rows in blocks of about as many each: a box is cut at the median of its longest
        side until there are so many.

        Sides are measured in the ranges of the inputs.
        """
        width = np.ptp(self.x, axis=0)
        x = self.x / np.where(width > 0, width, 1.0)
        blocks = [np.arange(len(self))]
        while len(blocks) < number:
            largest = blocks.pop(max(range(len(blocks)), key=lambda i: len(blocks[i])))
            side = int(np.ptp(x[largest], axis=0).argmax())
            values = x[largest, side]
            low = values < np.median(values)
            if not low.any():  # many rows at one place
                low = values <= np.median(values)
            if low.all():
                raise InputError(
                    f"the table's rows lie at too few places to be cut into {number} blocks; give "
                    f"a task column, or data at more places"
                )
            blocks += [largest[low], largest[~low]]
        group = np.empty(len(self), dtype=np.int64)
        for index, block in enumerate(blocks):
            group[block] = index
        return Rows(self.x, self.y, group, [f"block {i}" for i in range(number)])


def rows_of(
    source: str | Sequence[str] | pd.DataFrame,
    table: PointTable,
    task: str | None,
    each_output: bool = False,
) -> Rows:
    """The rows of files, or of a data frame, of which all outputs are known.

    Args:
        source: what `table` names, or the data frame.
        table: names the columns, and says how numbers stand in them.
        task: the column that says to which task a row belongs, if there is one.
        each_output: take the rows of which any output is known.

    Raises:
        InputError: on a column that is not there, and on a value that is no number, or is missing
            of an input or a task; names file, row and column.
    """
    columns = list(dict.fromkeys([*table.x, *table.y, *([task] if task else [])]))
    if isinstance(source, str | Sequence):
        chunks = _chunks_of_files(table, columns, task)
    else:
        for name in columns:
            if name not in source:
                there = ", ".join(map(str, source))
                raise InputError(f"{IN_MEMORY} has no column {name}; its columns are {there}")
        try:
            rows = pa.Table.from_pandas(source[columns], preserve_index=False)
        except pa.ArrowException as error:
            reason = "; ".join(map(str, error.args))  # the last says of which column
            raise InputError(f"{IN_MEMORY} cannot be read: {reason}") from error
        x, y = (table.values(rows, names, 0) for names in (table.x, table.y))
        chunks = [(x, y, _tasks_of(rows, task, IN_MEMORY, 0))]
    if not chunks:
        raise InputError(f"{table.name} has no rows")
    x, y, tasks = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    names, group = np.unique(tasks, return_inverse=True)
    is_known = np.isfinite(y)
    if each_output:
        kept = is_known.any(axis=1)
        missing = [name for name, has_any in zip(table.y, is_known.any(axis=0)) if not has_any]
    else:
        kept = is_known.all(axis=1)
        missing = [] if kept.any() else list(table.y)
    if missing:
        raise InputError(
            f"no row of {table.name} has values of {', '.join(missing)}; name other outputs"
        )
    return Rows(x, y, group, names.tolist()).where(kept)


def held_out(names: Sequence[str], shares: Sequence[float]) -> list[list[int]]:
    """The indices of the groups of each share, and of what is left: by a hash of their names.

    Raises:
        InputError: if there are too few groups for one in each part.

    Example:
        >>> [len(part) for part in held_out([str(i) for i in range(20)], [0.1, 0.2])]
        [2, 4, 14]
    """
    order = sorted(range(len(names)), key=lambda index: uniform_hash(str(names[index])))
    if len(order) < len(shares) + 1:
        raise InputError(
            f"the data has {len(order)} task(s), and training, validation and test take one each "
            f"at least"
        )
    parts: list[list[int]] = []
    for number, share in enumerate(shares):
        spare = len(shares) - number  # groups that those after it need
        size = min(max(1, round(share * len(names))), len(order) - spare)
        parts.append(sorted(order[:size]))
        order = order[size:]
    return [*parts, sorted(order)]


def blocks_for(num_rows: int, fewest: int, enough: int) -> int:
    """How many blocks a field of so many rows is cut into.

    Each has `fewest` rows at least, and `enough` where there are so many.

    Raises:
        InputError: if there are too few rows for three.
    """
    number = min(_MOST_BLOCKS, max(_FEWEST_BLOCKS, num_rows // enough), num_rows // fewest)
    if number < 3:
        raise InputError(
            f"the table has {num_rows} rows with known outputs, and blocks for training, "
            f"validation and test take {fewest} each: lower min_num_context, or give more data"
        )
    return number


def _chunks_of_files(
    table: PointTable, columns: list[str], task: str | None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    chunks, start = [], 0
    for rows, x, y in table.batches(columns):
        chunks.append((x, y, _tasks_of(rows, task, table.name, start)))
        start += len(rows)
    return chunks


def _tasks_of(rows: pa.Table, task: str | None, source: str, start: int) -> np.ndarray:
    """The task of each row, as a text."""
    if task is None:
        return np.full(len(rows), "", dtype=object)
    # What is missing in a column of texts is an empty one in a CSV file.
    names = ["" if value is None else str(value) for value in rows.column(task).to_pylist()]
    if "" in names:
        row = start + names.index("") + 1
        raise InputError(f"column {task} of {source} has no value in row {row:,}; drop such rows")
    return np.array(names, dtype=object)
