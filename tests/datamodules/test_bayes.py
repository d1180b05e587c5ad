"""The ceiling of models that know only the priors."""

import pytest
import torch
from gpytorch.kernels import PeriodicKernel, RBFKernel, ScaleKernel
from gpytorch.priors import UniformPrior
from helpers import assert_close, assert_same_record
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from datamodules import GPDataModule
from datamodules.bayes import BayesianCeiling, _scores, _step
from datamodules.gaussian_process import GPDraw, realise
from datamodules.kernels import RandomKernel, SquaredUniformPrior


def narrow_rbf(width: float) -> ScaleKernel:
    """Lengths and scales near 0.4 and 0.7."""
    return ScaleKernel(
        RBFKernel(lengthscale_prior=UniformPrior(0.4, 0.4 + width)),
        outputscale_prior=SquaredUniformPrior(0.7, 0.7 + width),
    )


def wide_rbf() -> ScaleKernel:
    return ScaleKernel(
        RBFKernel(lengthscale_prior=UniformPrior(0.1, 0.6)),
        outputscale_prior=SquaredUniformPrior(0.1, 1.0),
    )


def draws_of(kernel: RandomKernel, batch: int = 3, dim_y: int = 1) -> GPDraw:
    shape = (batch, 10)
    return GPDraw(
        num_context=torch.tensor([3, 6, 4])[:batch],
        num_target=torch.tensor([5, 2, 6])[:batch],
        x=4 * torch.rand(*shape, 1, dtype=torch.float64) - 2,
        hyperparameters=kernel.draw(batch),
        white=torch.randn(*shape, dim_y, dtype=torch.float64),
        outliers=None,
    )


@pytest.mark.parametrize("dim_y", [1, 2])
def test_where_the_priors_are_narrow_the_ceiling_is_the_exact_answer(dim_y: int) -> None:
    kernel = RandomKernel(narrow_rbf(1e-7))
    draw = draws_of(kernel, dim_y=dim_y)
    exact = realise(kernel, draw, 0.05, with_exact=True).exact
    bayes = BayesianCeiling(kernel, 0.05, num_points=8)(draw)
    assert_close(bayes.log_likelihood, exact.log_likelihood, 1e-4)
    assert_close(bayes.gaussian_log_likelihood, exact.log_likelihood, 1e-4)
    assert_close(bayes.joint_log_likelihood, exact.joint_log_likelihood, 1e-4)
    assert_close(bayes.joint_gaussian_log_likelihood, exact.joint_log_likelihood, 1e-4)


def by_the_textbook(task: GPDraw, y: Tensor, lengths: Tensor, scales: Tensor) -> list[Tensor]:
    """The four figures of one task with RBF hyper-parameters of equal prior weight."""
    n, m = int(task.num_context), int(task.num_target)
    x, y = task.x[0, : n + m], y[0, : n + m, 0]
    yc, yt, log_weight, means, covariances = y[:n], y[n:], [], [], []
    for length, scale in zip(lengths, scales):
        covariance = scale * (-0.5 * (x - x.T).square() / length**2).exp()
        covariance = covariance + 0.05**2 * torch.eye(n + m)
        kcc, ktc, ktt = covariance[:n, :n], covariance[n:, :n], covariance[n:, n:]
        log_weight.append(MultivariateNormal(torch.zeros(n).double(), kcc).log_prob(yc))
        means.append(ktc @ torch.linalg.solve(kcc, yc))
        covariances.append(ktt - ktc @ torch.linalg.solve(kcc, ktc.T))
    log_weight = torch.stack(log_weight).log_softmax(0)
    means, covariances = torch.stack(means), torch.stack(covariances)
    stds = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
    each = (log_weight[:, None] + Normal(means, stds).log_prob(yt)).logsumexp(0).mean()
    joint = MultivariateNormal(means, covariances).log_prob(yt)
    weight = log_weight.exp()
    mean = weight @ means
    away = means - mean
    covariance = torch.einsum("g,gnm->nm", weight, covariances + away[:, :, None] * away[:, None])
    gaussian = Normal(mean, covariance.diagonal().sqrt()).log_prob(yt).mean()
    joint_gaussian = MultivariateNormal(mean, covariance).log_prob(yt) / m
    return [each, gaussian, (log_weight + joint).logsumexp(0) / m, joint_gaussian]


def test_the_scores_are_those_of_the_textbook() -> None:
    kernel = RandomKernel(wide_rbf())
    draw = draws_of(kernel)
    ceiling = BayesianCeiling(kernel, 0.05, num_points=16)
    theta = ceiling._first[:16].expand(3, -1, -1)
    scales, lengths = (z.flatten() for z in ceiling._hyperparameters(theta[0]))
    y = draw.factor(kernel, 0.05) @ draw.white
    weight = ceiling._log_evidence(draw.x, y, draw.is_context, theta).log_softmax(dim=-1)
    bayes = _scores(draw, y, ceiling._factor(draw.x, theta), weight)
    for i in range(3):
        expected = by_the_textbook(draw[i : i + 1], y[i : i + 1], lengths, scales)
        for mine, value in zip(bayes.tensors(), expected, strict=True):
            assert mine[i].item() == pytest.approx(value.item(), abs=1e-5)


def wide_tasks(kernel: RandomKernel, batch: int, num_context: int) -> GPDraw:
    return GPDraw(
        num_context=torch.full([batch], num_context),
        num_target=torch.full([batch], 9),
        x=4 * torch.rand(batch, num_context + 9, 1, dtype=torch.float64) - 2,
        hyperparameters=kernel.draw(batch),
        white=torch.randn(batch, num_context + 9, 1, dtype=torch.float64),
        outliers=None,
    )


@pytest.mark.parametrize("num_context", [3, 40])
def test_the_draws_are_as_good_as_many_weighted_ones_from_the_priors(num_context: int) -> None:
    kernel = RandomKernel(wide_rbf())
    draw = wide_tasks(kernel, 8, num_context)
    ceiling = BayesianCeiling(kernel, 0.02, num_points=128)
    y = draw.factor(kernel, 0.02) @ draw.white
    theta = ceiling._first.expand(8, -1, -1)
    weight = ceiling._log_evidence(draw.x, y, draw.is_context, theta).log_softmax(dim=-1)
    expected = _scores(draw, y, ceiling._factor(draw.x, theta), weight).log_likelihood
    errors = ceiling(draw).log_likelihood - expected
    assert errors.mean().abs() < 0.04
    assert errors.abs().max() < 0.25


def test_a_period_is_found() -> None:
    """Where the context says much, the ceiling is near the exact answer."""
    kernel = RandomKernel(
        PeriodicKernel(
            period_length_prior=UniformPrior(0.1, 0.5),
            lengthscale_prior=SquaredUniformPrior(0.3, 0.6),
        )
    )
    draw = wide_tasks(kernel, 6, 40)
    exact = realise(kernel, draw, 0.02, with_exact=True).exact
    bayes = BayesianCeiling(kernel, 0.02, num_points=128)(draw)
    assert (exact.log_likelihood - bayes.log_likelihood).mean() < 0.2


def test_the_power_rises_as_far_as_half_of_the_draws_count() -> None:
    evidence = torch.tensor([[0.0, -1.0, -50.0, -80.0], [0.0, -0.1, -0.2, -0.1]]).double()
    step = _step(torch.zeros(2, 1).double(), evidence, 2.0)
    assert step[1] == 1.0
    weight = (step * evidence).softmax(dim=-1)
    assert (1 / weight.square().sum(-1))[0].item() == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("kernel", ["wide", "none"])
def test_the_ceiling_of_a_task_does_not_depend_on_its_batch(kernel: str) -> None:
    kernel = RBFKernel() if kernel == "none" else wide_rbf()
    data = GPDataModule(kernel=kernel, bayes_grid=16, max_num_points=12)
    together = data.evaluation_batch(range(5)).bayes
    other = GPDataModule(kernel=kernel, bayes_grid=16, max_num_points=12)
    alone = [other.evaluation_batch(range(i, i + 1)).bayes for i in range(5)]
    for name in ("log_likelihood", "joint_gaussian_log_likelihood"):
        assert_close(getattr(together, name), torch.cat([getattr(z, name) for z in alone]), 1e-4)


def test_a_ceiling_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = GPDataModule(bayes_grid=8)
    first = data.evaluation_batch(range(4))
    monkeypatch.setattr(BayesianCeiling, "__call__", None)
    assert_same_record(data.evaluation_batch(range(1, 4)).bayes, first.bayes.map(lambda z: z[1:]))


def test_without_a_grid_there_is_no_ceiling() -> None:
    assert GPDataModule().evaluation_batch(range(2)).bayes is None
    assert GPDataModule(bayes_grid=8, t_noise=0.1).evaluation_batch(range(2)).bayes is None
    assert GPDataModule(bayes_grid=8).training_batch(0).bayes is None
    with pytest.raises(ValueError, match="bayes_grid=-1 must be 0 or more"):
        GPDataModule(bayes_grid=-1)


def test_the_ceiling_is_below_the_exact_answer_on_average() -> None:
    task = GPDataModule(bayes_grid=32).evaluation_batch(range(96))
    loss = task.exact.log_likelihood - task.bayes.log_likelihood
    assert 0.01 < loss.mean() < 0.15
    joint = task.exact.joint_log_likelihood - task.bayes.joint_log_likelihood
    assert 0.0 < joint.mean() < loss.mean()
    assert task.bayes.gaussian_log_likelihood.mean() < task.bayes.log_likelihood.mean()
