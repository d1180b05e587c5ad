"""Predictions at the rows of a table are the model's own, row by row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import random_points, small, small_cmanp

from npbench.models import CMANP, NeuralProcess
from npbench.models.contracts.process import State
from npbench.predictions import write_predictions
from npbench.tables import PointTable

pytestmark = pytest.mark.usefixtures("as_a_user")


def frame(rows: int) -> pd.DataFrame:
    values = np.random.default_rng(rows).normal(size=(rows, 2))
    return pd.DataFrame({"lon": values[:, 0], "name": "p", "lat": values[:, 1]})


def targets_of(frame: pd.DataFrame, folder: Path, chunk_size: int = 7) -> PointTable:
    frame.to_parquet(folder / "targets.parquet")
    return PointTable(folder / "targets.parquet", ["lat", "lon"], chunk_size=chunk_size)


def conditioned(model: NeuralProcess) -> State:
    with torch.no_grad():
        dtype = next(model.parameters()).dtype
        return model.condition(*random_points(1, 9, model.dim_x, model.dim_y, dtype))


@pytest.mark.parametrize("name", ["CMANP", "CNP", "TNPD"])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("rows", [1, 7, 23])
def test_every_row_has_its_own_prediction_behind_its_columns(
    name: str, kind: str, rows: int, tmp_path: Path
) -> None:
    model, points, path = small(name), frame(rows), tmp_path / f"predictions.{kind}"
    state, counts = conditioned(model), []
    targets = targets_of(points, tmp_path)
    assert write_predictions(model, state, targets, path, on_rows=counts.append) == rows
    assert sum(counts) == rows
    assert max(counts) <= 7
    read = pd.read_parquet(path) if kind == "parquet" else pd.read_csv(path)
    new = [f"{y}_{statistic}" for y in ("y0", "y1", "y2") for statistic in ("mean", "std")]
    assert list(read) == [*points, *new]
    pd.testing.assert_frame_equal(read[[*points]], points, check_dtype=False)
    with torch.no_grad():
        expected = model.marginals(state, points[["lat", "lon"]].to_numpy())
    for i, name in enumerate(("y0", "y1", "y2")):
        np.testing.assert_allclose(read[f"{name}_mean"], expected.mean[0, :, i], 1e-9, 1e-9)
        np.testing.assert_allclose(read[f"{name}_std"], expected.std[0, :, i], 1e-9, 1e-9)


def test_outputs_are_named_as_the_data_were(tmp_path: Path) -> None:
    model = small("CMANP")
    targets, path = targets_of(frame(3), tmp_path), tmp_path / "predictions.parquet"
    write_predictions(model, conditioned(model), targets, path, ["u", "v", "w"])
    new = ["u_mean", "u_std", "v_mean", "v_std", "w_mean", "w_std"]
    assert list(pd.read_parquet(path)) == [*frame(3), *new]


def test_a_joint_model_s_targets_see_no_more_than_their_chunk(tmp_path: Path) -> None:
    """Their marginals are those of the model, chunk by chunk."""
    model, points = small("CMANPAND"), frame(10)
    state, path = conditioned(model), tmp_path / "predictions.parquet"
    write_predictions(model, state, targets_of(points, tmp_path, chunk_size=4), path)
    with torch.no_grad():
        chunks = [points[["lat", "lon"]][i : i + 4].to_numpy() for i in (0, 4, 8)]
        means = torch.cat([model.marginals(state, x).mean[0] for x in chunks])
    np.testing.assert_allclose(pd.read_parquet(path)["y2_mean"], means[:, 2], 1e-9, 1e-9)


def test_the_model_predicts_in_evaluation_mode_and_is_left_as_it_was(tmp_path: Path) -> None:
    model = small_cmanp(dim_x=2, dropout=0.5)
    state, targets = conditioned(model), targets_of(frame(5), tmp_path)
    paths = tmp_path / "evaluating.csv", tmp_path / "training.csv"
    for path, training in zip(paths, (False, True)):
        model.train(training)
        model.blocks.eval()
        write_predictions(model, state, targets, path)
        assert model.training == model.decoder.training == training
        assert not model.blocks.training
    assert paths[0].read_text() == paths[1].read_text()


def test_the_model_is_asked_a_chunk_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    marginals = CMANP.marginals
    monkeypatch.setattr(
        CMANP, "marginals", lambda m, state, x: asked.append(len(x)) or marginals(m, state, x)
    )
    model = small_cmanp(dim_x=2)
    targets = targets_of(frame(100), tmp_path, chunk_size=30)
    write_predictions(model, conditioned(model), targets, tmp_path / "predictions.csv")
    assert asked == [30, 30, 30, 10]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda points: points.assign(lat=points["lat"].where(points.index != 19)),
            "column lat of .* (is nan|has no value) in row 20; drop such rows",
        ),
        (
            lambda points: points.assign(lat=points["lat"].where(points.index != 19, np.inf)),
            "column lat of .* is inf in row 20; drop such rows",
        ),
        (lambda points: points.assign(y0_std=1.0), r"targets.* has a column y0_std already"),
        (lambda points: points[:0], r"targets.* has no rows to predict at"),
        (lambda points: points.drop(columns="lon"), "has no column lon; its columns are name, lat"),
    ],
    ids=["NaN", "infinite", "such a column", "no rows", "no column"],
)
@pytest.mark.parametrize("before", [None, "what was there"])
def test_an_error_leaves_no_file_and_one_that_was_there_as_it_was(
    spoil: Callable, message: str, before: str | None, tmp_path: Path
) -> None:
    model, path = small_cmanp(dim_x=2), tmp_path / "predictions.csv"
    targets = targets_of(spoil(frame(30)), tmp_path)
    if before:
        path.write_text(before)
    files = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        write_predictions(model, conditioned(model), targets, path)
    assert set(tmp_path.iterdir()) == files
    assert before is None or path.read_text() == before


def test_names_that_are_not_the_model_s_outputs_are_refused(tmp_path: Path) -> None:
    model, targets = small_cmanp(dim_x=2), targets_of(frame(3), tmp_path)
    with pytest.raises(ValueError, match="2 names of outputs, t, u, for a model of 1"):
        write_predictions(model, conditioned(model), targets, tmp_path / "p.csv", ["t", "u"])


def test_a_state_of_several_tasks_is_refused(tmp_path: Path) -> None:
    model, targets = small_cmanp(dim_x=2), targets_of(frame(3), tmp_path)
    state = conditioned(model).repeat(2)
    with pytest.raises(ValueError, match="xt has 1 tasks, the state 2"):
        write_predictions(model, state, targets, tmp_path / "predictions.csv")


def test_a_target_of_which_the_prediction_overflows_is_named_by_its_row(tmp_path: Path) -> None:
    model, points = small_cmanp(dim_x=2), frame(20)
    points.loc[16, "lon"] = -3e37
    out = tmp_path / "predictions.parquet"
    message = r"column lon of .*targets.parquet is of size 3e\+37 in row 17, .*; drop such rows"
    with pytest.raises(ValueError, match=message):
        write_predictions(model, conditioned(model), targets_of(points, tmp_path), out)
    assert not out.exists()
