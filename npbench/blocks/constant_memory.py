"""The Constant Memory Attention Block."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import AttentionState
from npbench.blocks.layers import CrossAttention, FeedForward, LayerConfig, SelfAttention


class ConstantMemoryAttentionBlock(nn.Module):
    r"""CMAB: latents attend to a set of points of any size through a state of constant size.

    With the block's own latents $Z_B$, the points' embeddings $E$, and the input latents $Z_I$:

    $$P = \mathrm{FF}(\mathrm{SelfAttn}(\mathrm{FF}(\mathrm{CrossAttn}(Z_B \to E))))$$
    $$Z = \mathrm{FF}(\mathrm{SelfAttn}(\mathrm{FF}(\mathrm{CrossAttn}(Z_I \to P))))$$

    where each layer includes its norm and residual. Only the first attention sees the points, and
    its queries are fixed: `absorb` turns points into an `AttentionState`, which merges with others,
    and `forward` does the rest at a cost that does not depend on their number.

    Args:
        config: the layers' common sizes.
        num_block_latents: number L_B of the block's own latents.

    Source: Feng et al., *Memory Efficient Neural Processes via Constant Memory Attention Block*,
    ICML 2024, section 3.

    Example:
        >>> config = LayerConfig(dim_model=16, num_heads=2, dim_feedforward=32)
        >>> block = ConstantMemoryAttentionBlock(config, num_block_latents=4)
        >>> latents, points = torch.randn(3, 8, 16), torch.randn(3, 1000, 16)
        >>> block(latents, block.absorb(points)).shape
        torch.Size([3, 8, 16])
    """

    def __init__(self, config: LayerConfig, num_block_latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_block_latents, config.dim_model))
        self.attend_points = CrossAttention(config)
        self.mix_block = nn.Sequential(
            FeedForward(config), SelfAttention(config), FeedForward(config)
        )
        self.attend_block = CrossAttention(config)
        self.mix_latents = nn.Sequential(
            FeedForward(config), SelfAttention(config), FeedForward(config)
        )

    def absorb(
        self,
        points: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
        bias: Float[Tensor, "#batch heads latents points"] | None = None,
    ) -> AttentionState:
        """The block's state of these points; see `AttentionState.from_chunk`."""
        return self.attend_points.absorb(self.latents, points, mask, bias)

    def forward(
        self,
        input_latents: Float[Tensor, "batch num_latents dim_model"],
        state: AttentionState,
    ) -> Float[Tensor, "batch num_latents dim_model"]:
        """The input latents, informed by all the points that the state has absorbed."""
        block = self.mix_block(self.attend_points.readout(self.latents, state))
        return self.mix_latents(self.attend_block(input_latents, block))
