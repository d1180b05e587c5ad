"""Files of points are found, and their numbers understood, as they were meant."""

from datetime import date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from npbench.point_files import DateUnit, Dialect, dialect_of, files_in
from npbench.tables import PointTable

pytestmark = pytest.mark.usefixtures("as_a_user")

DAYS = "days since 2020-01-01"


def text_of(rows: list[list[str]], separator: str) -> str:
    return "".join(f"{separator.join(row)}\n" for row in rows)


def values_of(table: PointTable) -> list[list[float]]:
    return np.vstack([np.hstack(chunk) for chunk in table]).tolist()


@pytest.mark.parametrize(
    ("separator", "decimal"),
    [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), ("|", "."), ("|", ",")],
)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_separators_and_decimal_marks_are_recognised(
    separator: str, decimal: str, suffix: str, tmp_path: Path
) -> None:
    numbers = pd.DataFrame({"name": ["a,b", "c;d"], "x": [0.25, -1500.5], "y": [1.0, 2.0]})
    path = tmp_path / f"points.{suffix}"
    numbers.to_csv(path, sep=separator, decimal=decimal, index=False)
    assert values_of(PointTable(path, ["x"], ["y"])) == [[0.25, 1.0], [-1500.5, 2.0]]
    (rows, *_) = next(PointTable(path, ["x"], ["y"]).batches())
    assert rows.column("name").to_pylist() == ["a,b", "c;d"]


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("x,y\n1.5,2\n", (",", ".")),
        ("x;y\n1,5;2\n", (";", ",")),
        ("x;y\n1.5;2\n", (";", ".")),
        ("x;y\n1;2\n", (";", ".")),
        ("x\ty\n1,5\t2\n", ("\t", ",")),
        # Points and commas: one groups thousands, and nothing is guessed.
        ("x;y\n1.234,5;2\n", (";", ".")),
        ("x;y\n1.5;2,5\n", (";", ".")),
        # Other columns do not tell.
        ("x;y;z\n1;2;3,5\n", (";", ".")),
        ('x,y\n"1,500",2\n', (",", ".")),
        ('"x";"y"\n"1,5";"2"\n', (";", ",")),
        ("\ufeffx;y\n1,5;2\n", (";", ",")),
        # The end of what was seen may be half a number.
        ("x;y\n1;2\n3;4,5", (";", ".")),
        ("x;y", (";", ".")),
        ("", (",", ".")),
    ],
)
def test_a_dialect_is_told_from_the_wanted_columns(text: str, dialect: tuple[str, str]) -> None:
    assert dialect_of(text, ["x", "y"]) == Dialect(*dialect)


def test_what_is_not_recognised_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text('x:y\n1:2\n"1,5":2\n')
    table = PointTable(path, ["x"], ["y"], separator=":", decimal=",")
    assert values_of(table) == [[1.0, 2.0], [1.5, 2.0]]
    with pytest.raises(ValueError, match=r"has no column x; its columns are x:y"):
        values_of(PointTable(path, ["x"], ["y"]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("values", "days"),
    [
        ([date(2020, 1, 1), date(2019, 12, 31)], [0.0, -1.0]),
        ([datetime(2020, 1, 2, 6), datetime(2020, 1, 1, 0, 0, 0, 864)], [1.25, 1e-8]),
    ],
)
def test_dates_are_numbers_of_the_unit_that_is_named(
    kind: str, values: list, days: list[float], tmp_path: Path
) -> None:
    path = tmp_path / f"points.{kind}"
    points = pd.DataFrame({"t": values, "y": [1.0, 2.0]})
    points.to_csv(path, index=False) if kind == "csv" else points.to_parquet(path)
    for unit, each in {"days": 1, "hours": 24, "minutes": 1440, "seconds": 86_400}.items():
        table = PointTable(path, ["t"], ["y"], dates=f"{unit} since 2020-01-01")
        numbers = np.array(values_of(table))[:, 0]
        np.testing.assert_allclose(numbers, each * np.array(days), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"column t of .* holds dates: .*days since 2020-01-01"):
        values_of(PointTable(path, ["t"], ["y"]))


def test_dates_of_a_time_zone_are_those_of_utc(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("t,y\n2020-01-01T00:00:00Z,1\n2020-01-02T02:00:00+02:00,2\n")
    assert values_of(PointTable(path, ["t"], ["y"], dates=DAYS)) == [[0.0, 1.0], [1.0, 2.0]]


@pytest.mark.parametrize("text", ["days", "weeks since 2020-01-01", "days since noon", ""])
def test_a_unit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no unit of dates: write it as"):
        DateUnit.parse(text)


def test_files_of_folders_and_patterns_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.csv", "a.parquet", "c.csv.gz", "notes.txt", ".hidden"):
        (tmp_path / name).touch()
    assert [file.name for file in files_in(tmp_path)] == ["a.parquet", "b.csv", "c.csv.gz"]
    assert [file.name for file in files_in(str(tmp_path / "[bc]*.csv*"))] == ["b.csv", "c.csv.gz"]
    both = files_in([tmp_path / "c.csv.gz", tmp_path / "a.*"])
    assert [file.name for file in both] == ["c.csv.gz", "a.parquet"]
    with pytest.raises(ValueError, match=r"b.csv is named twice, and its points would count"):
        files_in([tmp_path, tmp_path / "b.csv"])


@pytest.mark.parametrize("skip", [0, 2, 3, 4, 9])
def test_the_points_of_several_files_are_those_of_one(skip: int, tmp_path: Path) -> None:
    points = pd.DataFrame(np.arange(14.0).reshape(7, 2), columns=["x", "y"])
    points[:3].to_csv(tmp_path / "a.csv", index=False)
    points[3:4].to_parquet(tmp_path / "b.parquet")
    points[4:].to_csv(tmp_path / "c.csv", index=False, sep=";")
    table = PointTable(tmp_path, ["x"], ["y"], skip=skip, chunk_size=2)
    chunks = [np.hstack(chunk) for chunk in table]
    assert np.vstack([np.empty((0, 2)), *chunks]).tolist() == points[skip:].to_numpy().tolist()
    assert PointTable(tmp_path / "b.*", ["x"]).num_rows() == 1
    assert table.num_rows() is None


def test_the_file_with_a_wrong_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n3,\n")
    with pytest.raises(ValueError, match=r"column y of .*b.csv has no value in row 2;"):
        values_of(PointTable(tmp_path, ["x"], ["y"]))
