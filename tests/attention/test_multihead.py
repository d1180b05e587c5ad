import pytest
import torch
from helpers import assert_close
from helpers.attention import DTYPES, assert_same_state, random_bias

from npbench.attention import AttentionState, MultiheadAttention
from npbench.blocks import ConstantMemoryAttentionBlock, LayerConfig


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
