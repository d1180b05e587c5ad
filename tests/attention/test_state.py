from random import Random

import pytest
import torch
from helpers import assert_close, few_examples, merge_in_a_random_tree, random_slices
from helpers.attention import DTYPES, assert_same_state, random_bias, random_qkv
from hypothesis import given
from hypothesis.strategies import integers
from torch import Tensor

from npbench.attention import AttentionState, attention_with_lse

sizes = integers(1, 3)

seeds = integers(0, 10**6)


@DTYPES
def test_the_state_is_softmax_attention_and_the_log_sum_exp_of_its_scores(
    dtype: torch.dtype,
) -> None:
    q, k, v = random_qkv(points=9, dtype=dtype)
    scores = q @ k.mT / 5**0.5
    state = AttentionState.from_chunk(q, k, v)
    assert_close(state.lse, scores.logsumexp(-1))
    assert_close(state.out, scores.softmax(-1) @ v)


@DTYPES
@given(seed=seeds, points=integers(1, 20), batch=sizes, heads=sizes, queries=sizes, dim_head=sizes)
@few_examples
def test_absorbing_in_chunks_equals_absorbing_at_once(
    dtype: torch.dtype,
    seed: int,
    points: int,
    batch: int,
    heads: int,
    queries: int,
    dim_head: int,
) -> None:
    torch.manual_seed(seed)
    q, k, v = random_qkv(points, batch, heads, queries, dim_head, dtype)
    first, *rest = random_slices(points, Random(seed))
    state = AttentionState.from_chunk(q, k[:, :, first], v[:, :, first])
    for window in rest:
        state = state.update(q, k[:, :, window], v[:, :, window])
    assert_same_state(state, AttentionState.from_chunk(q, k, v))


@DTYPES
@given(seed=seeds, points=integers(1, 20))
@few_examples
def test_shards_merged_in_any_order_and_tree_equal_the_whole(
    dtype: torch.dtype, seed: int, points: int
) -> None:
    torch.manual_seed(seed)
    q, k, v = random_qkv(points, dtype=dtype)
    random = Random(seed)
    shards = [
        AttentionState.from_chunk(q, k[:, :, window], v[:, :, window])
        for window in random_slices(points, random)
    ]
    merged = merge_in_a_random_tree(shards, AttentionState.merge, random)
    assert_same_state(merged, AttentionState.from_chunk(q, k, v))


@DTYPES
@given(seed=seeds, points=integers(1, 12))
@few_examples
def test_a_mask_equals_leaving_the_points_out(dtype: torch.dtype, seed: int, points: int) -> None:
    torch.manual_seed(seed)
    q, k, v = random_qkv(points, dtype=dtype)
    mask = torch.rand(2, points) < 0.5
    masked = AttentionState.from_chunk(q, k, v, mask)
    for row, real in enumerate(mask):
        task = slice(row, row + 1)
        alone = AttentionState.from_chunk(q[task], k[task][:, :, real], v[task][:, :, real])
        assert_same_state(AttentionState(masked.lse[task], masked.out[task]), alone)


@DTYPES
def test_what_stands_under_the_mask_does_not_matter(dtype: torch.dtype) -> None:
    q, k, v = random_qkv(points=6, dtype=dtype)
    mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    other_k, other_v = (
        z.masked_fill(~mask[:, None, :, None], 1e3 if z is k else -7.0) for z in (k, v)
    )
    state = AttentionState.from_chunk(q, k, v, mask)
    other = AttentionState.from_chunk(q, other_k, other_v, mask)
    assert torch.equal(state.lse, other.lse)
    assert torch.equal(state.out, other.out)


@pytest.mark.parametrize("way", ["no points", "all masked"])
@DTYPES
def test_a_state_of_no_points_is_the_identity_of_merge(dtype: torch.dtype, way: str) -> None:
    q, k, v = random_qkv(points=6, dtype=dtype)
    if way == "no points":
        empty = AttentionState.from_chunk(q, k[:, :, :0], v[:, :, :0])
    else:
        empty = AttentionState.from_chunk(q, k, v, torch.zeros(2, 6, dtype=torch.bool))
    assert torch.equal(empty.lse, torch.full_like(empty.lse, -torch.inf))
    assert torch.equal(empty.out, torch.zeros_like(empty.out))

    state = AttentionState.from_chunk(q, k, v)
    for merged in (state.merge(empty), empty.merge(state)):
        assert torch.equal(merged.lse, state.lse)
        assert torch.equal(merged.out, state.out)
    nothing = empty.merge(empty)
    assert torch.equal(nothing.lse, empty.lse)
    assert torch.equal(nothing.out, empty.out)


@pytest.mark.parametrize("signs", [(1,), (-1,), (1, -1), (-1, 1)])
def test_scores_of_ten_thousand_stay_finite_and_right(signs: tuple[int, ...]) -> None:
    """Every score is exact in float32: ±10,000 plus steps of a quarter."""
    q = torch.tensor([100.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    steps = torch.tensor([0.0, 0.5, 2.0, -1.5])
    k = torch.cat(
        [torch.stack([0 * steps + 200.0 * s, steps, steps, steps], -1) for s in signs]
    ).reshape(1, 1, -1, 4)
    v = torch.randn(k.shape)

    def state(dtype: torch.dtype, pieces: int) -> AttentionState:
        first, *rest = zip(k.to(dtype).chunk(pieces, 2), v.to(dtype).chunk(pieces, 2))
        result = AttentionState.from_chunk(q.to(dtype), *first)
        for keys, values in rest:
            result = result.update(q.to(dtype), keys, values)
        return result

    exact = state(torch.float64, 1)
    assert exact.lse.abs().min() > 9_990
    _, public_out = attention_with_lse(q, k, v)
    assert_close(public_out.double(), exact.out, 1e-3)
    for pieces in (1, 2, 4):
        ours = state(torch.float32, pieces)
        assert_close(ours.lse.double(), exact.lse, 1e-6)
        # At 10,000 an lse in float32 is rounded by up to 5e-4, and so are the weights.
        assert_close(ours.out.double(), exact.out, 1e-5 if pieces == 1 else 1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=["bf16", "fp16"]
)
def test_half_precision_inputs_give_a_float32_state(
    dtype: torch.dtype, tolerance: float, masked: bool
) -> None:
    q, k, v = (z.to(dtype) for z in random_qkv(points=8, dim_head=8))
    mask = torch.tensor([[True] * 5 + [False] * 3, [False] * 8]) if masked else None
    state = AttentionState.from_chunk(q, k, v, mask)
    empty = AttentionState.from_chunk(q, k[:, :, :0], v[:, :, :0])
    for result in (state, state.update(q, k, v, mask), empty, empty.merge(state)):
        assert result.lse.dtype == result.out.dtype == torch.float32
    precise = AttentionState.from_chunk(q.float(), k.float(), v.float(), mask)
    assert_close(state.lse, precise.lse, tolerance)
    assert_close(state.out, precise.out, tolerance)


@pytest.mark.parametrize("batch", [1, 2], ids=["shared by the tasks", "of each task"])
@DTYPES
def test_a_bias_is_added_to_the_scores(dtype: torch.dtype, batch: int) -> None:
    q, k, v = random_qkv(points=9, dtype=dtype)
    bias = random_bias(9, batch, dtype)
    scores = q @ k.mT / 5**0.5 + bias
    state = AttentionState.from_chunk(q, k, v, bias=bias)
    assert_close(state.lse, scores.logsumexp(-1))
    assert_close(state.out, scores.softmax(-1) @ v)


@DTYPES
@given(seed=seeds, points=integers(1, 20))
@few_examples
def test_a_bias_in_chunks_under_a_mask_equals_leaving_points_out_at_once(
    dtype: torch.dtype, seed: int, points: int
) -> None:
    torch.manual_seed(seed)
    q, k, v = random_qkv(points, dtype=dtype)
    bias, mask = random_bias(points, dtype=dtype), torch.rand(2, points) < 0.7
    first, *rest = random_slices(points, Random(seed))

    def chunk(window: slice) -> tuple[Tensor, ...]:
        return k[:, :, window], v[:, :, window], mask[:, window], bias[..., window]

    state = AttentionState.from_chunk(q, *chunk(first))
    for window in rest:
        state = state.update(q, *chunk(window))
    for row, real in enumerate(mask):
        task = slice(row, row + 1)
        alone = AttentionState.from_chunk(
            q[task], k[task][:, :, real], v[task][:, :, real], bias=bias[task][..., real]
        )
        assert_same_state(AttentionState(state.lse[task], state.out[task]), alone)


def test_states_stack_and_come_apart_again() -> None:
    states = [AttentionState.from_chunk(*random_qkv(points=n)) for n in (3, 4)]
    stacked = AttentionState.stack(states)
    for index, state in enumerate(states):
        assert torch.equal(stacked[index].lse, state.lse)
        assert torch.equal(stacked[index].out, state.out)
