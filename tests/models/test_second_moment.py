"""Second moments: sums that add, merge and forget exactly, and functions drawn from them."""

from pathlib import Path
from random import Random

import pytest
import torch
from helpers import (
    assert_close,
    few_examples,
    merge_in_a_random_tree,
    random_points,
    random_slices,
    random_task,
    small,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench import Task
from npbench.blocks import FunctionPosterior, InferredNoise, WeightPosterior
from npbench.models import CMANPState, SecondMomentJointNP, SecondMomentNP, SecondMomentState
from npbench.models.contracts.second_moment import SecondMomentProcess

BOTH = pytest.mark.parametrize("name", ["SecondMomentNP", "SecondMomentJointNP"])


def model_of(
    name: str = "SecondMomentNP",
    dim_x: int = 1,
    dim_y: int = 1,
    dtype: torch.dtype = torch.float64,
    **arguments: object,
) -> SecondMomentProcess:
    """With a correction that does something."""
    sizes = {"num_features": 8, "num_heads": 3} | arguments
    cls = {"SecondMomentNP": SecondMomentNP, "SecondMomentJointNP": SecondMomentJointNP}[name]
    model = cls(dim_x, dim_y, **sizes)
    if name == "SecondMomentNP":
        torch.nn.init.normal_(model.correct.head[-1].weight, std=0.1)
    return model.to(dtype).eval()


def assert_same(
    model: SecondMomentProcess, actual: SecondMomentState, expected: SecondMomentState,
    tolerance: float = 1e-9,
) -> None:  # fmt: skip
    for mine, theirs in zip(actual.moments.tensors(), expected.moments.tensors(), strict=True):
        assert_close(mine, theirs, tolerance)
    xt = torch.linspace(-2, 2, 9).reshape(1, 9, 1).expand(expected.batch_size, 9, model.dim_x)
    xt = xt.to(next(model.parameters()).dtype)
    pairs = zip(model.marginals(actual, xt), model.marginals(expected, xt), strict=True)
    for mine, theirs in pairs:
        assert_close(mine, theirs, tolerance)


@BOTH
@given(seed=st.integers(0, 1000), points=st.integers(0, 40), dim_y=st.integers(1, 3))
@few_examples
def test_chunks_orders_and_merge_trees_give_one_state(
    name: str, seed: int, points: int, dim_y: int
) -> None:
    torch.manual_seed(seed)
    random = Random(seed)
    model = model_of(name, dim_x=2, dim_y=dim_y)
    x, y = random_points(2, points, 2, dim_y, torch.float64)
    expected = model.condition(x, y)
    order = torch.randperm(points)
    pieces = [(x[:, order][:, s], y[:, order][:, s]) for s in random_slices(points, random)]
    assert_same(model, model.condition(iter(pieces)), expected)
    assert_same(model, model.condition(x, y, chunk_size=3), expected)
    states = [model.condition(*piece) for piece in pieces]
    tree = merge_in_a_random_tree(states, lambda a, b: a.merge(b), random)
    assert tree.posterior is None or len(states) == 1
    assert_same(model, tree, expected)
    assert_same(model, model.merge(*states), expected)


@BOTH
@given(kept=st.integers(0, 20), removed=st.integers(0, 2000), seed=st.integers(0, 1000))
@few_examples
def test_forgetting_undoes_updating_whatever_is_left(
    name: str, kept: int, removed: int, seed: int
) -> None:
    torch.manual_seed(seed)
    for dtype, tolerance in {torch.float32: 1e-5, torch.float64: 1e-9}.items():
        model = model_of(name, dtype=dtype)
        x, y = random_points(1, kept + removed, dtype=dtype)
        left = model.forget(model.condition(x, y), x[:, kept:], y[:, kept:])
        assert_same(model, left, model.condition(x[:, :kept], y[:, :kept]), tolerance)


@pytest.mark.parametrize("moves", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_window_slides_without_drift(moves: int) -> None:
    model = model_of(num_features=2, num_heads=1)
    x, y = random_points(1, moves + 20, dtype=torch.float64)
    with torch.no_grad():
        state = model.condition(x[:, :20], y[:, :20])
        for start in range(moves):
            new, old = slice(start + 20, start + 21), slice(start, start + 1)
            state = model.forget(model.update(state, x[:, new], y[:, new]), x[:, old], y[:, old])
    assert_same(model, state, model.condition(x[:, moves:], y[:, moves:]))


def test_only_the_real_points_of_a_mask_are_forgotten() -> None:
    model = model_of()
    x, y = random_points(2, 12, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    kept = torch.ones(2, 12, dtype=torch.bool)
    kept[:, :3] = ~mask
    left = model.forget(model.condition(x, y), x[:, :3], y[:, :3], mask)
    assert_same(model, left, model.condition(x, y, kept))


@pytest.mark.parametrize(("absorbed", "forgotten"), [(2, 3), (0, 1)])
def test_more_points_than_were_absorbed_cannot_be_forgotten(absorbed: int, forgotten: int) -> None:
    model = model_of()
    x, y = random_points(1, 5, dtype=torch.float64)
    state = model.condition(x[:, :absorbed], y[:, :absorbed])
    with pytest.raises(ValueError, match=f"would leave task 0 with {absorbed - forgotten} points"):
        model.forget(state, x[:, :forgotten], y[:, :forgotten])


def test_points_that_were_never_absorbed_cannot_be_forgotten() -> None:
    model = model_of()
    x, y = random_points(1, 5, dtype=torch.float64)
    state = model.condition(x, y)
    with pytest.raises(ValueError, match="never absorbed them"):
        model.forget(state, x[:, :1], y[:, :1] + 100)
    with pytest.raises(ValueError, match="never absorbed them"):
        model.forget(state, x[:, :4] + 0.5, 0 * y[:, :4])


@BOTH
@pytest.mark.parametrize("num_points", [0, 1, 5, 40])
def test_training_and_evaluation_give_one_function(name: str, num_points: int) -> None:
    """The equations of the points, while there are fewer than m = 16, and those of the weights."""
    model = model_of(name, dim_y=2)
    task = random_task(2, num_points, 5, dim_y=2, dtype=torch.float64)
    model.train()
    trained = model.log_likelihood(task)
    form = type(model.condition(task.xc, task.yc).posterior)
    assert form is (FunctionPosterior if num_points < 16 else WeightPosterior)
    with torch.no_grad():
        assert_close(trained.detach(), model.log_likelihood(task), 1e-8)


def test_the_solve_is_cached_in_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    with torch.no_grad():
        state = model.condition(*random_points(1, 5, dtype=torch.float64))
        monkeypatch.setattr(torch.linalg, "cholesky", None)
        monkeypatch.setattr(torch.linalg, "solve_triangular", None)
        xt, _ = random_points(1, 5, dtype=torch.float64)
        assert model.query(state, xt).mean.shape == xt.shape
        assert model.sample_functions(state)(xt).shape == (1, *xt.shape)


def test_a_state_is_kept_in_a_file_of_its_sums(tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / "state.safetensors"
    sizes = []
    for number in (4, 400):
        state = model.condition(*random_points(1, number, dtype=torch.float64))
        state.save(path, model)
        assert_same(model, SecondMomentState.load(path, model), state, 1e-12)
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1] < 3000
    with pytest.raises(ValueError, match="another model, or of other weights"):
        SecondMomentState.load(path, model_of(num_features=4))
    with pytest.raises(ValueError, match=r"holds the state of another model: it has no 'attention"):
        CMANPState.load(path)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["identical", "constant", "ill-conditioned", "one", "none"])
def test_hard_data_gives_sound_predictions(name: str, dtype: torch.dtype, case: str) -> None:
    model = model_of(name, dtype=dtype, noise_std=0.01)
    x, y = random_points(1, 200, dtype=dtype)
    if case == "identical":
        x, y = x[:, :1].expand(1, 100_000, 1), y[:, :1].expand(1, 100_000, 1)
    elif case == "constant":
        y = torch.full_like(y, 0.7)
    elif case == "ill-conditioned":
        x = 0.3 + 1e-6 * x
        y = 0 * y + 0.5
    elif case == "one":
        x, y = x[:, :1], y[:, :1]
    else:
        x, y = x[:, :0], y[:, :0]
    xt = torch.cat([x[:, :1], torch.linspace(-9, 9, 40, dtype=dtype).reshape(1, 40, 1)], dim=1)
    with torch.no_grad():
        state = model.condition(x, y)
        mean, std = model.marginals(state, xt)
        functions = model.sample_functions(state, 5)(xt)
    assert all(torch.isfinite(z).all() for z in (mean, std, functions))
    assert (std > 0).all()
    if case in ("identical", "constant", "ill-conditioned", "one") and "Joint" in name:
        assert_close(mean[0, 0], y[0, 0], 0.01)


def test_float32_models_solve_in_float64() -> None:
    """So that their predictions differ from those of float64 by the rounding of the answer."""
    model = model_of(dtype=torch.float32, num_features=30, noise_std=0.003)
    x, y = random_points(1, 3000)
    xt, _ = random_points(1, 50)
    mine = model.marginals(model.condition(x, y), xt)
    model.double()
    theirs = model.marginals(model.condition(x.double(), y.double()), xt.double())
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a.double(), b, 1e-5)


@BOTH
def test_predictions_move_with_the_inputs(name: str) -> None:
    model = model_of(name)
    x, y = random_points(1, 9, dtype=torch.float64)
    xt, _ = random_points(1, 5, dtype=torch.float64)
    there = model.marginals(model.condition(x + 1000, y), xt + 1000)
    for mine, theirs in zip(model.marginals(model.condition(x, y), xt), there, strict=True):
        assert_close(mine, theirs, 1e-7)


def test_an_untrained_correction_changes_nothing_but_the_free_component() -> None:
    model = small("SecondMomentNP", 1, 1)
    x, y = random_points(1, 9, dtype=torch.float64)
    state, (xt, _) = model.condition(x, y), random_points(1, 5, dtype=torch.float64)
    corrected = model.query(state, xt)
    plain = model._bayesian_mixture(state.posterior, xt)
    assert_close(corrected.component_distribution.mean[:, :, :-1], plain.mean)
    assert_close(corrected.component_distribution.stddev[:, :, :-1], plain.std)
    assert_close(corrected.mean, plain.moments[0])
    assert_close(corrected.stddev, plain.moments[1])


def test_the_likelihood_may_be_the_mixtures_gaussian() -> None:
    mixture = model_of(dim_y=2)
    gaussian = SecondMomentNP(1, 2, num_features=8, num_heads=3, likelihood="gaussian").double()
    gaussian.load_state_dict(mixture.state_dict())
    task = random_task(2, 7, 5, dim_y=2, dtype=torch.float64)
    state = mixture.condition(task.xc, task.yc)
    dist = gaussian.query(state, task.xt)
    assert_close(dist.mean, mixture.query(state, task.xt).mean)
    assert_close(dist.stddev, mixture.query(state, task.xt).stddev)
    expected = dist.log_prob(task.yt).mean(dim=-1)
    assert_close(gaussian.log_likelihood(task), expected)


# Jointly, and as functions


@pytest.mark.parametrize("noise", [None, InferredNoise(ratios=(0.5, 5.0))], ids=["", "inferred"])
def test_the_joint_likelihood_is_that_of_the_mixture_of_multivariate_normals(
    noise: InferredNoise | None,
) -> None:
    model = model_of("SecondMomentJointNP", dim_y=2, noise=noise)
    task = random_task(3, 7, 5, dim_y=2, dtype=torch.float64)
    dist = model.query(model.condition(task.xc, task.yc), task.xt)
    expected = dist.log_prob(task.yt.flatten(1)) / 5
    assert_close(model.log_likelihood(task), expected, 1e-8)


def test_the_joint_likelihood_is_the_product_of_those_of_one_target_after_another() -> None:
    """But for the temperature, at which heads are weighed by the context alone: here 1."""
    model = model_of("SecondMomentJointNP")
    task = random_task(1, 4, 5, dtype=torch.float64)
    state, total = model.condition(task.xc, task.yc), 0.0
    for i in range(5):
        x, y = task.xt[:, [i]], task.yt[:, [i]]
        total = total + model.query(state, x).log_prob(y.flatten(1))
        state = model.update(state, x, y)
    assert_close(model.log_likelihood(task), total / 5, 1e-8)


def test_sampled_functions_have_the_moments_and_correlations_of_the_closed_form() -> None:
    model = model_of("SecondMomentJointNP", noise_std=0.3)
    x, y = random_points(1, 4, dtype=torch.float64)
    xt = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(1, 5, 1)
    state, number = model.condition(x, y), 40_000
    functions = model.sample_functions(state, number)
    values = functions(xt)[:, 0, :, 0]
    dist = model.query(state, xt)
    heads = dist.component_distribution
    weights = dist.mixture_distribution.probs[0]
    noise = model.heads.noise_std.square()[:, None, None] * torch.eye(5)
    away = heads.mean[0] - dist.mean
    covariance = heads.covariance_matrix[0] - noise + away[:, :, None] * away[:, None, :]
    covariance = (weights[:, None, None] * covariance).sum(dim=0)
    std = covariance.diagonal().sqrt()
    assert ((values.mean(0) - dist.mean[0]).abs() < 5 * std / number**0.5).all()
    sampled = torch.cov(values.T) / (std[:, None] * std)
    assert ((sampled - covariance / (std[:, None] * std)).abs() < 0.05).all()
    drawn = model.sample(state, xt, number)[:, 0, :, 0]
    assert_close(drawn.std(0), dist.stddev[0], 0.03)


@BOTH
def test_a_function_is_the_same_at_every_call(name: str) -> None:
    model = model_of(name, dim_x=2, dim_y=3)
    state = model.condition(*random_points(2, 6, 2, 3, torch.float64))
    functions = model.sample_functions(state, 4)
    x, _ = random_points(2, 10, 2, dtype=torch.float64)
    whole = functions(x)
    assert whole.shape == (4, 2, 10, 3)
    assert not whole.requires_grad
    assert_close(torch.cat([functions(x[:, [i]]) for i in range(10)], dim=2), whole)
    assert (whole[0] != whole[1]).all()
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_close(functions(x), whole)
    with pytest.raises(ValueError, match=r"x has shape \[1, 10, 2\]; expected \[2, points, 2\]"):
        functions(x[:1])


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": (0.0, 1.0)}, "lengths="),
        ({"lengths": (2.0, 1.0)}, "lengths="),
        ({"x_range": (1.0, 1.0)}, "x_range="),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_features": 0}, "num_features=0"),
        ({"likelihood": "normal"}, "likelihood='normal' must be"),
        ({"noise_std": 0.0}, "noise_std=0.0"),
    ],
)
def test_arguments_that_make_no_model_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SecondMomentNP(1, 1, **arguments)


def test_states_of_other_models_do_not_merge() -> None:
    x, y = random_points(1, 3, dtype=torch.float64)
    mine, other = (model_of(num_features=n).condition(x, y) for n in (8, 4))
    with pytest.raises(ValueError, match="do not merge"):
        mine.merge(other)


def gradients(model: SecondMomentProcess, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@BOTH
def test_gradients_flow_through_updates_and_forgetting(name: str) -> None:
    model = model_of(name)
    task = random_task(1, 9, 4, dtype=torch.float64)
    x, y = task.xc, task.yc
    updated = model.update(model.condition(x[:, :4], y[:, :4]), x[:, 4:], y[:, 4:])
    left = model.forget(updated, x[:, :2], y[:, :2])
    shorter = Task(x[:, 2:], y[:, 2:], task.xt, task.yt)
    expected = gradients(
        model, model.query(model.condition(x[:, 2:], y[:, 2:]), task.xt).mean.sum()
    )
    mine = gradients(model, model.query(left, task.xt).mean.sum())
    for a, b in zip(mine, expected, strict=True):
        assert_close(a, b, 1e-7)
    assert gradients(model, model.loss(shorter))


# Noise of each task's own


def streaming(dtype: torch.dtype = torch.float64) -> SecondMomentNP:
    noise = InferredNoise(ratios=(0.5, 5.0))
    model = SecondMomentNP(1, 1, num_features=8, num_heads=3, noise=noise, corrected=False)
    return model.to(dtype).eval()


def test_inferred_noise_has_a_head_for_each_length_and_ratio() -> None:
    model = streaming()
    assert model.heads.log_prior_std().shape == (6, 8)
    again = SecondMomentNP(**model.hparams)
    assert again.heads.log_noise_count().shape == (6,)
    task = random_task(2, 7, 5, dtype=torch.float64)
    mixture = model.query(model.condition(task.xc, task.yc), task.xt).component_distribution
    assert mixture.mean.shape == (2, 5, 6, 1)
    with pytest.raises(ValueError, match=r"noise\.ratios="):
        SecondMomentNP(1, 1, noise=InferredNoise(ratios=()))


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5, 5.0])
def test_intervals_hold_what_they_say_of_any_noise(noise: float) -> None:
    """Without training: the noise is inferred, from however many points."""
    torch.manual_seed(0)
    model = SecondMomentNP(1, 1, noise=InferredNoise(), corrected=False, num_heads=6).eval()
    for number in (1000, 100_000):
        x = 4 * torch.rand(1, number + 2000, 1) - 2
        y = (3 * x).sin() + noise * torch.randn_like(x)
        with torch.no_grad():
            state = model.condition(x[:, 2000:], y[:, 2000:])
            mean, std = model.marginals(state, x[:, :2000])
        held = ((y[:, :2000] - mean).abs() < 1.96 * std).float().mean()
        assert 0.93 < held < 0.97


def test_sums_that_infer_noise_forget_and_merge() -> None:
    model = streaming()
    x, y = random_points(1, 30, dtype=torch.float64)
    state = model.condition(x[:, :10], y[:, :10])
    merged = model.merge(model.condition(x[:, 10:], y[:, 10:]), state)
    assert_same(model, merged, model.condition(x, y))
    assert_same(model, model.forget(merged, x[:, 10:], y[:, 10:]), state)


@pytest.mark.parametrize("name", ["SecondMomentJointNP", "streaming"])
def test_functions_given_guesses_are_those_after_an_update(name: str) -> None:
    model = streaming() if name == "streaming" else model_of(name, dim_y=2)
    x, y = random_points(3, 9, dim_y=model.dim_y, dtype=torch.float64)
    xt = torch.randn(3, 4, 1, dtype=torch.float64)
    for state in (model.condition(x[:, :6], y[:, :6]), model.condition(x[:, :0], y[:, :0])):
        expected = model.functions(model.update(state, x[:, 6:], y[:, 6:]), xt)
        actual = model.functions_given(state, x[:, 6:], y[:, 6:], xt)
        for mine, theirs in zip(actual.tensors(), expected.tensors(), strict=True):
            assert_close(mine, theirs, 1e-8)


def test_functions_and_noise_are_the_joint_prediction() -> None:
    model = model_of("SecondMomentJointNP")
    x, y = random_points(3, 9, dtype=torch.float64)
    state = model.condition(x, y)
    functions = model.functions(state, x[:, :4])
    joint = model.query(state, x[:, :4]).component_distribution
    assert_close(joint.mean, functions.mean[..., 0], 1e-10)
    assert_close(joint.covariance_matrix, functions.noisy_covariance, 1e-10)
