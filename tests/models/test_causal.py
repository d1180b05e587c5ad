"""Causal encoders: all prefixes of a context in one pass, and updates that encode new points."""

from typing import Any

import pytest
import torch
from helpers import SIZES, assert_close, random_points, random_task
from torch import Tensor

from npbench import models
from npbench.errors import InputError
from npbench.models import TNPA, TNPD, NeuralProcess

both = pytest.mark.parametrize("name", ["TNPD", "EQTNP"])


def small(name: str, **arguments: Any) -> Any:
    model = getattr(models, name)(2, 3, **SIZES[name] | {"causal": True} | arguments)
    return model.double().eval()


def points(number: int, dim_y: int = 3) -> tuple[Tensor, Tensor]:
    return random_points(2, number, 2, dim_y, dtype=torch.float64)


def assert_same_predictions(model: NeuralProcess, actual: Any, expected: Any) -> None:
    xt, _ = points(5)
    for mine, theirs in zip(model.marginals(actual, xt), model.marginals(expected, xt)):
        assert_close(mine, theirs, 1e-10)


@both
def test_all_prefixes_at_once_equal_each_on_its_own(name: str) -> None:
    model, (x, y) = small(name, qk_norm=True), points(6)
    at_once = model.next_points(x, y)
    for n in range(6):
        alone = model.query(model.condition(x[:, :n], y[:, :n]), x[:, n : n + 1])
        assert_close(at_once.mean[:, n : n + 1], alone.mean, 1e-10)
        assert_close(at_once.stddev[:, n : n + 1], alone.stddev, 1e-10)


@both
@pytest.mark.parametrize("sizes", [(4, 3), (0, 4), (4, 0), (1, 1)])
def test_updating_equals_conditioning_on_the_union(name: str, sizes: tuple[int, int]) -> None:
    model, (x, y) = small(name), points(sum(sizes))
    first = sizes[0]
    state = model.update(model.condition(x[:, :first], y[:, :first]), x[:, first:], y[:, first:])
    assert_same_predictions(model, state, model.condition(x, y))
    assert_same_predictions(model, model.condition(x, y, chunk_size=2), model.condition(x, y))


@both
def test_an_update_embeds_the_new_points_alone(name: str) -> None:
    model, (x, y) = small(name), points(7)
    state = model.condition(x[:, :5], y[:, :5])
    embed = model.embed if name == "TNPD" else model.embed_points
    embedded: list[int] = []
    embed.register_forward_hook(lambda _, inputs, __: embedded.append(inputs[0].shape[1]))
    model.update(state, x[:, 5:], y[:, 5:])
    assert embedded == [2]


@both
def test_padding_equals_truncation(name: str) -> None:
    model, (x, y) = small(name), points(7)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 0]).bool().expand(2, -1)
    real = mask[0]
    expected = model.condition(x[:, real], y[:, real])
    assert_same_predictions(model, model.condition(x, y, mask), expected)
    state = model.condition(x[:, :4], y[:, :4], mask[:, :4])
    state = model.update(state, x[:, 4:], y[:, 4:], mask[:, 4:])
    assert_same_predictions(model, state, expected)
    at_once = model.next_points(x, y, mask).mean[:, real]
    assert_close(at_once, model.next_points(x[:, real], y[:, real]).mean, 1e-10)


@both
def test_the_loss_and_its_gradients_are_those_of_each_prefix_on_its_own(name: str) -> None:
    model, task = small(name), random_task(2, 4, 3, dim_x=2, dim_y=3, dtype=torch.float64)
    x, y = torch.cat([task.xc, task.xt], dim=1), torch.cat([task.yc, task.yt], dim=1)
    log_prob = [
        model.query(model.condition(x[:, :n], y[:, :n]), x[:, n : n + 1]).log_prob(y[:, n : n + 1])
        for n in range(7)
    ]
    one_by_one, at_once = -torch.cat(log_prob, dim=1).mean(), model.loss(task)
    assert_close(at_once, one_by_one, 1e-10)
    # A single prefix is empty, and weights that only it would use have no gradient.
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for loss in (at_once, one_by_one)
    ]
    assert any(gradient is not None for gradient in gradients[0])
    for mine, theirs in zip(*gradients):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert_close(mine, theirs, 1e-10)


@both
def test_the_state_keeps_no_points_and_grows_by_the_same_for_each(name: str) -> None:
    model = small(name)
    sizes = [model.condition(*points(number)).nbytes for number in (4, 5, 6)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


@both
def test_the_log_likelihood_is_that_of_the_targets_given_the_context(name: str) -> None:
    model, task = small(name), random_task(2, 4, 3, dim_x=2, dim_y=3, dtype=torch.float64)
    dist = model.query(model.condition(task.xc, task.yc), task.xt)
    assert_close(model.log_likelihood(task), dist.log_prob(task.yt).mean(dim=-1), 1e-10)


def test_classes_are_predicted_from_every_prefix() -> None:
    model = small("TNPD", likelihood="categorical")
    x, _ = points(6)
    y = torch.nn.functional.one_hot(torch.arange(6) % 3, 3).double().expand(2, -1, -1)
    assert_close(model.next_points(x, y).mean.sum(dim=-1), torch.ones(2, 6).double(), 1e-10)


def test_other_models_say_that_they_are_not_causal() -> None:
    x, y = points(3)
    with pytest.raises(InputError, match="see those after them too"):
        TNPD(2, 3).double().next_points(x, y)
    with pytest.raises(InputError, match="TNPA does not"):
        TNPA(1, 1, causal=True)
