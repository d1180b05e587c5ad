"""`forget` is the inverse of `update`, or an error: never a state that is silently wrong."""

import pytest
import torch
from helpers import assert_close, few_examples, random_points, small_cmanp
from hypothesis import given
from hypothesis import strategies as st

from npbench.attention import AttentionState
from npbench.models import CMANPState


def assert_same_state(actual: CMANPState, expected: CMANPState, tolerance: float) -> None:
    for mine, theirs in zip(actual.tensors(), expected.tensors(), strict=True):
        assert_close(mine, theirs, tolerance)


@given(kept=st.integers(3, 30), removed=st.integers(0, 6), seed=st.integers(0, 1000))
@few_examples
def test_forgetting_undoes_updating(kept: int, removed: int, seed: int) -> None:
    torch.manual_seed(seed)
    for dtype, tolerance in {torch.float32: 1e-4, torch.float64: 1e-12}.items():
        model = small_cmanp(dtype=dtype)
        x, y = random_points(2, kept + removed, dtype=dtype)
        state = model.condition(x, y)
        left = model.forget(state, x[:, kept:], y[:, kept:])
        assert_same_state(left, model.condition(x[:, :kept], y[:, :kept]), tolerance)


def test_only_the_real_points_of_a_mask_are_forgotten() -> None:
    model = small_cmanp(dtype=torch.float64)
    x, y = random_points(2, 12, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    left = model.forget(model.condition(x, y), x[:, :3], y[:, :3], mask)
    kept = torch.ones(2, 12, dtype=torch.bool)
    kept[:, :3] = ~mask
    assert_same_state(left, model.condition(x, y, kept), 1e-12)


def test_a_window_slides_without_drift() -> None:
    model = small_cmanp()
    x, y = random_points(1, 260)
    state = model.condition(x[:, :20], y[:, :20])
    for start in range(240):
        new, old = slice(start + 20, start + 21), slice(start, start + 1)
        state = model.forget(model.update(state, x[:, new], y[:, new]), x[:, old], y[:, old])
    assert_same_state(state, model.condition(x[:, 240:], y[:, 240:]), 1e-3)


def test_gradients_flow_through_forgetting() -> None:
    model = small_cmanp(dtype=torch.float64)
    x, y = random_points(1, 8, dtype=torch.float64)
    gradients = []
    for state in (
        model.forget(model.condition(x, y), x[:, 6:], y[:, 6:]),
        model.condition(x[:, :6], y[:, :6]),
    ):
        model.zero_grad()
        model.query(state, x).mean.sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(*gradients, strict=True):
        assert_close(mine, theirs)


def test_forgetting_nearly_everything_is_refused() -> None:
    model = small_cmanp()
    x, y = random_points(1, 300)
    state = model.condition(x, y)
    with pytest.raises(ValueError, match=r"would leave .* ill-conditioned.* condition on those"):
        model.forget(state, x[:, 1:], y[:, 1:])
    with pytest.raises(ValueError, match="would leave"):
        model.forget(state, x, y)


@pytest.mark.parametrize(("absorbed", "number"), [(0, 1), (0, 50), (1, 50)])
def test_forgetting_more_than_was_absorbed_is_refused(absorbed: int, number: int) -> None:
    model = small_cmanp()
    x, y = random_points(1, number)
    state = model.condition(x[:, :absorbed], y[:, :absorbed])
    with pytest.raises(ValueError, match="the state has never absorbed the points"):
        model.forget(state, x[:, absorbed:], y[:, absorbed:])


def test_an_empty_state_holds_no_share_of_any_point() -> None:
    """Not even of one whose score is far below 0."""
    q, k = torch.full((1, 1, 1, 4), 3.0), torch.full((1, 1, 1, 4), -3.0)
    empty = AttentionState.from_chunk(q, k[:, :, :0], k[:, :, :0])
    _, share = empty.remove(AttentionState.from_chunk(q, k, k))
    assert (share == -torch.inf).all()


def test_forgetting_nothing_changes_nothing() -> None:
    model = small_cmanp()
    x, y = random_points(2, 9)
    for number in (0, 9):
        state = model.condition(x[:, :number], y[:, :number])
        assert_same_state(model.forget(state, x[:, :0], y[:, :0]), state, 0.0)


def test_the_share_that_is_left_is_that_of_the_attention() -> None:
    q, k, v = torch.randn(1, 2, 3, 4), *torch.randn(2, 1, 2, 10, 4)
    whole = AttentionState.from_chunk(q, k, v)
    part = AttentionState.from_chunk(q, k[:, :, :4], v[:, :, :4])
    _, share = whole.remove(part)
    weights = ((q / 2) @ k.mT).softmax(-1)
    assert_close(share.float(), weights[..., 4:].sum(-1))
