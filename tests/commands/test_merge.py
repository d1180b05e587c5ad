"""States of several tables merge into the state of all of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_close, small_cmanp

from npbench.cli import main
from npbench.models import CMANP, CMANPState
from npbench.models.contracts.state_files import read_notes

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    """Three tables in a folder of their own."""
    folder = tmp_path / "tables"
    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(90, 3))
    paths = [folder / f"{name}.csv" for name in "abc"]
    for path, rows in zip(paths, np.split(values, 3), strict=True):
        pd.DataFrame(rows, columns=["lat", "lon", "t"]).to_csv(path, index=False)
    return paths


def condition(checkpoint: Path, out: Path, *data: object) -> Path:
    main(["condition", "--ckpt", str(checkpoint), "--data", *map(str, data), "--x", "lat,lon",
          "--y", "t", "--out", str(out), "--device", "cpu"])  # fmt: skip
    return out


def merge(out: Path, *states: Path) -> None:
    main(["merge", *map(str, states), "--out", str(out), "--device", "cpu"])


def test_merged_states_answer_as_the_state_of_all_tables(
    tables: list[Path], checkpoint: Path, model: CMANP, tmp_path: Path
) -> None:
    states = [condition(checkpoint, path.with_suffix(".state"), path) for path in tables]
    merge(tmp_path / "merged", *states)
    condition(checkpoint, tmp_path / "whole", *tables)
    condition(checkpoint, tmp_path / "folder", tables[0].parent)
    condition(checkpoint, tmp_path / "pattern", tables[0].parent / "[a-c].csv")
    loaded = {name: CMANPState.load(tmp_path / name, model)
              for name in ("merged", "whole", "folder", "pattern")}  # fmt: skip
    x = torch.randn(1, 5, 2)
    with torch.no_grad():
        answers = {name: model.query(state, x) for name, state in loaded.items()}
    for name in ("merged", "folder", "pattern"):
        assert_close(answers[name].mean, answers["whole"].mean)
        assert_close(answers[name].stddev, answers["whole"].stddev)
    notes = read_notes(tmp_path / "merged")
    assert (notes["rows"], notes["x"], notes["y"]) == ("90", "lat,lon", "t")


def test_a_merged_state_answers_query_and_takes_more_points(
    tables: list[Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    states = [condition(checkpoint, path.with_suffix(".state"), path) for path in tables[:2]]
    merged, out = tmp_path / "merged", tmp_path / "out.csv"
    merge(merged, *states)
    assert "2 states of 60 points merged into" in capsys.readouterr().out
    main(["query", "--state", str(merged), "--targets", str(tables[2]), "--out", str(out)])
    assert list(pd.read_csv(out).columns) == ["lat", "lon", "t", "t_mean", "t_std"]
    main(["condition", "--state", str(merged), "--data", str(tables[2]), "--out", str(merged)])


def test_states_that_do_not_belong_together_are_refused(
    tables: list[Path],
    checkpoint: Path,
    save_checkpoint: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    first = condition(checkpoint, tmp_path / "first", tables[0])
    again = condition(checkpoint, tmp_path / "again", tables[0])
    other = save_checkpoint(small_cmanp(dim_x=2), tmp_path / "other.ckpt")
    foreign = condition(other, tmp_path / "foreign", tables[1])
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(tables[1].read_text().replace("lat", "latitude"))
    main(["condition", "--ckpt", str(checkpoint), "--data", str(renamed), "--x", "latitude,lon",
          "--y", "t", "--out", str(tmp_path / "columns")])  # fmt: skip
    for states, message in [
        ([first, again], "are of the same rows, whose points would count twice"),
        ([first, first], "are of the same rows"),
        ([first, foreign], "a state of another model, or of other weights"),
        ([first, tmp_path / "columns"], "differ in --x: lat,lon and latitude,lon"),
        ([first, tables[0]], "is no state file"),
        ([first, tmp_path / "none"], "there is no state file"),
    ]:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            merge(tmp_path / "merged", *states)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        merge(first, first)
    assert "is what the result is made from" in capsys.readouterr().err


def test_dates_and_decimal_commas_go_from_condition_to_query(
    checkpoint: Path, tmp_path: Path, model: CMANP
) -> None:
    points = tmp_path / "points.csv"
    points.write_text("day;place;t\n2020-01-01;0,5;1,5\n2020-01-02;1,5;2\n")
    state, out = tmp_path / "state", tmp_path / "out.csv"
    main(["condition", "--ckpt", str(checkpoint), "--data", str(points), "--x", "day,place",
          "--y", "t", "--dates", "days since 2020-01-01", "--out", str(state)])  # fmt: skip
    main(["query", "--state", str(state), "--targets", str(points), "--out", str(out)])
    x, y = np.array([[0.0, 0.5], [1.0, 1.5]]), np.array([[1.5], [2.0]])
    with torch.no_grad():
        expected = model.query(model.condition(x, y), x).mean[0, :, 0]
    assert_close(torch.tensor(pd.read_csv(out)["t_mean"].to_numpy()).float(), expected)
