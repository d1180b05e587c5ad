"""Metrics add up over batches and devices."""

import pytest
import torch

from npbench.metrics import Coverage, RegressionMetrics, StandardError, TaskMean
from npbench.models.contracts.process import Evaluation
from npbench.task import Bayes, Exact, Task


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


@pytest.mark.parametrize(("jointly", "gap", "gap_bayes"), [(False, 1.5, 0.5), (True, 3.5, 2.5)])
def test_gaps_are_to_the_ceilings_that_the_tasks_know(
    jointly: bool, gap: float, gap_bayes: float
) -> None:
    ones = torch.ones(2)
    zeros = torch.zeros(2, 3, 1)
    exact = Exact(zeros, zeros + 1, 2 * ones, 4 * ones)
    bayes = Bayes(ones, -9 * ones, 3 * ones, -9 * ones)
    evaluation = Evaluation(0.5 * ones, zeros, zeros + 1)
    metrics = RegressionMetrics()
    assert not {"gap", "gap_bayes"} & set(
        metrics.update(Task(zeros, zeros, zeros, zeros), evaluation, jointly)
    )
    task = Task(zeros, zeros, zeros, zeros, exact=exact, bayes=bayes)
    measured = metrics.update(task, evaluation, jointly)
    assert measured["gap"].compute() == gap
    assert measured["gap_bayes"].compute() == gap_bayes
