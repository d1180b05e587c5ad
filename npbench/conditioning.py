"""The state of the points of a file, into a file."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from npbench.errors import InputError, NotAbsorbed, ValueOverflow
from npbench.files import only_writer, replace_durably
from npbench.models import NeuralProcess, State
from npbench.models.contracts.merging import ForgettingProcess
from npbench.models.contracts.process import evaluating
from npbench.models.contracts.saved_state import SavedState
from npbench.models.contracts.state_files import digest_of, is_of, read_notes
from npbench.scaling import Scaling
from npbench.tables import PointTable

AnyState = TypeVar("AnyState", bound=SavedState)

# Between which inputs run where the range of a model's training is not known.
_ENDS = -2.0, 2.0


def fitted_units(
    model: NeuralProcess,
    table: PointTable,
    kinds: Mapping[str, str] | None = None,
    margin: float = 0.025,
) -> Scaling:
    """The units of a table for a model that was trained in its own numbers, in one pass.

    Args:
        model: the neural process; inputs are brought to the range of its training.
        table: names the columns of the inputs and of the outputs.
        kinds: the scalings of columns by name, as of `Scaling.fit`.
        margin: how much room is kept on either side for the inputs of later rows, as a share of the
            width of these.

    Raises:
        InputError: as `Scaling.fit`.
    """
    ends = model.watch.input_ends(margin, _ENDS)
    return Scaling.of_chunks(table, table.x, table.y, kinds, ends, table.dates)


def write_state(
    model: NeuralProcess,
    table: PointTable,
    path: str | os.PathLike,
    start: State | None = None,
    notes: Mapping[str, str] | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
    ledger: bool = False,
) -> int:
    """Absorb every row of `table`, a chunk at a time, write the state and return how many they are.

    After each chunk the state so far is kept in PATH.partial. After an error or an interrupt that
    file stays there, and the same call goes on from it: the result is bitwise that of a call which
    nothing has interrupted. A file at `path` stays as it was until all rows are absorbed. Memory
    does not depend on the number of rows.

    Args:
        model: the neural process, whose states are kept in files (`state_class`); it absorbs in
            evaluation mode.
        table: names the columns of the inputs and of the outputs; its chunks are those that are
            absorbed at a time.
        path: a state file, for `model.state_class.load` and `npbench query`; the columns, the
            number of rows and a hash of their values are noted in it.
        start: a state to add the points to, on the model's device; by default that of no points.
        notes: further facts to write into the file's metadata.
        on_rows: called with the number of rows that an earlier call has absorbed, if any, and after
            each chunk with its number of rows.
        ledger: keep a ledger in the file, of 16 bytes a row, so that `forget_rows` takes away what
            was absorbed and nothing else. Where `start` has one it is kept in any case.

    Raises:
        InputError: on rows that cannot be absorbed (such as those whose values are so large that
            the state would not be finite), on a file that cannot be written or that another
            process is writing, on a table without rows, and where PATH.partial was left by a call
            with other arguments.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import pandas as pd
        >>> from npbench.models import CMANP
        >>> model = CMANP(dim_x=2, dim_y=1)
        >>> points = pd.DataFrame(np.random.randn(1000, 3), columns=["lat", "lon", "temperature"])
        >>> with TemporaryDirectory() as folder:
        ...     points.to_parquet(f"{folder}/points.parquet")
        ...     table = PointTable(f"{folder}/points.parquet", ["lat", "lon"], ["temperature"])
        ...     rows = write_state(model, table, f"{folder}/state.safetensors")
        ...     state = model.state_class.load(f"{folder}/state.safetensors", model)
        >>> rows, model.query(state, np.zeros((1, 5, 2))).mean.shape
        (1000, torch.Size([1, 5, 1]))
    """
    model.check_columns(table.x, table.y)
    path = Path(path)
    with only_writer(_partial(path)):
        return _write_state(model, table, path, start, notes or {}, on_rows, ledger)


def _write_state(
    model: NeuralProcess,
    table: PointTable,
    path: Path,
    start: State | None,
    notes: Mapping[str, str],
    on_rows: Callable[[int], None],
    ledger: bool,
) -> int:
    partial = _partial(path)
    if start is not None:
        if ledger and start.ledger is None:
            raise InputError(
                "the state to add points to has no ledger, so that one of them all cannot be kept; "
                "condition on all of the data again"
            )
        ledger = start.ledger is not None
    options = {"ledger": True} if ledger else {}
    task = {"x": ",".join(table.x), "y": ",".join(table.y), "state": _hash_of(start)}
    task |= {"with_ledger": "yes"} if ledger else {}
    facts = {**notes, **task}
    rows, digest = _resume(partial, task, model, table)
    state = model.state_class.load(partial, model) if rows else start

    def save(state: State) -> None:
        so_far = {"rows": str(rows), "digest": digest.hexdigest()}
        try:
            state.save(partial, model, **options, **facts | so_far)
        except OSError as error:
            raise InputError(f"{partial} cannot be written ({error.strerror})") from error

    try:
        if rows:
            on_rows(rows)
        with evaluating(model):
            for more, points in absorb(model, replace(table, skip=table.skip + rows), **options):
                state = more if state is None else state.merge(more)
                digest.update(np.hstack(points))
                rows += len(points[0])
                save(state)
                on_rows(len(points[0]))
            if not rows:
                raise InputError(f"{table.name} has no rows")
            save(model.merge(state))
        replace_durably(partial, path)
    except (KeyboardInterrupt, InputError, OSError) as error:
        if not partial.exists():
            raise
        kept = (
            f"the state of the first {int(read_notes(partial)['rows']):,} rows is kept in "
            f"{partial}: the same command goes on from there"
        )
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"; {kept}") from error
        raise InputError(f"{error}; {kept}") from error
    return rows


def absorb(
    model: NeuralProcess, table: PointTable, **options: Any
) -> Iterator[tuple[Any, tuple[np.ndarray, np.ndarray]]]:
    """The state of each chunk of `table`, with its points.

    Args:
        options: of `model.condition`.

    Raises:
        InputError: while iterating, on a row that cannot be absorbed; it is named.
    """
    row = table.skip
    for points in table:
        try:
            yield model.condition(*points, **options), points
        except ValueOverflow as error:
            name = (*table.x, *table.y)[error.column]
            raise InputError(
                f"column {name} of {table.name} is of size {error.size:.6g} in row "
                f"{row + error.point + 1:,}, of which the model computes what is not finite; drop "
                f"such rows, or bring them to the unit of training"
            ) from error
        row += len(points[0])


def forget_rows(
    model: ForgettingProcess,
    table: PointTable,
    state: AnyState,
    on_rows: Callable[[int], None] = lambda _: None,
) -> tuple[AnyState, int]:
    """The state without the rows of `table`, a chunk at a time, and how many they are.

    What it guarantees, with and without a ledger, is what `ForgettingProcess.forget` does.

    Args:
        model: whose state it is; it computes in evaluation mode.
        table: names the columns as they were absorbed.
        state: has absorbed the rows.
        on_rows: called after each chunk with its number of rows.

    Raises:
        InputError: on rows that cannot be forgotten; of those that the state's ledger does not
            have, one is named.
    """
    rows = 0
    with evaluating(model):
        for points in table:
            try:
                state = model.forget(state, *points)
            except NotAbsorbed as error:
                raise InputError(
                    f"row {table.skip + rows + error.point + 1:,} of {table.name} was never "
                    f"absorbed by the state, or is forgotten already, as its ledger says; drop "
                    f"such rows"
                ) from error
            rows += len(points[0])
            on_rows(len(points[0]))
    if not rows:
        raise InputError(f"{table.name} has no rows")
    return state, rows


def _partial(path: Path) -> Path:
    """Where the state so far is kept."""
    return path.with_name(f"{path.name}.partial")


def _resume(
    partial: Path, task: dict[str, str], model: NeuralProcess, table: PointTable
) -> tuple[int, Any]:
    """How many rows a call that was cut off has absorbed, and the digest of their values.

    The table must still begin with them; what comes after may have been mended since.
    """
    digest = hashlib.sha256()
    if not partial.exists():
        return 0, digest
    notes = read_notes(partial)
    rows = missing = int(notes.get("rows", 0))
    for points in table:
        values = np.hstack(points)[:missing]
        digest.update(values)
        missing -= len(values)
        if not missing:
            break
    facts = task | {"digest": digest.hexdigest()}
    same_ledger = ("with_ledger" in notes) == ("with_ledger" in task)
    same_model = is_of(notes, model) and Scaling.of_notes(notes) == model.scaling
    if notes | facts != notes or not same_ledger or not same_model:
        raise InputError(
            f"{partial} was left by a run on other data, columns, weights or --state; "
            f"delete it, or choose another --out"
        )
    return rows, digest


def _hash_of(state: State | None) -> str:
    if state is None:
        return ""
    return digest_of("state", {str(i): tensor for i, tensor in enumerate(state.tensors())})
