"""Random attention, and comparisons of its states."""

import pytest
import torch
from torch import Tensor

from helpers import assert_close
from npbench.attention import AttentionState

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def random_qkv(
    points: int,
    batch: int = 2,
    heads: int = 3,
    queries: int = 4,
    dim_head: int = 5,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, heads, queries, dim_head, dtype=dtype),
        torch.randn(batch, heads, points, dim_head, dtype=dtype),
        torch.randn(batch, heads, points, dim_head, dtype=dtype),
    )


def assert_same_state(actual: AttentionState, expected: AttentionState) -> None:
    assert_close(actual.lse, expected.lse)
    assert_close(actual.out, expected.out)


def random_bias(points: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Per head, query and point, of the shapes of `random_qkv`; steep enough to matter."""
    return 3 * torch.randn(batch, 3, 4, points, dtype=dtype)
