"""Predictions at the points of one file, written into another."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from npbench.errors import InputError, ValueOverflow
from npbench.models.contracts.process import NeuralProcess, State, evaluating
from npbench.tables import PointTable, TableWriter


def write_predictions(
    model: NeuralProcess,
    state: State,
    targets: PointTable,
    path: str | os.PathLike,
    outputs: Sequence[str] | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
    quantiles: Sequence[float] = (),
) -> int:
    """Predict at every row of `targets`, a chunk at a time, and return how many there are.

    The new file has all columns of the old one, and OUTPUT_mean and OUTPUT_std for each output:
    the mean and standard deviation of each target's value, taken by itself, in the units of the
    model. An error or an interrupt leaves no file, and one that was there before as it was.

    Args:
        model: the neural process; predicts in evaluation mode.
        state: that of one task's context.
        targets: the file, with the names of its input columns.
        path: a Parquet or CSV file.
        outputs: names of the outputs; by default those of the model's units, or y0, y1, ….
        on_rows: called after each chunk with its number of rows.
        quantiles: probabilities, such as 0.05; for each there is a column OUTPUT_q0.05, the value
            below which the target's lies with this probability.

    Raises:
        InputError: on targets that cannot be predicted at, or a column named as a new one.
    """
    with evaluating(model), TableWriter(path) as writer:
        for rows, x, _ in targets.batches():
            start = targets.skip + writer.num_rows
            writer.write(predicted(model, state, targets, rows, x, outputs, quantiles, start))
            on_rows(len(rows))
        if not writer.num_rows:
            raise InputError(f"{targets.name} has no rows to predict at")
    return writer.num_rows


def predicted(
    model: NeuralProcess,
    state: State,
    targets: PointTable,
    rows: pa.Table,
    x: Float[np.ndarray, "rows dim_x"],
    outputs: Sequence[str] | None = None,
    quantiles: Sequence[float] = (),
    start: int = 0,
) -> pa.Table:
    """Rows of a table of targets, with what is predicted at them behind their columns.

    Args:
        model, state, outputs, quantiles: as of `write_predictions`.
        targets: the table, which errors name.
        rows: some rows of it.
        x: their inputs.
        start: number of rows of the table before them.

    Raises:
        InputError: as `write_predictions`.
    """
    outputs = model.columns[1] if outputs is None else list(outputs)
    if len(outputs) != model.dim_y:
        raise InputError(
            f"{len(outputs)} names of outputs, {', '.join(outputs)}, for a model of {model.dim_y}"
        )
    try:
        columns = dict(zip(("mean", "std"), model.marginals(state, x)))
        if quantiles:
            found = model.quantiles(state, x, quantiles)
            columns |= {f"q{level:g}": z for level, z in zip(quantiles, found)}
    except ValueOverflow as error:
        raise InputError(
            f"column {targets.x[error.column]} of {targets.name} is of size {error.size:.6g} in "
            f"row {start + error.point + 1:,}, of which the model predicts what is not finite; "
            f"drop such rows, or bring them to the unit of training"
        ) from error
    return _with_columns(
        rows, targets.name, outputs, {kind: z[0].cpu().numpy() for kind, z in columns.items()}
    )


def _with_columns(
    rows: pa.Table, source: str, outputs: Sequence[str], values: Mapping[str, np.ndarray]
) -> pa.Table:
    """The rows with OUTPUT_KIND behind them, for each output and each kind of value."""
    for i, name in enumerate(outputs):
        for kind, of_kind in values.items():
            if f"{name}_{kind}" in rows.schema.names:
                raise InputError(f"{source} has a column {name}_{kind} already")
            rows = rows.append_column(f"{name}_{kind}", pa.array(of_kind[:, i]))
    return rows
