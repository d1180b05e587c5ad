"""`NeuralProcessRegressor("auto")`: the model is chosen by rows that are held out."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from npbench import NeuralProcessRegressor
from npbench.errors import DataWarning, InputError
from npbench.interop.sources import candidates
from npbench.models import SecondMomentNP

_RANDOM = np.random.default_rng(0)
X = np.sort(_RANDOM.uniform(0.0, 100.0, (120, 1)), axis=0)
FAST = np.sin(3 * X[:, 0])
SLOW = np.sin(X[:, 0] / 10)


@pytest.mark.parametrize(("y", "name"), [(FAST, "gp-1d-periodic"), (SLOW, "gp-1d")])
def test_it_is_the_regressor_of_the_model_that_it_chooses(y: np.ndarray, name: str) -> None:
    chosen = NeuralProcessRegressor("auto").fit(X, y)
    assert chosen.chosen_ == name
    named = NeuralProcessRegressor(name).fit(X, y)
    for one, other in zip(*(each.predict(X, return_std=True) for each in (chosen, named))):
        np.testing.assert_array_equal(one, other)


def test_the_rows_choose_again_where_it_is_fitted_again(tmp_path: Path) -> None:
    regressor = clone(NeuralProcessRegressor("auto").fit(X, FAST))
    assert regressor.model == "auto"
    assert regressor.fit(X, SLOW).chosen_ == "gp-1d"
    assert regressor.partial_fit(X, FAST).chosen_ == "gp-1d"
    regressor.fit(X, FAST).save(tmp_path / "state.safetensors")
    loaded = NeuralProcessRegressor.load(tmp_path / "state.safetensors")
    np.testing.assert_allclose(loaded.predict(X), regressor.predict(X), atol=1e-6)


def test_a_few_rows_take_the_default_and_many_inputs_the_prior() -> None:
    assert NeuralProcessRegressor("auto").fit(X[:5], FAST[:5]).chosen_ == "gp-1d"
    many = NeuralProcessRegressor("auto").fit(np.hstack([X, X**2, -X]), FAST)
    assert many.chosen_ is None
    assert isinstance(many.model_, SecondMomentNP)


def test_dates_and_missing_values_are_taken() -> None:
    frame = pd.DataFrame({"day": pd.date_range("2024-03-01", periods=len(X))})
    y = pd.DataFrame({"a": FAST, "b": SLOW}).mask(_RANDOM.uniform(size=(len(X), 2)) < 0.2)
    regressor = NeuralProcessRegressor("auto").fit(frame, y)
    assert regressor.chosen_ in candidates(1)
    assert np.isfinite(regressor.predict(frame)).all()


def test_models_that_do_not_take_the_arguments_are_not_chosen() -> None:
    assert NeuralProcessRegressor("auto", tiles=2.0).fit(X, SLOW).chosen_ != "gp-1d"
    with pytest.raises(InputError, match="must be 1 for SecondMomentNP"):
        NeuralProcessRegressor("auto", tiles=2.0).fit(X[:5], SLOW[:5])


def test_the_default_comes_first_and_joint_models_are_none_of_them() -> None:
    names = candidates(1)
    assert names[0] == "gp-1d"
    assert "gp-1d-joint" not in names


def test_a_long_series_without_a_name_is_warned_of() -> None:
    x = np.linspace(0.0, 1.0, 1001)[:, None]
    y = np.sin(9 * x[:, 0])
    with pytest.warns(DataWarning, match="may resolve less than 1,001 rows do"):
        NeuralProcessRegressor().fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuralProcessRegressor("gp-1d").fit(x, y)
        NeuralProcessRegressor().fit(x[:1000], y[:1000]).partial_fit(x[1000:], y[1000:])
