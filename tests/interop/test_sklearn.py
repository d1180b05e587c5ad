"""The regressor is a scikit-learn estimator, and what it absorbs is what its model absorbs."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small_cmanp
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_linnerud
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import npbench
from npbench import NeuralProcessRegressor
from npbench.blocks import Places
from npbench.cli import main
from npbench.errors import DataWarning, InputError
from npbench.models import TNPD, LocatedCMANP, SecondMomentJointNP, SecondMomentNP
from npbench.pretrained import export
from npbench.scaling import Column, Scaling

pytestmark = pytest.mark.usefixtures("as_a_user")

# Checks of scikit-learn that fail, and why: none.
EXPECTED_FAILURES: dict[str, str] = {}


def days(number: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Hours from the start, and temperatures of a quiet sine and a little noise."""
    hours = np.arange(0.0, 24 * number, 0.5)
    noise = np.random.default_rng(0).normal(0, 0.1, len(hours))
    return hours[:, None], 15 + 5 * np.sin(2 * np.pi * hours / 24) + noise


def table(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two inputs and two outputs."""
    x = np.random.default_rng(seed).uniform(-3, 3, (rows, 2))
    return x, np.stack([100 + np.sin(x).sum(axis=1), 1e-3 * x[:, 0] * x[:, 1]], axis=1)


def assert_same(first: NeuralProcessRegressor, second: NeuralProcessRegressor, x: np.ndarray,
                tolerance: float = 1e-5) -> None:  # fmt: skip
    for a, b, scale in zip(first.predict(x, True), second.predict(x, True), "ms"):
        np.testing.assert_allclose(a, b, tolerance, tolerance * np.abs(b).mean(), err_msg=scale)


def test_it_passes_every_check_of_scikit_learn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            NeuralProcessRegressor(), expected_failed_checks=EXPECTED_FAILURES, on_skip=None
        )
    failed = {result["check_name"] for result in results if result["status"] == "xfail"}
    assert failed == EXPECTED_FAILURES.keys()
    assert sum(result["status"] == "passed" for result in results) > 40


@pytest.mark.parametrize(
    ("make", "model", "number"),
    [(days, "gp-1d-periodic", 10), (days, None, 100), (table, None, 100)],
)
def test_a_hundred_pieces_are_as_all_at_once(make: object, model: object, number: int) -> None:
    x, y = make()
    whole = NeuralProcessRegressor(model).fit(x, y)
    pieces = NeuralProcessRegressor(model, scaling=whole.scaling_)
    for rows, outputs in zip(np.array_split(x, number), np.array_split(y, number)):
        pieces.partial_fit(rows, outputs)
    assert_same(pieces, whole, x)


def test_the_first_piece_gives_the_units_of_all() -> None:
    x, y = table()
    pieces = NeuralProcessRegressor().partial_fit(x[:50], y[:50]).partial_fit(x[50:], y[50:])
    first = NeuralProcessRegressor().fit(x[:50], y[:50])
    assert pieces.scaling_ == first.scaling_
    assert_same(pieces, NeuralProcessRegressor(scaling=first.scaling_).fit(x, y), x)


@pytest.mark.parametrize(("make", "dim_x"), [(days, 1), (table, 2)])
def test_a_day_that_is_forgotten_was_never_there(make: object, dim_x: int) -> None:
    """Of models of sums, which forget whatever they have absorbed."""
    x, y = make()
    model = None if dim_x == 1 else SecondMomentNP(dim_x, 1, num_features=32, num_heads=4)
    whole = NeuralProcessRegressor(model, ledger=True).fit(x, y)
    rest = NeuralProcessRegressor(model, scaling=whole.scaling_).fit(x[48:], y[48:])
    assert_same(whole.forget(x[:48], y[:48]), rest, x)
    with pytest.raises(InputError, match="was never absorbed by this state"):
        whole.forget(x[:1], y[:1])


def test_regressors_of_parts_merge_to_that_of_the_whole() -> None:
    x, y = table()
    whole = NeuralProcessRegressor().fit(x, y)
    parts = [NeuralProcessRegressor(scaling=whole.scaling_).fit(x[i::3], y[i::3]) for i in range(3)]
    assert_same(parts[0].merge(*parts[1:]), whole, x)
    with pytest.raises(InputError, match="one model and the same units"):
        whole.merge(NeuralProcessRegressor().fit(x[:9], y[:9]))


def test_missing_outputs_and_inputs_are_left_out() -> None:
    x, y = table()
    x[3, 0] = y[5, 0] = y[7, 1] = np.nan
    regressor = NeuralProcessRegressor().fit(x, y)
    keep = np.isfinite(x).all(axis=1)
    mean, std = regressor.predict(x, return_std=True)
    assert np.isnan(mean[3]).all()
    assert np.isnan(std[3]).all()
    assert np.isfinite(np.delete(mean, 3, axis=0)).all()
    assert np.isfinite(regressor.score(x, y))
    for output in range(2):
        rows = keep & np.isfinite(y[:, output])
        column = Scaling(regressor.scaling_.x, (regressor.scaling_.y[output],))
        alone = NeuralProcessRegressor(scaling=column).fit(x[rows], y[rows, output])
        np.testing.assert_allclose(alone.predict(x[keep]), mean[keep][:, output], 1e-6)


def test_data_frames_give_their_names_and_dates(tmp_path: Path) -> None:
    hours, y = days(3)
    when = pd.Timestamp("2024-05-01") + pd.to_timedelta(hours[:, 0], unit="h")
    frame = pd.DataFrame({"when": when}, index=np.arange(len(y)) + 100)
    regressor = NeuralProcessRegressor().fit(frame, pd.Series(y, name="celsius", index=frame.index))
    assert list(regressor.feature_names_in_) == ["when"]
    assert regressor.scaling_.dates == "days since 2024-05-01"
    predictions = regressor.predict_frame(frame[:9], quantiles=[0.05, 0.95])
    assert list(predictions) == ["celsius", "celsius_std", "celsius_q0.05", "celsius_q0.95"]
    assert predictions.index.equals(frame.index[:9])
    numbers = NeuralProcessRegressor().fit(hours, y)
    np.testing.assert_allclose(predictions["celsius"], numbers.predict(hours[:9]), 1e-4)
    with pytest.raises(ValueError, match="feature names"):
        regressor.predict(frame.rename(columns={"when": "then"}))


def test_given_units_say_what_the_dates_of_the_first_rows_are() -> None:
    hours, y = days(4)
    frame = pd.DataFrame({"when": pd.Timestamp("2024-05-01") + pd.to_timedelta(hours[:, 0], "h")})
    whole = NeuralProcessRegressor().fit(frame, y)
    parts = [NeuralProcessRegressor(scaling=whole.scaling_) for _ in range(2)]
    first, second = (part.fit(frame[i::2], y[i::2]) for i, part in enumerate(parts))
    assert_same(first.merge(second), whole, frame)
    of_numbers = NeuralProcessRegressor().fit(hours, y).scaling_
    with pytest.raises(InputError, match="X holds dates, and the regressor was given the units of"):
        NeuralProcessRegressor(scaling=of_numbers).fit(frame, y)


def test_a_model_brings_its_units_from_a_file_too(tmp_path: Path) -> None:
    x, y = days(2)
    tuned = npbench.load("gp-1d")
    tuned.scaling = Scaling.fit(np.array([[0.0], [96.0]]), y[:, None], ["hour"], ["celsius"])
    export(tuned, tmp_path / "tuned", "A model that has learned a table.")
    regressor = NeuralProcessRegressor(tmp_path / "tuned").fit(x, y)
    assert regressor.scaling_ == tuned.scaling
    assert_same(regressor, NeuralProcessRegressor(tuned).fit(x, y), x)


def test_quantiles_and_draws_are_of_the_predictive_distribution() -> None:
    x, y = table()
    regressor = NeuralProcessRegressor(random_state=0).fit(x, y)
    mean, std, quantiles = regressor.predict(x[:20], True, [0.1, 0.5, 0.9])
    assert quantiles.shape == (20, 2, 3)
    assert (np.diff(quantiles) > 0).all()
    samples = regressor.sample_y(x[:20], 2000)
    assert samples.shape == (20, 2, 2000)
    np.testing.assert_allclose(samples.mean(axis=-1), mean, atol=0.2 * std.max())
    below = (samples < quantiles[..., :1]).mean(axis=-1)
    np.testing.assert_allclose(below, 0.1, atol=0.05)
    assert np.array_equal(samples, regressor.sample_y(x[:20], 2000))
    assert regressor.fit(x, y[:, 0]).sample_y(x[:20], 3).shape == (20, 3)


def test_it_is_cloned_and_pickled() -> None:
    x, y = days(2)
    regressor = NeuralProcessRegressor(npbench.load("gp-1d"), ledger=True).fit(x, y)
    again = pickle.loads(pickle.dumps(regressor))
    assert np.array_equal(again.predict(x), regressor.predict(x))
    fresh = clone(regressor)
    assert not hasattr(fresh, "scaling_")
    assert fresh.ledger
    assert np.array_equal(fresh.fit(x, y).predict(x), regressor.predict(x))


@pytest.mark.parametrize(("make", "model"), [(days, "gp-1d-periodic"), (days, None), (table, None)])
def test_the_file_of_a_regressor_is_a_state_file(
    make: object, model: object, tmp_path: Path
) -> None:
    x, y = make()
    regressor, path = NeuralProcessRegressor(model).fit(x, y), tmp_path / "fitted.safetensors"
    regressor.save(path)
    again = NeuralProcessRegressor.load(path)
    assert_same(again, regressor, x, 1e-6)
    more = x[:5] + 0.1
    assert_same(again.partial_fit(more, y[:5]), regressor.partial_fit(more, y[:5]), x, 1e-6)
    assert again.score(x, y) == pytest.approx(regressor.score(x, y), abs=1e-6)


def test_the_command_line_answers_from_a_regressor_s_file(tmp_path: Path) -> None:
    x, y = days(2)
    frame = pd.DataFrame({"hour": x[:, 0], "celsius": y})
    regressor = NeuralProcessRegressor().fit(frame[["hour"]], frame["celsius"])
    regressor.save(tmp_path / "state")
    frame.to_csv(tmp_path / "targets.csv", index=False)
    files = ["--state", tmp_path / "state", "--targets", tmp_path / "targets.csv"]
    assert main(["query", *map(str, files), "--out", str(tmp_path / "out.csv")]) is None
    mean, std = regressor.predict(frame[["hour"]], return_std=True)
    answers = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(answers["celsius_mean"], mean, 1e-5)
    np.testing.assert_allclose(answers["celsius_std"], std, 1e-4)


def test_a_state_of_no_regressor_is_refused(tmp_path: Path) -> None:
    model = small_cmanp()
    model.condition(*torch.zeros(2, 1, 3, 1)).save(tmp_path / "state", model)
    with pytest.raises(InputError, match="is the state of no regressor"):
        NeuralProcessRegressor.load(tmp_path / "state")


def test_fine_tuning_learns_the_table_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    x, y = days()
    model = npbench.load("gp-1d")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = NeuralProcessRegressor(model).fit(x[::4], y[::4])
    tuned = NeuralProcessRegressor(model, fine_tune=2, random_state=0).fit(x[::4], y[::4])
    again = NeuralProcessRegressor(model, fine_tune=2, random_state=0).fit(x[::4], y[::4])
    assert np.array_equal(tuned.predict(x), again.predict(x))
    assert not np.array_equal(tuned.predict(x), plain.predict(x))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    tuned.save(tmp_path / "tuned")
    assert_same(NeuralProcessRegressor.load(tmp_path / "tuned"), tuned, x, 1e-6)


def test_it_stands_beside_others_in_pipelines_and_searches() -> None:
    x, y = load_diabetes(return_X_y=True)
    pipeline = make_pipeline(FunctionTransformer(), NeuralProcessRegressor())
    ours = cross_val_score(pipeline, x, y, cv=3).mean()
    linear = cross_val_score(RidgeCV(np.logspace(-3, 3, 13)), x, y, cv=3).mean()
    assert ours > linear - 0.05
    x, y = load_linnerud(return_X_y=True, as_frame=True)
    regressor = NeuralProcessRegressor().fit(x, y)
    assert regressor.output_names_ == ["Weight", "Waist", "Pulse"]
    assert regressor.predict(x).shape == (20, 3)


def test_a_model_of_several_outputs_takes_them_together() -> None:
    x, y = table(60)
    torch.manual_seed(0)
    model = SecondMomentJointNP(dim_x=2, dim_y=2, num_features=8, num_heads=2)
    regressor = NeuralProcessRegressor(model).fit(x, y)
    assert regressor.predict(x).shape == (60, 2)
    assert regressor.sample_y(x[:4], 5).shape == (4, 2, 5)
    with pytest.raises(InputError, match=r"dim_y=2, and the rows have 1 output\(s\)"):
        NeuralProcessRegressor(model).fit(x, y[:, 0])


def test_tiles_hold_a_longer_series_at_the_scale_of_training(tmp_path: Path) -> None:
    """It is the model that was moved to three ranges, with places as far apart as before."""
    x, y = days(3)
    torch.manual_seed(0)
    model = LocatedCMANP(dim_x=1, dim_y=1, dim_model=16, num_heads=4, num_layers=1,
                         dim_feedforward=16, places=Places(-2.0, 2.0, number=16))  # fmt: skip
    regressor = NeuralProcessRegressor(model, tiles=3.0, margin=0.0).fit(x, y)
    assert regressor.model_.places.number == 46
    (column,) = regressor.scaling_.x
    assert column.scale == pytest.approx(71.5 / 12)
    moved = model.on(-6.0, 6.0)
    assert_same(NeuralProcessRegressor(moved, scaling=regressor.scaling_).fit(x, y), regressor, x)
    regressor.save(tmp_path / "tiled")
    assert_same(NeuralProcessRegressor.load(tmp_path / "tiled"), regressor, x, 1e-6)
    with pytest.raises(InputError, match="must be 1 for TNPD, which does not move"):
        NeuralProcessRegressor(TNPD(dim_x=1, dim_y=1), tiles=2.0).fit(x, y)
    with pytest.raises(InputError, match=r"tiles=-2\.0 must be a number above 0"):
        NeuralProcessRegressor(tiles=-2.0).fit(x, y)


def small_field_model() -> LocatedCMANP:
    torch.manual_seed(0)
    return LocatedCMANP(dim_x=2, dim_y=1, dim_model=16, num_heads=4, num_layers=1,
                        dim_feedforward=16, places=Places(-2.0, 2.0, number=16))  # fmt: skip


@pytest.mark.parametrize(("max_bytes", "number"), [(10_000_000, 100), (12_000, 53)])
def test_the_resolution_follows_the_rows_and_the_bytes(max_bytes: int, number: int) -> None:
    x = np.random.default_rng(0).uniform(size=(600, 2))
    regressor = NeuralProcessRegressor(small_field_model(), margin=0.0, max_bytes=max_bytes)
    regressor.fit(x, x.sum(axis=1))
    assert regressor.model_.places.number == pytest.approx(number, rel=0.3)
    assert regressor.nbytes_ < 1.1 * max_bytes
    few = NeuralProcessRegressor(small_field_model()).fit(x[:60], x[:60, 0])
    assert few.tiles_ == 1.0


def test_states_in_float16_take_half_the_bytes(tmp_path: Path) -> None:
    x, y = table(400)
    model = LocatedCMANP(dim_x=2, dim_y=1, num_layers=1, places=Places(number=25)).eval()
    whole, half = (
        NeuralProcessRegressor(model, tiles=1, state_dtype=dtype).fit(x[:300], y[:300, 0])
        for dtype in (None, "float16")
    )
    assert half.nbytes_ * 2 == whole.nbytes_
    half.partial_fit(x[300:], y[300:, 0])
    assert half.nbytes_ * 2 == whole.nbytes_
    assert_same(half, whole.partial_fit(x[300:], y[300:, 0]), x, tolerance=0.01)
    half.save(tmp_path / "half.safetensors")
    loaded = NeuralProcessRegressor.load(tmp_path / "half.safetensors")
    assert loaded.state_dtype == "float16"
    assert_same(loaded, half, x)
    places = [
        NeuralProcessRegressor(model, max_bytes=whole.nbytes_, state_dtype=dtype)
        .fit(np.repeat(x, 9, axis=0), np.repeat(y[:, 0], 9))
        .model_.places.number
        for dtype in (None, "float16")
    ]
    assert places[1] > 1.6 * places[0]
    for arguments, message in (
        ({"model": SecondMomentNP(2, 1), "state_dtype": "float16"}, "is not kept in float16"),
        ({"model": TNPD(2, 1), "state_dtype": "float16"}, "are not kept in float16"),
        ({"model": model, "state_dtype": "int8"}, "state_dtype='int8' must be"),
    ):
        with pytest.raises(InputError, match=message):
            NeuralProcessRegressor(**arguments).fit(x, y[:, 0])


def test_a_field_is_learned_window_by_window() -> None:
    """At the scale at which the moved model sees it; the weights are another's afterwards."""
    x = np.random.default_rng(0).uniform(size=(800, 2))
    y = np.sin(15 * x[:, 0])
    model = small_field_model()
    plain = NeuralProcessRegressor(model, random_state=0).fit(x[:700], y[:700])
    tuned = NeuralProcessRegressor(model, fine_tune=100, random_state=0).fit(x[:700], y[:700])
    assert plain.tiles_ == tuned.tiles_ > 2
    errors = [np.abs(r.predict(x[700:]) - y[700:]).mean() for r in (plain, tuned)]
    assert errors[1] < 0.75 * errors[0]


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    x, y = days(1)
    tnpd = TNPD(dim_x=1, dim_y=1, dim_model=8, num_heads=1, num_layers=1, dim_feedforward=8)
    fitted = NeuralProcessRegressor(tnpd).fit(x, y).partial_fit(x, y)
    other = NeuralProcessRegressor(Path("gp-9d"))
    periodic = NeuralProcessRegressor("gp-1d-periodic").fit(x, y)
    cases = [
        (lambda: fitted.forget(x, y), "states of TNPD do not forget"),
        (lambda: fitted.merge(fitted), "states of TNPD do not merge"),
        (lambda: fitted.save("state"), "states of TNPD are not kept in files"),
        (lambda: NeuralProcessRegressor(tnpd, ledger=True).fit(x, y), "have no ledger"),
        (lambda: other.fit(x, y), r"comes with npbench \(gp-1d"),
        (lambda: NeuralProcessRegressor().fit(x, y * np.nan), "column y0 has no values"),
        (lambda: NeuralProcessRegressor().fit(x * np.nan, y), "every row has a missing input"),
        (lambda: NeuralProcessRegressor(units={"y0": "log"}).fit(x, -y), "takes values above 0"),
        (lambda: NeuralProcessRegressor("gp-1d").fit(np.c_[x, x], y), r"2 number\(s\) of inputs"),
        (lambda: periodic.partial_fit(x + 30, y), "larger margin"),
        (lambda: NeuralProcessRegressor(fine_tune=3).fit(x[:5], y[:5]), "takes 7 rows or more"),
        (lambda: NeuralProcessRegressor(fine_tune=-1).fit(x, y), "fine_tune=-1 must be 0 or more"),
        (lambda: NeuralProcessRegressor().fit(x, y).partial_fit(x, np.c_[y, y]), r"has 2 output"),
        (lambda: NeuralProcessRegressor(scaling=Scaling((Column("a"),), (Column("b"), Column("c"))))
         .fit(x, y), "the units are of a, b, c, and the rows have"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_tables_that_hold_more_than_numbers_are_refused_in_one_sentence() -> None:
    rows = {"hour": [1.0, 2.0, 3.0], "celsius": [4.0, 5.0, 6.0]}
    frame = pd.DataFrame(rows)
    days_ = pd.date_range("2024-01-01", periods=3)
    cases = [
        (frame[["hour"]].astype(object).replace(2.0, "two"), frame["celsius"],
         "column hour of X holds 'two' in row 2, which is no number"),
        (frame[["hour"]], pd.Series(["warm", 5, 6], name="celsius"),
         "column celsius of y holds 'warm' in row 1"),
        (frame[["hour"]].assign(hour=["2024-01-01", "1/2/2024", "Jan 3"]), frame["celsius"],
         "column hour of X holds '2024-01-01' in row 1, which is no number; make numbers of it, or "
         "dates by pandas.to_datetime"),
        (frame[["hour"]].astype(object).assign(hour=[days_[0], "1/2/2024", 3.0]), frame["celsius"],
         "column hour of X holds '2024-01-01 00:00:00' in row 1"),
        (frame[["hour"]], pd.Series(days_, name="day"), "column day of y holds dates"),
        (pd.concat([frame[["hour"]]] * 2, axis=1), frame["celsius"],
         "X has several columns hour; rename all but one"),
        (frame[["hour"]], frame["celsius"] * 1e300, r"y holds 6e\+300 in row 3, which is too lar"),
        (frame[["hour"]] * -1e200, frame["celsius"], r"X holds 3e\+200 in row 3"),
    ]  # fmt: skip
    for x, y, message in cases:
        with pytest.raises(InputError, match=message) as error:
            NeuralProcessRegressor().fit(x, y)
        assert "\n" not in str(error.value)
    words = NeuralProcessRegressor().fit(frame[["hour"]].astype(str), frame["celsius"])
    assert words.predict(frame[["hour"]]).shape == (3,)


def test_readings_at_one_place_are_all_absorbed() -> None:
    """Rows that are there three times leave less doubt than one of each."""
    x, y = days(2)
    once, thrice = (
        NeuralProcessRegressor().fit(np.repeat(x, n, axis=0), np.repeat(y, n)) for n in (1, 3)
    )
    assert thrice.predict(x, True)[1].mean() < once.predict(x, True)[1].mean()
    np.testing.assert_allclose(thrice.predict(x), once.predict(x), atol=0.5)


def test_inputs_far_outside_are_said_to_be_so() -> None:
    x, y = days(2)
    regressor = NeuralProcessRegressor().fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        near = regressor.predict(x, True)[1]
    with pytest.warns(DataWarning, match="x0 runs from 500 to 500, far outside the rows"):
        _, far = regressor.predict([[500.0]], True)
    assert far > 5 * near.max()
    with pytest.warns(DataWarning, match="has one value only"):
        constant = NeuralProcessRegressor().fit(x, np.full(len(x), 7.0))
    np.testing.assert_allclose(constant.predict(x), 7.0, atol=0.1)
    with pytest.warns(DataWarning, match="has one value only"):
        one = NeuralProcessRegressor().fit([[1.0]], [5.0])
    assert one.predict([[1.0]]) == pytest.approx(5.0, abs=0.1)


def test_a_model_with_units_keeps_them() -> None:
    x, y = days(1)
    scaling = Scaling(
        (Column("hour", "min-max", 12.0, 7.0),), (Column("c", "standard", 15.0, 4.0),)
    )
    regressor = NeuralProcessRegressor(npbench.load("gp-1d").scaled(scaling)).fit(x, y)
    assert regressor.scaling_ == scaling
    assert regressor.output_names_ == ["c"]
