"""ConvCNP: its state is a sum on a grid, which streams, merges, forgets and moves."""

import warnings
from pathlib import Path

import pytest
import torch
from helpers import assert_close, assert_same_prediction, random_points
from torch import Tensor

from npbench.blocks.set_convolution import Grid, SetConvolution
from npbench.models import ConvCNP, ConvState

both_dimensions = pytest.mark.parametrize("dim_x", [1, 2])


def model_on(dim_x: int = 1, dim_y: int = 1, **arguments: object) -> ConvCNP:
    sizes = {"grid": Grid(-2.0, 2.0, spacing=0.25), "dim_hidden": 8, "num_levels": 2}
    return ConvCNP(dim_x, dim_y, **(sizes | arguments)).double().eval()


def points(batch: int, number: int, dim_x: int = 1, dim_y: int = 1) -> tuple[Tensor, Tensor]:
    x, y = random_points(batch, number, dim_x, dim_y, torch.float64)
    return x.clamp(-2, 2), y


@both_dimensions
def test_set_convolutions_are_their_sums(dim_x: int) -> None:
    convolution = SetConvolution(0.3).double()
    convolution.log_factor.data.fill_(0.2)
    axes = [torch.linspace(-1, 1, size).double() for size in (7, 5)[:dim_x]]
    nodes = torch.cartesian_prod(*axes).reshape(-1, dim_x)
    x, values = torch.rand(2, 6, dim_x).double(), torch.randn(2, 6, 3).double()
    squared = (x[:, :, None] - nodes).square().sum(dim=-1)
    kernel = (-squared / (2 * 0.3**2) * torch.tensor(-0.4, dtype=torch.float64).exp()).exp()
    function = convolution.to_grid(x, values, axes)
    assert_close(function.flatten(2), values.mT @ kernel, 1e-10)
    assert_close(convolution.to_points(x, function, axes), kernel @ function.flatten(2).mT, 1e-10)


@both_dimensions
def test_forgetting_undoes_updating(dim_x: int) -> None:
    model = model_on(dim_x, 2)
    (x, y), (xt, _) = points(2, 12, dim_x, 2), points(2, 5, dim_x, 2)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    left = model.forget(model.condition(x, y), x[:, :3], y[:, :3], mask)
    kept = torch.ones(2, 12, dtype=torch.bool)
    kept[:, :3] = ~mask
    assert_same_prediction(model.query(left, xt), model(x, y, xt, kept), 1e-9)
    assert left.moments.count.tolist() == [10, 9]


def test_states_merge_in_any_order_and_answer() -> None:
    model = model_on()
    x, y = points(2, 12)
    parts = [model.condition(x[:, i::3], y[:, i::3]) for i in range(3)]
    expected = model(x, y, x)
    for merged in (model.merge(*parts), parts[2].merge(parts[0].merge(parts[1]))):
        assert_same_prediction(model.query(merged, x), expected, 1e-10)


@both_dimensions
def test_points_targets_and_grid_move_together(dim_x: int) -> None:
    model = model_on(dim_x)
    (x, y), (xt, _) = points(2, 9, dim_x), points(2, 4, dim_x)
    shift = torch.tensor([8.0, -3.0][:dim_x]).double()
    moved = model.on(tuple((-2 + shift).tolist()), tuple((2 + shift).tolist()))
    assert_same_prediction(moved(x + shift, y, xt + shift), model(x, y, xt), 1e-6)
    assert all(a is b for a, b in zip(moved.parameters(), model.parameters(), strict=True))


def test_a_wider_grid_changes_little_far_from_its_edge() -> None:
    model = model_on()
    wide = model.on(-8.0, 8.0)
    assert len(wide.axis_0) > 2 * len(model.axis_0)
    x, y = points(1, 9)
    assert wide.grid.spacing == model.grid.spacing
    assert wide(x, y, x).mean.isfinite().all()


def test_a_state_comes_back_from_its_file(tmp_path: Path) -> None:
    model = model_on(2, 1)
    x, y = points(1, 9, 2)
    state = model.condition(x, y)
    state.save(tmp_path / "state", model)
    again = ConvState.load(tmp_path / "state", model)
    assert again.moments.grid == state.moments.grid
    assert_same_prediction(model.query(again, x), model.query(state, x), 1e-12)
    other = model.on(0.0, 4.0)
    with pytest.raises(ValueError, match=r"grid from \(-2.0, -2.0\) to .* nodes 0.25"):
        other.query(ConvState.load(tmp_path / "state"), x)


def test_the_state_is_of_one_size_and_many_points_are_absorbed_in_pieces() -> None:
    model = model_on()
    x, y = points(1, 20_000)
    with torch.no_grad():
        state = model.condition(x, y)
        assert state.nbytes == model.condition(x[:, :3], y[:, :3]).nbytes
        parts = [model.condition(x[:, i::2], y[:, i::2]) for i in range(2)]
        assert_close(state.moments.values, parts[0].merge(parts[1]).moments.values, 1e-9)
        assert_close(model.query(state, x[:, :9]).mean, model.query(state, x).mean[:, :9], 1e-10)


@pytest.mark.usefixtures("as_a_user")
def test_what_was_never_absorbed_is_not_forgotten() -> None:
    model = model_on()
    (x, y), (other, _) = points(1, 5), points(1, 2)
    state = model.condition(x, y)
    with pytest.raises(ValueError, match="the state has never absorbed them"):
        model.forget(state, other, torch.randn(1, 2, 1).double())
    with pytest.raises(ValueError, match="would leave task 0 with -5 points"):
        model.forget(state, torch.cat([x, x], dim=1), torch.cat([y, y], dim=1))


@pytest.mark.usefixtures("as_a_user")
def test_points_outside_the_grid_are_said_once() -> None:
    model = model_on()
    x, y = points(1, 5)
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"points are outside the grid .*model.on"):
            model.condition(x + 10, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.condition(x + 10, y)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("dim_x", "arguments", "message"),
    [
        (3, {}, "dim_x=3: a grid takes 1 or 2 inputs"),
        (1, {"grid": {"low": 2.0, "high": 2.0}}, "grid.low=2.0 must be below grid.high=2.0"),
        (1, {"grid": {"low": float("nan")}}, "grid.low=nan must be below"),
        (2, {"grid": {"low": (0.0, 0.0, 0.0)}}, "must be one number, or one for each of 2 inputs"),
        (1, {"grid": {"spacing": 0.0}}, "grid.spacing=0.0 must be a positive number"),
        (1, {"grid": {"margin": -1.0}}, "grid.margin=-1.0 0 or more"),
        (1, {"grid": {"spacing": 10.0}}, "a grid has two nodes or more in each direction"),
        (1, {"kernel_size": 4}, "kernel_size=4 odd"),
    ],
)
def test_grids_that_cannot_be_are_refused(dim_x: int, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvCNP(dim_x, 1, **arguments)
