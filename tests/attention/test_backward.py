import pytest
import torch
from helpers import assert_close
from helpers.attention import DTYPES, assert_same_state, random_bias, random_qkv
from torch import Tensor

from npbench.attention import AttentionState, attention_with_lse


def gradients(state: AttentionState, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a loss in which every lse and every out has its own weight."""
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum()
        for part in (state.lse, state.out)
    )
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("chunks", [1, 2])
def test_gradients_are_finite_and_right_where_a_task_has_no_points(chunks: int) -> None:
    """The second task has none; in two chunks, it merges two states of no points."""
    q, k, v = (z.requires_grad_() for z in random_qkv(points=6, dtype=torch.float64))
    mask = torch.tensor([[True, True, False, True, True, True], [False] * 6])
    states = [
        AttentionState.from_chunk(q, *(z.chunk(chunks, 2)[i] for z in (k, v)), part)
        for i, part in enumerate(mask.chunk(chunks, 1))
    ]
    state = states[0] if chunks == 1 else states[0].merge(states[1])
    assert torch.isneginf(state.lse[1]).all()

    finite = AttentionState(state.lse.masked_fill(state.lse.isneginf(), 0.0), state.out)
    ours = gradients(finite, (q, k, v))
    real = mask[0]
    alone = AttentionState.from_chunk(q[:1], k[:1, :, real], v[:1, :, real])
    zeros = torch.zeros_like(state.lse[1:]), torch.zeros_like(state.out[1:])
    padded = AttentionState(torch.cat([alone.lse, zeros[0]]), torch.cat([alone.out, zeros[1]]))
    for mine, theirs in zip(ours, gradients(padded, (q, k, v))):
        assert torch.isfinite(mine).all()
        assert_close(mine, theirs)
        assert not mine[1].any()


@pytest.mark.parametrize("masked", [False, True])
@DTYPES
def test_the_fused_path_equals_public_operations(dtype: torch.dtype, masked: bool) -> None:
    inputs = tuple(z.requires_grad_() for z in random_qkv(points=9, dtype=dtype))
    mask = torch.rand(2, 9) < 0.6 if masked else None
    bias = None
    if mask is not None:
        assert mask.any(1).all()
        assert not mask.all()
        bias = torch.zeros(2, 9, dtype=dtype).masked_fill(~mask, -torch.inf)[:, None, None]
    fused = AttentionState.from_chunk(*inputs, mask)
    public = AttentionState(*attention_with_lse(*inputs, bias))
    assert_same_state(fused, public)
    for ours, theirs in zip(gradients(fused, inputs), gradients(public, inputs)):
        assert_close(ours, theirs)


@pytest.mark.parametrize("part", ["lse", "out"])
def test_the_gradient_of_lse_alone_and_of_out_alone_are_right(part: str) -> None:
    inputs = tuple(z.requires_grad_() for z in random_qkv(points=9, dtype=torch.float64))
    fused = AttentionState.from_chunk(*inputs)
    public = AttentionState(*attention_with_lse(*inputs))
    results = [
        torch.autograd.grad(
            getattr(state, part).square().sum(), inputs, allow_unused=True, materialize_grads=True
        )
        for state in (fused, public)
    ]
    assert any(gradient.any() for gradient in results[0])
    for ours, theirs in zip(*results):
        assert_close(ours, theirs)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_state_agree_with_finite_differences(masked: bool) -> None:
    inputs = tuple(
        z.requires_grad_()
        for z in random_qkv(3, heads=1, queries=2, dim_head=2, dtype=torch.double)
    )
    mask = torch.tensor([[True, False, True], [False, True, False]])

    def both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        state = AttentionState.from_chunk(q, k, v, mask if masked else None)
        state = state.update(q, k.flip(2) * 2, v + 1, mask if masked else None)
        return state.lse, state.out

    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [1, 2], ids=["shared by the tasks", "of each task"])
@DTYPES
def test_the_gradient_of_a_bias_on_the_fused_path_is_that_of_public_operations(
    dtype: torch.dtype, batch: int, masked: bool
) -> None:
    inputs = tuple(z.requires_grad_() for z in random_qkv(points=9, dtype=dtype))
    bias = random_bias(9, batch, dtype).requires_grad_()
    mask = torch.tensor([[True] * 5 + [False] * 4, [False] * 9]) if masked else None
    padding = torch.zeros(2, 1, 1, 9, dtype=dtype)
    if masked:
        padding = padding.masked_fill(~mask[:, None, None], -torch.inf)
    fused = AttentionState.from_chunk(*inputs, mask, bias)
    public = AttentionState(*attention_with_lse(*inputs, bias + padding))
    found = []
    for state in (fused, public):
        finite = AttentionState(state.lse.masked_fill(state.lse.isneginf(), 0.0), state.out)
        found.append(gradients(finite, (*inputs, bias)))
    assert found[0][3].any()
    for ours, theirs in zip(*found):
        assert_close(ours, theirs)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_a_state_with_a_bias_agree_with_finite_differences(masked: bool) -> None:
    inputs = random_qkv(3, heads=1, queries=2, dim_head=2, dtype=torch.double)
    inputs = tuple(z.requires_grad_() for z in (*inputs, torch.randn(2, 1, 2, 3).double()))
    mask = torch.tensor([[True, False, True], [False, True, False]]) if masked else None

    def both(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        state = AttentionState.from_chunk(q, k, v, mask, bias)
        state = state.update(q, k.flip(2) * 2, v + 1, mask, bias.sin())
        return state.lse, state.out

    assert torch.autograd.gradcheck(both, inputs)


def test_no_points_at_all_have_gradients_too() -> None:
    """Of 0: under DDP every rank must reach every parameter."""
    q, k, v = (torch.randn(2, 2, n, 4, requires_grad=True) for n in (3, 0, 0))
    state = AttentionState.from_chunk(q, k, v)
    (grad,) = torch.autograd.grad(state.out.sum(), [q])
    assert torch.equal(grad, torch.zeros_like(q))
