"""The distribution of the next event: log-normal mixtures over τ, and a softmax over marks."""

import math

import pytest
import torch
from helpers import assert_close, assert_same_record
from torch import Tensor
from torch.distributions import Categorical, LogNormal, MixtureSameFamily

from npbench.likelihoods import NextEvent, NextEventHead

DOUBLE = torch.float64


def mixture(
    *batch: int, components: int = 4, marks: int = 5, dtype: torch.dtype = DOUBLE
) -> NextEvent:
    means, logits = torch.randn(2, *batch, components, dtype=dtype)
    stds = 0.3 + torch.rand_like(means)
    mark_logits = torch.randn(*batch, marks, dtype=dtype)
    return NextEvent(logits.log_softmax(dim=-1), means, stds, mark_logits)


def of_components(*components: tuple[float, float, float], floor: float = 1e-8) -> NextEvent:
    """With weights, means and standard deviations as given, and one mark."""
    weights, means, stds = torch.tensor(components, dtype=DOUBLE).T
    return NextEvent(weights.log(), means, stds, torch.zeros(1, dtype=DOUBLE), floor)


def torch_s(dist: NextEvent) -> MixtureSameFamily:
    components = LogNormal(dist.log_mean, dist.log_std)
    return MixtureSameFamily(Categorical(logits=dist.log_weights), components)


def ks_distance(u: Tensor) -> float:
    """Of a sample to the uniform distribution."""
    steps = torch.arange(len(u) + 1) / len(u)
    u = u.sort().values
    return float(torch.maximum(steps[1:] - u, u - steps[:-1]).max())


VERY_DIFFERENT = [
    of_components((0.5, -15.0, 0.01), (0.5, 15.0, 3.0), floor=1e-12),
    of_components((0.999, 0.0, 0.001), (0.001, 20.0, 0.1)),
    of_components((0.3, 0.0, 1e-4), (0.7, 0.01, 2.0)),
    of_components((1.0, -3.0, 0.5)),
]


def test_the_density_of_times_is_that_of_a_log_normal_mixture() -> None:
    dist, tau = mixture(3, 7), torch.rand(3, 7, dtype=DOUBLE) * 5
    assert_close(dist.log_prob_time(tau), torch_s(dist).log_prob(tau))
    assert_close(dist.cdf(tau), torch_s(dist).cdf(tau))


def test_time_and_mark_are_independent_of_each_other() -> None:
    dist, tau, mark = mixture(6), torch.rand(6, dtype=DOUBLE), torch.arange(6) % 5
    of_mark = Categorical(logits=dist.mark_logits)
    assert_close(dist.log_prob_mark(mark), of_mark.log_prob(mark))
    assert_close(dist.log_prob(tau, mark), torch_s(dist).log_prob(tau) + of_mark.log_prob(mark))
    assert_close(dist.mark_probs, of_mark.probs)


def test_the_density_integrates_to_one_and_up_to_tau_to_the_cdf() -> None:
    dist = mixture()
    log_tau = torch.linspace(-15, 15, 30_001, dtype=DOUBLE)
    density = dist.log_prob_time(log_tau.exp()).exp() * log_tau.exp()
    integral = torch.cumulative_trapezoid(density, log_tau)
    assert_close(integral, dist.cdf(log_tau[1:].exp()), 1e-6)
    assert float(integral[-1]) == pytest.approx(1.0, abs=1e-6)


def test_survival_is_what_the_cdf_leaves() -> None:
    dist, tau = mixture(3, 7), torch.rand(3, 7, dtype=DOUBLE) * 5
    assert_close(dist.log_survival(tau), (1 - dist.cdf(tau)).log())


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("tau", [0.0, 1e-20, 1e8, 1e30])
def test_far_out_all_logarithms_and_their_gradients_are_finite(
    tau: float, dtype: torch.dtype
) -> None:
    dist = mixture(2, dtype=dtype).map(lambda z: z.detach().requires_grad_())
    tau = torch.full((2,), tau, dtype=dtype)
    assert (dist.log_survival(tau) <= 1e-6).all()
    for logarithm in (dist.log_survival(tau), dist.log_prob_time(tau)):
        assert logarithm.isfinite().all()
        gradients = torch.autograd.grad(logarithm.sum(), [*dist.tensors()][:3])
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_survival_far_out_is_that_of_the_widest_tail() -> None:
    """−z²/2 − log(z √2π), the first term of its asymptotic series, with an error of 1/z²."""
    dist, z = of_components((1.0, 0.5, 2.0)), 40.0
    tau = torch.tensor(math.exp(0.5 + 2.0 * z), dtype=DOUBLE)
    expected = -(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi))
    assert float(dist.log_survival(tau)) == pytest.approx(expected, abs=1 / z**2)


@pytest.mark.parametrize("level", [1e-4, 0.25, 0.5, 0.75, 0.9999])
def test_quantiles_invert_the_cdf(level: float) -> None:
    for dist in (mixture(4, 5), *VERY_DIFFERENT):
        quantile = dist.quantile(level)
        assert quantile.shape == dist.batch_shape
        assert_close(dist.cdf(quantile), torch.full_like(quantile, level))


def test_the_median_is_the_quantile_of_a_half() -> None:
    dist = mixture(4)
    assert torch.equal(dist.median, dist.quantile(0.5))
    assert_close(of_components((1.0, 3.0, 0.5)).median, torch.tensor(3.0, dtype=DOUBLE).exp())


def test_in_float32_a_quantile_is_as_exact_as_the_cdf() -> None:
    dist = mixture(100, components=64, dtype=torch.float32)
    assert_close(dist.cdf(dist.median), torch.full((100,), 0.5), 1e-5)


def test_no_quantile_lies_below_the_floor() -> None:
    """Where τ below it count as so much, as draws do."""
    dist = of_components((0.7, -9.0, 1.0), (0.3, 2.0, 1.0), floor=0.1)
    assert float(dist.median) == 0.1
    assert float(dist.quantile(0.9)) > 0.1


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_a_level_lies_between_0_and_1(level: float) -> None:
    with pytest.raises(ValueError, match=f"level={level} must lie between 0 and 1"):
        mixture().quantile(level)


def test_the_mean_is_that_of_the_mixture_and_of_its_draws() -> None:
    dist = mixture(3)
    assert_close(dist.mean, torch_s(dist).mean)
    tau, _ = dist.sample([200_000])
    standard_error = tau.std(dim=0) / 200_000**0.5
    assert ((tau.mean(dim=0) - dist.mean).abs() < 4 * standard_error).all()


def test_draws_follow_the_cdf_and_the_mark_probabilities() -> None:
    dist, count = mixture(2, 3), 20_000
    tau, mark = dist.sample([count])
    assert tau.shape == mark.shape == (count, 2, 3)
    for row in dist.cdf(tau).flatten(1).T:
        assert ks_distance(row) < 1.63 / count**0.5  # 99 %
    shares = torch.nn.functional.one_hot(mark, 5).double().mean(dim=0)
    assert ((shares - dist.mark_probs).abs() < 4 * (0.25 / count) ** 0.5).all()
    together = torch.stack([tau.log().flatten(), mark.double().flatten()])
    alone = dist[0, 0].sample([count])
    assert alone[0].shape == alone[1].shape == (count,)
    together = torch.stack([alone[0].log(), alone[1].double()]).corrcoef()[0, 1]
    assert abs(float(together)) < 4 / count**0.5


def test_draws_are_of_the_batch_s_shape_repeat_with_the_seed_and_have_no_gradient() -> None:
    dist = mixture(2, 3).map(lambda z: z.requires_grad_())
    torch.manual_seed(1)
    tau, mark = dist.sample()
    torch.manual_seed(1)
    again = dist.sample()
    assert tau.shape == mark.shape == (2, 3)
    assert torch.equal(tau, again[0])
    assert torch.equal(mark, again[1])
    assert not tau.requires_grad
    assert not dist.median.requires_grad


@pytest.mark.parametrize("shape", [(), (7,), (2, 7)])
def test_draws_have_a_density(shape: tuple[int, ...]) -> None:
    dist = mixture(2, 3)
    tau, mark = dist.sample(shape)
    found = dist.log_prob(tau, mark)
    assert found.shape == (*shape, *dist.batch_shape)
    one = (0,) * len(shape)
    assert_close(found[one], dist.log_prob(tau[one], mark[one]))


@pytest.mark.parametrize("tau", [0.0, 1e-5, 0.01])
def test_what_lies_below_the_floor_counts_as_the_floor(tau: float) -> None:
    dist = of_components((0.4, 0.0, 1.0), (0.6, -8.0, 2.0), floor=0.01)
    tau, floor = (torch.tensor(z, dtype=DOUBLE) for z in (tau, 0.01))
    assert torch.equal(dist.log_prob_time(tau), dist.log_prob_time(floor))
    assert torch.equal(dist.log_survival(tau), dist.log_survival(floor))
    assert torch.equal(dist.cdf(tau), dist.cdf(floor))
    assert float(dist.sample([1000])[0].min()) == 0.01


@pytest.mark.parametrize("c", [1e-3, 86_400.0])
def test_another_unit_of_time_shifts_the_log_density(c: float) -> None:
    dist, tau = mixture(8), torch.rand(8, dtype=DOUBLE)
    scaled = NextEvent(dist.log_weights, dist.log_mean + math.log(c), dist.log_std,
                       dist.mark_logits)  # fmt: skip
    assert_close(scaled.log_prob_time(c * tau), dist.log_prob_time(tau) - math.log(c))
    assert_close(scaled.log_survival(c * tau), dist.log_survival(tau))
    for mine, theirs in ((scaled.median, dist.median), (scaled.mean, dist.mean)):
        assert_close(mine, c * theirs)


@pytest.mark.parametrize("method", ["log_prob_time", "log_survival", "cdf"])
def test_gradients_are_those_of_differences(method: str) -> None:
    dist, tau = mixture(3), torch.rand(3, dtype=DOUBLE) + 0.1

    def function(tau: Tensor, *tensors: Tensor) -> Tensor:
        return getattr(NextEvent(*tensors), method)(tau)

    tensors = [z.detach().requires_grad_() for z in (tau, *dist.tensors())]
    assert torch.autograd.gradcheck(function, tensors)


def test_times_in_float64_are_read_in_the_distribution_s_type() -> None:
    dist = mixture(3, dtype=torch.float32)
    tau = torch.rand(3, dtype=DOUBLE)
    assert torch.equal(dist.log_prob_time(tau), dist.log_prob_time(tau.float()))


def test_an_index_picks_of_the_batch() -> None:
    dist, tau = mixture(3, 4), torch.rand(3, 4, dtype=DOUBLE)
    assert dist.batch_shape == (3, 4)
    assert dist[:, -1].batch_shape == (3,)
    assert_close(dist[:, -1].log_prob_time(tau[:, -1]), dist.log_prob_time(tau)[:, -1])
    mask = tau > 0.5
    assert_close(dist[mask].cdf(tau[mask]), dist.cdf(tau)[mask])


def head(**arguments: float) -> NextEventHead:
    sizes = {"dim_in": 6, "dim_hidden": 8, "num_marks": 3, "num_components": 4, "floor": 0.25}
    return NextEventHead(**(sizes | arguments)).double()


def units(log_mean: float = 0.0, log_std: float = 1.0) -> list[Tensor]:
    return [torch.tensor(z, dtype=DOUBLE) for z in (log_mean, log_std)]


@pytest.mark.parametrize("batch", [(), (2,), (2, 5)])
def test_the_head_gives_a_mixture_for_every_history(batch: tuple[int, ...]) -> None:
    dist = head()(torch.randn(*batch, 6, dtype=DOUBLE), *units())
    assert dist.batch_shape == batch
    for parameters in (dist.log_weights, dist.log_mean, dist.log_std):
        assert parameters.shape == (*batch, 4)
    assert dist.mark_logits.shape == (*batch, 3)
    assert dist.floor == 0.25
    assert_close(dist.log_weights.logsumexp(dim=-1), torch.zeros(batch, dtype=DOUBLE))


def test_the_head_predicts_in_units_of_log_intervals() -> None:
    """With another mean and standard deviation of log τ, the quantiles move and stretch so."""
    model, history = head(floor=1e-30), torch.randn(7, 6, dtype=DOUBLE)
    standard, mine = model(history, *units()), model(history, *units(2.5, 3.0))
    assert_close(mine.median.log(), 2.5 + 3.0 * standard.median.log())
    assert torch.equal(mine.mark_logits, standard.mark_logits)


@pytest.mark.parametrize(
    ("bias", "expected"), [(-1e3, -5.0), (-0.1, -0.1), (0.02, 0.02), (1e3, math.log(2.0))]
)
def test_no_component_is_narrower_or_wider_than_the_bound(bias: float, expected: float) -> None:
    model = head()
    torch.nn.init.zeros_(model.time[-1].weight)
    torch.nn.init.constant_(model.time[-1].bias, bias)
    dist = model(torch.randn(2, 6, dtype=DOUBLE), *units(0.0, 2.0))
    widths = torch.full((2, 4), math.log(2.0) + expected, dtype=DOUBLE)
    assert_close(dist.log_std.log(), widths, 1e-3)


def test_under_autocast_the_parameters_keep_their_precision() -> None:
    """In bfloat16, log τ of a large unit would be one number for a minute and for a day."""
    model, history = head().float(), torch.randn(50, 6)
    scale = [z.float() for z in units(15.0, 0.01)]
    expected = model(history, *scale)
    with torch.autocast("cpu", torch.bfloat16):
        dist = model(history, *scale)
    assert all(z.dtype == torch.float32 for z in dist.tensors())
    assert_close(dist.log_mean, expected.log_mean, 1e-3)


def test_a_distribution_is_a_record_that_moves_as_one() -> None:
    dist = mixture(3)
    assert_same_record(dist.to("cpu"), dist)
    assert len([*dist.tensors()]) == 4
