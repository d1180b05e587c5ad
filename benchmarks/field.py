"""A big field of real measurements: the constant-memory regressor beside those that keep the data.

    python -m benchmarks.field                              # 50,000 points of the elevation field
    python -m benchmarks.field --rows 5000 50000 --model gp-2d --fine_tune 0 300
    python -m benchmarks.field --repeats 3 --noise 0.3      # three noisy readings of each point
    python -m benchmarks.field --rows 100000 --queries 1000000 --calibrate  # time and memory

The field is the elevation of 344 × 403 sites that matplotlib ships. A tenth of the sites that are
left out are scattered, another tenth are blocks of 24 × 24 sites. Errors, densities and noise are
in standard deviations of the field. Each row gives the root mean square error, the log-density per
site, what the 95 % interval holds, the seconds of fitting and of predicting, and the bytes kept.
With `--queries` each method answers so many places of the field in a process of its own, and the
row gives the seconds and what the process takes at most beyond libraries and data.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.neighbors import KNeighborsRegressor

from benchmarks.streaming import peak_kilobytes
from npbench import NeuralProcessRegressor

_BLOCK = 24
# Sites that hyper-parameters of Gaussian processes are fitted to, and neighbours of a local one.
_SUBSET, _NEIGHBOURS = 1000, 48
_STANDARD_NORMAL_95 = 1.959964
# Places that are asked for at a time.
_PIECE = 16_384

Values = NDArray[np.float64]


class Split(NamedTuple):
    """Sites [number, 2] in units of the grid's spacing, and their standardised elevations."""

    x: Values
    y: Values


class Prediction(NamedTuple):
    mean: Values
    std: Values


class Fitted(NamedTuple):
    """What a method has kept of the data."""

    predict: Callable[[Values], Prediction]
    nbytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000])
    parser.add_argument("--repeats", type=int, default=1, help="readings of each site")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of a reading")
    parser.add_argument("--model", nargs="*", default=["gp-2d"], help="of the regressor")
    parser.add_argument("--fine_tune", type=int, nargs="+", default=[0])
    parser.add_argument("--calibrate", action="store_true", help="by rows that are held out, too")
    parser.add_argument("--float16", action="store_true", help="the regressor's states too")
    parser.add_argument("--queries", type=int, help="take time and memory of so many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for rows in options.rows:
        readings = rows * options.repeats
        print(f"\n{readings:,} readings of {rows:,} sites, noise {options.noise:g}", flush=True)
        if options.queries is not None:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                for name in methods_of(options):
                    print(f"  {name:<32} {pool.apply(at_scale, (name, rows, options))}", flush=True)
            continue
        train, tests = field(rows, options.repeats, options.noise, options.seed)
        for name, fit in methods_of(options).items():
            start = time.perf_counter()
            fitted = fit(train)
            seconds = time.perf_counter() - start
            print(f"  {name:<32} fitted in {seconds:6.1f} s, keeps {fitted.nbytes / 1e6:6.2f} MB")
            for split, test in tests.items():
                print(f"    {split:<30} {report(fitted, test, options.noise)}", flush=True)


def methods_of(options: argparse.Namespace) -> dict[str, Callable[[Split], Fitted]]:
    methods: dict[str, Callable[[Split], Fitted]] = {
        "nearest points": nearest,
        "boosting": boosting,
        f"GP on {_SUBSET:,} sites": subset,
        f"GP on the {_NEIGHBOURS} nearest": local,
    }
    for model in options.model:
        for steps in options.fine_tune:
            name = f"{model}, fine-tuned for {steps} steps" if steps else model
            methods[name] = regressor(model, steps)
            if options.calibrate:
                methods[f"{name}, calibrated"] = regressor(model, steps, calibrate=True)
            if options.float16:
                methods[f"{name}, in float16"] = regressor(model, steps, state_dtype="float16")
    return methods


def at_scale(name: str, rows: int, options: argparse.Namespace) -> str:
    """What a method takes to fit the rows and to answer queries, in a process that did nothing
    before."""
    train, _ = field(rows, options.repeats, options.noise, options.seed)
    x = np.random.default_rng(0).uniform(0, train.x.max(axis=0), (options.queries, 2))
    before = peak_kilobytes()
    start = time.perf_counter()
    fitted = methods_of(options)[name](train)
    middle = time.perf_counter()
    for piece in np.array_split(x, math.ceil(len(x) / _PIECE)):
        fitted.predict(piece)
    end = time.perf_counter()
    return (
        f"fitted in {middle - start:6.1f} s, answers {len(x):,} in {end - middle:6.1f} s, "
        f"takes {(peak_kilobytes() - before) / 1e3:7,.0f} MB, keeps {fitted.nbytes / 1e6:6.2f} MB"
    )


def field(rows: int, repeats: int, noise: float, seed: int) -> tuple[Split, dict[str, Split]]:
    """The readings, and the sites that nobody has read."""
    grid = np.load(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False))["elevation"]
    grid = grid.astype(np.float64)
    grid = (grid - grid.mean()) / grid.std()
    random = np.random.default_rng(seed)
    tiles = np.add.outer(
        np.arange(grid.shape[0]) // _BLOCK * 1000, np.arange(grid.shape[1]) // _BLOCK
    )
    held = random.permutation(np.unique(tiles))[: len(np.unique(tiles)) // 10]
    in_block = np.isin(tiles, held)
    sites = np.argwhere(~in_block)
    random.shuffle(sites)
    scattered, rest = np.split(sites, [len(sites) // 10])
    x = np.repeat(rest[:rows], repeats, axis=0).astype(np.float64)
    y = np.repeat(grid[tuple(rest[:rows].T)], repeats)
    y = y + noise * random.normal(size=len(y))
    tests = {
        "scattered": scattered[:4000],
        "blocks": random.permutation(np.argwhere(in_block))[:4000],
    }
    return Split(x, y), {
        name: Split(where.astype(np.float64), grid[tuple(where.T)]) for name, where in tests.items()
    }


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


def regressor(model: str, steps: int, **options: Any) -> Callable[[Split], Fitted]:
    def fit(train: Split) -> Fitted:
        fitted = NeuralProcessRegressor(model, fine_tune=steps, **options).fit(*train)
        return Fitted(lambda x: Prediction(*fitted.predict(x, return_std=True)), fitted.nbytes_)

    return fit


if __name__ == "__main__":
    main()
