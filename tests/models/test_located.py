"""LocatedCMANP: exact in any order, on any range, for any number of places."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from helpers import (
    SIZES,
    assert_close,
    assert_same_prediction,
    assert_same_record,
    few_examples,
    merge_in_a_random_tree,
    random_slices,
    sharpened,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npbench import Task
from npbench.blocks import Places, Scales
from npbench.models import LocatedCMANP, LocatedCMANPAND, LocatedState
from npbench.models.contracts.points import Points
from npbench.optim import MuonAdam
from npbench.profiling import LiveTensors

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
PREDICTION = {torch.float32: 1e-5, torch.float64: 1e-9}

SCALES = Scales(pack=(0.1, 0.1, 0.3, 1.0), mix=(0.5, math.inf), query=(0.3, 1.0))


def located(
    dim_x: int = 1, dim_y: int = 1, dtype: torch.dtype = torch.float32, **arguments: object
) -> LocatedCMANP:
    """A small one; in float64, one whose predictions move with every point, for which float32
    would round too much."""
    torch.manual_seed(0)
    sizes = {
        "dim_model": 16, "num_heads": 2, "num_layers": 1, "num_query_layers": 2,
        "dim_feedforward": 16, "places": Places(-2.0, 2.0, number=12), "scales": SCALES,
    }  # fmt: skip
    model = LocatedCMANP(dim_x, dim_y, **(sizes | arguments)).to(dtype).eval()
    if dtype == torch.float64:
        sharpened(model, model.head.mlp[-1].weight[:dim_y], 3.0)
    return model


def points(
    number: int, dim_x: int = 1, dim_y: int = 1, dtype: torch.dtype = torch.float32, batch: int = 2
) -> tuple[Tensor, Tensor]:
    """Inputs in the box of the places."""
    x = 4 * torch.rand(batch, number, dim_x, dtype=dtype) - 2
    return x, torch.randn(batch, number, dim_y, dtype=dtype)


def assert_same_raw(actual: LocatedState, expected: LocatedState, tolerance: float = 1e-5) -> None:
    assert_close(actual.attention.lse, expected.attention.lse, tolerance)
    assert_close(actual.attention.out, expected.attention.out, tolerance)


@DTYPES
@given(
    seed=st.integers(0, 10**6), number=st.integers(1, 20), dim_x=st.integers(1, 3),
    dim_y=st.integers(1, 2), chunk_size=st.integers(1, 21), content=st.booleans(),
)  # fmt: skip
@settings(few_examples, max_examples=5)
def test_any_order_chunks_and_merges_give_the_same_state(
    dtype: torch.dtype, seed: int, number: int, dim_x: int, dim_y: int, chunk_size: int,
    content: bool,
) -> None:  # fmt: skip
    model, random = located(dim_x, dim_y, dtype, content=content), Random(seed)
    torch.manual_seed(seed)
    x, y = points(number, dim_x, dim_y, dtype)
    whole, order = model.condition(x, y), torch.randperm(number)
    shards = [model.condition(x[:, w], y[:, w]) for w in random_slices(number, random)]
    one_by_one = model.condition(x[:, :0], y[:, :0])
    for index in order.tolist():
        one_by_one = model.update(one_by_one, x[:, [index]], y[:, [index]])
    for state in (
        model.condition(x[:, order], y[:, order]),
        model.condition(x, y, chunk_size=chunk_size),
        model.merge(*shards),
        merge_in_a_random_tree(shards, LocatedState.merge, random),
        one_by_one,
    ):
        assert_same_raw(state, whole)
        assert_same_prediction(model.query(state, x), model.query(whole, x), PREDICTION[dtype])


@DTYPES
def test_points_meet_only_the_places_in_their_reach_and_lose_nothing(dtype: torch.dtype) -> None:
    """The sums of sorted points over near places are those over all places."""
    for dim_x, content in ((1, False), (2, False), (3, True)):
        model = located(dim_x, 2, dtype, content=content, places=Places(number=60))
        x, y = points(2500, dim_x, 2, dtype)
        mask = torch.rand(2, 2500) < 0.7
        with torch.no_grad():
            state = model.condition(x, y, mask)
            places = model.locations.positions
            dense = model.condition(x, y, mask, chunk_size=500)
            sums = model.pack.sums(model._at(x), y, mask, places)
        assert_close(state.attention.lse[0].exp(), sums[..., -1], 1e-5)
        assert_same_raw(state, dense)
        assert_same_prediction(model.query(state, x), model.query(dense, x), PREDICTION[dtype])


def test_a_point_s_cost_does_not_depend_on_the_number_of_places() -> None:
    """With narrow heads, a piece of points scores as many pairs on 20 ranges as on one."""
    narrow = Scales(pack=(0.01, 0.02), mix=(0.5, math.inf), query=(0.3, 1.0))
    few = located(scales=narrow, places=Places(number=50))
    many = few.on(-40.0, 40.0)
    x, y = points(20_000, batch=1)
    sizes = []
    for model in (few, many):
        with torch.no_grad(), LiveTensors() as live:
            model._sums(Points(x, y))
        state = len(model.locations.initial) * 2 * 9 * 4
        sizes.append(live.peak_bytes - state)
    assert len(many.locations.initial) > 15 * len(few.locations.initial)
    assert sizes[1] < 1.5 * sizes[0]


@pytest.mark.parametrize("content", [False, True])
def test_training_in_chunks_has_the_gradients_of_training_at_once(content: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        plain, chunked = (
            located(2, 3, dtype, content=content, context_chunk_size=size).train()
            for size in (None, 4)
        )
        (xc, yc), (xt, yt) = points(11, 2, 3, dtype), points(9, 2, 3, dtype)
        task = Task(xc, yc, xt, yt, torch.rand(2, 11) < 0.7)
        for model in (plain, chunked):
            model.loss(task).backward()
        for mine, theirs in zip(chunked.parameters(), plain.parameters(), strict=True):
            assert_close(mine.grad, theirs.grad, 1e-5 if dtype == torch.float32 else 1e-9)


def test_a_training_step_s_memory_does_not_grow_with_the_context() -> None:
    model = located(context_chunk_size=100).train()

    def peak(context: int) -> int:
        task = Task(*points(context, batch=1), *points(50, batch=1))
        model.zero_grad(set_to_none=True)
        with LiveTensors() as live:
            model.loss(task).backward()
        return live.peak_bytes

    peak(200)
    assert peak(4000) == peak(1000)


def test_the_gradients_of_lengths_and_places_are_those_of_finite_differences() -> None:
    model = located(dtype=torch.float64, places=Places(number=4, learned=True))
    x, y = points(3, dtype=torch.float64, batch=1)
    with torch.no_grad():
        model.locations.shifts.normal_(std=0.1)

    def sums(x: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
        parameters = {"pack.kernel.log_factors": factors, "locations.shifts": shifts}
        return torch.func.functional_call(model, parameters, (x, y, x)).mean

    leaves = x.requires_grad_(), model.pack.kernel.log_factors, model.locations.shifts
    assert torch.autograd.gradcheck(sums, leaves)


@pytest.mark.parametrize("dim_x", [1, 2, 3])
def test_moving_everything_changes_nothing(dim_x: int) -> None:
    model = located(dim_x, dtype=torch.float64)
    x, y = points(9, dim_x, dtype=torch.float64)
    moved = model.on(998.0, 1002.0)
    here = model.query(model.condition(x, y), x)
    there = moved.query(moved.condition(x + 1000, y), x + 1000)
    assert_same_prediction(there, here, 1e-6)


def test_a_wider_range_has_more_places_as_far_apart_and_the_same_weights() -> None:
    model = LocatedCMANP(1, 1, num_layers=1).eval()
    wide = model.on(-6.0, 6.0)
    assert len(wide.locations.initial) == 190
    assert wide.places.spacing == model.places.spacing == pytest.approx(4 / 63)
    mine, theirs = dict(model.named_parameters()), dict(wide.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in mine)
    x, y = points(9)
    dist = wide.query(wide.condition(3 * x, y), 3 * x)
    assert torch.isfinite(dist.mean).all()


def test_the_same_range_is_the_same_place() -> None:
    model = located()
    again = model.on(-2.0, 2.0)
    x, y = points(5)
    state = model.condition(x[:, :2], y[:, :2]).merge(again.condition(x[:, 2:], y[:, 2:]))
    assert_same_prediction(again.query(state, x), model(x, y, x))


@pytest.mark.usefixtures("as_a_user")
def test_states_of_different_places_do_not_mix() -> None:
    model = located()
    moved = model.on(8.0, 12.0)
    x, y = points(5)
    here, there = model.condition(x, y), moved.condition(x + 10, y)
    message = r"at 12 places from \(8.0,\) to \(12.0,\), .* at 12 places from \(-2.0,\) to"
    with pytest.raises(ValueError, match=message):
        here.merge(there)
    for use in (
        lambda: model.query(there, x),
        lambda: model.update(there, x, y),
        lambda: model.merge(here, there),
        lambda: model.forget(there, x, y),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize("options", [{"content": True}, {"places": Places(learned=True)}])
def test_what_belongs_to_a_range_cannot_move(options: dict) -> None:
    with pytest.raises(ValueError, match="cannot move to another range"):
        located(**options).on(0.0, 1.0)


def test_a_state_comes_back_from_its_file(tmp_path: Path) -> None:
    model = located()
    x, y = points(5)
    state = model.condition(x, y)
    path = tmp_path / "state.safetensors"
    state.save(path, model)
    loaded = LocatedState.load(path, model)
    assert_same_record(loaded, state)
    assert loaded.places == state.places
    assert_same_record(model.update(loaded, x, y), model.update(state, x, y))
    with pytest.raises(ValueError, match="a state of another model, or of other weights"):
        LocatedState.load(path, model.on(0.0, 3.0))


def test_the_recorded_arguments_are_plain_and_rebuild_the_model() -> None:
    model = located(places=Places((-2.0, -1.0), (2.0, 1.0), number=12), dim_x=2)
    arguments = json.loads(json.dumps(model.hparams))
    assert arguments["places"]["number"] == 12
    again = LocatedCMANP(**model.hparams).eval()
    again.load_state_dict(model.state_dict())
    x, y = points(5, 2)
    assert_same_prediction(again(x, y, x), model(x, y, x), 0.0)


def test_forgetting_undoes_updating() -> None:
    """Of points that leave every place with some of its points."""
    model = located(dtype=torch.float64)
    x, y = points(200, dtype=torch.float64)
    left = model.forget(model.condition(x, y), x[:, 190:], y[:, 190:])
    assert_same_raw(left, model.condition(x[:, :190], y[:, :190]), 1e-9)


def test_a_far_target_is_predicted_as_if_there_were_no_points() -> None:
    model = located()
    x, y = points(20)
    prior = model.query(model.condition(x[:, :0], y[:, :0]), torch.zeros(2, 1, 1))
    xt = torch.tensor([50.0, 1e10, -1e30]).expand(2, 3)[..., None]
    warning = pytest.warns(UserWarning, match=r"targets are far outside .* model.on\(low, high\)")
    with torch.no_grad(), warning:
        far = model(x, y, xt)
    assert_same_prediction(model(x, y, xt), far, 0.0)
    assert_close(far.mean, prior.mean.expand(2, 3, 1))
    assert_close(far.stddev, prior.stddev.expand(2, 3, 1))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once, and nothing is said in the box
        model(x, y, torch.full((2, 1, 1), 60.0))
        located()(x, y, x)


def test_predictions_go_to_the_prior_without_a_jump() -> None:
    model = located(dtype=torch.float64)
    x, y = points(20, dtype=torch.float64)
    xt = torch.linspace(1.9, 12.0, 4000, dtype=torch.float64).expand(2, -1)[..., None]
    with torch.no_grad(), pytest.warns(UserWarning, match="far outside"):
        dist = model(x, y, xt)
    for values in (dist.mean, dist.stddev):
        assert values.diff(dim=1).abs().max() < 0.2 * (values.amax() - values.amin())


def test_far_points_change_nothing() -> None:
    model = located()
    x, y = points(20)
    expected = model(x, y, x)
    with torch.no_grad(), pytest.warns(UserWarning, match="points are far outside"):
        state = model.condition(
            torch.cat([x, torch.tensor([1e30, -1e10]).expand(2, 2)[..., None]], 1),
            torch.cat([y, y[:, :2]], 1),
        )
    assert_same_prediction(model.query(state, x), expected)


@pytest.mark.parametrize("number", [0, 1, 100_000])
def test_no_points_one_and_very_many_of_the_same_have_finite_predictions(number: int) -> None:
    model = located()
    x, y = torch.full((1, number, 1), 0.3), torch.full((1, number, 1), 2.0)
    xt, _ = points(50, batch=1)
    with torch.no_grad():
        state = model.condition(x, y)
        dist = model.query(state, xt)
    for values in (dist.mean, dist.stddev, state.attention.out):
        assert torch.isfinite(values).all()
    assert not torch.isnan(state.attention.lse).any()
    if number > 1:  # of equal points the out of all is that of one
        one = model.condition(x[:, :1], y[:, :1])
        assert_close(state.attention.out, one.attention.out, 1e-4)


@pytest.mark.parametrize("context", [0, 1, 5])
def test_gradients_are_finite_wherever_points_are(context: int) -> None:
    model = located(places=Places(number=8, learned=True)).train()
    xc, yc = points(context)
    model.loss(Task(xc, yc, *points(4))).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_standard_deviation_is_bounded_on_request() -> None:
    model = located(bound_std=True)
    with torch.no_grad():
        model.head.mlp[-1].bias.fill_(-50.0)
    x, y = points(5)
    assert (model(x, y, x).stddev >= 0.05).all()


def test_beyond_the_greatest_density_more_points_of_the_same_change_nothing() -> None:
    """Places count them no more; below it the model is as without one."""
    model, bounded = (located(max_density=density) for density in (None, 10.0))
    bounded.load_state_dict(model.state_dict())
    xt = torch.linspace(-2, 2, 9).reshape(1, 9, 1)
    x = torch.linspace(-4, 4, 400).reshape(1, 400, 1)
    y = (2 * x).sin()
    changes = {}
    with torch.no_grad():
        for each in (model, bounded):
            states = [each.condition(x.repeat(1, n, 1), y.repeat(1, n, 1)) for n in (1, 4)]
            once, often = (each.marginals(state, xt) for state in states)
            changes[each] = max((a - b).abs().max().item() for a, b in zip(once, often))
        few = x[:, ::50], y[:, ::50]
        for mine, theirs in zip(
            bounded.marginals(bounded.condition(*few), xt),
            model.marginals(model.condition(*few), xt),
            strict=True,
        ):
            assert_close(mine, theirs, 1e-6)
    assert changes[bounded] < 1e-5 < 1e-3 < changes[model]
    with pytest.raises(ValueError, match="max_density=0"):
        located(max_density=0.0)


def test_muon_takes_no_place_length_or_temperature_for_a_matrix() -> None:
    model = located(2, content=True, places=Places(learned=True))
    muon, adam = (group["params"] for group in MuonAdam(model.parameters()).param_groups)
    names = {p: name for name, p in model.named_parameters()}
    assert all(names[p].endswith("weight") for p in muon)
    in_adam = {names[p] for p in adam}
    assert {"locations.shifts", "pack.kernel.log_factors", "pack.queries"} <= in_adam


def test_the_state_is_float32_under_autocast() -> None:
    model = located()
    with torch.autocast("cpu", torch.bfloat16):
        state = model.condition(*points(5))
    assert state.attention.lse.dtype == state.attention.out.dtype == torch.float32


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"places": Places(1.0, 1.0)}, "places.low=1.0 must be below places.high=1.0"),
        ({"places": Places((0.0, 1.0), 2.0)}, "must be one number, or one for each of 1 inputs"),
        ({"places": Places(number=0)}, "places.number=0 must be 1 or more"),
        ({"places": Places(spacing=0.0)}, "places.spacing=0.0 must be a positive number"),
        ({"scales": Scales((1.0,), (1.0,), (1.0, 2.0))}, "scales.mix=.* each of the .* num_heads"),
        ({"scales": Scales((0.0,), (1.0, 1.0), (1.0, 2.0))}, "one positive number a head"),
        ({"dim_model": 6}, "must be even"),
    ],
)
def test_a_mistake_ends_in_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        located(**options)


@pytest.mark.parametrize("dim_x", [1, 2])
def test_a_window_as_wide_as_the_range_changes_nothing(dim_x: int) -> None:
    whole = located(dim_x, dtype=torch.float64)
    windowed = located(dim_x, dtype=torch.float64, window=4.0)
    windowed.load_state_dict(whole.state_dict())
    x, y = points(9, dim_x, dtype=torch.float64)
    xt = 1.2 * points(30, dim_x, dtype=torch.float64)[0]  # some of them beside the places
    with torch.no_grad():
        mine, theirs = (model.query(model.condition(x, y), xt) for model in (windowed, whole))
        # Places are kept in float32.
        assert_same_prediction(mine, theirs, 1e-4)


@pytest.mark.parametrize("dim_x", [1, 2])
def test_windows_lose_nothing_where_attention_is_shorter_than_they_are(dim_x: int) -> None:
    short = Scales(pack=(0.3, 1.0), mix=(0.1, 0.15), query=(0.1, 0.15))
    model = located(dim_x, 1, torch.float64, scales=short, places=Places(number=30))
    x, y = (3 * z for z in points(60, dim_x, dtype=torch.float64))
    xt = 3 * points(50, dim_x, dtype=torch.float64)[0]
    predictions = []
    for window in (None, 4.0):
        wide = model.on(-6.0, 6.0, window)
        with torch.no_grad():
            predictions.append(wide.query(wide.condition(x, y), xt))
    assert_same_prediction(*predictions, 1e-4)


def test_windows_take_tasks_masks_and_gradients_as_all_places_do() -> None:
    model = located(2, dtype=torch.float64).on(-4.0, 4.0, window=2.0)
    x, y = (2 * z for z in points(30, 2, dtype=torch.float64))
    alone = [model(x[i : i + 1], y[i : i + 1], x[i : i + 1]).mean for i in range(2)]
    assert_close(model(x, y, x).mean, torch.cat(alone), 1e-9)
    state = model.update(model.condition(x[:, :9], y[:, :9]), x[:, 9:], y[:, 9:])
    assert_close(model.query(state, x).mean, model(x, y, x).mean, 1e-9)
    model.loss(Task(x, y, x, y)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_many_places_learn_of_each_other_in_windows_unless_told_otherwise() -> None:
    model = located(2, places=Places(number=100))
    assert model.on(-3.0, 3.0).windows is None
    wide = model.on(-40.0, 40.0)
    assert wide.hparams["window"] == 4.0
    assert wide.on(-80.0, 80.0).hparams["window"] == 4.0
    assert wide.windows.members.shape[1] == len(model.locations.initial)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0.1}, r"window=0.1 must be at least 0.364"),
        ({"window": 1.0, "content": True}, "window is for places that are not learned"),
        ({"window": 1.0, "dim_x": 3}, "places for 3 inputs are no grid"),
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        located(**options)


def test_a_joint_model_moves_to_another_range_and_to_a_wider_one() -> None:
    sizes = SIZES["LocatedCMANPAND"] | {"places": Places(-2.0, 2.0, number=9)}
    model = LocatedCMANPAND(1, 1, **sizes).double().eval()
    task = Task(*(torch.randn(2, n, 1, dtype=torch.float64) for n in (6, 6, 5, 5)))
    there = replace(task, xc=task.xc + 10, xt=task.xt + 10)
    moved = model.on(8.0, 12.0).log_likelihood(there)
    assert_close(moved, model.log_likelihood(task), 1e-9)
    wide = model.on(-6.0, 6.0, window=4.0)
    assert wide.windows is not None
    assert wide.log_likelihood(task).isfinite().all()
