from random import Random

import pytest
import torch
from helpers import assert_close, few_examples, merge_in_a_random_tree, random_slices
from hypothesis import given
from hypothesis.strategies import integers
from torch import Tensor

from npbench.attention import AttentionState, MultiheadAttention, attend, attention_with_lse
from npbench.blocks import ConstantMemoryAttentionBlock, LayerConfig

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
sizes = integers(1, 3)
seeds = integers(0, 10**6)


def random_qkv(
    points: int,
    batch: int = 2,
    heads: int = 3,
    queries: int = 4,
    dim_head: int = 5,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, heads, queries, dim_head, dtype=dtype),
        torch.randn(batch, heads, points, dim_head, dtype=dtype),
        torch.randn(batch, heads, points, dim_head, dtype=dtype),
    )


def assert_same_state(actual: AttentionState, expected: AttentionState) -> None:
    assert_close(actual.lse, expected.lse)
    assert_close(actual.out, expected.out)


def gradients(state: AttentionState, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a loss in which every lse and every out has its own weight."""
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum()
        for part in (state.lse, state.out)
    )
    return torch.autograd.grad(loss, inputs)


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


def random_bias(points: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Per head, query and point, of the shapes of `random_qkv`; steep enough to matter."""
    return 3 * torch.randn(batch, 3, 4, points, dtype=dtype)


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


@pytest.mark.parametrize("layer", ["attention", "block"])
def test_a_layer_absorbs_with_a_bias_as_its_attention_does(layer: str) -> None:
    config = LayerConfig(dim_model=12, num_heads=3, dim_feedforward=8)
    block = ConstantMemoryAttentionBlock(config, num_block_latents=4)
    points, bias = torch.randn(2, 7, 12), random_bias(7)
    attend = block.attend_points
    q = attend.queries_of(block.latents).expand(2, -1, -1, -1)
    expected = AttentionState.from_chunk(q, *attend.keys_values_of(points), bias=bias)
    if layer == "block":
        assert_same_state(block.absorb(points, bias=bias), expected)
    else:
        x, context = attend.norm(block.latents), attend.norm_context(points)
        assert_same_state(attend.attention.absorb(x, context, bias=bias), expected)


def test_public_operations_survive_a_row_without_points() -> None:
    q, k, v = (z.requires_grad_() for z in random_qkv(points=3))
    bias = torch.tensor([[0.0, 0.0, -torch.inf], [-torch.inf] * 3])[:, None, None]
    lse, out = attention_with_lse(q, k, v, bias)
    assert torch.isneginf(lse[1]).all()
    assert not out[1].any()
    for gradient in torch.autograd.grad(lse[0].sum() + out.sum(), (q, k, v)):
        assert torch.isfinite(gradient).all()
        assert not gradient[1].any()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_multihead_attention_is_its_formula(qk_norm: bool) -> None:
    attention = MultiheadAttention(12, 3, qk_norm).double()
    if qk_norm:
        with torch.no_grad():
            attention.temperature.copy_(torch.tensor([0.5, 1.0, 3.0]).reshape(3, 1, 1))
    x, context = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    q, (k, v) = attention.to_q(x), attention.to_kv(context).chunk(2, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        q_h, k_h = q[..., part], k[..., part]
        if qk_norm:
            q_h, k_h = (z / z.square().mean(-1, keepdim=True).sqrt() for z in (q_h, k_h))
            q_h = q_h * attention.temperature[head]
        heads.append((q_h @ k_h.mT / 4**0.5).softmax(-1) @ v[..., part])
    assert_close(attention(x, context), attention.to_out(torch.cat(heads, -1)))


@pytest.mark.parametrize("qk_norm", [False, True])
@DTYPES
def test_absorb_and_readout_equal_attention_at_once(dtype: torch.dtype, qk_norm: bool) -> None:
    attention = MultiheadAttention(12, 3, qk_norm).to(dtype)
    x, context = torch.randn(5, 12, dtype=dtype), torch.randn(2, 7, 12, dtype=dtype)
    in_two_steps = attention.readout(attention.absorb(x, context))
    assert_close(in_two_steps, attention(x.expand(2, -1, -1), context))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_only_normalised_queries_ignore_the_scale_of_x(qk_norm: bool) -> None:
    attention = MultiheadAttention(12, 3, qk_norm).double()
    x, context = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    gap = (attention(5 * x, context) - attention(x, context)).abs().max()
    assert (gap < 1e-8) if qk_norm else (gap > 1e-2)


def test_heads_that_do_not_split_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="dim_model=10 does not split into num_heads=4"):
        MultiheadAttention(10, 4)


def test_the_state_is_float32_under_autocast() -> None:
    attention = MultiheadAttention(12, 3)
    x, context = torch.randn(5, 12), torch.randn(2, 7, 12)
    precise = attention.absorb(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.to_q(x).dtype == torch.bfloat16
        state = attention.absorb(x, context)
        for result in (state, state.merge(state)):
            assert result.lse.dtype == result.out.dtype == torch.float32
    assert_close(state.lse, precise.lse, 2e-2)
    assert_close(state.out, precise.out, 2e-2)


def test_autocast_leaves_the_scores_of_public_operations_in_float32() -> None:
    q, k, v = (4 * z.bfloat16() for z in random_qkv(points=9))
    outside = attention_with_lse(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention_with_lse(q, k, v)
    for ours, theirs in zip(inside, outside):
        assert_close(ours, theirs)


def test_states_stack_and_come_apart_again() -> None:
    states = [AttentionState.from_chunk(*random_qkv(points=n)) for n in (3, 4)]
    stacked = AttentionState.stack(states)
    for index, state in enumerate(states):
        assert torch.equal(stacked[index].lse, state.lse)
        assert torch.equal(stacked[index].out, state.out)


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


def test_no_points_at_all_have_gradients_too() -> None:
    """Of 0: under DDP every rank must reach every parameter."""
    q, k, v = (torch.randn(2, 2, n, 4, requires_grad=True) for n in (3, 0, 0))
    state = AttentionState.from_chunk(q, k, v)
    (grad,) = torch.autograd.grad(state.out.sum(), [q])
    assert torch.equal(grad, torch.zeros_like(q))
