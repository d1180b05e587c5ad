"""The scores of predictions, and how sure they are."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks.fine_tuning.functions import Case, Values

# The central 95 % interval lies between these quantiles.
TAILS = 0.025, 0.975


class Scores(NamedTuple):
    """Of each value to be predicted."""

    log_likelihood: Values
    error: Values
    inside: Values
    """Whether the central 95 % interval holds it."""


Method = Callable[[Case], Scores]


def score(predict: Method, cases: list[Case]) -> pd.DataFrame:
    """The scores of all values, with the group of each."""
    parts = [pd.DataFrame(predict(case)._asdict()).assign(group=case.group) for case in cases]
    return pd.concat(parts, ignore_index=True)


def summary(values: pd.DataFrame) -> dict[str, float]:
    """Means over values, and the standard error over groups."""
    return {
        "log_likelihood": values["log_likelihood"].mean(),
        "stderr": standard_error(values["log_likelihood"], values["group"]),
        "rmse": np.sqrt(np.square(values["error"]).mean()),
        "coverage_95": values["inside"].mean(),
    }


def gain(
    name: str,
    values: dict[tuple[str, int], pd.DataFrame],
    method: tuple[str, int],
    other: tuple[str, int],
) -> dict[str, float]:
    """How much more log-likelihood a method has than another on the same values."""
    if method == other or other not in values:
        return {}
    difference = values[method]["log_likelihood"] - values[other]["log_likelihood"]
    error = standard_error(difference, values[method]["group"])
    return {name: difference.mean(), f"{name}_stderr": error}


def standard_error(values: pd.Series, group: pd.Series) -> float:
    r"""Of the mean of all values, whose groups are independent:
    $\sqrt{G / (G - 1) \sum_g (\sum_{i \in g} (v_i - \bar v))^2} / n$."""
    sums = (values - values.mean()).groupby(group).sum()
    number = len(sums)
    return float(np.sqrt(number / (number - 1) * np.square(sums).sum()) / len(values))
