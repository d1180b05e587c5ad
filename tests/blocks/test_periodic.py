"""Periods that are found by evidence."""

import math

import pytest
import torch
from helpers import assert_close, random_points
from scipy.stats import multivariate_t
from torch import Tensor
from torch.distributions import MultivariateNormal

from npbench.blocks import InferredNoise
from npbench.blocks.fourier import fourier_features
from npbench.blocks.fourier_moments import FourierMoments
from npbench.blocks.frequency_grid import FrequencyGrid
from npbench.blocks.periodic import PeriodicHeads

ONE = torch.tensor(1.0).double()


def heads(**arguments: object) -> PeriodicHeads:
    return PeriodicHeads(**({"num_harmonics": 6} | arguments)).double()


def transform(model: PeriodicHeads, x: Tensor, y: Tensor) -> FourierMoments:
    return FourierMoments.of(FrequencyGrid(-2.0, 2.0, model.top), x, y)


def uniform(batch: int, number: int) -> Tensor:
    return 4 * torch.rand(batch, number, 1, dtype=torch.float64) - 2


@pytest.mark.parametrize("period", [0.13, 0.27, 0.441])
def test_the_period_of_a_function_is_found(period: float) -> None:
    torch.manual_seed(0)
    model, x, xt = heads(noise_std=0.02), uniform(1, 40), uniform(1, 100)

    def function(x: Tensor) -> Tensor:
        angle = 2 * math.pi * x / period
        return angle.sin() + 0.5 * (2 * angle + 1).cos() + 0.3 * (3 * angle + 2).cos()

    y = function(x) + 0.02 * torch.randn_like(x)
    with torch.no_grad():
        posterior = model.solve(transform(model, x, y), ONE)
        best = posterior.score.argmax(dim=-1)
        found = 1 / posterior.frequency[0, best].item()
        mean, _ = posterior.predict(xt[..., 0])
    assert found == pytest.approx(period, rel=2e-3)
    assert_close(mean[:, :, best.item()], function(xt), 0.15)


@pytest.mark.parametrize("num_points", [0, 1, 12])
def test_an_expert_is_the_gaussian_process_of_its_period(num_points: int) -> None:
    """With its prior and its noise, which are those of its cell; outputs share the noise."""
    model, (_, y) = heads(num_experts=(5, 4)), random_points(2, num_points, 1, 2, torch.float64)
    x, xt = uniform(2, num_points), uniform(2, 7)
    moments = transform(model, x, y)
    with torch.no_grad():
        posterior = model.solve(moments, ONE)
        mean, std = posterior.predict(xt[..., 0])
        count, variance = model.log_scale().exp()
        squares = y.square().sum(dim=(1, 2))
        scale = (squares + count * variance) / (2 * num_points + count)
        spectra = model.log_spectrum().exp()
    order = torch.arange(7)[:, None]
    for task in range(2):
        for expert in range(9):
            frequency = 2 * math.pi * posterior.frequency[task, expert] * order
            f, ft = (fourier_features(z[task], frequency) for z in (x, xt))
            noise = posterior.noise_std[task, expert].square()
            fits = []
            for spectrum in spectra:
                prior = (scale[task] * spectrum).repeat(2)
                cross, own = (ft * prior) @ f.T, (f * prior) @ f.T + noise * torch.eye(num_points)
                expected = cross @ torch.linalg.solve(own, y[task])
                explained = (cross * torch.linalg.solve(own, cross.T).T).sum(dim=-1)
                variance = (ft.square() * prior).sum(dim=-1) - explained + noise
                fits.append(
                    torch.allclose(mean[task, :, expert], expected, atol=1e-7)
                    and torch.allclose(std[task, :, expert].square(), variance, atol=1e-7)
                )
            assert any(fits)


def test_the_score_is_prior_and_evidence() -> None:
    """With one head, and with a temperature."""
    model = heads(num_heads=1, num_experts=(6, 0))
    x, (_, y) = uniform(1, 9), random_points(1, 9, dtype=torch.float64)
    temperature = 0.7 * ONE
    with torch.no_grad():
        posterior = model.solve(transform(model, x, y), temperature)
        count, variance = model.log_scale().exp()
        scale = (y.square().sum() + count * variance) / (9 + count)
        prior = scale * model.log_spectrum().exp()[0]
    order = torch.arange(7)[:, None]
    rest = []
    for expert in range(6):
        frequency = posterior.frequency[0, expert]
        f = fourier_features(x[0], 2 * math.pi * frequency * order)
        noise = posterior.noise_std[0, expert].square()
        covariance = (f * prior.repeat(2)) @ f.T + noise * torch.eye(9)
        evidence = MultivariateNormal(torch.zeros(9).double(), covariance).log_prob(y[0, :, 0])
        # What is left is the prior of the cell: log width less log frequency, at first.
        rest.append((posterior.score[0, expert] - temperature * evidence + frequency.log()).exp())
    widths = torch.stack(rest) / rest[0]
    thirds = widths.log() / math.log(3)
    assert_close(thirds, thirds.round(), 1e-6)


def test_with_inferred_noise_the_score_is_the_evidence_of_student_s_law() -> None:
    model = heads(num_heads=1, num_experts=(6, 0), noise=InferredNoise((3.0,), count=4.0))
    x, (_, y) = uniform(1, 9), random_points(1, 9, dtype=torch.float64)
    with torch.no_grad():
        model.log_width.initial.fill_(-60.0)  # so that phases are known, and add no noise
        posterior = model.solve(transform(model, x, y), ONE)
        noise = model.log_noise_std().exp().square()
        prior = 9.0 * noise * model.log_spectrum().exp()[0]
    order = torch.arange(7)[:, None]
    rest = []
    for expert in range(6):
        frequency = posterior.frequency[0, expert]
        f = fourier_features(x[0], 2 * math.pi * frequency * order)
        covariance = (f * prior.repeat(2)) @ f.T + noise * torch.eye(9)
        misfit = (y[0].T @ torch.linalg.solve(covariance, y[0])).item()
        variance = (4.0 + misfit) / (4.0 + 9) * noise.item()
        assert posterior.noise_std[0, expert].square().item() == pytest.approx(variance)
        law = multivariate_t(shape=(4.0 / 6.0 * covariance).numpy(), df=6)
        evidence = law.logpdf(y[0, :, 0].numpy())
        rest.append((posterior.score[0, expert] - evidence + frequency.log()).exp())
    widths = torch.stack(rest) / rest[0]
    thirds = widths.log() / math.log(3)
    assert_close(thirds, thirds.round(), 1e-6)


@pytest.mark.parametrize("noise_std", [0.02, 0.3])
def test_the_noise_of_a_task_is_inferred(noise_std: float) -> None:
    torch.manual_seed(0)
    model, x = heads(noise=InferredNoise()), uniform(1, 400)
    y = (20 * x).sin() + noise_std * torch.randn_like(x)
    with torch.no_grad():
        posterior = model.solve(transform(model, x, y), ONE)
    best = posterior.score.argmax(dim=-1)
    assert posterior.noise_std[0, best].item() == pytest.approx(noise_std, rel=0.2)


def test_what_the_experts_stand_for_is_all_there_is() -> None:
    """Experts that are drawn carry the mass of those that are left out."""
    torch.manual_seed(0)
    model, (_, y) = heads(num_cells=32), random_points(1, 3, dtype=torch.float64)
    x = uniform(1, 3)
    with torch.no_grad():
        masses = []
        for num_experts in ((16, 200), (32, 400), (150, 100)):
            model.num_experts = num_experts
            masses.append(model.solve(transform(model, x, y), ONE).score.logsumexp(dim=-1))
    assert_close(masses[0], masses[1], 0.1)
    assert_close(masses[0], masses[2], 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"periods": (0.5, 0.1)}, "periods="),
        ({"num_harmonics": 0}, "num_harmonics=0"),
        ({"num_cells": 0}, "num_cells=0"),
        ({"num_experts": (0, 3)}, "num_experts="),
    ],
)
def test_arguments_that_make_no_heads_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeriodicHeads(**arguments)
