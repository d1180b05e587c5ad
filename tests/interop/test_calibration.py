"""A regressor's error bars follow from rows that its model had not absorbed."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_cmanp

from npbench import NeuralProcessRegressor
from npbench.blocks import Places
from npbench.errors import DataWarning, InputError
from npbench.interop.calibration import hold_out
from npbench.models import LocatedCMANP, LocatedCMANPAND, SecondMomentNP

pytestmark = pytest.mark.usefixtures("as_a_user")

# What 95 of 100 values are within.
_95 = 1.959964


def field(rows: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.uniform(-3, 3, (rows, 2))
    return x, 50 + np.sin(x).sum(axis=1) + random.normal(0, 0.3, rows)


def small_field_model() -> LocatedCMANP:
    """Untrained: its deviations mean nothing."""
    torch.manual_seed(0)
    return LocatedCMANP(2, 1, num_layers=1, places=Places(number=25)).eval()


@pytest.mark.parametrize("make", [small_field_model, lambda: SecondMomentNP(2, 1)])
def test_intervals_hold_what_they_say(make: object) -> None:
    x, y = field()
    model = make()
    regressor = NeuralProcessRegressor(model, calibrate=True, tiles=1).fit(x[:1000], y[:1000])
    mean, std = regressor.predict(x[1000:], return_std=True)
    assert abs((np.abs(y[1000:] - mean) < _95 * std).mean() - 0.95) < 0.04
    assert model.state_dict().keys() == make().state_dict().keys()  # it stays as it was
    # Fitting again begins anew, also where the model was calibrated before.
    again = NeuralProcessRegressor(regressor.model_, calibrate=True, tiles=1)
    np.testing.assert_allclose(again.fit(x[:1000], y[:1000]).predict(x, True)[1][1000:], std, 1e-4)


def test_far_from_all_rows_predictions_stay_unsure() -> None:
    """Of a curve without noise, the rows alone say that deviations are small everywhere."""
    x = np.linspace(0, 10, 500)[:, None]
    y = 50 + np.sin(x[:, 0])
    far = np.array([[40.0]])
    plain, calibrated = (
        NeuralProcessRegressor(SecondMomentNP(1, 1), calibrate=calibrate).fit(x, y)
        for calibrate in (False, True)
    )
    with pytest.warns(DataWarning):
        stds = [float(each.predict(far, return_std=True)[1][0]) for each in (plain, calibrated)]
    assert stds[1] > 0.9 * min(stds[0], y.std())


def test_constant_outputs_are_predicted_surely() -> None:
    x = np.linspace(0, 10, 100)[:, None]
    with pytest.warns(DataWarning, match="has one value only"):
        regressor = NeuralProcessRegressor(calibrate=True).fit(x, np.full(100, 7.0))
    mean, std = regressor.predict(x, return_std=True)
    np.testing.assert_allclose(mean, 7.0)
    assert (std > 0).all()
    assert (std < 0.1).all()


def test_rows_held_out_are_absorbed_in_the_end() -> None:
    """The means are those of a regressor that saw all rows at once."""
    x, y = field(300)
    model = small_field_model()
    plain, calibrated = (
        NeuralProcessRegressor(model, calibrate=calibrate).fit(x, y) for calibrate in (False, True)
    )
    assert plain.scaling_ == calibrated.scaling_
    np.testing.assert_allclose(calibrated.predict(x), plain.predict(x), rtol=1e-5)


def test_the_calibration_is_saved_pickled_and_compared(tmp_path: Path) -> None:
    x, y = field(300)
    model = small_field_model()
    regressor = NeuralProcessRegressor(model, calibrate=True).fit(x, y)
    std = regressor.predict(x, return_std=True)[1]
    regressor.save(tmp_path / "state.safetensors")
    loaded = NeuralProcessRegressor.load(tmp_path / "state.safetensors")
    warnings.simplefilter("error", DataWarning)  # nothing is outside of the loaded range
    for same in (loaded, pickle.loads(pickle.dumps(regressor))):
        np.testing.assert_allclose(same.predict(x, return_std=True)[1], std)
    regressor.partial_fit(x[:10], y[:10])  # keeps it
    plain = NeuralProcessRegressor(model, scaling=regressor.scaling_).fit(x, y)
    with pytest.raises(InputError, match="regressors merge that have one model"):
        plain.merge(regressor)


def test_outputs_and_missing_values_are_counted() -> None:
    x, y = field(600)
    outputs = np.stack([y, 1e3 * y], axis=1)
    outputs[::3, 0] = np.nan
    x[::7, 1] = np.nan
    for model in (small_field_model(), small_cmanp(dim_x=2, dim_y=2).eval()):
        regressor = NeuralProcessRegressor(model, calibrate=True, tiles=1).fit(x, outputs)
        mean, std = regressor.predict(x, return_std=True)
        known = np.isfinite(outputs) & np.isfinite(mean)
        assert 0.85 < (np.abs(outputs - mean) < _95 * std)[known].mean() < 0.99


def test_rows_of_one_input_are_held_out_together() -> None:
    x = np.random.default_rng(0).normal(size=(200, 1)).repeat(3, axis=0)
    x[5] = np.nan
    held = hold_out(x)
    assert not held.is_held[5]
    assert not set(x[held.is_held, 0]) & set(x[~held.is_held & ~np.isnan(x[:, 0]), 0])
    assert 0.05 < held.is_held.mean() < 0.2
    assert held.is_held[held.predicted].all()
    np.testing.assert_allclose(held.weight.sum(), 2.0)
    assert all(np.array_equal(a, b) for a, b in zip(held, hold_out(x)))


def test_what_cannot_be_calibrated_is_refused_in_one_sentence() -> None:
    x, y = field(300)
    joint = LocatedCMANPAND(2, 1, num_layers=1, places=Places(number=9))
    cases = [
        (small_field_model(), slice(30), y, "takes 40 rows or more with different inputs"),
        (joint, slice(None), y, "predict each target by itself, with normals: LocatedCMANPAND"),
    ]
    for model, rows, outputs, message in cases:
        with pytest.raises(InputError, match=message) as error:
            NeuralProcessRegressor(model, calibrate=True).fit(x[rows], outputs[rows])
        assert "\n" not in str(error.value)
