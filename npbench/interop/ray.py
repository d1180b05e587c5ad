"""More data than one machine holds: states from a cluster, by Ray Data.

Each worker absorbs blocks of rows, and what travels is states of one size. The engine reads files,
local or in an object store, brings them to the workers, and does again what a worker that dies has
not finished; a block's state reaches the result once.

Needs the extra `ray`: `pip install "npbench[ray]"`.
"""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import (
    ActorPoolStrategy,
    DataContext,
    Dataset,
    SaveMode,
    read_csv,
    read_parquet,
)

from npbench.blocks.windows import padded_groups
from npbench.conditioning import absorb
from npbench.errors import InputError
from npbench.models.contracts.merging import MergingProcess
from npbench.models.contracts.process import NeuralProcess, State, evaluating
from npbench.models.contracts.saved_state import SavedState
from npbench.predictions import predicted
from npbench.tables import PointTable

# Points that a worker absorbs at a time, those that fill up the tasks of a batch included.
_POINTS = 131_072
# Targets that a worker predicts at a time.
_TARGETS = 65_536
# The column in which the engine says which file a row is from.
_PATH = "path"


def connect(address: str | None = None) -> None:
    """Connect to a cluster; without an address one starts on this machine, and ends with Python.

    Where the program is connected already, nothing happens.

    Args:
        address: as of `ray.init`, such as "auto" or "ray://head:10001".

    Raises:
        InputError: if no cluster answers there.
    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    # Ray would end the program on SIGTERM by itself, before what is unfinished is put away.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False


def condition_dataset(
    model: NeuralProcess,
    data: Dataset | str | os.PathLike | Sequence[str],
    x: Sequence[str],
    y: Sequence[str],
    by: str | None = None,
    *,
    dates: str | None = None,
    workers: int | None = None,
    num_gpus: float = 0.0,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Any:
    """The state of all rows, or with `by` one of the rows of each key; to be queried by `model`.

    Each worker makes states of blocks of rows, one for each key in a block, which are merged here
    as a tree; no rows are shuffled. The result is that of `model.condition` on all rows at once, to
    rounding.

    Args:
        model: one whose states merge; it absorbs in evaluation mode, on copies of its weights.
        data: a Ray data set, or what Ray reads: Parquet or CSV files, folders, patterns, or paths
            in an object store, all of one format.
        x: columns of the inputs, in the model's order.
        y: columns of the outputs.
        by: a column of keys, such as that of a sensor's name.
        dates: what dates are as numbers, such as "days since 2020-01-01".
        workers: most of them at a time; by default all but one of the cluster's cores, or all of
            its GPUs where `num_gpus` asks for them.
        num_gpus: of each worker.
        on_rows: called with the number of rows of each block that is done.

    Returns: a state, or a dictionary of states of one task each by their keys.

    Raises:
        InputError: if the model's states do not merge, on a column that is not there, on a value
            that cannot be absorbed, of which file, row and column are named, and on no rows.

    Example:
        >>> from npbench.models import TNPD
        >>> condition_dataset(
        ...     TNPD(dim_x=1, dim_y=1), "readings/", ["hour"], ["load"]
        ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ...
        npbench.errors.InputError: the states of TNPD do not merge
        >>> state = condition_dataset(
        ...     model, "s3://bucket/weather/", ["lat", "lon"], ["temperature"]
        ... )  # doctest: +SKIP
        >>> states = condition_dataset(
        ...     model, "sensors.parquet", ["hour"], ["load"], by="sensor"
        ... )  # doctest: +SKIP
    """
    model = _checked(model, x, y)
    connect()
    rows = _open(data)
    _check_columns(rows, [*x, *y, *([by] if by else [])])
    name = _name(data)
    parts = model, PointTable(name, x, y, dates=dates), by
    blocks = _by_workers(rows, _Absorber, parts, None, workers, num_gpus)
    whole = _merged(_states(blocks, _prior(model), on_rows), name)
    with evaluating(model):
        state = model.merge(whole.state.to(next(model.parameters()).device))
    if by is None:
        return state
    return {key: _tasks(state, [i]) for i, key in enumerate(whole.keys)}


def write_state(
    model: NeuralProcess,
    data: str | os.PathLike | Sequence[str],
    x: Sequence[str],
    y: Sequence[str],
    path: str | os.PathLike,
    start: SavedState | None = None,
    notes: Mapping[str, str] | None = None,
    dates: str | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the state of all rows into a file, and return how many they are.

    Args:
        model, data, x, y, dates, on_rows: as of `condition_dataset`.
        path, start, notes: as of `npbench.conditioning.write_state`.

    Raises:
        InputError: as `condition_dataset`.
    """
    rows = 0

    def count(number: int) -> None:
        nonlocal rows
        rows += number
        on_rows(number)

    state = condition_dataset(model, data, x, y, dates=dates, on_rows=count)
    if start is not None:
        with evaluating(model):
            state = _checked(model, x, y).merge(start, state)
    facts = {"x": ",".join(x), "y": ",".join(y), "rows": str(rows)}
    state.save(path, model, **{**(notes or {}), **facts})
    return rows


def query_dataset(
    model: NeuralProcess,
    state: State,
    data: Dataset | str | os.PathLike | Sequence[str],
    x: Sequence[str],
    out: str | os.PathLike,
    outputs: Sequence[str] | None = None,
    *,
    quantiles: Sequence[float] = (),
    dates: str | None = None,
    workers: int | None = None,
    num_gpus: float = 0.0,
) -> int:
    """Predict at every row of a data set, and return how many there are.

    `out` becomes a folder of Parquet files with all columns of the data, and behind them those of
    `npbench query`. In a file system of this machine it is there when all of them are, and stands
    for none before; in an object store, files of a call that has failed remain.

    Args:
        model: of any kind; predicts in evaluation mode.
        state: that of one task's context.
        data, x, dates, workers, num_gpus: as of `condition_dataset`.
        out: a folder that is not there yet, or a path in an object store.
        outputs, quantiles: as of `npbench.predictions.write_predictions`.

    Raises:
        InputError: on targets that cannot be predicted at, on no rows, and where `out` is.

    Example:
        >>> query_dataset(
        ...     model, state, "grid/*.parquet", ["lat", "lon"], "predictions"
        ... )  # doctest: +SKIP
    """
    local = "://" not in os.fspath(out)
    if local and Path(out).exists():
        raise InputError(f"{out} is there already; delete it, or name another folder")
    model.check_columns(x)
    connect()
    rows = _open(data)
    _check_columns(rows, x)
    name = _name(data)
    parts = model, PointTable(name, x, dates=dates), state, outputs, quantiles
    answers = _by_workers(rows, _Predictor, parts, _TARGETS, workers, num_gpus)
    target = Path(f"{out}.partial") if local else out
    try:
        answers.write_parquet(os.fspath(target), mode=SaveMode.OVERWRITE)
    except ray.exceptions.RayTaskError as error:
        # Ray tells of a worker's exception by its text alone.
        if found := re.findall(r"npbench\.errors\.\w+: (.+)", str(error)):
            raise InputError(found[-1]) from error
        raise
    number = read_parquet(os.fspath(target)).count()
    if not number:
        raise InputError(f"{name} has no rows to predict at")
    if local:
        Path(target).replace(out)
    return number


@dataclass(frozen=True)
class _KeyedStates:
    """A state of one task for each key."""

    keys: list[Any]
    state: SavedState

    def merge(self, other: "_KeyedStates") -> "_KeyedStates":
        theirs = {key: i for i, key in enumerate(other.keys)}
        both = [key for key in self.keys if key in theirs]
        mine = [key for key in self.keys if key not in theirs]
        rest = [key for key in other.keys if key not in set(both)]
        parts = [self.of(both).merge(other.of(both)), self.of(mine), other.of(rest)]
        return _KeyedStates([*both, *mine, *rest], _concatenated(parts))

    def of(self, keys: Sequence[Any]) -> SavedState:
        index = {key: i for i, key in enumerate(self.keys)}
        return _tasks(self.state, [index[key] for key in keys])


class _Worker:
    """Has a model, in a process of its own or with others on one GPU."""

    def __init__(self, parts: Sequence[ray.ObjectRef]) -> None:
        model, self.table, *rest = ray.get(parts[0])
        self.model = model.to("cuda" if ray.get_gpu_ids() else "cpu").eval()
        self.rest = rest

    def _values(self, rows: pa.Table, names: Sequence[str]) -> np.ndarray:
        files = _runs(rows)
        return np.concatenate(
            [replace(self.table, path=path).values(part, names) for path, part in files]
        )


class _Absorber(_Worker):
    """Makes states of blocks of rows."""

    @torch.no_grad()
    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row: the keys, their state, the number of rows, and what is wrong with them."""
        try:
            keys, state = self._states(rows)
        except InputError as error:
            return _block([], b"", 0, str(self._explained(rows, error)))
        return _block(keys, state.to_bytes(), len(rows), "")

    def _states(self, rows: pa.Table) -> tuple[list[Any], SavedState]:
        x, y = (self._values(rows, names) for names in (self.table.x, self.table.y))
        (by,) = self.rest
        if by is None:
            return [""], self.model.condition(x, y, chunk_size=_POINTS)
        column = rows.column(by).combine_chunks()
        if column.null_count:
            raise InputError(f"column {by} of {self.table.name} has no value in some row")
        coded = column.dictionary_encode()
        codes, keys, states = coded.indices.to_numpy(), [], []
        for batch in padded_groups(torch.from_numpy(codes), _POINTS):
            state = self.model.condition(x[batch], y[batch], batch >= 0, chunk_size=_POINTS)
            states.append(state)
            keys += coded.dictionary.take(pa.array(codes[batch[:, 0]])).to_pylist()
        return keys, _concatenated(states)

    def _explained(self, rows: pa.Table, error: InputError) -> InputError:
        """The error with the number of the row in its file, where the file can be read here."""
        for path, _ in _runs(rows):
            if path and Path(path).is_file():
                try:
                    for _ in absorb(self.model, replace(self.table, path=path)):
                        pass
                except InputError as explained:
                    return explained
        return error


class _Predictor(_Worker):
    """Predicts at blocks of rows."""

    @torch.no_grad()
    def __call__(self, rows: pa.Table) -> pa.Table:
        state, outputs, quantiles = self.rest
        x = self._values(rows, self.table.x)
        rows = rows.drop_columns([_PATH] if _PATH in rows.column_names else [])
        state = state.to(next(self.model.parameters()).device)
        return predicted(self.model, state, self.table, rows, x, outputs, quantiles)


def _by_workers(
    rows: Dataset, kind: type, parts: tuple, size: int | None, workers: int | None, num_gpus: float
) -> Dataset:
    """What workers make of blocks of rows, or of so many rows at a time."""
    gpus: dict[str, Any] = {"num_gpus": num_gpus} if num_gpus else {}
    return rows.map_batches(
        kind,
        batch_size=size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=workers or _workers(num_gpus)),
        # By reference: a worker that starts again finds them where the first one did.
        fn_constructor_args=([ray.put(parts)],),
        **gpus,
    )


def _checked(model: NeuralProcess, x: Sequence[str], y: Sequence[str]) -> MergingProcess:
    if not isinstance(model, MergingProcess):
        raise InputError(
            f"the states of {type(model).__name__} do not merge, so that workers cannot share its "
            f"context; those of CMANP, LocatedCMANP and SecondMomentNP do"
        )
    for name, columns, own in zip("xy", (x, y), model.columns, strict=True):
        dim = len(own)
        if isinstance(columns, str) or len(columns) != dim:
            raise InputError(
                f"{name} must be a list of {dim} column(s) for a model with dim_{name}={dim}, and "
                f"is {columns!r}"
            )
    return model


def _name(data: Any) -> str:
    """What errors call the data."""
    return "the data" if isinstance(data, Dataset) else str(data)


def _open(data: Dataset | str | os.PathLike | Sequence[str]) -> Dataset:
    """The rows, each with the path of the file that it is from."""
    if isinstance(data, Dataset):
        return data
    paths = [os.fspath(data)] if isinstance(data, str | os.PathLike) else list(map(str, data))
    is_csv = any(path.endswith((".csv", ".csv.gz")) for path in paths)
    try:
        return (read_csv if is_csv else read_parquet)(paths, include_paths=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{', '.join(paths)} cannot be read: {error}") from error


def _check_columns(rows: Dataset, names: Sequence[str]) -> None:
    there = rows.columns() or []
    for name in names:
        if name not in there:
            shown = ", ".join(each for each in there if each != _PATH)
            raise InputError(f"the data has no column {name}; its columns are {shown}")


def _workers(num_gpus: float) -> int:
    """As many as the cluster holds; who reads the files needs a core as well."""
    have = ray.cluster_resources()
    most = have.get("GPU", 0) / num_gpus if num_gpus else have.get("CPU", 1) - 1
    return max(1, int(most))


def _block(keys: list, state: bytes, rows: int, error: str) -> pa.Table:
    values = {"keys": [keys], "rows": [rows], "error": [error]}
    return pa.table(values | {"state": pa.array([state], pa.binary())})


def _runs(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each file, with its path; of rows that came from elsewhere all, without one."""
    if _PATH not in rows.column_names:
        yield "", rows
        return
    lengths = rows.column(_PATH).combine_chunks().dictionary_encode().indices.to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(lengths)) + 1), len(rows)]
    for start, end in pairwise(starts):
        if end > start:
            yield rows.column(_PATH)[int(start)].as_py(), rows[int(start) : int(end)]


def _tasks(state: SavedState, indices: Sequence[int]) -> SavedState:
    """Some of a state's tasks."""
    chosen = torch.tensor(indices, dtype=torch.long)
    return state.map(lambda z: z.index_select(state.batch_dim, chosen.to(z.device)))


def _concatenated(states: Sequence[SavedState]) -> SavedState:
    """The tasks of all states, in one."""
    first = states[0]
    tensors = zip(*(state.tensors() for state in states), strict=True)
    joined = iter([torch.cat(parts, dim=first.batch_dim) for parts in tensors])
    return first.map(lambda _: next(joined))


def _prior(model: MergingProcess) -> SavedState:
    """The state of no points, where states are merged."""
    like = next(model.parameters())
    with evaluating(model):
        x, y = (like.new_zeros(1, 0, len(names)) for names in model.columns)
        return model.condition(x, y).to("cpu")


def _states(
    blocks: Dataset, prior: SavedState, on_rows: Callable[[int], None]
) -> Iterator[_KeyedStates]:
    """The states of blocks as they are done.

    Each is merged with the prior, which changes nothing but that it is as all merged states are:
    without what only a query needs.

    Raises:
        InputError: on the first block with wrong rows.
    """
    for block in blocks.iter_rows():
        if block["error"]:
            raise InputError(block["error"])
        on_rows(block["rows"])
        keys, state = list(block["keys"]), type(prior).from_bytes(block["state"])
        yield _KeyedStates(keys, state.merge(prior.repeat(len(keys))))


def _merged(states: Iterable[_KeyedStates], name: str) -> _KeyedStates:
    """All of them in one, by a tree: each is merged with one of as many blocks, as in counting."""
    levels: list[_KeyedStates | None] = []
    for each in states:
        carry = each
        for level in count():
            if level == len(levels):
                levels.append(None)
            other = levels[level]
            if other is None:
                levels[level] = carry
                break
            carry, levels[level] = other.merge(carry), None
    parts = [part for part in levels if part is not None]
    if not parts:
        raise InputError(f"{name} has no rows")
    return reduce(_KeyedStates.merge, parts)
