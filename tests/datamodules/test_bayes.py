"""The ceiling of models that know only the priors."""

import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.priors import UniformPrior
from helpers import assert_close, assert_same_record
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from datamodules import GPDataModule
from datamodules.bayes import BayesianCeiling, _proposals
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


def test_the_ceiling_is_that_of_the_textbook() -> None:
    kernel = RandomKernel(wide_rbf())
    draw = draws_of(kernel)
    ceiling = BayesianCeiling(kernel, 0.05, num_points=16, num_rounds=0)
    scales, lengths = (z.flatten() for z in ceiling._hyperparameters(ceiling._first[:16]))
    y = draw.factor(kernel, 0.05) @ draw.white
    bayes = ceiling(draw)
    for i in range(3):
        expected = by_the_textbook(draw[i : i + 1], y[i : i + 1], lengths, scales)
        for mine, value in zip(bayes.tensors(), expected, strict=True):
            assert mine[i].item() == pytest.approx(value.item(), abs=1e-5)


def test_rounds_make_few_draws_as_good_as_many() -> None:
    """Where the context says much, so that few draws from the priors are near the truth."""
    kernel = RandomKernel(wide_rbf())
    draw = GPDraw(
        num_context=torch.full([8], 40),
        num_target=torch.full([8], 9),
        x=4 * torch.rand(8, 49, 1, dtype=torch.float64) - 2,
        hyperparameters=kernel.draw(8),
        white=torch.randn(8, 49, 1, dtype=torch.float64),
        outliers=None,
    )
    many = BayesianCeiling(kernel, 0.02, num_points=1024, num_rounds=0)(draw)
    errors = []
    for rounds in (0, 5):
        few = BayesianCeiling(kernel, 0.02, num_points=32, num_rounds=rounds)(draw)
        errors.append((few.log_likelihood - many.log_likelihood).abs().mean().item())
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 0.02


def test_proposals_have_the_density_that_is_said() -> None:
    """The weighted mean of any function is that under the uniform law of the cube."""
    first = torch.quasirandom.SobolEngine(2, scramble=True, seed=1).draw(256).double()[None]
    log_weight = (-((first - 0.2).square().sum(-1)) / 0.1).log_softmax(-1)
    new, log_density = _proposals(first, log_weight, torch.rand(256, 2).double())
    assert (new >= 0).all()
    assert (new <= 1).all()

    def integral(function: Tensor, log_density: Tensor) -> float:
        return (function * (-log_density).exp()).mean().item()

    inside = ((new - 0.25).abs() < 0.2).all(-1).double()
    assert integral(inside, log_density) == pytest.approx(0.16, rel=0.15)


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
    task = GPDataModule(bayes_grid=64).evaluation_batch(range(96))
    loss = task.exact.log_likelihood - task.bayes.log_likelihood
    assert 0.01 < loss.mean() < 0.15
    joint = task.exact.joint_log_likelihood - task.bayes.joint_log_likelihood
    assert 0.0 < joint.mean() < loss.mean()
    assert task.bayes.gaussian_log_likelihood.mean() < task.bayes.log_likelihood.mean()
