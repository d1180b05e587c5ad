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

import numpy as np
from matplotlib.cbook import get_sample_data

from benchmarks.regressors import Split, add_options, compare, methods_of
from benchmarks.streaming import peak_kilobytes

_BLOCK = 24
# Places that are asked for at a time.
_PIECE = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000])
    parser.add_argument("--repeats", type=int, default=1, help="readings of each site")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of a reading")
    parser.add_argument("--queries", type=int, help="take time and memory of so many")
    add_options(parser, ["gp-2d"])
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
        compare(methods_of(options), train, tests, options.noise)


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


if __name__ == "__main__":
    main()
