import pytest
import torch
from helpers import assert_close, small_cmanp
from helpers.blocks import CONFIG, randomised
from torch import Tensor

from npbench.blocks import ConstantMemoryAttentionBlock, LayerConfig


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


def test_the_mass_channel_tells_how_many_points_there_were() -> None:
    """Of the same points twice, attention makes what it makes of them once."""
    plain, block = (
        randomised(ConstantMemoryAttentionBlock(CONFIG, num_block_latents=4, with_mass=with_mass))
        for with_mass in (False, True)
    )
    latents, points = torch.randn(2, 6, 12).double(), torch.randn(2, 9, 12).double()
    once, twice = points, points.repeat(1, 2, 1)
    assert_close(plain(latents, plain.absorb(twice)), plain(latents, plain.absorb(once)))
    changed = block(latents, block.absorb(twice)) - block(latents, block.absorb(once))
    assert (changed.abs() > 1e-4).any()
    assert torch.isfinite(block(latents, block.absorb(points[:, :0]))).all()


def test_an_untrained_mass_channel_says_nothing() -> None:
    block = ConstantMemoryAttentionBlock(CONFIG, num_block_latents=4, with_mass=True).double()
    latents, state = torch.randn(2, 6, 12).double(), block.absorb(torch.randn(2, 9, 12).double())
    with_mass = block(latents, state)
    block.mass = None
    assert_close(block(latents, state), with_mass)


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
