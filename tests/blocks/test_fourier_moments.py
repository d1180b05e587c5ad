"""The transform of points: waves at any frequency, and second moments of any features."""

import math

import pytest
import torch
from helpers import assert_close, few_examples, random_points
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench.blocks import SecondMoments
from npbench.blocks.fourier import fourier_features
from npbench.blocks.fourier_moments import FourierMoments
from npbench.blocks.frequency_grid import FrequencyGrid

GRID = FrequencyGrid(-1.0, 4.0, top=200.0)


def points_in_range(batch: int, number: int, dim_y: int = 1) -> tuple[Tensor, Tensor]:
    x, y = random_points(batch, number, dim_y=dim_y, dtype=torch.float64)
    return GRID.low + (GRID.high - GRID.low) * torch.rand_like(x), y


@given(seed=st.integers(0, 1000), number=st.integers(0, 50))
@few_examples
def test_the_transform_at_any_frequency_is_the_sum_of_the_waves(seed: int, number: int) -> None:
    torch.manual_seed(seed)
    x, y = points_in_range(2, number, dim_y=2)
    x[:, :1], x[:, 1:2] = GRID.low, GRID.high
    for frequency in (torch.rand(1, 40), torch.rand(2, 40)):
        frequency = GRID.top * (2 * frequency.double() - 1)
        frequency[:, :2] = torch.tensor([0.0, GRID.step])
        moments = FourierMoments.of(GRID, x, y)
        waves = torch.exp(1j * frequency[:, None] * GRID.centred(x))
        assert_close(moments.points_at(frequency), waves.sum(dim=1), 1e-10)
        expected = torch.einsum("bnd,bnw->bdw", y + 0j, waves)
        assert_close(moments.outputs_at(frequency), expected, 1e-10)


def test_second_moments_of_any_features_are_those_of_the_points() -> None:
    x, y = points_in_range(2, 30, dim_y=2)
    mask = torch.rand(2, 30) < 0.7
    frequency = torch.tensor([0.0, 0.3, 7.0, 61.3, 200.0]).double()
    features = fourier_features(GRID.centred(x), frequency[:, None])
    expected = SecondMoments.of(features, y, mask)
    found = FourierMoments.of(GRID, x, y, mask).second_moments(frequency)
    for mine, theirs in zip(found.tensors(), expected.tensors(), strict=True):
        assert_close(mine, theirs, 1e-10)


def test_second_moments_of_harmonics_are_those_of_their_features() -> None:
    x, y = points_in_range(2, 30, dim_y=2)
    moments = FourierMoments.of(GRID, x, y)
    base = torch.tensor([[3.0, 17.0], [5.5, 40.0]]).double()
    gram, targets = moments.harmonic_moments(base, num_harmonics=4)
    for task in range(2):
        for i in range(2):
            frequency = base[task, i] * torch.arange(5)[:, None]
            features = fourier_features(GRID.centred(x[[task]]), frequency)
            expected = SecondMoments.of(features, y[[task]])
            assert_close(gram[task, i], expected.gram[0], 1e-10)
            assert_close(targets[task, i], expected.targets[0], 1e-10)


def test_gradients_reach_the_frequencies() -> None:
    moments = FourierMoments.of(GRID, *points_in_range(1, 5))
    frequency = torch.tensor([0.4, 7.3, 55.0]).double().requires_grad_()

    def of_frequency(w: Tensor) -> Tensor:
        return moments.second_moments(w).gram

    assert torch.autograd.gradcheck(of_frequency, frequency, atol=1e-4)


def test_inputs_outside_the_range_are_refused() -> None:
    GRID.check(torch.tensor([-1.0, 4.0]))
    with pytest.raises(ValueError, match=r"1 points lie outside \[-1, 4\]"):
        GRID.check(torch.tensor([0.0, 4.1]))
    with pytest.raises(ValueError, match="x_range="):
        FrequencyGrid(1.0, 1.0, top=5.0)


def test_the_size_grows_with_the_range_and_the_top_alone() -> None:
    sizes = [FrequencyGrid(0.0, width, top).size for width, top in ((4.0, 500.0), (8.0, 250.0))]
    assert sizes[0] == sizes[1]
    few, many = (FourierMoments.of(GRID, *points_in_range(1, n)).nbytes for n in (1, 1000))
    assert few == many
    assert GRID.size * GRID.step > GRID.top > (GRID.size - 80) * GRID.step
    assert math.isclose(GRID.centred(torch.tensor(4.0)), 2.5)
