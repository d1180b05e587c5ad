"""A state answers at the rows of a table: the model's predictions, or no file."""

import os
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small, small_cmanp

from npbench.cli import main
from npbench.errors import DataWarning
from npbench.models import CMANP, CMANPState
from npbench.models.contracts import Points
from npbench.models.contracts.ranges import Ranges
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

pytestmark = pytest.mark.usefixtures("as_a_user")

KINDS = ["parquet", "csv", "csv.gz"]


def frame(rows: int, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(rows, 3))
    return pd.DataFrame(values, columns=["lat", "t", "lon"])


def write(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(frame(200), tmp_path / "points.parquet")


@pytest.fixture
def state(data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
    """What `npbench condition` has made of the data."""
    out = tmp_path / "the state"
    words = ["--ckpt", checkpoint, "--data", data, "--x", "lat,lon", "--y", "t", "--out", out]
    main(["condition", *map(str, words)])
    return out


@pytest.fixture
def targets(tmp_path: Path) -> Path:
    points = frame(50, seed=1).assign(place=[f"P{i}" for i in range(50)])
    return write(points, tmp_path / "targets.parquet")


def run(**options: object) -> None:
    """`npbench query`; an option that is None is left out."""
    arguments = [(f"--{k}", str(v)) for k, v in options.items() if v is not None]
    assert main(["query", *(word for pair in arguments for word in pair)]) is None


def error_of(capsys: pytest.CaptureFixture, code: int = 1, **options: object) -> str:
    """The sentence that a mistake ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(**options)
    assert exit_.value.code == code
    message, *more = capsys.readouterr().err.splitlines()
    assert len(more) == (code != 130)
    return message


def predicted(model: CMANP, points: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """By the model itself, in Python."""
    x, y = (frame(200)[names].to_numpy() for names in (["lat", "lon"], ["t"]))
    with torch.no_grad():
        prediction = model.query(model.condition(x, y), points[["lat", "lon"]].to_numpy())
    return prediction.mean[0, :, 0].numpy(), prediction.stddev[0, :, 0].numpy()


def assert_predictions(path: Path, model: CMANP, points: pd.DataFrame) -> None:
    table = read(path)
    assert list(table) == [*points, "t_mean", "t_std"]
    pd.testing.assert_frame_equal(table[[*points]], points, check_dtype=False, rtol=1e-12)
    mean, std = predicted(model, points)
    np.testing.assert_allclose(table["t_mean"], mean, 1e-5, 1e-5)
    np.testing.assert_allclose(table["t_std"], std, 1e-5, 1e-5)


@pytest.mark.parametrize("out_kind", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_the_model_s(
    kind: str, out_kind: str, state: Path, model: CMANP, tmp_path: Path
) -> None:
    points = frame(30, seed=1).assign(place=[f"P{i}" for i in range(30)])
    targets = write(points, tmp_path / f"targets.{kind}")
    out = tmp_path / "new" / f"predictions.{out_kind}"
    run(state=state, targets=targets, out=out, device="cpu")
    assert_predictions(out, model, points)
    assert list(out.parent.iterdir()) == [out]


def test_more_targets_than_fit_into_a_chunk_are_one_table(
    state: Path, model: CMANP, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    points = frame(40_000, seed=1)
    out = tmp_path / "predictions.parquet"
    run(state=state, targets=write(points, tmp_path / "grid.parquet"), out=out)
    assert_predictions(out, model, points)
    assert capsys.readouterr().out.endswith(f"predictions at 40,000 targets written to {out}\n")


def test_the_command_that_condition_prints_is_the_one(
    data: Path,
    targets: Path,
    checkpoint: Path,
    model: CMANP,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--ckpt", checkpoint, "--data", data.name, "--x", "lat,lon", "--y", "t"]
    main(["condition", *map(str, words), "--out", "my state.safetensors"])
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1].replace("FILE", targets.name))
    assert printed[0] == "npbench"
    main(printed[1:])
    assert_predictions(tmp_path / "predictions.parquet", model, read(targets))


def test_the_targets_columns_may_have_other_names(
    state: Path, model: CMANP, tmp_path: Path
) -> None:
    points = frame(30, seed=1)
    renamed = points.rename(columns={"lat": "x 1", "lon": "x 2"})
    targets = write(renamed, tmp_path / "targets.csv")
    run(state=state, targets=targets, out=tmp_path / "p.csv", x="x 1,x 2")
    mean, _ = predicted(model, points)
    np.testing.assert_allclose(read(tmp_path / "p.csv")["t_mean"], mean, 1e-5, 1e-5)


def test_what_an_interrupted_condition_has_left_answers_too(
    targets: Path, model: CMANP, checkpoint: Path, tmp_path: Path
) -> None:
    """A state without latents, as `merge` leaves it."""
    x, y = (frame(200)[names].to_numpy() for names in (["lat", "lon"], ["t"]))
    with torch.no_grad():
        halves = [model.condition(x[part], y[part]) for part in (slice(100), slice(100, 200))]
    partial, out = tmp_path / "state.partial", tmp_path / "predictions.csv"
    notes = {"checkpoint": str(checkpoint), "x": "lat,lon", "y": "t"}
    halves[0].merge(halves[1]).save(partial, model, **notes)
    run(state=partial, targets=targets, out=out)
    assert_predictions(out, model, read(targets))


def test_a_checkpoint_that_was_moved_is_named(
    state: Path,
    targets: Path,
    model: CMANP,
    data: Path,
    save_checkpoint: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    here, there = tmp_path / "here.ckpt", tmp_path / "there.ckpt"
    save_checkpoint(model, here)
    words = ["--ckpt", here, "--data", data, "--x", "lat,lon", "--y", "t", "--out", state]
    main(["condition", *map(str, words)])
    here.rename(there)
    out = tmp_path / "predictions.parquet"
    message = error_of(capsys, state=state, targets=targets, out=out)
    assert f"made by {here}, which is not there any more; name it by --ckpt" in message
    assert not out.exists()
    run(state=state, targets=targets, out=out, ckpt=there)
    assert_predictions(out, model, read(targets))


def test_a_joint_model_answers_with_its_marginals(
    tmp_path: Path, save_checkpoint: Callable
) -> None:
    model = small("CMANPAND", 2, 2).float()
    checkpoint = save_checkpoint(model, tmp_path / "joint.ckpt")
    names = ["lat", "lon", "t", "u"]
    points = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 4)), columns=names)
    data, state = write(points, tmp_path / "points.csv"), tmp_path / "state"
    words = ["--ckpt", checkpoint, "--data", data, "--x", "lat,lon", "--y", "t,u", "--out", state]
    main(["condition", *map(str, words)])
    run(state=state, targets=data, out=tmp_path / "predictions.csv")
    table = read(tmp_path / "predictions.csv")
    assert list(table) == [*names, "t_mean", "t_std", "u_mean", "u_std"]
    x, y = points[names[:2]].to_numpy(), points[names[2:]].to_numpy()
    with torch.no_grad():
        expected = model.marginals(model.condition(x, y), x)
    np.testing.assert_allclose(table[["t_mean", "u_mean"]], expected.mean[0], 1e-4, 1e-5)
    np.testing.assert_allclose(table[["t_std", "u_std"]], expected.std[0], 1e-4, 1e-5)


@pytest.mark.parametrize("before", [None, "what was there"])
def test_an_interrupt_leaves_no_file_and_one_that_was_there_as_it_was(
    before: str | None,
    state: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets, out = write(frame(20_000), tmp_path / "grid.csv"), tmp_path / "predictions.parquet"
    if before:
        out.write_text(before)
    files, marginals, calls = set(tmp_path.iterdir()), CMANP.marginals, []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return marginals(*args)

    monkeypatch.setattr(CMANP, "marginals", interrupted)
    message = error_of(capsys, code=130, state=state, targets=targets, out=out)
    assert message == "npbench: interrupted"
    assert len(calls) == 2
    assert set(tmp_path.iterdir()) == files
    assert before is None or out.read_text() == before


def test_mistakes_end_in_one_sentence(
    state: Path,
    data: Path,
    targets: Path,
    checkpoint: Path,
    tnpd_checkpoint: Path,
    model: CMANP,
    save_checkpoint: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    other = save_checkpoint(small_cmanp(dim_x=2), tmp_path / "other.ckpt")
    bare, two, half = tmp_path / "bare", tmp_path / "two", tmp_path / "half"
    whole = CMANPState.load(state, model)
    whole.save(bare)
    whole.repeat(2).save(two, model, checkpoint=str(checkpoint), x="lat,lon", y="t")
    half.write_bytes(state.read_bytes()[:-10])
    points = frame(20)
    header, void = tmp_path / "header.csv", tmp_path / "void.csv"
    header.write_text("lat,lon\n")
    void.touch()
    points.loc[7, "lat"] = np.nan
    nan = write(points, tmp_path / "nan.csv")
    text = write(frame(20).assign(lat="north"), tmp_path / "text.parquet")
    answered = write(frame(20).assign(t_mean=1.0), tmp_path / "answered.parquet")
    nested = write(frame(20).assign(tags=[["a"]] * 20), tmp_path / "nested.parquet")
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    given = {"state": state, "targets": targets, "out": tmp_path / "out.csv"}
    for options, message in [
        ({"state": tmp_path / "none"}, "there is no state file"),
        ({"state": data}, "points.parquet is no state file: "),
        ({"state": half}, "half is no state file: "),
        ({"state": bare}, "--ckpt is missing"),
        ({"state": bare, "ckpt": checkpoint}, "--x is missing"),
        ({"state": bare, "ckpt": checkpoint, "x": "lat,lon"}, "was saved without its model"),
        ({"state": two}, "xt has 1 tasks, the state 2"),
        ({"ckpt": other}, "a state of another model, or of other weights"),
        ({"ckpt": tnpd_checkpoint}, "holds a TNPD, whose states are not kept in files"),
        ({"ckpt": data}, "points.parquet is damaged, or no checkpoint of npbench fit"),
        ({"ckpt": tmp_path / "none"}, "neither a checkpoint nor the folder of a run with one"),
        ({"x": "lat"}, "trained with dim_x=2, and 1 column(s) of inputs are named: lat"),
        ({"x": "lat,long"}, "has no column long; its columns are lat, t, lon, place"),
        ({"x": "lat,place"}, "column place of"),
        ({"targets": tmp_path / "none.csv"}, "there is no file"),
        ({"targets": folder}, "there is no file"),
        ({"targets": header}, "header.csv has no rows to predict at"),
        ({"targets": void}, "void.csv cannot be read: Empty CSV file"),
        ({"targets": nan}, "nan.csv has no value in row 8; drop such rows"),
        ({"targets": text}, "string values, not numbers"),
        ({"targets": answered}, "answered.parquet has a column t_mean already"),
        ({"targets": nested}, "out.csv cannot be written: Unsupported Type:list"),
        ({"out": targets}, "targets.parquet is what the result is made from; name another file"),
        ({"out": state}, "the state is what the result is made from; name another file"),
        ({"out": folder}, "folder.csv is a folder; name a file in it by --out"),
        ({"out": tmp_path / "out.xlsx"}, "out.xlsx is neither a Parquet nor a CSV file by its"),
        ({"out": void / "out.csv"}, "out.csv cannot be written (File exists)"),
    ]:
        assert message in error_of(capsys, **(given | options))
    for options, message in [
        ({"x": "lat,lat"}, "lat,lat is no list of different columns, such as lat,lon"),
        ({"device": "gpuu"}, "there is no device gpuu"),
        ({"out": None}, "the following arguments are required: --out"),
        ({"target": targets}, "did you mean targets?"),
    ]:
        assert message in error_of(capsys, code=2, **(given | options))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not os.listdir(folder)


@pytest.mark.parametrize("known", [True, False])
def test_values_far_outside_those_of_training_are_told_by_column(
    known: bool, tmp_path: Path
) -> None:
    """In a sentence each; nothing is said where a checkpoint does not tell what it was trained on,
    as those of release 0.1.0 do not."""
    module = MetaRegression(small_cmanp(dim_x=2))
    checkpoint, state = tmp_path / "cmanp.ckpt", tmp_path / "state"
    if known:
        x, y = torch.tensor([[[-5.0, -5.0], [5.0, 5.0]]]), torch.tensor([[[-5.0], [5.0]]])
        module.model.watch.ranges = Ranges.of(Points(x, y))
    save_untrained(module, checkpoint)
    points = frame(50)
    points["t"] += 1e6
    data = write(points, tmp_path / "points.parquet")
    points["lon"] *= 1000
    targets, out = write(points, tmp_path / "grid.parquet"), tmp_path / "predictions.csv"
    words = ["--ckpt", checkpoint, "--data", data, "--x", "lat,lon", "--y", "t", "--out", state]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["condition", *map(str, words)])
        run(state=state, targets=targets, out=out)
    shown = [
        warnings.formatwarning(w.message, w.category, w.filename, w.lineno)
        for w in caught
        if w.category is DataWarning
    ]
    assert [line.split(" runs from ")[0] for line in shown] == (
        ["npbench: warning: t", "npbench: warning: lon"] if known else []
    )
    assert all(line.endswith("or train on data like these (said once)\n") for line in shown)
