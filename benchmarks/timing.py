"""How long a call takes, for the benchmarks that take several calls in turn.

Peak memory and the time of one call by itself are `npbench.profiling.measure`'s.
"""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """The result of a call, and the seconds that it took on whatever device it ran."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def seconds(function: Callable[[], object]) -> float:
    """The seconds of one call."""
    return timed(function)[1]


def median_seconds(function: Callable[[], object], repeats: int = 15) -> float:
    """The median time of a call, after two that warm up."""
    return statistics.median([seconds(function) for _ in range(repeats + 2)][2:])
