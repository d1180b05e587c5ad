"""Data frames whose columns are numbers, and what is said of those that are not."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from npbench.errors import InputError

_LARGEST = float(np.finfo(np.float32).max)


def check_columns(what: str, table: Any) -> None:
    """Refuse a data frame, or a series, with a column that holds more than numbers.

    Anything else is left to scikit-learn. Numbers as texts, such as "1.5", are numbers.

    Args:
        what: the table is called in messages.
        table: of any type.

    Raises:
        InputError: on two columns of one name, and on a value that is no number; names column and
            row, of which the first is 1.

    Example:
        >>> check_columns("X", pd.DataFrame({"day": [1.0, 2.0], "depth": ["0.5", "2"]}))
        >>> try:
        ...     check_columns("X", pd.DataFrame({"day": [1, "2/1/2024"]}))
        ... except InputError as error:
        ...     print(str(error).partition(",")[0])
        column day of X holds '2/1/2024' in row 2
    """
    if isinstance(table, pd.Series):
        table = table.to_frame(what if table.name is None else table.name)
    if not isinstance(table, pd.DataFrame):
        return
    names = list(table.columns)
    if doubled := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{what} has several columns {doubled[0]}; rename all but one")
    for name, column in table.items():
        if pd.api.types.is_datetime64_any_dtype(column):
            raise InputError(f"column {name} of {what} holds dates; only inputs may be dates")
        if pd.api.types.is_numeric_dtype(column):
            continue
        wrong = pd.to_numeric(column, errors="coerce").isna() & column.notna()
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"column {name} of {what} holds {str(column.iloc[row])!r} in row {row + 1:,}, "
                f"which is no number; make numbers of it, or dates by pandas.to_datetime"
            )


def check_sizes(what: str, values: Float[np.ndarray, "rows *columns"]) -> None:
    """Refuse numbers that are too large to compute with.

    Args:
        what: the values are called in messages.
        values: NaN and infinite ones are left to others.

    Raises:
        InputError: on the largest value beyond float32.
    """
    sizes = np.abs(np.where(np.isfinite(values), values, 0.0))
    if sizes.size and sizes.max() > _LARGEST:
        row = int(np.unravel_index(sizes.argmax(), sizes.shape)[0])
        raise InputError(
            f"{what} holds {sizes.max():.6g} in row {row + 1:,}, which is too large: bring it to "
            f"another unit, or drop such rows"
        )
