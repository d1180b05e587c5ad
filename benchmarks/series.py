"""A long series of real readings: the constant-memory regressor beside those that keep the data.

    python -m benchmarks.series                             # half a year of a glucose sensor
    python -m benchmarks.series --rows 1000 10000 --model gp-1d gp-1d-located --calibrate

The readings are of a glucose sensor, one every five minutes, which `bokeh-sampledata` ships. A
tenth of the spans of two hours are left out whole, and a tenth of the other readings one by one.
Errors and densities are in standard deviations of the readings. What is printed is as in
`benchmarks.field`.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.regressors import Split, add_options, compare, methods_of

# Readings in a span, and most of a kind that are asked for.
_SPAN, _ASKED = 24, 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", help="first ones; by default all")
    add_options(parser, ["gp-1d", "gp-1d-located", "auto"])
    options = parser.parse_args()
    for rows in options.rows or [None]:
        train, tests = series(rows, options.seed)
        print(f"\n{len(train.x):,} readings", flush=True)
        compare(methods_of(options), train, tests)


def series(rows: int | None, seed: int) -> tuple[Split, dict[str, Split]]:
    """The readings, and those that nobody has seen."""
    package = Path(find_spec("bokeh_sampledata").origin).parent
    readings = pd.read_csv(package / "_data" / "CGM.csv.gz", parse_dates=["datetime"])
    readings = readings.dropna(subset=["glucose"]).sort_values("datetime")[:rows]
    x = (readings["datetime"] - readings["datetime"].iloc[0]) / pd.Timedelta("5min")
    y = readings["glucose"].to_numpy(np.float64)
    all_readings = Split(x.to_numpy(np.float64)[:, None], (y - y.mean()) / y.std())
    random = np.random.default_rng(seed)
    span = all_readings.x[:, 0] // _SPAN
    spans = random.permutation(np.unique(span))
    in_gap = np.isin(span, spans[: len(spans) // 10])
    alone = ~in_gap & (random.uniform(size=len(span)) < 0.1)

    def some(chosen: np.ndarray, most: int | None = None) -> Split:
        index = random.permutation(np.flatnonzero(chosen))[:most]
        return Split(*(values[index] for values in all_readings))

    tests = {"scattered": some(alone, _ASKED), "gaps": some(in_gap, _ASKED)}
    return some(~in_gap & ~alone), tests


if __name__ == "__main__":
    main()
