"""NP, ANP, BNP and BANP: predictions averaged over random functions."""

import math
from itertools import product

import pytest
import torch
from helpers import assert_close, random_points, random_task, sharpened
from torch import Tensor

from npbench.models import ANP, BANP, BNP, NP, NeuralProcess
from npbench.models.bootstrap import _resample, _sorted
from npbench.models.conditional import represent
from npbench.models.contracts.points import Points

SIZES = {"dim_hidden": 16, "pre_depth": 3, "num_samples": 50, "num_train_samples": 4}
latent = pytest.mark.parametrize("cls", [NP, ANP])
bootstrap = pytest.mark.parametrize("cls", [BNP, BANP])
all_four = pytest.mark.parametrize("cls", [NP, ANP, BNP, BANP])


def build(cls: type[NeuralProcess], **arguments: object) -> NeuralProcess:
    sizes = SIZES | ({"dim_latent": 4} if cls in (NP, ANP) else {}) | arguments
    return cls(1, 1, **sizes).double().eval()


def task_of(target: int = 5):
    return random_task(2, 7, target, dtype=torch.float64)


@all_four
def test_the_paper_predicts_with_50_samples_and_trains_with_4(cls: type[NeuralProcess]) -> None:
    model = cls(1, 1)
    assert (model.num_samples, model.num_train_samples) == (50, 4)


@all_four
def test_the_log_likelihood_is_the_log_mean_exp_of_50_predictions(
    cls: type[NeuralProcess],
) -> None:
    model, task = build(cls), task_of()
    state = model.condition(task.xc, task.yc)
    torch.manual_seed(3)
    components = model._components(state, task.xt, 50)
    by_hand = components.log_prob(task.yt).exp().mean(0).log().mean(-1)
    torch.manual_seed(3)
    assert_close(model.log_likelihood(task), by_hand)


@latent
def test_the_loss_is_the_importance_weighted_bound(cls: type[NeuralProcess]) -> None:
    model, task = build(cls), task_of()
    context = model.condition(task.xc, task.yc)
    x, y = torch.cat([task.xc, task.xt], 1), torch.cat([task.yc, task.yt], 1)
    everything = model.condition(x, y)
    torch.manual_seed(3)
    z = model.latent(everything).rsample(torch.Size([4]))
    log_weight = (
        model.given(context, x, z).log_prob(y).sum(-1)
        + model.latent(context).log_prob(z)
        - model.latent(everything).log_prob(z)
    )
    bound = (log_weight.logsumexp(0) - math.log(4)) / 12
    torch.manual_seed(3)
    assert_close(model.loss(task), -bound.mean())


@bootstrap
def test_the_loss_sums_base_and_bootstrap(cls: type[NeuralProcess]) -> None:
    model, task = build(cls), task_of()
    state = model.condition(task.xc, task.yc)
    x, y = torch.cat([task.xc, task.xt], 1), torch.cat([task.yc, task.yt], 1)
    torch.manual_seed(3)
    mixture = model._components(state, x, 4).log_prob(y).exp().mean(0).log()
    base = model.base(state, x).log_prob(y)
    torch.manual_seed(3)
    assert_close(model.loss(task), -(base + mixture).mean())


@all_four
def test_samples_have_the_marginals_of_query(cls: type[NeuralProcess]) -> None:
    model, task = build(cls, num_samples=1000), task_of(target=3)
    state, number = model.condition(task.xc, task.yc), 5000
    dist, samples = model.query(state, task.xt), model.sample(state, task.xt, number)
    # Both are Monte Carlo: of 1,000 components, and of 5,000 values.
    error = dist.stddev * (1 / 1000 + 1 / number) ** 0.5
    assert ((samples.mean(0) - dist.mean).abs() < 5 * error).all()
    assert ((samples.std(0) / dist.stddev - 1).abs() < 5 * (1 / 1000 + 1 / number) ** 0.5).all()


@latent
def test_the_targets_of_a_sample_share_one_function(cls: type[NeuralProcess]) -> None:
    """Their covariance is that of the components' means; `query`'s targets share nothing."""
    model, task = build(cls), task_of(target=3)
    # A latent that matters more than it does at random initialisation.
    model.head.mlp[0].weight.data[:, 16:20] *= 60
    state, number = model.condition(task.xc, task.yc), 20_000

    def correlation(values: Tensor) -> Tensor:
        return torch.stack([torch.corrcoef(values[:, b, :, 0].T) for b in range(2)])

    samples = model.sample(state, task.xt, number)
    components = model._components(state, task.xt, number)
    spread = torch.stack([torch.cov(components.mean[:, b, :, 0].T) for b in range(2)])
    noise = torch.diag_embed((components.stddev[..., 0] ** 2).mean(0))
    covariance = spread + noise
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    expected = covariance / scale[:, :, None] / scale[:, None]
    assert (correlation(samples) - expected).abs().max() < 10 / number**0.5
    assert expected.tril(-1).abs().max() > 0.1, "there is something to see"


def all_bootstraps(model: NeuralProcess, x: Tensor, y: Tensor, xt: Tensor) -> Tensor:
    """The predicted means of every way to resample the points and then the residuals."""
    ways = [list(places) for places in product(range(x.shape[1]), repeat=x.shape[1])]
    base = represent(model.encoder, model.condition(x, y).base, xt)
    means = []
    for points in ways:
        fit = model.base(model.condition(x[:, points], y[:, points]), x)
        for places in ways:
            residuals = ((y - fit.mean) / fit.stddev)[:, places]
            residuals = residuals - residuals.mean(dim=1, keepdim=True)
            state = model.condition(x, fit.mean + fit.stddev * residuals)
            bootstrapped = represent(model.encoder, state.base, xt)
            means.append(model.head(torch.cat([base, xt, bootstrapped], dim=-1)).mean)
    return torch.stack(means)


@bootstrap
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_every_component_is_one_of_all_bootstraps_equally_often(
    cls: type[NeuralProcess], padded: bool
) -> None:
    number = 3000
    model = build(cls, num_samples=number)
    model = sharpened(model, model.head.mlp[-1].weight[:1], 5.0)
    x, y = random_points(1, 2, dtype=torch.float64)
    xt, _ = random_points(1, 3, dtype=torch.float64)
    expected = all_bootstraps(model, x, y, xt)
    if padded:
        real = torch.tensor([[False, True, False, True, False]])
        x, y = (x.new_full((1, 5, 1), torch.nan).index_copy(1, real[0].nonzero()[:, 0], z)
                for z in (x, y))  # fmt: skip
        state = model.condition(x, y, real)
    else:
        state = model.condition(x, y)
    components = model.query(state, xt).component_distribution.mean.movedim(2, 0)

    distance = (components[:, None] - expected).flatten(2).abs().amax(-1)
    assert distance.min(dim=1).values.max() < 1e-9
    share = (distance < 1e-9).double().mean(0)
    ties = (expected[:, None] - expected).flatten(2).abs().amax(-1) < 1e-9
    chance = ties.double().mean(0)
    assert len(chance.unique()) > 1, "as some ways end in the same"
    assert ((share - chance).abs() < 5 * (chance * (1 - chance) / number) ** 0.5).all()


def test_points_are_resampled_with_replacement_among_the_real_ones() -> None:
    x, y = random_points(3000, 6)
    mask = (torch.arange(6) < 4).expand(3000, -1)
    places = _resample(Points(x, y, mask))
    assert places.shape == (2, 3000, 6)
    assert set(places.unique().tolist()) == {0, 1, 2, 3}
    share = torch.stack([(places == place).double().mean() for place in range(4)])
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / places.numel()) ** 0.5
    assert (places[0] != places[1]).any()


def test_padding_behind_the_points_changes_none_of_their_draws() -> None:
    x, y = random_points(4, 9)
    torch.manual_seed(3)
    short = _resample(Points(x[:, :5], y[:, :5]))
    torch.manual_seed(3)
    mask = (torch.arange(9) < 5).expand(4, -1)
    assert torch.equal(_resample(Points(x, y, mask))[..., :5], short)


def test_points_are_sorted_by_inputs_then_outputs_with_padding_last() -> None:
    x = torch.tensor([[[1.0], [0.0], [1.0], [-5.0]]])
    y = torch.tensor([[[2.0], [0.0], [1.0], [0.0]]])
    mask = torch.tensor([[True, True, True, False]])
    assert _sorted(Points(x, y, mask)).tolist() == [[1, 2, 0, 3]]


def test_without_residuals_the_bootstrap_changes_no_value() -> None:
    """Where the base predicts the context exactly, only its points are resampled."""
    model = build(BNP)
    x, _ = random_points(2, 6, dtype=torch.float64)
    torch.nn.init.zeros_(model.head.mlp[-1].weight)
    torch.nn.init.zeros_(model.head.mlp[-1].bias)
    context = model._bootstrap(Points(x, torch.zeros_like(x)), num_samples=3)
    assert torch.equal(context.y, torch.zeros_like(context.y))
    assert_close(context.x, x.sort(dim=1).values.repeat(3, 1, 1))


def test_resampled_residuals_are_centred() -> None:
    model, task = build(BNP), task_of()
    torch.nn.init.zeros_(model.head.mlp[-1].weight)  # the same prediction everywhere
    context = model._bootstrap(Points(task.xc, task.yc), num_samples=5)
    mean = model.head.mlp[-1].bias[0]
    assert_close(context.y.mean(dim=1), mean.expand(10, 1))


@pytest.mark.usefixtures("as_a_user")
@all_four
def test_there_is_one_sample_at_least(cls: type[NeuralProcess]) -> None:
    with pytest.raises(ValueError, match="num_samples=0 and num_train_samples=4 must be 1 or more"):
        build(cls, num_samples=0)
