"""Features, sums and heads: regression with several priors at once, in two forms."""

import math

import pytest
import torch
from helpers import assert_close, random_points
from torch import Tensor
from torch.distributions import MultivariateNormal

from npbench.blocks import BayesianHeads, SecondMoments
from npbench.blocks.bayesian_regression import inverse_and_log_det
from npbench.blocks.fourier import FourierFeatures, Offset, log_spectral_weights
from npbench.optim import MuonAdam

LENGTHS = [0.3, 0.6, 1.2]


def heads(dim_x: int = 1, num_features: int = 5) -> BayesianHeads:
    """With parameters that differ by head and frequency."""
    model = BayesianHeads(dim_x, num_features, LENGTHS, rate=1.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


def test_an_offset_is_a_vector_to_the_optimiser_and_moves_at_its_rate() -> None:
    offset = Offset(torch.zeros(2, 3), rate=10.0)
    optimizer = MuonAdam(offset.parameters(), lr=1.0, adam_lr=1e-3)
    offset().sum().backward()
    optimizer.step()
    assert_close(offset(), torch.full((2, 3), -0.01))


@pytest.mark.parametrize("dim_x", [1, 2, 5])
@pytest.mark.parametrize("length", [0.4, 1.0])
def test_initial_heads_are_rbf_kernels(dim_x: int, length: float) -> None:
    features = FourierFeatures(dim_x, 4096, [0.4, 1.0], rate=1.0)
    frequencies = features.frequencies.initial
    weights = log_spectral_weights(frequencies, [0.4, 1.0])[[0.4, 1.0].index(length)].exp()
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    x = torch.randn(1, 6, dim_x)
    phi = features(x)[0]
    expected = (-0.5 * torch.cdist(x, x)[0].square() / length**2).exp()
    assert_close((phi * weights.repeat(2)) @ phi.T, expected, 0.02 if dim_x == 1 else 0.1)


def test_features_of_inputs_far_from_0_are_accurate() -> None:
    features = FourierFeatures(1, 8, [0.1, 1.0], rate=1.0)
    x = torch.tensor([[[1e4 + 0.5]]])
    assert_close(features(x), features.double()(x.double()).float(), 1e-6)


@pytest.mark.parametrize("dim_y", [1, 3])
def test_the_posterior_and_its_evidence_are_those_of_the_gaussian_process(dim_y: int) -> None:
    model = heads()
    x, y = random_points(2, 7, dim_y=dim_y, dtype=torch.float64)
    xt, _ = random_points(2, 4, dtype=torch.float64)
    posterior = model.solve(SecondMoments.of(model.features(x), y))
    f, ft = model.features(x), model.features(xt)
    for head in range(len(LENGTHS)):
        prior = model.prior_std[head].square()
        noise = model.noise_std[head].square() * torch.eye(7)
        covariance = (f * prior) @ f.mT + noise
        gain = torch.linalg.solve(covariance, (f * prior) @ ft.mT)
        assert_close(ft @ posterior.mean[:, head], gain.mT @ y, 1e-7)
        expected = (ft * prior) @ ft.mT - ft * prior @ f.mT @ gain
        assert_close(posterior.covariance(ft)[:, head], expected, 1e-7)
        variance = expected.diagonal(dim1=-2, dim2=-1)
        assert_close(posterior.variance(ft)[:, head], variance, 1e-7)
        outputs = y.movedim(-1, 0)
        evidence = MultivariateNormal(torch.zeros(7).double(), covariance).log_prob(outputs)
        assert_close(posterior.log_evidence[:, head], evidence.sum(0), 1e-7)


@pytest.mark.parametrize("num_points", [0, 1, 6, 10, 30])
def test_both_forms_are_one_function(num_points: int) -> None:
    """Those of the m = 10 weights and of the points; padding among them or not; gradients too."""
    model = heads()
    x, y = random_points(2, num_points, dim_y=2, dtype=torch.float64)
    mask = torch.rand(2, num_points) < 0.8
    xt = torch.randn(2, 4, 1, dtype=torch.float64)
    for real in (None, mask):
        results = []
        for form in ("weights", "points"):
            features = model.features(x)
            if form == "weights":
                posterior = model.solve(SecondMoments.of(features, y, real))
            else:
                posterior = model.solve_by_points(features, y, real)
            ft = model.features(xt)
            outputs = [
                ft[:, None] @ posterior.mean,
                posterior.variance(ft),
                model.log_weights(posterior),
                posterior.log_evidence,
            ]
            model.zero_grad()
            sum((z * (1 + torch.arange(z.numel()).view_as(z))).sum() for z in outputs).backward()
            results.append(outputs + [p.grad.clone() for p in model.parameters()])
        for mine, theirs in zip(*results, strict=True):
            assert_close(mine, theirs, 1e-7)


def test_the_evidence_alone_is_the_posteriors() -> None:
    model = heads()
    x, y = random_points(2, 7, dim_y=2, dtype=torch.float64)
    moments = SecondMoments.of(model.features(x), y)
    assert_close(model.log_evidence(moments), model.solve(moments).log_evidence, 1e-10)


def test_gradients_of_the_solve_are_those_of_finite_differences() -> None:
    root = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)

    def solve(root: Tensor) -> tuple[Tensor, Tensor]:
        return inverse_and_log_det(root @ root.mT + torch.eye(4))

    assert torch.autograd.gradcheck(solve, root)
    model = heads(num_features=2)
    y = torch.randn(1, 3, 1, dtype=torch.float64)

    def posterior(x: Tensor) -> tuple[Tensor, ...]:
        moments = SecondMoments.of(model.features(x), y)
        return tuple(model.solve(moments).tensors())

    def posterior_by_points(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(model.solve_by_points(model.features(x), y).tensors())

    x = torch.randn(1, 3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(posterior, x)
    assert torch.autograd.gradcheck(posterior_by_points, x)


def test_the_products_of_sums_are_whole() -> None:
    features, y = torch.randn(2, 6, 4), torch.randn(2, 6, 3)
    moments = SecondMoments.of(features, y)
    assert_close(moments.gram, (features.mT @ features).double(), 1e-5)
    assert moments.products.dtype == torch.float64
    assert moments.count.tolist() == [6, 6]


def test_without_points_the_prior_remains() -> None:
    model = heads()
    nothing = torch.zeros(1, 0, 1, dtype=torch.float64)
    posterior = model.solve(SecondMoments.of(model.features(nothing), nothing))
    phi = model.features(torch.zeros(1, 1, 1, dtype=torch.float64))
    expected = (model.prior_std.square() * phi[0]).sum(dim=-1)
    assert_close(posterior.variance(phi)[0, :, 0], expected)
    assert not posterior.log_evidence.any()
    assert math.isclose(model.log_weights(posterior).exp().sum().item(), 1.0)


# Noise that is inferred


def noisy_heads() -> BayesianHeads:
    model = BayesianHeads(1, 5, LENGTHS, [0.5, 0.2, 1.0], 0.3, rate=1.0, noise_count=3.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


def test_inferred_noise_is_the_posterior_of_an_inverse_gamma_prior() -> None:
    """By numerical integration over the variance: the evidence, and the mean of the variance."""
    model = noisy_heads()
    x, y = random_points(1, 6, dim_y=2, dtype=torch.float64)
    posterior = model.solve(SecondMoments.of(model.features(x), y))
    f = model.features(x)[0]
    for head in range(len(LENGTHS)):
        half = model.log_noise_count()[head].exp() / 2
        scale = model.noise_std[head].square()
        # The logarithm of the variance, with its measure.
        grid = torch.linspace(-14, 12, 4001, dtype=torch.float64)
        prior = torch.distributions.InverseGamma(half + 1, half * scale).log_prob(grid.exp()) + grid
        shape = (f * (model.prior_std[head] / model.noise_std[head]).square()) @ f.T + torch.eye(6)
        normal = MultivariateNormal(torch.zeros(6).double(), shape * grid.exp()[:, None, None])
        log_density = prior + sum(normal.log_prob(y[0, :, i]) for i in range(2))
        step = (grid[1] - grid[0]).log()
        evidence = log_density.logsumexp(0) + step
        assert_close(posterior.log_evidence[0, head], evidence, 1e-6)
        variance = (log_density.softmax(0) * grid.exp()).sum()
        assert_close(posterior.noise_std[0, head].square(), variance, 1e-6)


@pytest.mark.parametrize("num_points", [0, 1, 6, 30])
def test_both_forms_infer_one_noise(num_points: int) -> None:
    model = noisy_heads()
    x, y = random_points(2, num_points, dim_y=2, dtype=torch.float64)
    mask = torch.rand(2, num_points) < 0.8
    features = model.features(x)
    by_points = model.solve_by_points(features, y, mask)
    by_weights = model.solve(SecondMoments.of(features, y, mask))
    xt = torch.randn(2, 4, 1, dtype=torch.float64)
    for mine, theirs in zip(model.predict(by_points, xt), model.predict(by_weights, xt)):
        assert_close(mine, theirs, 1e-8)
    for name in ("noise_std", "log_evidence"):
        assert_close(getattr(by_points, name), getattr(by_weights, name), 1e-8)


def test_inferred_noise_is_that_of_many_points() -> None:
    """Of functions with the ratio to the noise that a head expects, whatever the noise is."""
    model = noisy_heads()
    x, _ = random_points(1, 20_000, dtype=torch.float64)
    features = model.features(x)
    for head in range(len(LENGTHS)):
        ratio = model.prior_std[head] / model.noise_std[head]
        function = features @ (ratio * torch.randn(10).double())[:, None]
        for noise in (0.1, 0.5, 20.0):
            y = noise * (function + torch.randn_like(function))
            posterior = model.solve(SecondMoments.of(features, y))
            assert posterior.noise_std[0, head].item() == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize("smoothness", [0.5, 2.5])
def test_initial_heads_may_be_matern_kernels(smoothness: float) -> None:
    lengths = [0.1, 1.0]
    frequencies = FourierFeatures(1, 4096, lengths, rate=1.0).frequencies.initial
    weights = log_spectral_weights(frequencies, lengths, [torch.inf, smoothness])[1].exp()
    distance = torch.linspace(0, 2, 9)
    found = (weights * (distance[:, None] * frequencies[:, 0]).cos()).sum(dim=-1)
    scaled = math.sqrt(2 * smoothness) * distance
    polynomial = 1 + scaled + scaled**2 / 3 if smoothness == 2.5 else 1
    assert_close(found, polynomial * (-scaled).exp(), 0.03)
