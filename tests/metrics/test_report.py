"""Calibration by probability integral transforms, and scores of joint samples."""

import math

import pytest
import torch
from helpers import assert_close, small

from datamodules import GPDataModule
from npbench.likelihoods import NormalMixture
from npbench.metrics import EnergyScore, PITHistogram, RegressionMetrics, energy_score
from npbench.models.contracts.process import Evaluation
from npbench.task import Task
from npbench.training.sampling import joint_samples

# The Kolmogorov–Smirnov distance of n uniform draws is below this over √n in 99 of 100 cases.
KS_99 = 1.628


def first_targets(number: int) -> tuple[Task, Evaluation]:
    """One target of each task, so that their values are independent of each other."""
    task = GPDataModule(max_num_points=20).evaluation_batch(range(number))
    one = [z[:, :1] for z in (task.xt, task.yt, task.exact.mean, task.exact.std)]
    xt, yt, mean, std = one
    return Task(task.xc, task.yc, xt, yt), Evaluation(torch.zeros(number), mean, std)


def test_transforms_of_exact_predictions_are_uniform() -> None:
    task, exact = first_targets(400)
    metrics = RegressionMetrics()
    found = metrics.update(task, exact, jointly=False)
    assert found["pit_ks"].compute() < KS_99 / 20
    counts = metrics.pit.compute()
    assert counts.sum() == 400
    assert (counts - 20).square().sum() / 20 < 37  # χ² of 19 degrees of freedom: 99 of 100 cases
    sure = RegressionMetrics()
    sure.update(task, exact._replace(std=exact.std / 2), jointly=False)
    assert sure.pit_ks.compute() > 2 * KS_99 / 20
    assert sure.pit.compute()[[0, -1]].min() > counts.max()


def test_transforms_of_a_mixture_are_those_of_its_own_distribution() -> None:
    """Two narrow peaks, whose moments would say something else."""
    weight, mean = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0])
    mixture = NormalMixture(
        weight.log().expand(1, 5000, 2),
        mean[:, None].expand(1, 5000, 2, 1),
        torch.full((1, 5000, 2, 1), 0.1),
    )
    y = mixture.distribution.sample()
    u = mixture.cdf(y).flatten()
    metric = PITHistogram(num_bins=10)
    for part in u.split(1500):
        metric.update(part)
    assert (metric.compute() - 500).square().sum() / 500 < 21.7  # 9 degrees of freedom
    moments = NormalMixture.of_moments(*mixture.moments).cdf(y).flatten()
    metric = PITHistogram(num_bins=10)
    metric.update(moments)
    assert (metric.compute() - 500).square().sum() / 500 > 1000


def test_a_model_of_mixtures_is_judged_by_its_mixtures() -> None:
    for name in ("SecondMomentNP", "NP"):
        model = small(name, dim_x=1, dim_y=1).eval()
        task = GPDataModule(dim_x=model.dim_x, dim_y=model.dim_y).evaluation_batch(range(2))
        state = model.condition(task.xc, task.yc, task.context_mask)
        torch.manual_seed(0)
        mixture = NormalMixture.of(model.query(state, task.xt)) if name == "NP" else None
        torch.manual_seed(0)
        evaluation = model.evaluate(task)
        assert evaluation.pit.shape == task.yt.shape
        if mixture is not None:
            assert_close(evaluation.pit, mixture.cdf(task.yt))
        levels = model.quantiles(state, task.xt, [0.25])[0]
        if name == "SecondMomentNP":
            assert torch.equal(evaluation.pit < 0.25, task.yt < levels)


def test_the_energy_score_is_its_definition() -> None:
    samples, y = torch.randn(7, 3, 4), torch.randn(3, 4)
    for task in range(3):
        draws = samples[:, task]
        away = sum((draw - y[task]).norm() for draw in draws) / 7
        apart = sum((one - two).norm() for one in draws for two in draws) / (7 * 6)
        assert_close(energy_score(samples, y)[task], away - apart / 2)
    metric = EnergyScore()
    metric.update(samples[:, :1], y[:1])
    metric.update(samples[:, 1:], y[1:])
    assert_close(metric.compute(), energy_score(samples, y).mean())


def test_the_energy_score_of_one_value_is_its_crps() -> None:
    """And that of a normal its closed form: σ (z (2Φ(z) − 1) + 2φ(z) − 1/√π)."""
    mean, std = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.5, 1.5, 1.0])
    y = torch.tensor([0.0, 1.0, 2.0])
    z = (y - mean) / std
    phi = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    crps = std * (z * torch.erf(z / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi))
    exact = NormalMixture.of_moments(mean.view(1, 3, 1), std.view(1, 3, 1))
    assert_close(exact.crps(y.view(1, 3, 1)).flatten(), crps)
    samples = mean + std * torch.randn(4000, 3)
    assert_close(energy_score(samples[..., None], y[:, None]), crps, 0.05)


def test_the_energy_score_sees_what_marginals_do_not() -> None:
    """Draws that are coherent score better than independent ones, where values are coherent."""
    y = torch.randn(200, 1).expand(-1, 10)
    coherent = torch.randn(50, 200, 1).expand(-1, -1, 10)
    assert (
        energy_score(coherent, y).mean() < 0.97 * energy_score(torch.randn(50, 200, 10), y).mean()
    )


@pytest.mark.parametrize("name", ["CMANPAND", "TNPA"])
def test_joint_samples_of_a_task_are_those_of_its_real_targets(name: str) -> None:
    model = small(name, dim_x=1, dim_y=1).train()
    data = GPDataModule(dim_x=model.dim_x, dim_y=model.dim_y)
    batch, before = data.evaluation_batch(range(3)), torch.get_rng_state()
    drawn = joint_samples(model, batch, 1, num_samples=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    number = int(batch.target_mask[1].sum())
    assert drawn.samples.shape == (4, 1, number, model.dim_y)
    assert torch.equal(drawn.y[0], batch.yt[1, :number])
    assert drawn.seconds > 0
    assert torch.equal(joint_samples(model, batch, 1, num_samples=4).samples, drawn.samples)
    found = RegressionMetrics().update_samples(*drawn)
    expected = energy_score(drawn.samples.flatten(-2), drawn.y.flatten(-2)).mean().float()
    assert_close(found["energy_score"].compute(), expected)
    assert_close(found["sampling_ms"].compute(), torch.tensor(1000 * drawn.seconds))
