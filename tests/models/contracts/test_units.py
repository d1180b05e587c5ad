"""A model with units takes values in them, and answers in them: the numbers are its own."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ONE_INPUT, SIZES, small, small_cmanp
from torch import Tensor

from npbench import Task
from npbench.blocks import Places
from npbench.blocks.set_convolution import Grid
from npbench.errors import DataWarning, InputError, ValueOverflow
from npbench.models import ConvCNP, FourierMomentNP, LocatedCMANP, NeuralProcess
from npbench.models.contracts import Points
from npbench.models.contracts.ranges import Ranges
from npbench.scaling import Column, Scaling

pytestmark = pytest.mark.usefixtures("as_a_user")

X = Column("seconds", "min-max", 1.7e9, 30.0), Column("depth", "log", 0.5, 2.0)
Y = Column("u", "standard", 100.0, 5.0), Column("v"), Column("w", "log", 0.3, 0.5)
# Distributions whose randomness makes two calls differ.
RANDOM = {"NP", "ANP", "BNP", "BANP"}


def units(model: NeuralProcess, log: bool = False) -> Scaling:
    y = Y if log else (*Y[:2], Column("w", "standard", -3.0, 0.5))
    return Scaling(X[: model.dim_x], y[: model.dim_y])


def numbers(dim_x: int, num_points: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(2, num_points, dim_x, generator=generator, dtype=torch.float64) - 1
    return x, torch.randn(2, num_points, 3, generator=generator, dtype=torch.float64)


def values(scaling: Scaling, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The values whose numbers these are."""
    x = torch.stack([c.decode(z) for c, z in zip(scaling.x, x.unbind(-1))], dim=-1)
    return x, scaling.decode_y(y)


def model_and_task(name: str, log: bool = False) -> tuple[NeuralProcess, Scaling, Task, Task]:
    """A model, units for it, a task in its numbers, and the same in the units."""
    model = small(name, 1 if name in ONE_INPUT else 2)
    scaling = units(model, log)
    context, targets = numbers(model.dim_x, 7, 0), numbers(model.dim_x, 5, 1)
    mask = torch.rand(2, 7, generator=torch.Generator().manual_seed(2)) < 0.8
    bare = Task(*context, *targets, context_mask=mask)
    in_units = Task(*values(scaling, *context), *values(scaling, *targets), context_mask=mask)
    return model, scaling, bare, in_units


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_a_model_with_units_answers_as_the_model_without(name: str) -> None:
    """Means, deviations, log-likelihoods, quantiles and samples are those of its own numbers."""
    model, scaling, bare, task = model_and_task(name)
    scaled = model.scaled(scaling)
    assert model.scaling is None
    answers = []
    for each, of in ((model, bare), (scaled, task)):
        torch.manual_seed(0)
        state = each.condition(of.xc, of.yc, of.context_mask)
        moments = each.marginals(state, of.xt)
        torch.manual_seed(0)
        answers.append((moments, each.evaluate(of), each.loss(of)))
    (own, evaluated, loss), (there, in_units, same_loss) = answers
    scale = torch.tensor([column.scale for column in scaling.y], dtype=torch.float64)
    np.testing.assert_allclose(there.mean, scaling.decode_y(own.mean), 1e-5, 1e-5)
    np.testing.assert_allclose(there.std, own.std * scale, 1e-5, 1e-5)
    np.testing.assert_allclose(in_units.mean, scaling.decode_y(evaluated.mean), 1e-5, 1e-5)
    np.testing.assert_allclose(
        in_units.log_likelihood, evaluated.log_likelihood - scale.log().sum(), 1e-5, 1e-5
    )
    assert float(loss) == pytest.approx(float(same_loss), abs=1e-4)
    torch.manual_seed(0)
    first = model.sample(model.condition(bare.xc, bare.yc, bare.context_mask), bare.xt, 2)
    torch.manual_seed(0)
    state = scaled.condition(task.xc, task.yc, task.context_mask)
    np.testing.assert_allclose(
        scaled.sample(state, task.xt, 2), scaling.decode_y(first), 1e-3, 1e-3
    )
    torch.manual_seed(0)
    quantiles = scaled.quantiles(state, task.xt, [0.1, 0.5, 0.9])
    assert (quantiles.diff(dim=0) > 0).all()
    torch.manual_seed(0)
    expected = model.quantiles(state, bare.xt, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, scaling.decode_y(expected), 1e-3, 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_a_query_in_units_has_the_density_that_the_log_likelihood_says(name: str) -> None:
    for log in (False, True):
        model, scaling, _, task = model_and_task(name, log)
        model = model.scaled(scaling)
        if model.scores_jointly and name in ("TNPA", "CMANPAND", "LocatedCMANPAND"):
            continue  # whose likelihood is not that of one distribution
        torch.manual_seed(0)
        state = model.condition(task.xc, task.yc, task.context_mask)
        dist = model.query(state, task.xt)
        joint = dist.event_shape[0] > model.dim_y
        log_prob = dist.log_prob(task.yt.flatten(1) if joint else task.yt)
        per_target = log_prob / 5 if joint else log_prob.mean(dim=-1)
        torch.manual_seed(0)
        np.testing.assert_allclose(model.log_likelihood(task), per_target, 1e-4, 1e-4)
        if name in RANDOM:
            continue
        moments = model.marginals(state, task.xt)
        np.testing.assert_allclose(moments.mean, dist.mean.reshape(task.yt.shape), 1e-4, 1e-4)
        np.testing.assert_allclose(moments.std, dist.stddev.reshape(task.yt.shape), 1e-4, 1e-4)
        assert dist.sample().shape == dist.mean.shape


@pytest.mark.parametrize("name", ["CNP", "NP", "SecondMomentNP"])
def test_a_task_of_one_output_is_taken_in_the_units_of_this_output(name: str) -> None:
    """By a model of one output that takes each of several by itself."""
    model, y = small(name, 1, dim_y=1), (Y[0], Column("w", "log", 0.3, 0.5))
    each = model.scaled(Scaling(X[:1], y, each_output=True))
    for column in y:
        alone = model.scaled(Scaling(X[:1], (column,)))
        context, targets = ((x, z[..., :1]) for x, z in (numbers(1, 7, 0), numbers(1, 5, 1)))
        task = Task(*values(alone.scaling, *context), *values(alone.scaling, *targets))
        of_output = replace(task, output=column.name)
        for method in ("evaluate", "log_likelihood", "loss"):
            found = []
            for given, of in ((alone, task), (each, of_output), (alone, of_output)):
                torch.manual_seed(0)
                with torch.no_grad():
                    found.append(getattr(given, method)(of))
            for other in found[1:]:
                first = found[0] if isinstance(other, tuple) else [found[0]]
                for a, b in zip(first, other if isinstance(other, tuple) else [other]):
                    assert a is b is None or torch.equal(a, b)
        assert each.of_task(of_output).scaling == each.of_output(column.name).scaling
        with pytest.raises(InputError, match=r"the model takes u, w each by itself: choose one by"):
            each.loss(task)
    x, y = task.xc, task.yc
    state = alone.condition(x, y)
    for ask in (lambda: each.condition(x, y), lambda: each.query(state, x)):
        with pytest.raises(InputError, match=r"model\.of_output\(NAME\)"):
            ask()
    with pytest.raises(InputError, match="there are units of u, w, and none of v"):
        each.of_output("v")
    with pytest.raises(InputError, match="the model has no units, and so none of u"):
        model.of_output("u")


def test_a_column_that_is_far_is_said_once_whatever_the_output() -> None:
    model = small("CNP", 1, dim_y=1)
    one = torch.ones(2, dtype=torch.float64)
    model.watch.ranges = Ranges(-one, one, 0 * one, one, one[0])
    each = model.scaled(Scaling((Column("x"),), (Column("a"), Column("b")), each_output=True))
    x, y = np.array([[50.0]]), np.array([[0.0]])
    with pytest.warns(DataWarning, match="x runs from 50 to 50"):
        each.of_output("a").eval().condition(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each.of_output("b").eval().condition(x, y)


@torch.no_grad()
@pytest.mark.parametrize("name", ["CNP", "SecondMomentNP"])
def test_moments_and_quantiles_of_logarithmic_outputs_are_those_of_the_density(name: str) -> None:
    model = small(name, 1, dim_y=1)
    model.scaling = Scaling(X[:1], (Column("w", "log", 0.3, 0.5),))
    state = model.condition(np.array([[1.7e9], [1.7e9 + 9]]), np.array([[1.0], [2.0]]))
    xt = np.array([[1.7e9 + 3]])
    dist, moments = model.query(state, xt), model.marginals(state, xt)
    log_y = torch.linspace(-8, 9, 100_001, dtype=torch.float64)
    y = log_y.exp()
    density = (dist.log_prob(y[:, None, None, None]).flatten() + log_y).exp()
    step = float(log_y[1] - log_y[0])
    assert float(density.sum()) * step == pytest.approx(1, abs=1e-4)
    mean = float((density * y).sum()) * step
    second = float((density * y.square()).sum()) * step
    assert float(moments.mean) == pytest.approx(mean, rel=1e-3)
    assert float(moments.std) == pytest.approx(math.sqrt(second - mean**2), rel=1e-2)
    below = (density.cumsum(0) * step)[torch.searchsorted(y, model.quantiles(state, xt, [0.3])[0])]
    assert float(below) == pytest.approx(0.3, abs=1e-3)


@torch.no_grad()
def test_updates_merges_and_forgetting_are_those_of_the_numbers() -> None:
    model, scaling, bare, task = model_and_task("CMANP")
    scaled = model.scaled(scaling)
    more = numbers(2, 4, 3)
    in_units = values(scaling, *more)
    state = scaled.condition(task.xc, task.yc, ledger=False)
    expected = model.update(model.condition(bare.xc, bare.yc), *more)
    updated = scaled.update(state, *in_units)
    np.testing.assert_allclose(
        scaled.query(updated, task.xt).mean, scaling.decode_y(model.query(expected, bare.xt).mean),
        1e-5, 1e-5,
    )  # fmt: skip
    left = scaled.forget(updated, *in_units)
    np.testing.assert_allclose(
        scaled.query(left, task.xt).mean, scaled.query(state, task.xt).mean, 1e-4, 1e-4
    )


@torch.no_grad()
def test_seconds_since_1970_lose_no_digits() -> None:
    """float32 would know them to two minutes."""
    model = small_cmanp()
    scaling = Scaling((Column("t", "min-max", 1.7e9, 30.0),), (Column("y"),))
    seconds = torch.arange(-60.0, 60.0, dtype=torch.float64).reshape(1, -1, 1)
    y = (seconds / 9).sin()
    state = model.condition(seconds / 30, y)
    same = model.scaled(scaling).condition(seconds + 1.7e9, y)
    assert torch.equal(state.attention.out, same.attention.out)


@torch.no_grad()
def test_a_state_file_has_the_units_and_is_refused_in_others(tmp_path: Path) -> None:
    model, scaling, _, task = model_and_task("CMANP")
    scaled, path = model.scaled(scaling), tmp_path / "state"
    state = scaled.condition(task.xc, task.yc)
    state.save(path, scaled)
    again = type(state).load(path, scaled)
    assert torch.equal(scaled.query(again, task.xt).mean, scaled.query(state, task.xt).mean)
    for other in (model, model.scaled(units(model, log=True))):
        with pytest.raises(InputError, match="in other units than the model's "):
            type(state).load(path, other)


@torch.no_grad()
def test_messages_are_in_the_units_and_name_the_columns() -> None:
    model, scaling, bare, task = model_and_task("CMANP")
    model.watch.ranges = Ranges.of(Points(bare.xc, bare.yc))
    model = model.scaled(scaling)
    far = task.xc + torch.tensor([600.0, 0.0])
    with pytest.warns(DataWarning, match=r"seconds runs from 17000005\d\d\S* to 17000006"):
        model.condition(far, task.yc)
    y = task.yc.clone()
    y[1, 2, 0] = 1e300
    with pytest.raises(ValueOverflow, match=r"u of task 1, point 2 is of size 1e\+300") as error:
        model.condition(task.xc, y)
    assert error.value.column == 2
    with pytest.raises(InputError, match=r"xc holds -1 of column depth in task 0, point 0, and"):
        model.condition(-torch.ones(1, 1, 2), torch.ones(1, 1, 3))
    with pytest.raises(InputError, match=r"expected \[batch, points, 2\], as the model has the un"):
        model.condition(torch.ones(1, 1, 3), torch.ones(1, 1, 3))


def test_ranges_of_places_grids_and_frequencies_are_said_in_the_units() -> None:
    """From 2000 to 2040, which the models see from −2 to 2."""
    days = Column("day", "min-max", shift=2020.0, scale=10.0)
    scaling = Scaling((days,), (Column("y"),))
    x, y = torch.tensor([[[2000.0], [2500.0]]]), torch.zeros(1, 2, 1)
    places = Places(-2.0, 2.0, number=5)
    located = LocatedCMANP(1, 1, num_layers=1, places=places).eval().scaled(scaling)
    grid = ConvCNP(1, 1, grid=Grid(spacing=0.1, margin=0.5), num_levels=1).eval().scaled(scaling)
    frequencies = FourierMomentNP(1, 1, num_heads=2).eval().scaled(scaling)
    with torch.no_grad():
        with pytest.warns(DataWarning, match=r"of the latents \(day from 2000 to 2040\)"):
            located.condition(x, y)
        with pytest.warns(DataWarning, match=r"with its margin \(day from 1994.5 to 2045.5\)"):
            grid.condition(x, y)
        with pytest.raises(InputError, match=r"1 points lie outside \[2000, 2040\]"):
            frequencies.condition(x, y)


def test_units_of_other_columns_are_refused() -> None:
    with pytest.raises(InputError, match=r"2 number\(s\) of inputs and 1 of outputs, for a model"):
        small_cmanp().scaled(Scaling((Column("h", "circular", scale=24.0),), (Column("y"),)))
    model = small_cmanp(dim_x=2)
    model.scaling = Scaling((Column("h", "circular", scale=24.0),), (Column("y"),))
    assert model.columns == (["h"], ["y"])
    state = model.condition(np.array([[1.0]]), np.array([[2.0]]))
    assert model.query(state, np.array([[25.0]])).mean.shape == (1, 1, 1)


@pytest.mark.parametrize("levels", [[], [0.0], [0.5, 1.0], [math.nan]])
def test_quantiles_are_of_probabilities(levels: list[float]) -> None:
    model = small_cmanp()
    state = model.condition(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    with pytest.raises(InputError, match="must be probabilities between 0 and 1"):
        model.quantiles(state, torch.zeros(1, 1, 1), levels)


@torch.no_grad()
def test_drawn_functions_are_in_the_units() -> None:
    model, scaling, bare, task = model_and_task("SecondMomentNP")
    drawn = []
    for each, of in ((model, bare), (model.scaled(scaling), task)):
        torch.manual_seed(0)
        drawn.append(each.sample_functions(each.condition(of.xc, of.yc), 3)(of.xt))
    np.testing.assert_allclose(drawn[1], scaling.decode_y(drawn[0]), 1e-6, 1e-6)
