"""Neural processes in scikit-learn's manners.

Take `NeuralProcessRegressor` for a table that fits into memory, beside other regressors; the verbs
themselves (`condition`, `update`, `query`) for data that come in chunks, and for several tasks.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from npbench.errors import DataWarning, InputError
from npbench.interop.calibration import Errors, calibrate, deviations_of, errors_of, hold_out
from npbench.interop.fine_tuning import fine_tuned
from npbench.interop.frames import check_columns, check_sizes
from npbench.interop.outputs import by_output
from npbench.interop.sources import AUTO, candidates, default_name, trained
from npbench.models import LocatedCMANP, NeuralProcess
from npbench.models.contracts import ForgettingProcess, MergingProcess, SavedState, State
from npbench.models.contracts.constant_memory import ConstantMemoryState
from npbench.models.contracts.process import evaluating
from npbench.models.contracts.state_files import read_notes
from npbench.point_files import DateUnit
from npbench.pretrained import export, find, load
from npbench.scaling import Column, Scaling, shown_ends

# Rows for each place of a state whose resolution follows the data.
_ROWS_OF_PLACE = 4
# Rows of one input beyond which the default model may resolve less than they do.
_MANY_ROWS = 1000
# Inputs beyond this share of the width of what was fitted are far outside.
_FAR = 0.25
# Rows that are predicted at a time.
_ROWS = 16_384
# The note of a state file that says what the regressor was fitted on.
_NOTE = "regressor"


class _Part(NamedTuple):
    """A model in the units of one output or of all, and its state of the rows."""

    model: NeuralProcess
    state: Any
    outputs: slice


class NeuralProcessRegressor(RegressorMixin, BaseEstimator):
    r"""A regressor with error bars whose memory does not grow with the rows that it is fitted on.

    `fit` conditions a model on the rows, in their own units: it takes one pass, and no training.
    More rows are absorbed by `partial_fit`, exactly; `merge` takes in another regressor's rows, and
    `forget` gives rows back. All predictions are in the units of the outputs.

    Of several outputs each is a task of its own if the model has one output, and all together are
    one if the model has as many. A missing output (NaN) is left out of its task, as is a row with a
    missing input. A row of X with a missing input is predicted as NaN.

    Args:
        model: a `NeuralProcess`, or what `npbench.load` takes: a name, or a path. By default it is
            the model that comes with npbench for so many inputs, such as "gp-1d"; or, where there
            is none, a Bayesian regression on random Fourier features, whose lengths and noise are
            weighed by their evidence (`SecondMomentNP` as it is initialised). "auto" takes the one
            of all that come with npbench for so many inputs under which some of the first rows,
            single ones and whole gaps, are most likely, before it absorbs them.
        units: the scalings of columns by name, such as {"hour": "circular(24)"}; by default inputs
            are "min-max" and outputs "standard". Arrays have the columns x0, x1, … and y0, ….
        scaling: the units themselves, if they are not to be fitted on the first rows; by default
            those of the model, if it has learned a table.
        tiles: how many ranges of the model's training the inputs span in each direction: for long
            series and large fields, of models that move to other ranges (`model.on`), such as
            `LocatedCMANP`. The state grows with it, and resolves smaller things. "auto" takes as
            many as leave each place of a `LocatedCMANP` four of the first rows, and else 1.
        max_bytes: of the state that "auto" aims at.
        margin: how much room is kept for the inputs of later rows, on either side of the first
            ones, as a share of their width: some models absorb none outside of their range.
        dates: what dates in data frames are as numbers, such as "days since 2020-01-01".
        fine_tune: steps of training on random subsets of the rows, before the model is conditioned
            on all of them; 0 leaves the weights as they are. A model that is given stays as it was.
        learning_rate: of these steps, with Muon for matrices; Adam takes a tenth of it.
        calibrate: whether the standard deviations are corrected by the errors at some of the rows,
            single ones and whole gaps, that the model predicts before it absorbs them; for models
            that predict each target by itself. As the units are, the correction is that of the
            first rows; outputs that are tasks by themselves share it.
        state_dtype: "float16" keeps and saves states in half the bytes, each number to 0.0005 of
            itself, so that "auto" takes twice as many places for `max_bytes`; for models whose
            states are attention, such as `LocatedCMANP`.
        ledger: note which rows were absorbed, in 16 bytes each, so that `forget` refuses others.
        random_state: of `fine_tune`, and of `sample_y` unless it is told another.

    Attributes:
        chosen_: the name of the model that "auto" has taken.
        scaling_: the units of the columns.
        model_: the model in its own numbers.
        n_features_in_: number of inputs.
        feature_names_in_: names of the inputs, of a data frame.
        output_names_: names of the outputs.
        tiles_: how many ranges of training the inputs span.
        nbytes_: bytes that the states take.

    Example:
        >>> import npbench
        >>> hours = np.arange(48.0)[:, None]
        >>> celsius = 15 + 5 * np.sin(hours[:, 0] / 4)
        >>> regressor = npbench.NeuralProcessRegressor(margin=0.25).fit(hours[:40], celsius[:40])
        >>> regressor = regressor.partial_fit(hours[40:], celsius[40:])
        >>> mean, std = regressor.predict(np.array([[20.5]]), return_std=True)
        >>> bool(abs(mean[0] - (15 + 5 * np.sin(20.5 / 4))) < 0.1), std.shape
        (True, (1,))
    """

    def __init__(
        self,
        model: NeuralProcess | str | os.PathLike | None = None,
        *,
        units: Mapping[str, str] | None = None,
        scaling: Scaling | None = None,
        tiles: float | Literal["auto"] = "auto",
        max_bytes: int = 10_000_000,
        margin: float = 0.025,
        dates: str | None = None,
        fine_tune: int = 0,
        learning_rate: float = 0.005,
        calibrate: bool = False,
        state_dtype: Literal["float16"] | None = None,
        ledger: bool = False,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.units = units
        self.scaling = scaling
        self.tiles = tiles
        self.max_bytes = max_bytes
        self.margin = margin
        self.dates = dates
        self.fine_tune = fine_tune
        self.learning_rate = learning_rate
        self.calibrate = calibrate
        self.state_dtype = state_dtype
        self.ledger = ledger
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "NeuralProcessRegressor":
        """Condition the model on these rows.

        Args:
            X: inputs, [rows, inputs]: an array or a data frame.
            y: outputs, [rows] or [rows, outputs]; NaN is missing.

        Raises:
            InputError: (a ValueError) on rows that cannot be taken, and if the model is for other
                numbers of inputs or outputs.

        Warns:
            DataWarning: if no model is named for a long series.
        """
        self._dates: str | None = None
        x, y = self._rows(X, y, reset=True)
        self._parts: list[_Part] = []
        if self._is_auto:
            self.chosen_ = self._best_name(x, y)
        elif self.model is None and x.shape[1] == 1 and len(x) > _MANY_ROWS:
            warnings.warn(
                f"gp-1d, the default, may resolve less than {len(x):,} rows do: "
                f'NeuralProcessRegressor("auto") tries other models too, and "gp-1d" by its name '
                f"does not warn",
                DataWarning,
                stacklevel=2,
            )
        self._begin(x, y)
        model = self._trained_model(x.shape[1])
        later: Any = None
        if self.calibrate:
            model, later = deepcopy(model), hold_out(self._numbers(x, y)[0].numpy())
            deviations_of(model).calibration = None
        first = slice(None) if later is None else ~later.is_held
        if self.fine_tune:
            numbers, seed = self._numbers(x[first], y[first]), self._seed(self.random_state)
            window = None
            if self.tiles_ != 1:
                window = model.watch.input_ends()
            model = fine_tuned(
                deepcopy(model), *numbers, self.fine_tune, self.learning_rate, seed, window
            )
        self._condition(model, x[first], y[first])
        if later is not None:
            counted = self._errors(x[later.predicted], y[later.predicted], later.weight)
            calibrate(self.model_, *counted)
            self._absorb_more(x[later.is_held], y[later.is_held])
        return self

    def _begin(self, x: np.ndarray, y: np.ndarray) -> None:
        """The resolution and the units, by the first rows."""
        self.tiles_ = self._chosen_tiles(*x.shape)
        self._choose_units(x, y)

    def _condition(self, model: NeuralProcess, x: np.ndarray, y: np.ndarray) -> None:
        self.model_ = self._moved(model)
        self._parts = [
            _Part(each, self._absorb(each, *_known(x, y[:, outputs])), outputs)
            for each, outputs in self._models()
        ]

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> "NeuralProcessRegressor":
        """Absorb more rows: the same as fitting on all of them at once, in the units of the first.

        Raises:
            InputError: as `fit`.
        """
        if not hasattr(self, "_parts"):
            return self.fit(X, y)
        self._absorb_more(*self._rows(X, y))
        return self

    def _absorb_more(self, x: np.ndarray, y: np.ndarray) -> None:
        parts = []
        for part in self._parts:
            rows = _known(x, y[:, part.outputs])
            try:
                with evaluating(part.model):
                    state = part.state
                    if len(rows[0]):
                        state = self._kept(part.model.update(state, *rows))
            except InputError as error:
                if not self._is_outside(rows[0]):
                    raise
                raise InputError(
                    f"{error}; of a regressor: fit it with a larger margin, which is "
                    f"{self.margin:g} now, so that there is room for the inputs of later rows"
                ) from error
            parts.append(part._replace(state=state))
        self._parts = parts

    def forget(self, X: ArrayLike, y: ArrayLike) -> "NeuralProcessRegressor":
        """Give rows back that were absorbed: what is left is the regressor of all others.

        What it guarantees is what `ForgettingProcess.forget` says; with `ledger` it refuses rows
        that were never absorbed.

        Raises:
            InputError: if the model's states do not forget, or the rows cannot be forgotten.
        """
        check_is_fitted(self)
        x, y = self._rows(X, y)
        parts = []
        for part in self._parts:
            if not isinstance(part.model, ForgettingProcess):
                raise InputError(
                    f"states of {type(part.model).__name__} do not forget; fit on the other rows"
                )
            rows = _known(x, y[:, part.outputs])
            with evaluating(part.model):
                state = part.state
                if len(rows[0]):
                    state = self._kept(part.model.forget(state, *rows))
            parts.append(part._replace(state=state))
        self._parts = parts
        return self

    def merge(self, *others: "NeuralProcessRegressor") -> "NeuralProcessRegressor":
        """Absorb the rows of other regressors, which have the same model and the same `scaling_`.

        Raises:
            InputError: if one has another model or other units, or states that do not merge.
        """
        check_is_fitted(self)
        for other in others:
            check_is_fitted(other)
            if other.scaling_ != self.scaling_ or not _same_weights(other.model_, self.model_):
                raise InputError(
                    "regressors merge that have one model and the same units: give all of them "
                    "the same model, and the scaling_ of the first as scaling"
                )
        parts = []
        for index, part in enumerate(self._parts):
            if not isinstance(part.model, MergingProcess):
                raise InputError(f"states of {type(part.model).__name__} do not merge")
            states = [part.state, *(other._parts[index].state for other in others)]
            with evaluating(part.model):
                parts.append(part._replace(state=self._kept(part.model.merge(*states))))
        self._parts = parts
        return self

    def predict(
        self,
        X: ArrayLike,
        return_std: bool = False,
        quantiles: Sequence[float] | None = None,
    ) -> Any:
        """The mean of each output, and on request its standard deviation and quantiles.

        Args:
            X: inputs.
            return_std: whether to return the standard deviations of values (with their noise) too.
            quantiles: probabilities, such as [0.05, 0.95].

        Returns:
            The means, [rows] or [rows, outputs]; or a tuple of them, the standard deviations if
            asked for, and the quantiles, whose last dimension are the levels, if asked for.

        Warns:
            DataWarning: if inputs are far outside those of the first rows.
        """
        check_is_fitted(self)
        x = self._inputs(X)
        parts = [self._predicted(part, x, quantiles) for part in self._parts]
        mean, std, found = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
        answers = [mean]
        answers += [std] if return_std else []
        answers += [] if quantiles is None else [found]
        shaped = [values[:, 0] if self._is_flat else values for values in answers]
        return shaped[0] if len(shaped) == 1 else tuple(shaped)

    def predict_frame(
        self,
        X: ArrayLike,
        quantiles: Sequence[float] = (),
    ) -> pd.DataFrame:
        """The predictions as a data frame: NAME, NAME_std and NAME_q0.05 of each output.

        Args:
            X: inputs; the index of a data frame is kept.
            quantiles: probabilities.
        """
        mean, std, *found = self.predict(X, True, quantiles or None)
        columns: dict[str, np.ndarray] = {}
        for index, name in enumerate(self.output_names_):
            output = (slice(None),) if self._is_flat else (slice(None), index)
            columns |= {name: mean[output], f"{name}_std": std[output]}
            columns |= {
                f"{name}_q{level:g}": found[0][(*output, i)] for i, level in enumerate(quantiles)
            }
        return pd.DataFrame(columns, index=getattr(X, "index", None))

    def sample_y(
        self,
        X: ArrayLike,
        n_samples: int = 1,
        random_state: Any = None,
    ) -> np.ndarray:
        """Draws of the values, [rows, n_samples] or [rows, outputs, n_samples].

        Those of joint models are coherent; others draw each row by itself.

        Args:
            X: inputs, without missing values.
            n_samples: number of draws.
            random_state: a seed, by default the regressor's own.
        """
        check_is_fitted(self)
        x = self._inputs(X)
        seed = self._seed(self.random_state if random_state is None else random_state)
        draws = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for model, state, _ in self._parts:
                with evaluating(model):
                    draws.append(model.sample(state, x, n_samples)[:, 0].cpu().numpy())
        samples = np.moveaxis(np.concatenate(draws, axis=-1), 0, -1)
        return samples[:, 0] if self._is_flat else samples

    def score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """The coefficient of determination R² of the means, averaged over outputs; rows with a
        missing value are left out."""
        _, y = self._rows(X, y)
        mean = self.predict(X).reshape(y.shape)
        weight = None if sample_weight is None else np.asarray(sample_weight)
        scores = []
        for truth, found in zip(y.T, mean.T, strict=True):
            real = np.isfinite(truth) & np.isfinite(found)
            of_rows = None if weight is None else weight[real]
            scores.append(r2_score(truth[real], found[real], sample_weight=of_rows))
        return float(np.mean(scores))

    def save(self, path: str | os.PathLike) -> None:
        """Write the fitted regressor as a state file, which `load` and `npbench query` take.

        A model that comes with npbench, or that was given by its path, is named in the file. Any
        other is written beside it, into the folder PATH.model.

        Raises:
            InputError: if the model's states are not kept in files.
        """
        check_is_fitted(self)
        if any(not isinstance(part.state, SavedState) for part in self._parts):
            raise InputError(f"states of {type(self.model_).__name__} are not kept in files")
        source = self._source(self.n_features_in_)
        is_as_loaded = not self.fine_tune and not self.calibrate and self.tiles_ == 1
        if isinstance(source, str | os.PathLike) and is_as_loaded:
            checkpoint = find(source)
        else:
            folder = Path(f"{os.fspath(path)}.model")
            export(self.model_, folder, "The model of a NeuralProcessRegressor.")
            checkpoint = folder / "model.yaml"
        about = {
            "scaling": json.loads(self.scaling_.to_json()),
            "is_flat": self._is_flat,
            "tiles": self.tiles_,
            "named": hasattr(self, "feature_names_in_"),
        }
        notes = {
            _NOTE: json.dumps(about),
            "checkpoint": str(Path(checkpoint).resolve()),
            "x": ",".join(self.scaling_.x_names),
            "y": ",".join(self.scaling_.y_names),
        }
        # Of several tasks the units are not those of the model, which has one output.
        model = self._parts[0].model if len(self._parts) == 1 else self.model_
        _joined([part.state for part in self._parts]).save(path, model, ledger=self.ledger, **notes)

    @classmethod
    def load(
        cls, path: str | os.PathLike, model: NeuralProcess | str | os.PathLike | None = None
    ) -> "NeuralProcessRegressor":
        """The regressor of a file that `save` has written.

        Args:
            path: the file.
            model: its model, if that is not where it was when the file was written.

        Raises:
            InputError: if the file is of no regressor, or damaged, or of another model.
        """
        notes = read_notes(path)
        if _NOTE not in notes:
            raise InputError(f"{path} is the state of no regressor: npbench query takes it")
        about = json.loads(notes[_NOTE])
        regressor = cls(notes["checkpoint"] if model is None else model)
        regressor.scaling_ = Scaling.from_json(json.dumps(about["scaling"]))
        regressor.n_features_in_ = len(regressor.scaling_.x)
        if about["named"]:
            regressor.feature_names_in_ = np.array(regressor.scaling_.x_names, dtype=object)
        regressor._is_flat = about["is_flat"]
        base = regressor._trained_model(regressor.n_features_in_)
        regressor.tiles_ = about.get("tiles", 1.0)
        regressor.model_, regressor._parts = base, []
        models = list(regressor._models())
        owner = models[0][0] if len(models) == 1 else base
        if base.state_class is None:
            raise InputError(f"states of {type(base).__name__} are not kept in files")
        whole = base.state_class.load(path, owner)
        regressor.ledger = whole.ledger is not None
        if isinstance(whole, ConstantMemoryState) and whole.is_half:
            regressor.state_dtype = "float16"
        regressor._parts = [
            _Part(each, _task(whole, index, len(models)), outputs)
            for index, (each, outputs) in enumerate(models)
        ]
        return regressor

    @property
    def nbytes_(self) -> int:
        check_is_fitted(self)
        return sum(part.state.nbytes for part in self._parts)

    @property
    def output_names_(self) -> list[str]:
        """The names of the outputs: of a data frame or a series, or y0, y1, …."""
        return self.scaling_.y_names

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_parts")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.input_tags.allow_nan = True
        return tags

    # What comes in.

    def _inputs(self, X: Any, reset: bool = False) -> np.ndarray:
        numbers = self._without_dates(X, reset)
        check_columns("X", numbers)
        values = validate_data(
            self, numbers, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan"
        )
        check_sizes("X", values)
        return values

    def _without_dates(self, X: Any, reset: bool) -> Any:
        """A data frame whose dates are numbers."""
        if not isinstance(X, pd.DataFrame):
            return X
        is_date = {
            name: pd.api.types.is_datetime64_any_dtype(kind) for name, kind in X.dtypes.items()
        }
        if not any(is_date.values()):
            return X
        dates = X.loc[:, list(is_date.values())]
        text = self._unit_of_dates(dates) if reset else self.scaling_.dates
        if text is None:
            units = "was given the units of" if reset else "was fitted on"
            raise InputError(f"X holds dates, and the regressor {units} numbers")
        unit = DateUnit.parse(text)
        columns = {}
        for name in X:
            if is_date[name]:
                values = X[name].to_numpy("datetime64[us]")
                numbers = unit.numbers(values.astype(np.int64))
                columns[name] = np.where(np.isnat(values), np.nan, numbers)
        return X.assign(**columns)

    def _unit_of_dates(self, dates: pd.DataFrame) -> str | None:
        """What the dates of the first rows are as numbers: as the given units say, if there are
        any."""
        if (given := self._given_scaling()) is not None:
            return given.dates
        self._dates = self.dates or f"days since {dates.min().min():%Y-%m-%d}"
        return self._dates

    def _rows(
        self,
        X: Any,
        y: Any,
        reset: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        if y is None:
            raise InputError(
                f"This {type(self).__name__} requires y to be passed, but the target y is None"
            )
        x = self._inputs(X, reset)
        names = [y.name] if isinstance(y, pd.Series) else getattr(y, "columns", None)
        check_columns("y", y)
        values = check_array(
            y, ensure_2d=False, dtype=np.float64, ensure_all_finite="allow-nan", input_name="y"
        )
        check_consistent_length(x, values)
        check_sizes("y", values)
        if values.ndim > 2:
            raise InputError(f"y has shape {values.shape}; expected [rows] or [rows, outputs]")
        if reset:
            self._is_flat = values.ndim == 1
            number = 1 if self._is_flat else values.shape[1]
            self._y_names = [f"y{i}" for i in range(number)]
            if names is not None and all(isinstance(name, str) for name in names):
                self._y_names = list(names)
        values = values.reshape(len(x), -1)
        if not reset and values.shape[1] != len(self.scaling_.y):
            raise InputError(
                f"y has {values.shape[1]} output(s), and the regressor was fitted on "
                f"{', '.join(self.scaling_.y_names)}"
            )
        return x, values

    def _choose_units(self, x: np.ndarray, y: np.ndarray) -> None:
        if (given := self._given_scaling()) is not None:
            if (len(given.x), len(given.y)) != (x.shape[1], y.shape[1]):
                raise InputError(
                    f"the units are of {', '.join([*given.x_names, *given.y_names])}, and the rows "
                    f"have {x.shape[1]} input(s) and {y.shape[1]} output(s)"
                )
            self.scaling_ = given
            return
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(x.shape[1])])
        known = np.isfinite(x).all(axis=1)
        if not known.any():
            raise InputError("every row has a missing input; drop these columns")
        self.scaling_ = Scaling.fit(
            x[known], y[known], list(names), self._y_names, self.units, self._ends(x.shape[1]),
            self._dates,
        )  # fmt: skip

    def _given_scaling(self) -> Scaling | None:
        """The units that are not to be fitted: the regressor's own, or those of a model."""
        if self.scaling is not None or self.model is None or self._is_auto:
            return self.scaling
        model = self.model if isinstance(self.model, NeuralProcess) else load(self.model)
        return model.scaling

    def _ends(self, num_inputs: int) -> tuple[float, float]:
        """What inputs run between: less than in the model's training by the margin."""
        low, high = self._trained_model(num_inputs).watch.input_ends(self.margin)
        return _stretched(low, high, self.tiles_)

    # The model and its states.

    @property
    def _is_auto(self) -> bool:
        return isinstance(self.model, str) and self.model == AUTO

    def _source(self, num_inputs: int) -> NeuralProcess | str | os.PathLike | None:
        """The model, or where it is; None is the prior."""
        source = self.chosen_ if self._is_auto else self.model
        return default_name(num_inputs) if source is None else source

    def _best_name(self, x: np.ndarray, y: np.ndarray) -> str | None:
        """The model under which rows that it has not absorbed are most likely; the default one
        where too few rows can be held out, or where no model takes the other arguments."""
        known = candidates(x.shape[1])
        found: dict[str, float] = {}
        for name in known if len(known) > 1 else ():
            trial = copy(self)
            trial.chosen_ = name
            try:
                found[name] = trial._held_out_density(x, y)
            except InputError:
                continue
        return max(found, key=found.__getitem__, default=known[0] if known else None)

    def _held_out_density(self, x: np.ndarray, y: np.ndarray) -> float:
        """The log-density of values that are held out, in the model's numbers."""
        self._begin(x, y)
        later = hold_out(self._numbers(x, y)[0].numpy())
        first = ~later.is_held
        self._condition(self._trained_model(x.shape[1]), x[first], y[first])
        errors, counts = self._errors(x[later.predicted], y[later.predicted], later.weight)
        return float((counts * errors.log_density()).sum() / counts.sum())

    def _chosen_tiles(self, num_rows: int, num_inputs: int) -> float:
        if self.tiles != "auto":
            return float(self.tiles)
        model = self._trained_model(num_inputs)
        if not isinstance(model, LocatedCMANP) or model.places.learned or model.dim_x > 2:
            return 1.0
        places = model.places.number
        nothing = torch.zeros(1, 0, model.dim_x), torch.zeros(1, 0, model.dim_y)
        with evaluating(model):
            bytes_of_place = self._kept(model.condition(*nothing)).nbytes / places
        most = min(num_rows / _ROWS_OF_PLACE, self.max_bytes / bytes_of_place)
        return max(1.0, (most / places) ** (1 / model.dim_x))

    def _moved(self, model: NeuralProcess) -> NeuralProcess:
        """The model on the range of the inputs, in its own numbers."""
        if self.tiles_ == 1:
            return model
        move: Any = getattr(model, "on", None)
        if move is None:
            raise InputError(
                f"tiles={self.tiles} must be 1 for {type(model).__name__}, which does not move to "
                f"other ranges"
            )
        low, high = model.watch.input_ends()
        return move(*_stretched(low, high, self.tiles_))

    def _trained_model(self, num_inputs: int) -> NeuralProcess:
        dim_x = self.scaling_.dim_x if hasattr(self, "scaling_") else num_inputs
        return trained(self._source(num_inputs), dim_x)

    def _models(self) -> Iterator[tuple[NeuralProcess, slice]]:
        """The model in the units of each output that is a task, and which it is."""
        return by_output(self.model_, self.scaling_)

    def _absorb(self, model: NeuralProcess, x: np.ndarray, y: np.ndarray) -> State:
        with evaluating(model):
            if isinstance(model, MergingProcess):
                return self._kept(model.condition(x, y, ledger=self.ledger))
            if self.ledger:
                raise InputError(f"states of {type(model).__name__} have no ledger")
            return self._kept(model.condition(x, y))

    def _errors(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[Errors, Tensor]:
        """Those at rows that are not absorbed, and how much each value counts."""
        errors, counts = [], []
        for model, state, outputs in self._parts:
            known = np.isfinite(y[:, outputs]).all(axis=1)
            if known.any():
                with evaluating(model):
                    errors.append(errors_of(model, state, x[known], y[known][:, outputs]))
                counts.append(torch.from_numpy(weight[known]))
        if not errors:
            raise InputError("the outputs of all rows that are held out are missing")
        return Errors(*map(torch.cat, zip(*errors, strict=True))), torch.cat(counts)

    def _kept(self, state: Any) -> Any:
        """The state in the precision that it is kept in."""
        if self.state_dtype is None:
            return state
        if self.state_dtype != "float16":
            raise InputError(f'state_dtype={self.state_dtype!r} must be "float16" or None')
        if not isinstance(state, SavedState):
            raise InputError(f"states of type {type(state).__name__} are not kept in float16")
        return state.half()

    def _numbers(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        """The rows as the model's numbers; NaN is missing."""
        for column, values in zip((*self.scaling_.x, *self.scaling_.y), (*x.T, *y.T), strict=True):
            _check_logarithm(column, values)
        scaling = self.scaling_
        return scaling.encode_x(torch.tensor(x)), scaling.encode_y(torch.tensor(y))

    def _predicted(
        self, part: _Part, x: np.ndarray, quantiles: Sequence[float] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means, deviations and quantiles: [rows, outputs], and with levels behind."""
        levels = [] if quantiles is None else list(quantiles)
        shape = len(x), part.model.dim_y
        mean, std = np.full(shape, np.nan), np.full(shape, np.nan)
        found = np.full((*shape, len(levels)), np.nan)
        real = np.flatnonzero(np.isfinite(x).all(axis=1))
        self._warn_if_far(x[real])
        with evaluating(part.model):
            for start in range(0, len(real), _ROWS):
                rows = real[start : start + _ROWS]
                moments = part.model.marginals(part.state, x[rows])
                mean[rows], std[rows] = (z[0].cpu().numpy() for z in moments)
                if levels:
                    values = part.model.quantiles(part.state, x[rows], levels)
                    found[rows] = np.moveaxis(values[:, 0].cpu().numpy(), 0, -1)
        return mean, std, found

    def _is_outside(self, x: np.ndarray) -> bool:
        """Whether there are inputs outside those of the first rows."""
        low, high = self._ends(self.n_features_in_)
        numbers = self.scaling_.encode_x(torch.from_numpy(x))
        return bool(((numbers < low) | (numbers > high)).any())

    def _warn_if_far(self, x: np.ndarray) -> None:
        if not len(x):
            return
        low, high = self._ends(self.n_features_in_)
        margin = _FAR * (high - low)
        for column, values in zip(self.scaling_.x, x.T, strict=True):
            if column.kind != "min-max":
                continue
            numbers = column.encode(torch.tensor([values.min(), values.max()]))
            if float(numbers[0]) < low - margin or float(numbers[1]) > high + margin:
                first, last = shown_ends(*column.decode(torch.tensor([low, high])).tolist())
                warnings.warn(
                    f"{column.name} runs from {values.min():.6g} to {values.max():.6g}, far "
                    f"outside the rows that the units were fitted on ({first} to {last}): "
                    f"predictions there know little of the data",
                    DataWarning,
                    stacklevel=4,
                )

    @staticmethod
    def _seed(random_state: Any) -> int:
        return int(check_random_state(random_state).randint(2**31 - 1))


def _stretched(low: float, high: float, tiles: float) -> tuple[float, float]:
    """Both ends so many times as far from the middle."""
    if not 0 < tiles < float("inf"):
        raise InputError(f"tiles={tiles} must be a number above 0")
    middle, half = (low + high) / 2, tiles * (high - low) / 2
    return middle - half, middle + half


def _known(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of which nothing is missing."""
    known = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    return x[known], y[known]


def _check_logarithm(column: Column, values: np.ndarray) -> None:
    if column.kind == "log" and (values <= 0).any():
        raise InputError(
            f"column {column.name} holds {np.nanmin(values):.6g}, and its log scaling takes values "
            f"above 0; drop such rows"
        )


def _same_weights(first: NeuralProcess, second: NeuralProcess) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return (
        type(first) is type(second)
        and first.hparams == second.hparams
        and mine.keys() == theirs.keys()
        and all(torch.equal(mine[name], theirs[name]) for name in mine)
    )


def _joined(states: Sequence[Any]) -> Any:
    """One state of the tasks of all."""
    if len(states) == 1:
        return states[0]
    if any(state.ledger is not None for state in states):
        raise InputError("a regressor of several outputs is not saved with a ledger")
    tensors = [list(state.tensors()) for state in states]
    joined = iter([torch.cat(parts, dim=states[0].batch_dim) for parts in zip(*tensors)])
    return states[0].map(lambda _: next(joined))


def _task(state: Any, index: int, number: int) -> Any:
    """The state of one of so many tasks."""
    if number == 1:
        return state
    one = state.map(lambda z: z.narrow(state.batch_dim, index, 1).clone())
    return replace(one, ledger=None)
