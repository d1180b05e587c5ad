"""A model knows what values it was trained on, and says so where it is given others."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZES, assert_close, few_examples, random_points, small, small_cmanp
from hypothesis import given
from hypothesis import strategies as st

from npbench.errors import ChunkError, DataWarning, InputError, ValueOverflow
from npbench.models import CMANP
from npbench.models.contracts import Points
from npbench.models.contracts.process import unwatched
from npbench.models.contracts.ranges import Ranges

pytestmark = pytest.mark.usefixtures("as_a_user")


def trained(low: float = -2.0, high: float = 2.0) -> CMANP:
    """A model that was trained on two inputs from `low` to `high`, and outputs from 0 to 1."""
    model = small_cmanp(dim_x=2)
    x = torch.tensor([[[low, low], [high, high]]])
    model.watch.ranges = Ranges.of(Points(x, torch.tensor([[[0.0], [1.0]]])))
    return model


def context(x: float = 1.0, y: float = 0.5, number: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((1, number, 2), x), torch.full((1, number, 1), y)


def messages(caught: list) -> list[str]:
    return [str(w.message) for w in caught if issubclass(w.category, DataWarning)]


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 1000))
@few_examples
def test_ranges_of_parts_merge_to_those_of_the_whole(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    parts = []
    for size in [*sizes, 2]:
        x, y = random_points(2, size, dim_x=2, dtype=torch.float64)
        parts.append(Points(1e3 + x, y, torch.rand(2, size) < 0.7))
    merged = Ranges.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Ranges.of(part))
    values = torch.cat([part.xy[part.mask] for part in parts])
    if not len(values):
        return
    assert float(merged.count) == len(values)
    assert torch.equal(merged.low, values.amin(0))
    assert torch.equal(merged.high, values.amax(0))
    assert_close(merged.mean, values.mean(0))
    assert_close(merged.std, values.std(0, correction=0), 1e-8)


def test_values_within_the_range_of_training_are_taken_without_a_word() -> None:
    model = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = model.update(model.condition(*context()), *context(-2.5, 1.2))
        model.query(state, context(2.9)[0])
        model.marginals(state, context(2.9)[0])
        list(model.query(state, [context(2.9)[0].numpy()]))


def test_a_column_far_outside_the_range_of_training_is_named_once() -> None:
    model = trained()
    x, y = context()
    x[0, 3, 1] = 50.0
    with pytest.warns(DataWarning) as caught:
        state = model.condition(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.condition(x, y)
    assert messages(caught) == [
        "x1 runs from 1 to 50, and in training from -2 to 2 (mean 0, standard deviation 2): "
        "predictions from such values mean nothing. Bring the column to the unit and the range of "
        "training, or train on data like these (said once)"
    ]
    with pytest.warns(DataWarning, match="^y0 runs from 1000000 to 1000000, and in "):
        model.update(state, *context(y=1e6))
    with pytest.warns(DataWarning, match="^x0 runs from -9 to -9") as caught:
        model.query(state, torch.full((1, 3, 2), -9.0))
    assert len(messages(caught)) == 1


@pytest.mark.parametrize("way", ["arrays", "chunks", "marginals", "stream"])
def test_all_ways_in_are_watched(way: str) -> None:
    model = trained()
    model.watch.columns = ["lat", "lon", "t"]
    far = context(48.0)
    with unwatched(model):
        state = model.condition(*far)
    ways = {
        "arrays": lambda: model.condition(*(z.numpy() for z in far)),
        "chunks": lambda: model.condition(iter([context(), far])),
        "marginals": lambda: model.marginals(state, far[0]),
        "stream": lambda: list(model.query(state, [far[0].numpy()])),
    }
    with pytest.warns(DataWarning) as caught:
        ways[way]()
    assert [message.split()[0] for message in messages(caught)] == ["lat", "lon"]


def test_nothing_is_said_where_ranges_are_unknown_or_values_are_masked() -> None:
    model = trained()
    x, y = context()
    x[0, 0], mask = 99.0, torch.tensor([[False, True, True, True, True]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.condition(x, y, mask)
        small_cmanp(dim_x=2).condition(*context(1e4, 1e4))
        with unwatched(model):
            model.condition(*context(1e4))
        model.train()
        model.condition(*context(1e4))


def test_a_range_far_from_zero_is_not_taken_to_hold_the_padding() -> None:
    model = trained(100.0, 200.0)
    x, y = context(150.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.condition(x, y, torch.tensor([[False, True, True, True, False]]))


@pytest.mark.parametrize("name", SIZES)
def test_no_state_holds_what_has_overflowed(name: str) -> None:
    model = small(name).float()
    x, y = random_points(2, 6, model.dim_x, model.dim_y)
    y[1, 4, -1] = 3e38
    with torch.no_grad():
        state = model.condition(x[:, :3], y[:, :3])
        if model._condition(iter([Points(x, y)])).is_finite():
            assert model.update(state, x, y).is_finite()
            return
        message = (
            f"^y{model.dim_y - 1} of task 1, point 4 is of size 3e.38, of which the model computes"
        )
        with pytest.raises(ValueOverflow, match=message):
            model.condition(x, y)
        with pytest.raises(ValueOverflow, match=message):
            model.update(state, x, y)


def test_a_value_that_overflows_is_named_by_column_task_and_point() -> None:
    model = small_cmanp(dim_x=2)
    x, y = context(number=1500)
    x[0, 1234, 1] = -1e30
    message = r"^x1 of task 0, point 1234 is of size 1e\+30, .* overflows torch.float32; drop such"
    with torch.no_grad():
        with pytest.raises(ValueOverflow, match=message):
            model.condition(x, y)
        with pytest.raises(ValueOverflow, match=message):
            model.condition((x[:, i : i + 100], y[:, i : i + 100]) for i in range(0, 1500, 100))
        with pytest.raises(ValueOverflow, match=message):
            model.marginals(model.condition(*context()), x)


def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    model = small_cmanp(dim_x=2)
    state = model.condition(*context())
    for spoilt in (torch.nan, torch.inf):
        broken = state.map(lambda z, spoilt=spoilt: z + spoilt)
        assert not broken.is_finite()
        with pytest.raises(InputError, match="NaN or infinite numbers, and is not written to"):
            broken.save(tmp_path / "state", model)
    assert not list(tmp_path.iterdir())
    empty = model.condition(np.zeros((0, 2)), np.zeros((0, 1)))
    assert empty.is_finite()
    empty.save(tmp_path / "state", model)


def test_weights_that_are_not_finite_are_not_taken_for_values_that_overflow() -> None:
    model = small_cmanp(dim_x=2)
    with torch.no_grad():
        model.latents[0, 0] = torch.nan
        with pytest.raises(InputError, match="model has weights that are NaN or infinite; load a"):
            model.condition(*context())


def test_a_moved_model_is_watched_for_outputs_alone() -> None:
    """Its places say where inputs are far."""
    model = small("LocatedCMANP", 1, 1).float()
    points = Points(torch.tensor([[[-1.0], [1.0]]]), torch.tensor([[[0.0], [1.0]]]))
    model.watch.ranges = Ranges.of(points)
    moved = model.on(100.0, 104.0)
    with pytest.warns(DataWarning) as caught:
        moved.condition(torch.full((1, 3, 1), 101.0), torch.full((1, 3, 1), 9.0))
    assert [message.split()[0] for message in messages(caught)] == ["y0"]


def test_a_chunk_that_is_wrong_is_still_named_with_what_was_before() -> None:
    model = trained()
    with pytest.raises(ChunkError) as caught:
        model.condition(iter([context(), (torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))]))
    assert caught.value.number == 1
    assert caught.value.state.is_finite()
