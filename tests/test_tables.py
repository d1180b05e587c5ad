"""Points come out of files as they are there, a piece at a time, and go in whole or not at all."""

import gzip
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from helpers import few_examples
from hypothesis import given
from hypothesis import strategies as st

from npbench import tables
from npbench.tables import PointTable, TableWriter

pytestmark = pytest.mark.usefixtures("as_a_user")

NAMES = ["points.parquet", "points.pq", "points.csv", "points.csv.gz", "POINTS.CSV.GZ"]
NUMBERS = {"a": [0.5, -1.25, 3.0], "b": [1.0, 2.0, 4.0], "c": [7.0, 8.0, 9.0]}


def write(path: Path, columns: dict[str, object], row_group_size: int = 1000) -> Path:
    """The table in a file of the kind that its name says."""
    table = pa.table(columns)
    if path.suffix in (".parquet", ".pq"):
        pa.parquet.write_table(table, path, row_group_size=row_group_size)
        return path
    text = pa.BufferOutputStream()
    pa.csv.write_csv(table, text)
    data = text.getvalue().to_pybytes()
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


def random_columns(rows: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(rows).normal(size=(3, rows))
    return dict(zip("abc", values, strict=True))


def values_of(table: PointTable) -> np.ndarray:
    """All chunks below one another, inputs before outputs."""
    width = len(table.x) + len(table.y)
    chunks = [np.hstack(chunk) if table.y else chunk for chunk in table]
    return np.vstack([np.empty((0, width)), *chunks])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files are read in so few bytes at a time that small ones have several blocks; by Arrow's
    threads, if they were asked to."""
    monkeypatch.setattr(tables, "_BLOCK", 500)
    threads = pa.cpu_count()
    pa.set_cpu_count(2)
    yield
    pa.set_cpu_count(threads)


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_those_that_are_named_in_that_order(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, NUMBERS)
    ((x, y),) = PointTable(path, ["c", "a"], ["b"])
    assert x.tolist() == [[7.0, 0.5], [8.0, -1.25], [9.0, 3.0]]
    assert y.tolist() == [[1.0], [2.0], [4.0]]
    (x,) = PointTable(str(path), ["b"])
    assert x.tolist() == [[1.0], [2.0], [4.0]]
    ((x, y),) = PointTable(path, ["a", "b"], ["b"])
    assert x[:, 1].tolist() == y[:, 0].tolist()


@given(
    rows=st.integers(0, 90),
    skip=st.integers(0, 100),
    chunk_size=st.integers(1, 40),
    row_group_size=st.integers(1, 40),
    kind=st.sampled_from(["parquet", "csv"]),
)
@few_examples
@pytest.mark.usefixtures("small_blocks")
def test_chunks_are_the_rows_after_those_that_are_skipped(
    rows: int,
    skip: int,
    chunk_size: int,
    row_group_size: int,
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Cut at multiples of the chunk's size, wherever the file's own pieces end."""
    columns = random_columns(rows)
    path = write(tmp_path_factory.mktemp("table") / f"points.{kind}", columns, row_group_size)
    table = PointTable(path, ["a", "b"], ["c"], skip, chunk_size)
    expected = np.stack([*columns.values()], axis=1)[skip:]
    assert np.array_equal(values_of(table), expected)
    sizes = [len(x) for x, _ in table]
    cuts = np.cumsum([min(skip, rows), *sizes]).tolist()
    assert all(size > 0 for size in sizes)
    assert cuts[1:-1] == [row for row in range(0, rows, chunk_size) if cuts[0] < row]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_rows_come_with_all_their_columns(kind: str, tmp_path: Path) -> None:
    columns = NUMBERS | {"name": ["p", "q", "r"]}
    path = write(tmp_path / f"points.{kind}", columns)
    (rows, x, y), *rest = PointTable(path, ["b"], skip=1, chunk_size=2).batches()
    assert rows.to_pydict() == {name: list(values[1:2]) for name, values in columns.items()}
    assert x.tolist() == [[2.0]]
    assert y.shape == (1, 0)
    assert len(rest) == 1


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, -2, 3]),
        pa.array([1, 2, 255], pa.uint8()),
        pa.array([2**60 + 1, 0, -1]),
        pa.array([0.5, 1.5, -2.0], pa.float16()),
        pa.array([0.1, 1.5, -2.0], pa.float32()),
        pa.array([Decimal("1.25"), Decimal("-3.50"), Decimal("0.00")]),
    ],
    ids=lambda values: str(values.type),
)
def test_numbers_of_every_kind_are_numbers(values: pa.Array, tmp_path: Path) -> None:
    path = write(tmp_path / "points.parquet", {"a": values})
    expected = [[float(value)] for value in values.to_pylist()]
    assert values_of(PointTable(path, ["a"])).tolist() == expected


@pytest.mark.usefixtures("small_blocks")
def test_what_the_first_rows_look_like_does_not_bind_those_after(tmp_path: Path) -> None:
    """Nor in a column that is neither input nor output, but goes into the predictions."""
    rows = [("1", ""), *[("2", "")] * 200, ("2.5", "late")]
    path = tmp_path / "points.csv"
    path.write_text("a,remark\n" + "\n".join(map(",".join, rows)))
    table = PointTable(path, ["a"], chunk_size=1000)
    ((all_rows, x, _),) = table.batches()
    assert x[:, 0].tolist() == [1.0, *[2.0] * 200, 2.5]
    assert all_rows["remark"].to_pylist()[-1] == "late"


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_memory_does_not_grow_with_the_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where all rows are one row group, as many programs write them."""
    monkeypatch.setattr(tables, "_BLOCK", 2**15)
    rows = 200_000 if kind == "csv" else 800_000
    path = write(tmp_path / f"points.{kind}", random_columns(rows), row_group_size=rows)
    assert path.stat().st_size > 11 * 2**20
    before, peak, seen = pa.total_allocated_bytes(), 0, 0
    for x, _ in PointTable(path, ["a", "b"], ["c"], chunk_size=2000):
        peak = max(peak, pa.total_allocated_bytes() - before)
        seen += len(x)
    assert seen == rows
    assert peak < 8 * 2**20


def test_the_number_of_rows_is_known_where_it_costs_no_pass(tmp_path: Path) -> None:
    for name, rows in {"points.parquet": 3, "points.csv": None}.items():
        assert PointTable(write(tmp_path / name, NUMBERS), ["a"], skip=2).num_rows() == rows


def test_empty_row_groups_are_no_chunks(tmp_path: Path) -> None:
    table, path = pa.table(NUMBERS), tmp_path / "points.parquet"
    with pa.parquet.ParquetWriter(path, table.schema) as writer:
        for part in (table[:0], table, table[:0], table, table[:0]):
            writer.write_table(part)
    sizes = [len(x) for x in PointTable(path, ["a"], skip=2, chunk_size=3)]
    assert sizes == [1, 3]


def spoilt(rows: int, row: int, value: object) -> list:
    values: list = [1.0] * rows
    values[row] = value
    return values


@pytest.mark.parametrize("skip", [0, 5, 17])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (spoilt(30, 21, None), "column b of .* has no value in row 22; drop such rows"),
        (spoilt(30, 21, float("nan")), "column b of .* (is nan|has no value) in row 22; drop such"),
        (spoilt(30, 29, float("inf")), "column b of .* is inf in row 30; drop such rows"),
        (spoilt(30, 18, -1e300), r"column b of .* is -1e\+300 in row 19; drop such rows"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_value_that_is_no_number_is_named_by_column_and_row(
    kind: str, values: list, message: str, skip: int, tmp_path: Path
) -> None:
    path = write(tmp_path / f"points.{kind}", {"a": [1.0] * 30, "b": values})
    chunks = iter(PointTable(path, ["a"], ["b"], skip, chunk_size=6))
    before = []
    with pytest.raises(ValueError, match=message):
        before.extend(len(x) for x, _ in chunks)
    bad = next(i for i, value in enumerate(values) if value != 1.0)
    assert skip + sum(before) == bad // 6 * 6


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "1,two",
            "points.csv cannot be read: column b, row 1,235: invalid value 'two', which is no",
        ),
        (
            "1,2020-01-01",
            "invalid value '2020-01-01', which is no number; dates are taken where all",
        ),
        ("1,true", "row 1,235: .*invalid value 'true'"),
        ('1,"1,5"', "row 1,235: .*invalid value '1,5'"),
        ("1", "row 1,235: Expected 2 columns, got 1"),
        ("1,2,3", "row 1,235: Expected 2 columns, got 3"),
        ("1,", "column b of .* has no value in row 1,235"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_after_all_chunks_before(
    line: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "points.csv"
    path.write_text("a,b\n" + "1,2\n" * 1234 + line + "\n" + "1,2\n" * 500)
    sizes = []
    with pytest.raises(ValueError, match=message):
        sizes.extend(len(x) for x in PointTable(path, ["a", "b"], chunk_size=100))
    assert set(sizes) == {100}
    assert 700 <= sum(sizes) <= 1200


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (2, "column day, row 1: invalid value '2024-01-31', which is no number; dates are taken "),
        (100_000, "column day, row 100,001: invalid value '1.2.2024', which is no date as in the "),
    ],
)
def test_dates_of_several_forms_are_refused_by_column_and_row(
    rows: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "points.csv"
    path.write_text("a;day;b\n" + "1;2024-01-31;2\n" * rows + "1;1.2.2024;2\n")
    with pytest.raises(ValueError, match=message) as error:
        values_of(PointTable(path, ["day"], ["b"], dates="days since 2020-01-01"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1.0", "2.0"], "string"),
        ([True, False], "bool"),
        ([None, None], "null"),
        ([[1.0], [2.0]], "list"),
    ],
)
def test_columns_without_numbers_are_refused(values: list, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "points.parquet", {"a": [1.0, 2.0], "b": values})
    with pytest.raises(ValueError, match=f"column b of .* holds {kind}.* values, not numbers"):
        values_of(PointTable(path, ["a"], ["b"]))


def test_a_header_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes("a,Höhe\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"points.csv names its columns in another .* in UTF-8$"):
        values_of(PointTable(path, ["a"], ["a"]))


@pytest.mark.parametrize("ask", [PointTable.num_rows, values_of])
def test_files_that_cannot_be_read_are_refused(
    ask: Callable[[PointTable], object], tmp_path: Path
) -> None:
    whole = write(tmp_path / "whole.parquet", random_columns(1000)).read_bytes()
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.parquet").write_text("a,b\n1,2\n")
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "plain.csv.gz").write_text("a,b\n1,2\n")
    (tmp_path / "semicolons.csv").write_text("a;c\n1;2\n")
    (tmp_path / "colons.csv").write_text("a:b\n1:2\n")
    (tmp_path / "twice.csv").write_text("a,b,a\n1,2,3\n")
    twice = pa.Table.from_arrays([pa.array([1.0])] * 3, names=["a", "b", "a"])
    pa.parquet.write_table(twice, tmp_path / "twice.parquet")
    for name, message in {
        "none.parquet": "there is no file .*none.parquet",
        "folder.parquet": "there is no file of points in the folder .*folder.parquet",
        "points.txt": "points.txt is neither a Parquet nor a CSV file by its name: .parquet, .pq,",
        "half.parquet": "half.parquet cannot be read: ",
        "text.parquet": "text.parquet cannot be read: ",
        "empty.parquet": "empty.parquet cannot be read: ",
        "empty.csv": "empty.csv cannot be read: Empty CSV file",
        "plain.csv.gz": "plain.csv.gz cannot be read: ",
        "semicolons.csv": "semicolons.csv has no column b; its columns are a, c",
        "colons.csv": "has no column a; its columns are a:b",
        "twice.csv": "has several columns a; its columns are a, b, a",
        "twice.parquet": "has several columns a; its columns are a, b, a",
    }.items():
        with pytest.raises(ValueError, match=message):
            ask(PointTable(tmp_path / name, ["a"], ["b"]))
    for kind in ("parquet", "csv"):
        path = write(tmp_path / f"points.{kind}", NUMBERS)
        with pytest.raises(ValueError, match="has no column lat; its columns are a, b, c"):
            ask(PointTable(path, ["a"], ["lat"]))


def test_a_compressed_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "points.csv.gz", random_columns(5000))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"points\.csv\.gz cannot be read: "):
        values_of(PointTable(path, ["a"]))


def test_a_chunk_holds_one_row_at_least(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chunk_size=0 must be 1 or more"):
        PointTable(tmp_path / "points.csv", ["a"], chunk_size=0)


PIECES = [pa.table({"a": [1.0, 2.0], "s": ["p", "q"]}), pa.table({"a": [3.0], "s": ["r"]})]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_written_in_pieces_is_the_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / name
    with TableWriter(path) as writer:
        for piece in PIECES:
            writer.write(piece)
            assert not path.exists()
    assert writer.num_rows == 3
    ((rows, x, _),) = PointTable(path, ["a"]).batches()
    assert rows.to_pydict() == pa.concat_tables(PIECES).to_pydict()
    assert x.tolist() == [[1.0], [2.0], [3.0]]
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == path.name.lower().endswith(".gz")
    assert list(path.parent.iterdir()) == [path]


def interrupted(writer: TableWriter, _: pytest.MonkeyPatch) -> None:
    with writer:
        writer.write(PIECES[0])
        raise KeyboardInterrupt


def failing_at_once(writer: TableWriter, _: pytest.MonkeyPatch) -> None:
    with writer:
        raise OSError("before the first row")


def other_columns(writer: TableWriter, _: pytest.MonkeyPatch) -> None:
    with writer:
        writer.write(PIECES[0])
        writer.write(pa.table({"b": [1]}))


def without_a_place(writer: TableWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(*_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patched, writer:
        patched.setattr("os.replace", replace)
        writer.write(PIECES[0])


def discarded(writer: TableWriter, _: pytest.MonkeyPatch) -> None:
    writer.write(PIECES[0])
    writer.discard()
    writer.discard()
    raise OSError("as it should be")


@pytest.mark.parametrize(
    "failure", [interrupted, failing_at_once, other_columns, without_a_place, discarded]
)
@pytest.mark.parametrize("name", ["points.parquet", "points.csv"])
@pytest.mark.parametrize("before", [None, "what was there"])
def test_a_failure_leaves_the_file_as_it_was_and_no_litter(
    name: str,
    before: str | None,
    failure: Callable[[TableWriter, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / name
    if before is not None:
        path.write_text(before)
    with pytest.raises((KeyboardInterrupt, OSError, ValueError)):
        failure(TableWriter(path), monkeypatch)
    assert list(tmp_path.iterdir()) == ([path] if before else [])
    assert before is None or path.read_text() == before


@pytest.mark.parametrize("name", ["points.parquet", "points.csv"])
def test_what_is_complete_is_not_discarded(name: str, tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / name)
    writer.write(PIECES[0])
    writer.close()
    writer.close()
    writer.discard()
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_without_rows_there_is_no_file(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "points.parquet"):
        pass
    assert not list(tmp_path.iterdir())


def test_places_and_rows_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    before = set(tmp_path.iterdir())
    for name, message in {
        "points.xlsx": "points.xlsx is neither a Parquet nor a CSV file by its name",
        "folder.csv": "folder.csv is a folder; name a file in it",
        "file/points.csv": "points.csv cannot be written ",
        "lists.csv": "lists.csv cannot be written: Unsupported Type:list",
    }.items():
        rows = pa.table({"a": [[1.0]]}) if name == "lists.csv" else PIECES[0]
        with pytest.raises(ValueError, match=message), TableWriter(tmp_path / name) as writer:
            writer.write(rows)
    assert set(tmp_path.iterdir()) == before


def complete(writer: TableWriter, _: pytest.MonkeyPatch) -> None:
    with writer:
        writer.write(PIECES[0])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["points.parquet", "points.csv", "points.csv.gz"])
@pytest.mark.parametrize("use", [complete, interrupted])
def test_a_full_disk_is_an_error_and_leaves_no_litter(
    name: str, use: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compressed is written at the end alone: after an interrupt, in vain."""
    output_stream = pa.output_stream
    monkeypatch.setattr(pa, "output_stream", lambda _, kind: output_stream("/dev/full", kind))
    comes_first = use is interrupted and name.endswith(".gz")
    with pytest.raises(KeyboardInterrupt if comes_first else (ValueError, OSError)):
        use(TableWriter(tmp_path / name), monkeypatch)
    assert not list(tmp_path.iterdir())
