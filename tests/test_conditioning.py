"""The state of a table is the model's own, through errors and interrupts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_same_record, small_cmanp

from npbench.conditioning import write_state
from npbench.errors import InputError
from npbench.models import CMANP, CMANPState
from npbench.models.contracts.state_files import read_notes
from npbench.tables import PointTable

pytestmark = pytest.mark.usefixtures("as_a_user")

CHUNK = 30


@pytest.fixture
def model() -> CMANP:
    return small_cmanp(dim_x=2)


def frame(rows: int, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    return pd.DataFrame(values, columns=["lat", "t", "lon"])


def table_of(frame: pd.DataFrame, folder: Path, **options: object) -> PointTable:
    frame.to_parquet(folder / "points.parquet")
    columns = {"x": ["lat", "lon"], "y": ["t"], "chunk_size": CHUNK}
    return PointTable(folder / "points.parquet", **(columns | options))


def state_of(model: CMANP, frame: pd.DataFrame) -> CMANPState:
    """Absorbed in the same chunks, but in memory."""
    chunks = (frame[i : i + CHUNK] for i in range(0, len(frame), CHUNK))
    with torch.no_grad():
        return model.condition(
            (chunk[["lat", "lon"]].to_numpy(), chunk[["t"]].to_numpy()) for chunk in chunks
        )


def interrupted_after(rows: int, error: type[BaseException]) -> Callable[[int], None]:
    """For `on_rows`: an error after that many rows."""
    absorbed = []

    def on_rows(count: int) -> None:
        absorbed.append(count)
        if sum(absorbed) >= rows:
            raise error("enough")

    return on_rows


@pytest.mark.parametrize("rows", [1, 29, 30, 31, 100])
def test_the_file_is_the_state_of_all_rows(rows: int, model: CMANP, tmp_path: Path) -> None:
    path, counts = tmp_path / "new" / "state", []
    notes = {"by": "a test"}
    table = table_of(frame(rows), tmp_path)
    assert write_state(model, table, str(path), notes=notes, on_rows=counts.append) == rows
    assert counts == [CHUNK] * (rows // CHUNK) + [rows % CHUNK] * (rows % CHUNK > 0)
    assert_same_record(CMANPState.load(path, model), state_of(model, frame(rows)))
    facts = {"x": "lat,lon", "y": "t", "rows": str(rows), "by": "a test"}
    assert read_notes(path).items() >= facts.items()
    assert list(path.parent.iterdir()) == [path]
    assert notes == {"by": "a test"}


@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("skip", [0, CHUNK])
def test_interrupted_and_resumed_is_bitwise_uninterrupted(
    with_start: bool, error: type[BaseException], skip: int, model: CMANP, tmp_path: Path
) -> None:
    start = state_of(model, frame(11, seed=1)) if with_start else None
    table = table_of(frame(100 + skip), tmp_path, skip=skip)
    whole, path, partial = (tmp_path / name for name in ("whole", "state", "state.partial"))
    write_state(model, table, whole, start)
    path.write_text("what was there")
    for rows in (30, 60, 90):
        message = f"the state of the first {rows} rows is kept in {partial}"
        with pytest.raises((KeyboardInterrupt, ValueError), match=message):
            write_state(model, table, path, start, on_rows=interrupted_after(rows, error))
        assert path.read_text() == "what was there"
        assert read_notes(partial)["rows"] == str(rows)
    counts = []
    assert write_state(model, table, path, start, on_rows=counts.append) == 100
    assert counts == [90, 10]
    assert_same_record(CMANPState.load(path, model), CMANPState.load(whole, model))
    assert read_notes(path) == read_notes(whole)
    assert not partial.exists()


def test_points_are_added_to_a_state(model: CMANP, tmp_path: Path) -> None:
    start = state_of(model, frame(60, seed=1))
    write_state(model, table_of(frame(40), tmp_path), tmp_path / "state", start)
    expected = state_of(model, pd.concat([frame(60, seed=1), frame(40)]))
    assert_same_record(CMANPState.load(tmp_path / "state", model), expected)


@pytest.mark.parametrize("change", ["rows", "columns", "weights", "start"])
def test_what_was_begun_otherwise_is_not_gone_on_with(
    change: str, model: CMANP, tmp_path: Path
) -> None:
    start = state_of(model, frame(11, seed=1))
    table, path = table_of(frame(100), tmp_path), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        write_state(model, table, path, start, on_rows=interrupted_after(60, KeyboardInterrupt))
    before = (tmp_path / "state.partial").read_bytes()
    if change == "rows":
        table = table_of(frame(100, seed=2), tmp_path)
    elif change == "columns":
        table = table_of(frame(100), tmp_path, x=["lon", "lat"])
    elif change == "weights":
        model = small_cmanp(dim_x=2)
    else:
        start = state_of(model, frame(12, seed=1))
    with pytest.raises(ValueError, match="was left by a run on other data, columns, weights or "):
        write_state(model, table, path, start)
    assert (tmp_path / "state.partial").read_bytes() == before
    assert not path.exists()


def test_gradients_and_modes_are_as_they_were(model: CMANP, tmp_path: Path) -> None:
    model.train()
    write_state(model, table_of(frame(40), tmp_path), tmp_path / "state")
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (0, {}, "points.parquet has no rows$"),
        (40, {"x": ["lat"]}, r"dim_x=2, and 1 column\(s\) of inputs are named: lat"),
        (40, {"y": []}, r"dim_y=1, and 0 column\(s\) of outputs are named: "),
    ],
)
def test_tables_that_cannot_be_absorbed_are_refused(
    rows: int, columns: dict, message: str, model: CMANP, tmp_path: Path
) -> None:
    table = table_of(frame(rows), tmp_path, **columns)
    with pytest.raises(ValueError, match=message):
        write_state(model, table, tmp_path / "state")
    assert list(tmp_path.iterdir()) == [Path(table.path)]


@pytest.mark.parametrize("row", [3, 30, 77])
def test_a_value_that_overflows_is_named_by_column_and_row(
    row: int, model: CMANP, tmp_path: Path
) -> None:
    """And the rows of the chunks before it are kept."""
    points, path = frame(100), tmp_path / "state"
    points.loc[row, "t"] = 1e30
    table = table_of(points, tmp_path)
    message = (
        rf"column t of .*points.parquet is of size 1e\+30 in row {row + 1}, .*; drop such rows"
    )
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            write_state(model, table, path)
        assert not path.exists()
    with pytest.raises(InputError, match=f"in row {row + 1}, "):
        write_state(model, table_of(points, tmp_path, skip=2), tmp_path / "other")
    points.loc[row, "t"] = 1.0
    assert write_state(model, table_of(points, tmp_path), path) == 100
    assert_same_record(CMANPState.load(path, model), state_of(model, points))
