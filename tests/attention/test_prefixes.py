import pytest
import torch
from helpers import assert_close, few_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npbench.attention import AttentionState
from npbench.attention.prefixes import faded, final_state, prefix_states

FADES = pytest.mark.parametrize("fades", [True, False], ids=["fading", "lasting"])


def problem(events: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, values, times and rates of 3 heads with 4 queries."""
    torch.manual_seed(events)
    scores = 3 * torch.randn(batch, 3, 4, events, dtype=torch.float64)
    values = torch.randn(batch, 3, events, 5, dtype=torch.float64)
    times = torch.rand(batch, events, dtype=torch.float64).cumsum(-1)
    return scores, values, times, torch.rand(3, 4, dtype=torch.float64)


def naive(scores: Tensor, values: Tensor, times: Tensor, rates: Tensor | None) -> AttentionState:
    """The formula of every prefix, by itself."""
    parts = []
    for i in range(scores.shape[-1]):
        s = scores[..., : i + 1]
        if rates is not None:
            s = s - rates[..., None] * (times[:, i : i + 1] - times[:, : i + 1])[:, None, None]
        parts.append((s.logsumexp(-1), s.softmax(-1) @ values[..., : i + 1, :]))
    return AttentionState(*(torch.stack(z, dim=1) for z in zip(*parts)))


@FADES
@few_examples
@given(events=st.integers(1, 40), chunk_size=st.integers(1, 50))
def test_each_prefix_has_the_state_of_its_events(fades: bool, events: int, chunk_size: int) -> None:
    scores, values, times, rates = problem(events)
    rates = rates if fades else None
    state = prefix_states(scores, values, times, rates, chunk_size)
    expected = naive(scores, values, times, rates)
    assert_close(state.lse, expected.lse)
    assert_close(state.out, expected.out)


@FADES
def test_the_final_state_is_that_of_the_last_real_prefix(fades: bool) -> None:
    scores, values, times, rates = problem(12)
    rates = rates if fades else None
    mask = torch.arange(12) < torch.tensor([[12], [5]])
    times = torch.where(mask, times, times[:, 4:5])
    state = final_state(scores, values, times, rates, mask)
    prefixes = prefix_states(scores, values, times, rates)
    for row, last in ((0, 11), (1, 4)):
        assert_close(state.lse[row], prefixes.lse[row, last])
        assert_close(state.out[row], prefixes.out[row, last])


def test_a_state_of_no_events_is_the_identity_of_merge_and_has_no_nan_gradient() -> None:
    scores, values, times, rates = problem(3)
    scores.requires_grad_()
    nothing = final_state(scores, values, times, rates, torch.zeros(2, 3, dtype=torch.bool))
    assert torch.isneginf(nothing.lse).all()
    assert (nothing.out == 0).all()
    everything = final_state(scores, values, times, rates, torch.ones(2, 3, dtype=torch.bool))
    merged = nothing.merge(everything)
    assert_close(merged.out, everything.out)
    merged.out.sum().backward()
    assert scores.grad.isfinite().all()


def test_fading_in_two_steps_is_fading_in_one() -> None:
    scores, values, times, rates = problem(6)
    state = final_state(scores, values, times, rates, torch.ones(2, 6, dtype=torch.bool))
    twice = faded(faded(state, torch.full((2, 1, 1), 0.5), rates), torch.ones(2, 1, 1), rates)
    assert_close(twice.lse, faded(state, torch.full((2, 1, 1), 1.5), rates).lse)
    assert_close(state.lse - twice.lse, 1.5 * rates.expand_as(state.lse))


def test_an_old_event_does_not_overflow() -> None:
    scores, values, times, rates = (z.float() for z in problem(40))
    state = prefix_states(scores, values, 1e6 * times, rates, chunk_size=8)
    assert state.lse.isfinite().all()
    # All others are long forgotten.
    assert_close(state.out[:, -1], values[:, :, None, -1].expand_as(state.out[:, -1]))


def test_gradients_of_all_arguments() -> None:
    scores, values, times, rates = (z[:1] if z.ndim > 2 else z for z in problem(5, batch=1))
    inputs = scores, values, rates
    for z in inputs:
        z.requires_grad_()

    def function(s: Tensor, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        state = prefix_states(s, v, times, r, chunk_size=2)
        return state.lse, state.out

    torch.autograd.gradcheck(function, inputs)
