import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, small_cmanp
from torch import Tensor, nn

from npbench.blocks import (
    MLP,
    ConstantMemoryAttentionBlock,
    CrossAttention,
    FeedForward,
    LayerConfig,
    PreNorm,
    QueryLayer,
    SelfAttention,
)

CONFIG = LayerConfig(dim_model=12, num_heads=3, dim_feedforward=20)


def randomised(module: nn.Module) -> nn.Module:
    """In float64, with norms and temperatures away from the identity that they start as."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def linear_layers(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(
    ("depth", "widths"),
    [(1, [(3, 2)]), (2, [(3, 8), (8, 2)]), (4, [(3, 8), (8, 8), (8, 8), (8, 2)])],
)
def test_an_mlp_has_depth_linear_layers(depth: int, widths: list[tuple[int, int]]) -> None:
    mlp = MLP(3, 8, 2, depth)
    assert linear_layers(mlp) == widths
    assert not isinstance(mlp[-1], nn.ReLU)
    assert mlp(torch.randn(5, 7, 3)).shape == (5, 7, 2)


def test_an_mlp_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="one linear layer at least, not depth=0"):
        MLP(3, 8, 2, depth=0)


@pytest.mark.parametrize("points", [1, 6])
def test_layers_keep_the_shape(points: int) -> None:
    x, context = torch.randn(2, points, 12), torch.randn(2, 7, 12)
    assert FeedForward(CONFIG)(x).shape == x.shape
    assert SelfAttention(CONFIG)(x).shape == x.shape
    assert CrossAttention(CONFIG)(x, context).shape == x.shape
    assert QueryLayer(CONFIG)(x, context).shape == x.shape


def test_feed_forward_is_its_formula() -> None:
    layer = randomised(FeedForward(CONFIG))
    x = torch.randn(2, 5, 12).double()
    h = F.layer_norm(x, [12], layer.norm.weight, layer.norm.bias)
    linear, gate = (h @ layer.expand.weight.T + layer.expand.bias).split(20, dim=-1)
    gelu = gate * torch.distributions.Normal(0.0, 1.0).cdf(gate)
    assert_close(layer(x), h + layer.contract(linear * gelu))


@pytest.mark.parametrize("norm_residual", [False, True])
@pytest.mark.parametrize("kind", [FeedForward, SelfAttention, CrossAttention])
def test_a_layer_whose_function_is_zero_returns_its_residual(
    kind: type[PreNorm], norm_residual: bool
) -> None:
    layer = randomised(kind(LayerConfig(12, 3, 20, norm_residual=norm_residual)))
    last = layer.contract if kind is FeedForward else layer.attention.to_out
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    x = torch.randn(2, 5, 12).double()
    arguments = (x, torch.randn(2, 7, 12).double()) if kind is CrossAttention else (x,)
    assert torch.equal(layer(*arguments), layer.norm(x) if norm_residual else x)


def test_dropout_acts_in_training_only() -> None:
    layer = FeedForward(LayerConfig(12, 3, 20, dropout=0.5))
    x = torch.randn(2, 5, 12)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("norm_residual", [False, True])
def test_absorb_and_readout_equal_cross_attention_at_once(
    norm_residual: bool, qk_norm: bool
) -> None:
    config = LayerConfig(12, 3, 20, norm_residual=norm_residual, qk_norm=qk_norm)
    layer = randomised(CrossAttention(config))
    x, context = torch.randn(5, 12).double(), torch.randn(2, 7, 12).double()
    state = layer.absorb(x, context)
    assert_close(layer.readout(x, state), layer(x.expand(2, -1, -1), context))
    in_chunks = layer.absorb(x, context[:, :3]).merge(layer.absorb(x, context[:, 3:]))
    assert_close(layer.readout(x, in_chunks), layer.readout(x, state))


@pytest.mark.parametrize("norm_residual", [False, True])
def test_the_block_is_its_formula(norm_residual: bool) -> None:
    config = LayerConfig(12, 3, 20, norm_residual=norm_residual)
    block = randomised(ConstantMemoryAttentionBlock(config, num_block_latents=4))
    latents, points = torch.randn(2, 6, 12).double(), torch.randn(2, 9, 12).double()
    own = block.attend_points(block.latents.expand(2, -1, -1), points)
    for layer in block.mix_block:
        own = layer(own)
    expected = block.attend_block(latents, own)
    for layer in block.mix_latents:
        expected = layer(expected)
    assert_close(block(latents, block.absorb(points)), expected)


def test_the_block_knows_its_points_as_a_set() -> None:
    block = randomised(ConstantMemoryAttentionBlock(CONFIG, num_block_latents=4))
    latents, points = torch.randn(2, 6, 12).double(), torch.randn(2, 9, 12).double()
    shuffled = points[:, torch.randperm(9)]
    assert_close(block(latents, block.absorb(shuffled)), block(latents, block.absorb(points)))


def test_masked_points_change_nothing_in_the_block() -> None:
    block = ConstantMemoryAttentionBlock(CONFIG, num_block_latents=4).double()
    points, mask = torch.randn(2, 9, 12).double(), torch.rand(2, 9) < 0.5
    state = block.absorb(points, mask)
    for row, real in enumerate(mask):
        alone = block.absorb(points[row : row + 1, real])
        assert_close(state.lse[row], alone.lse[0])
        assert_close(state.out[row], alone.out[0])


def test_a_blocks_state_depends_on_the_points_only() -> None:
    """Not on the input latents, nor on what the blocks before it make of them."""
    model = small_cmanp()
    points: tuple[Tensor, Tensor] = torch.randn(2, 9, 1), torch.randn(2, 9, 1)
    before = model.condition(*points)
    with torch.no_grad():
        model.latents.mul_(-1.0)
        for block in model.blocks:
            for layers in (block.mix_block, block.attend_block, block.mix_latents):
                for parameter in layers.parameters():
                    parameter.add_(0.1)
    after = model.condition(*points)
    assert torch.equal(after.attention.lse, before.attention.lse)
    assert torch.equal(after.attention.out, before.attention.out)
    assert not torch.allclose(after.latents, before.latents)

    with torch.no_grad():
        model.blocks[0].latents.mul_(-1.0)
    other = model.condition(*points)
    assert not torch.allclose(other.attention.out[0], before.attention.out[0])
    assert torch.equal(other.attention.out[1], before.attention.out[1])
