"""Small models, random points and comparisons that the tests share."""

from collections.abc import Callable
from random import Random
from typing import TypeVar

import torch
from hypothesis import settings
from torch import Tensor
from torch.distributions import Distribution

from npbench import Task
from npbench.models import CMANP
from npbench.structure import TensorRecord

State = TypeVar("State")

# Two ways to the same number may differ by this, relative or absolute.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

few_examples = settings(max_examples=10, deadline=None, derandomize=True)


def small_cmanp(
    dim_x: int = 1, dim_y: int = 1, dtype: torch.dtype = torch.float32, **arguments: object
) -> CMANP:
    sizes = {
        "dim_model": 16, "num_heads": 2, "num_layers": 2, "dim_feedforward": 32,
        "num_latents": 6, "num_block_latents": 4, "embed_depth": 2,
    }  # fmt: skip
    return CMANP(dim_x, dim_y, **(sizes | arguments)).to(dtype).eval()


def random_points(
    batch: int, points: int, dim_x: int = 1, dim_y: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(batch, points, dim_x, dtype=dtype),
        torch.randn(batch, points, dim_y, dtype=dtype),
    )


def random_task(batch: int = 2, context: int = 7, target: int = 5, **arguments: object) -> Task:
    return Task(
        *random_points(batch, context, **arguments), *random_points(batch, target, **arguments)
    )


def random_slices(size: int, random: Random) -> list[slice]:
    """`range(size)` cut at random places into pieces, empty ones among them."""
    cuts = sorted(random.randint(0, size) for _ in range(random.randint(1, 4)))
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, size])]


def merge_in_a_random_tree(
    states: list[State], merge: Callable[[State, State], State], random: Random
) -> State:
    states = list(states)
    while len(states) > 1:
        first = states.pop(random.randrange(len(states)))
        second = states.pop(random.randrange(len(states)))
        states.append(merge(first, second))
    return states[0]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    tolerance = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_prediction(
    actual: Distribution, expected: Distribution, tolerance: float | None = None
) -> None:
    assert_close(actual.mean, expected.mean, tolerance)
    assert_close(actual.stddev, expected.stddev, tolerance)


def assert_same_record(actual: TensorRecord, expected: TensorRecord) -> None:
    """Bit for bit, masks and nested records included."""
    pairs = list(zip(actual.tensors(), expected.tensors(), strict=True))
    assert pairs
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
