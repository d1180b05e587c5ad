"""The transform of the context as a state: exact sums, for smooth functions and for periodic."""

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
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench.blocks import FunctionPosterior, WeightPosterior
from npbench.models import FourierMomentNP, FourierMomentState, SecondMomentState
from npbench.task import Task

X_RANGE = (-2.0, 2.0)


def model_of(dim_y: int = 1, dtype: torch.dtype = torch.float64, **arguments: object):
    sizes = {
        "num_features": 8, "num_heads": 4, "num_harmonics": 4, "num_periodic_heads": 2,
        "num_cells": 64, "num_experts": (6, 4), "x_range": X_RANGE,
    }  # fmt: skip
    return FourierMomentNP(1, dim_y, **(sizes | arguments)).to(dtype).eval()


def points(
    batch: int, number: int, dim_y: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    _, y = random_points(batch, number, dim_y=dim_y, dtype=dtype)
    return 4 * torch.rand(batch, number, 1, dtype=dtype) - 2, y


def assert_same(
    model: FourierMomentNP,
    actual: FourierMomentState,
    expected: FourierMomentState,
    tolerance: float = 1e-9,
) -> None:
    for mine, theirs in zip(actual.moments.tensors(), expected.moments.tensors(), strict=True):
        assert_close(mine, theirs, tolerance)
    xt = torch.linspace(-3, 3, 9).reshape(1, 9, 1).expand(expected.batch_size, 9, 1)
    xt = xt.to(next(model.parameters()).dtype)
    pairs = zip(model.marginals(actual, xt), model.marginals(expected, xt), strict=True)
    for mine, theirs in pairs:
        assert_close(mine, theirs, tolerance)


@given(seed=st.integers(0, 1000), number=st.integers(0, 40), dim_y=st.integers(1, 3))
@few_examples
def test_chunks_orders_and_merge_trees_give_one_state(seed: int, number: int, dim_y: int) -> None:
    torch.manual_seed(seed)
    random = Random(seed)
    model = model_of(dim_y)
    x, y = points(2, number, dim_y)
    expected = model.condition(x, y)
    order = torch.randperm(number)
    pieces = [(x[:, order][:, s], y[:, order][:, s]) for s in random_slices(number, random)]
    assert_same(model, model.condition(iter(pieces)), expected)
    assert_same(model, model.condition(x, y, chunk_size=3), expected)
    states = [model.condition(*piece) for piece in pieces]
    tree = merge_in_a_random_tree(states, lambda a, b: a.merge(b), random)
    assert_same(model, tree, expected)
    assert_same(model, model.merge(*states), expected)


@given(kept=st.integers(0, 20), removed=st.integers(0, 2000), seed=st.integers(0, 1000))
@few_examples
def test_forgetting_undoes_updating_whatever_is_left(kept: int, removed: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = model_of()
    x, y = points(1, kept + removed)
    left = model.forget(model.condition(x, y), x[:, kept:], y[:, kept:])
    assert_same(model, left, model.condition(x[:, :kept], y[:, :kept]))


@pytest.mark.slow
def test_a_window_slides_without_drift() -> None:
    model, moves = model_of(num_cells=16, num_features=2), 200
    x, y = points(1, moves + 20)
    with torch.no_grad():
        state = model.condition(x[:, :20], y[:, :20])
        for start in range(moves):
            new, old = slice(start + 20, start + 21), slice(start, start + 1)
            state = model.forget(model.update(state, x[:, new], y[:, new]), x[:, old], y[:, old])
    assert_same(model, state, model.condition(x[:, moves:], y[:, moves:]))


def test_points_that_were_never_absorbed_cannot_be_forgotten() -> None:
    model = model_of()
    x, y = points(1, 5)
    state = model.condition(x[:, :2], y[:, :2])
    with pytest.raises(ValueError, match="would leave task 0 with -1 points"):
        model.forget(state, x[:, :3], y[:, :3])
    with pytest.raises(ValueError, match="never absorbed them"):
        model.forget(state, x[:, :1], y[:, :1] + 100)


@pytest.mark.parametrize("number", [0, 1, 5, 40])
def test_training_and_evaluation_give_one_function(number: int) -> None:
    """The smooth heads by the points, while there are fewer than 16, and by the transform."""
    model = model_of(dim_y=2)
    (x, y), (xt, yt) = points(2, number, 2), points(2, 5, 2)
    model.train()
    trained = model.log_likelihood(Task(x, y, xt, yt))
    form = type(model.condition(x, y).posterior.smooth)
    assert form is (FunctionPosterior if number < 16 else WeightPosterior)
    with torch.no_grad():
        assert_close(trained.detach(), model.log_likelihood(Task(x, y, xt, yt)), 1e-8)


def test_smooth_heads_alone_are_those_of_second_moments() -> None:
    """By points, whose features are wherever they are: the transform loses nothing."""
    model = model_of(num_features=20)
    x, y = points(2, 100)
    with torch.no_grad():
        smooth = model.condition(x, y).posterior.smooth
        by_points = model.heads.solve_by_points(model.heads.features(x), y)
        features = model.heads.features(points(2, 9)[0])
        assert_close(smooth.log_evidence, by_points.log_evidence, 1e-7)
        assert_close(features[:, None] @ smooth.mean, features[:, None] @ by_points.mean, 1e-7)
        assert_close(smooth.variance(features), by_points.variance(features), 1e-7)


def test_one_model_is_for_smooth_and_for_periodic_functions() -> None:
    """The family that a function is of has nearly all the weight, and predicts it."""
    torch.manual_seed(0)
    model = model_of(
        num_features=20, num_heads=12, num_harmonics=6, num_cells=256, num_experts=(32, 32),
        noise_std=0.05,
    )  # fmt: skip
    x, xt = points(1, 60)[0], points(1, 100)[0]
    for is_periodic, function in (
        (False, lambda x: (2.0 * x).sin() + 0.3 * x),
        (True, lambda x: (27.0 * x).sin() + 0.5 * (54.0 * x + 1).sin()),
    ):
        with torch.no_grad():
            state = model.condition(x, function(x) + 0.02 * torch.randn_like(x))
            weight = model.query(state, xt).mixture_distribution.probs[0, 0]
            assert (weight[12:].sum() > 0.9) == is_periodic
            assert (model.marginals(state, xt).mean - function(xt)).abs().mean() < 0.05


@pytest.mark.parametrize(("low", "high"), [(8.0, 12.0), (-1.0, 11.0)])
def test_the_model_moves_and_grows(low: float, high: float) -> None:
    model = model_of()
    there = model.on(low, high)
    assert there.heads is model.heads
    assert there.periodic.num_cells == 64 * (high - low) / 4
    x, y = points(1, 30)
    x = low + (high - low) * (x + 2) / 4
    state = there.condition(x, y)
    whole = there.merge(there.condition(x[:, :9], y[:, :9]), there.condition(x[:, 9:], y[:, 9:]))
    for mine, theirs in zip(there.marginals(state, x), there.marginals(whole, x), strict=True):
        assert_close(mine, theirs, 1e-9)
    if high - low == 4:
        here = model.marginals(model.condition(x - low - 2, y), x - low - 2)
        for mine, theirs in zip(there.marginals(state, x), here, strict=True):
            assert_close(mine, theirs, 1e-8)
    with pytest.raises(ValueError, match="does not merge with one on"):
        there.merge(state, model.condition(0 * x, y))
    with torch.no_grad(), pytest.raises(ValueError, match=r"points lie outside \[-2, 2\]"):
        model.condition(x + 9, y)


def test_a_state_is_kept_in_a_file_of_its_sums(tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / "state.safetensors"
    sizes = []
    for number in (4, 400):
        state = model.condition(*points(1, number))
        state.save(path, model)
        loaded = FourierMomentState.load(path, model)
        assert loaded.moments.grid == model.grid
        assert_same(model, loaded, state, 1e-12)
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match="another model, or of other weights"):
        FourierMomentState.load(path, model_of(num_features=4))
    with pytest.raises(ValueError, match="holds the state of another model"):
        SecondMomentState.load(path)


def test_a_state_is_a_few_kilobytes() -> None:
    """That of the default model, in float64, with its grid of 160 cycles."""
    state = FourierMomentNP(1, 1).eval().condition(*points(1, 10, dtype=torch.float32))
    assert state.moments.nbytes < 65_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["identical", "constant", "ill-conditioned", "one", "none"])
def test_hard_data_gives_sound_predictions(dtype: torch.dtype, case: str) -> None:
    model = model_of(dtype=dtype, noise_std=0.01)
    x, y = points(1, 200, dtype=dtype)
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
        mean, std = model.marginals(model.condition(x, y), xt)
    assert all(torch.isfinite(z).all() for z in (mean, std))
    assert (std > 0).all()
    if case in ("identical", "ill-conditioned"):
        assert_close(mean[0, 0], y[0, 0], 0.02)


def test_the_likelihood_may_be_the_mixtures_gaussian() -> None:
    mixture, gaussian = model_of(2), model_of(2, likelihood="gaussian")
    gaussian.load_state_dict(mixture.state_dict())
    state, (xt, _) = mixture.condition(*points(2, 7, 2)), points(2, 5, 2)
    dist = gaussian.query(state, xt)
    assert_close(dist.mean, mixture.query(state, xt).mean)
    assert_close(dist.stddev, mixture.query(state, xt).stddev)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim_x": 2}, "dim_x=2 must be 1"),
        ({"x_range": (1.0, 1.0)}, "x_range="),
        ({"periods": (0.0, 1.0)}, "periods="),
        ({"num_heads": 0}, "num_heads=0"),
        ({"likelihood": "normal"}, "likelihood='normal' must be"),
    ],
)
def test_arguments_that_make_no_model_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FourierMomentNP(**({"dim_x": 1, "dim_y": 1} | arguments))
