import pytest
import torch
from helpers import assert_close
from helpers.attention import DTYPES, random_qkv

from npbench.attention import AttentionState, attend, attention_with_lse


def test_public_operations_survive_a_row_without_points() -> None:
    q, k, v = (z.requires_grad_() for z in random_qkv(points=3))
    bias = torch.tensor([[0.0, 0.0, -torch.inf], [-torch.inf] * 3])[:, None, None]
    lse, out = attention_with_lse(q, k, v, bias)
    assert torch.isneginf(lse[1]).all()
    assert not out[1].any()
    for gradient in torch.autograd.grad(lse[0].sum() + out.sum(), (q, k, v)):
        assert torch.isfinite(gradient).all()
        assert not gradient[1].any()


def test_autocast_leaves_the_scores_of_public_operations_in_float32() -> None:
    q, k, v = (4 * z.bfloat16() for z in random_qkv(points=9))
    outside = attention_with_lse(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention_with_lse(q, k, v)
    for ours, theirs in zip(inside, outside):
        assert_close(ours, theirs)


def test_without_the_private_kernel_the_public_operations_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = torch.randn(2, 2, 3, 8), *torch.randn(2, 2, 2, 9, 8)
    mask = torch.rand(2, 9) < 0.7
    fused = AttentionState.from_chunk(q, k, v, mask)
    monkeypatch.setattr("npbench.attention.kernels._HAS_FUSED_KERNEL", False)
    public = AttentionState.from_chunk(q, k, v, mask)
    assert_close(public.lse, fused.lse)
    assert_close(public.out, fused.out)


@pytest.mark.parametrize("queries_of_mask", [1, 4])
@pytest.mark.parametrize("scale", [None, 0.3])
@DTYPES
def test_attend_is_softmax_over_the_points_that_the_mask_allows(
    dtype: torch.dtype, scale: float | None, queries_of_mask: int
) -> None:
    q, k, v = random_qkv(points=6, dtype=dtype)
    mask = torch.rand(2, queries_of_mask, 6) < 0.6
    mask[..., 0] = True
    scores = q @ k.mT * (5**-0.5 if scale is None else scale)
    assert_close(attend(q, k, v, scale=scale), scores.softmax(-1) @ v)
    allowed = scores.masked_fill(~mask[:, None], -torch.inf)
    assert_close(attend(q, k, v, mask, scale), allowed.softmax(-1) @ v)


def test_attend_gives_0_to_queries_that_may_look_at_no_point() -> None:
    """And a gradient of 0, not NaN; the other queries know nothing of it."""
    q, k, v = (z.requires_grad_() for z in random_qkv(points=6, dtype=torch.float64))
    mask = torch.rand(2, 4, 6) < 0.6
    mask[..., 0] = True
    mask[0, 2] = mask[1] = False
    out = attend(q, k, v, mask)
    assert not out[0, :, 2].any()
    assert not out[1].any()
    seeing = [0, 1, 3]
    alone = attend(q[:1, :, seeing], k[:1], v[:1], mask[:1, seeing])
    assert_close(out[:1, :, seeing], alone)

    ours = torch.autograd.grad(out.square().sum(), (q, k, v))
    theirs = torch.autograd.grad(alone.square().sum(), (q, k, v))
    for mine, their in zip(ours, theirs):
        assert_close(mine, their)


def test_attend_gives_0_where_there_are_no_points() -> None:
    q, k, v = random_qkv(points=0)
    for mask in (None, torch.zeros(2, 4, 0, dtype=torch.bool)):
        assert torch.equal(attend(q, k, v, mask), torch.zeros_like(q))
