"""Metrics add up over batches and devices."""

import pytest
import torch

from npbench.likelihoods import NormalMixture
from npbench.metrics import (
    CRPS,
    Coverage,
    IntervalScore,
    RegressionMetrics,
    StandardError,
    TaskMean,
)
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
    with pytest.raises(ValueError, match=f"level={level} must lie between 0 and 1"):
        IntervalScore(level)


def random_mixture(components: int) -> NormalMixture:
    shape = 2, 3, components
    return NormalMixture(
        torch.randn(shape).log_softmax(-1), torch.randn(*shape, 1), torch.rand(*shape, 1) + 0.3
    )


@pytest.mark.parametrize("components", [1, 4])
def test_the_crps_of_a_mixture_is_its_definition(components: int) -> None:
    """The integral of the squared difference between F and the step at y."""
    mixture, y = random_mixture(components), torch.randn(2, 3, 1)
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    normals = torch.distributions.Normal(mixture.mean[..., 0], mixture.std[..., 0])
    cdf = (mixture.log_weight.exp() * normals.cdf(grid[:, None, None, None])).sum(-1)
    step = (grid[:, None, None] >= y[..., 0]).double()
    expected = (cdf - step).square().sum(0) * float(grid[1] - grid[0])
    torch.testing.assert_close(mixture.crps(y)[..., 0].double(), expected, atol=1e-3, rtol=1e-3)


def test_the_crps_of_padded_batches_is_that_of_the_real_values() -> None:
    mixture, y = random_mixture(3), torch.randn(2, 3, 1)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    metric = CRPS()
    for task in range(2):
        metric.update(mixture.map(lambda z, i=task: z[i : i + 1]), y[task][None], mask[task][None])
    torch.testing.assert_close(metric.compute(), mixture.crps(y)[mask].mean())


def test_the_interval_score_is_least_for_the_true_interval() -> None:
    y = torch.randn(100_000)
    scores = []
    for std in (0.5, 0.9, 1.0, 1.1, 2.0):
        metric = IntervalScore(0.8)
        for batch in y.split(30_000):
            metric.update(torch.zeros_like(batch), torch.full_like(batch, std), batch)
        scores.append(float(metric.compute()))
    assert min(scores) == scores[2]


def test_scores_are_in_the_units_of_the_outputs() -> None:
    zeros, y = torch.zeros(2, 3, 1), torch.randn(2, 3, 1)
    found = []
    for unit in (1.0, 10.0):
        evaluation = Evaluation(torch.zeros(2), zeros, unit * (zeros + 1))
        measured = RegressionMetrics().update(
            Task(zeros, zeros, zeros, unit * y), evaluation, False
        )
        found.append({name: float(measured[name].compute()) for name in ("crps", "rmse")})
    assert found[1] == pytest.approx({name: 10 * value for name, value in found[0].items()})


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
