"""Regressors with error bars, which are compared on one table."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.neighbors import KNeighborsRegressor

from npbench import NeuralProcessRegressor

# Sites that hyper-parameters of Gaussian processes are fitted to, and neighbours of a local one.
_SUBSET, _NEIGHBOURS = 1000, 48
_STANDARD_NORMAL_95 = 1.959964

Values = NDArray[np.float64]


class Split(NamedTuple):
    """Sites [number, inputs] in units of their spacing, and standardised readings."""

    x: Values
    y: Values


class Prediction(NamedTuple):
    mean: Values
    std: Values


class Fitted(NamedTuple):
    """What a method has kept of the data."""

    predict: Callable[[Values], Prediction]
    nbytes: int


Method = Callable[[Split], Fitted]


def baselines() -> dict[str, Method]:
    """What keeps the data, or part of them."""
    return {
        "nearest points": nearest,
        "boosting": boosting,
        f"GP on {_SUBSET:,} sites": subset,
        f"GP on the {_NEIGHBOURS} nearest": local,
    }


def add_options(parser: argparse.ArgumentParser, models: Sequence[str]) -> None:
    """What `methods_of` takes; the models are those that are compared by default."""
    parser.add_argument("--model", nargs="*", default=models, help="of the regressor")
    parser.add_argument("--fine_tune", type=int, nargs="+", default=[0])
    parser.add_argument("--calibrate", action="store_true", help="by rows that are held out, too")
    parser.add_argument("--float16", action="store_true", help="the regressor's states too")
    parser.add_argument("--seed", type=int, default=0)


def methods_of(options: argparse.Namespace) -> dict[str, Method]:
    """The baselines, and the regressors that the options say."""
    methods = baselines()
    for model in options.model:
        for steps in options.fine_tune:
            name = f"{model}, fine-tuned for {steps} steps" if steps else model
            methods[name] = regressor(model, steps)
            if options.calibrate:
                methods[f"{name}, calibrated"] = regressor(model, steps, calibrate=True)
            if options.float16:
                methods[f"{name}, in float16"] = regressor(model, steps, state_dtype="float16")
    return methods


def compare(
    methods: Mapping[str, Method], train: Split, tests: Mapping[str, Split], noise: float = 0.0
) -> None:
    """Fit each method, and print what it says of each test."""
    for name, fit in methods.items():
        start = time.perf_counter()
        fitted = fit(train)
        seconds = time.perf_counter() - start
        print(f"  {name:<32} fitted in {seconds:6.1f} s, keeps {fitted.nbytes / 1e6:6.2f} MB")
        for split, test in tests.items():
            print(f"    {split:<30} {report(fitted, test, noise)}", flush=True)


def report(fitted: Fitted, test: Split, noise: float) -> str:
    """What a method says of sites; where readings are noisy it predicts readings."""
    start = time.perf_counter()
    mean, std = fitted.predict(test.x)
    seconds = time.perf_counter() - start
    y = test.y + noise * np.random.default_rng(1).normal(size=len(test.y))
    z = (y - mean) / std
    density = -0.5 * (z**2 + np.log(2 * np.pi)) - np.log(std)
    error = np.sqrt(((test.y - mean) ** 2).mean())
    held = (np.abs(z) < _STANDARD_NORMAL_95).mean()
    return f"RMSE {error:.3f}  density {density.mean():6.3f}  holds {held:.1%}  {seconds:6.2f} s"


def nearest(train: Split) -> Fitted:
    """The mean of five neighbours; the deviation is that of sites left out."""
    tenth = len(train.x) // 10
    model = KNeighborsRegressor(5, weights="distance").fit(train.x[tenth:], train.y[tenth:])
    std = float(np.std(train.y[:tenth] - model.predict(train.x[:tenth])))
    model = KNeighborsRegressor(5, weights="distance").fit(train.x, train.y)
    nbytes = train.x.nbytes + train.y.nbytes
    return Fitted(lambda x: Prediction(model.predict(x), np.full(len(x), max(std, 1e-3))), nbytes)


def boosting(train: Split) -> Fitted:
    """Gradient-boosted trees of the mean, and of two quantiles."""
    mean = HistGradientBoostingRegressor(max_iter=500).fit(train.x, train.y)
    low, high = (
        HistGradientBoostingRegressor(loss="quantile", quantile=q, max_iter=300).fit(*train)
        for q in (0.025, 0.975)
    )

    def predict(x: Values) -> Prediction:
        width = np.maximum(high.predict(x) - low.predict(x), 1e-3)
        return Prediction(mean.predict(x), width / (2 * _STANDARD_NORMAL_95))

    nodes = sum(
        tree.nodes.nbytes
        for model in (mean, low, high)
        for trees in model._predictors
        for tree in trees
    )
    return Fitted(predict, nodes)


def subset(train: Split) -> Fitted:
    """The exact Gaussian process of as many sites as one can take."""
    model = gaussian_process(train)
    return Fitted(lambda x: Prediction(*model.predict(x, return_std=True)), model.L_.nbytes)


def gaussian_process(train: Split) -> GaussianProcessRegressor:
    chosen = np.random.default_rng(0).permutation(len(train.x))[:_SUBSET]
    kernel = ConstantKernel(1.0) * Matern(30.0, nu=1.5) + WhiteKernel(0.01, (1e-6, 1e1))
    return GaussianProcessRegressor(kernel).fit(train.x[chosen], train.y[chosen])


def local(train: Split) -> Fitted:
    """For each site the Gaussian process of its neighbours, with hyper-parameters of a subset of
    one connected piece of the field, where neighbours are as near as they are."""
    tree = cKDTree(train.x)
    _, chosen = tree.query(train.x[0], k=min(_SUBSET, len(train.x)))
    kernel = ConstantKernel(1.0) * Matern(30.0, nu=1.5) + WhiteKernel(0.01, (1e-6, 1e1))
    fitted = GaussianProcessRegressor(kernel, normalize_y=True).fit(
        train.x[chosen], train.y[chosen]
    )
    scale = float(np.var(train.y[chosen]))
    smooth, white = fitted.kernel_.k1, fitted.kernel_.k2.noise_level

    def predict(x: Values) -> Prediction:
        return Prediction(*map(np.concatenate, zip(*parts(x), strict=True)))

    def parts(x: Values) -> Iterator[tuple[Values, Values]]:
        for piece in np.array_split(x, max(1, len(x) // 500)):
            _, index = tree.query(piece, k=_NEIGHBOURS)
            near, y = train.x[index], train.y[index]
            centre = y.mean(axis=1, keepdims=True)
            gram = covariance(near, near) + scale * white * np.eye(_NEIGHBOURS)
            cross = covariance(piece[:, None], near)[:, 0]
            weights = np.linalg.solve(gram, cross[..., None])[..., 0]
            prior = scale * (smooth.k1.constant_value + white)
            variance = np.maximum(prior - (weights * cross).sum(axis=1), 1e-9)
            mean = centre[:, 0] + (weights * (y - centre)).sum(axis=1)
            yield mean, np.sqrt(variance)

    def covariance(a: Values, b: Values) -> Values:
        distance = np.linalg.norm(a[:, :, None] - b[:, None], axis=-1)
        scaled = np.sqrt(3) * distance / smooth.k2.length_scale
        return scale * smooth.k1.constant_value * (1 + scaled) * np.exp(-scaled)

    return Fitted(predict, train.x.nbytes + train.y.nbytes)


def regressor(model: str, steps: int, **options: Any) -> Method:
    def fit(train: Split) -> Fitted:
        fitted = NeuralProcessRegressor(model, fine_tune=steps, **options).fit(*train)
        return Fitted(lambda x: Prediction(*fitted.predict(x, return_std=True)), fitted.nbytes_)

    return fit
