"""Metrics add up over batches and devices."""

import pytest
import torch

from npbench.metrics import Coverage, StandardError, TaskMean


def test_mean_and_standard_error_over_uneven_batches_equal_those_of_all_tasks() -> None:
    values = torch.randn(100)
    mean, error = TaskMean(), StandardError()
    for batch in values.split([1, 30, 69]):
        mean.update(batch)
        error.update(batch)
    torch.testing.assert_close(mean.compute(), values.mean())
    torch.testing.assert_close(error.compute(), values.std() / 10)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_coverage_of_calibrated_predictions_is_the_level(level: float) -> None:
    mean, std = torch.randn(200_000), torch.rand(200_000) + 0.1
    metric = Coverage(level)
    metric.update(mean, std, mean + std * torch.randn(200_000))
    assert metric.compute() == pytest.approx(level, abs=0.004)


def test_coverage_of_overconfident_predictions_is_below_the_level() -> None:
    metric = Coverage(0.95)
    metric.update(torch.zeros(10_000), torch.full([10_000], 0.5), torch.randn(10_000))
    assert metric.compute() < 0.75


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_that_is_no_probability_is_an_error(level: float) -> None:
    with pytest.raises(ValueError, match=f"level={level} must lie between 0 and 1"):
        Coverage(level)
