"""The Constant Memory Attention Block."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import AttentionState
from npbench.blocks.filters import PointFilter, filtered
from npbench.blocks.layers import CrossAttention, FeedForward, LayerConfig, SelfAttention

# log of the mass below which a latent counts as having seen nothing.
_FLOOR = -12.0


class MassChannel(nn.Module):
    r"""What the softmax of attention forgets: how much there was to attend to.

    Of the latents of an `AttentionState`, with $\lambda = \log(e^{\mathrm{lse}} + e^{-12})$,

    $$W [\sigma(\lambda), \mathrm{sign}(\lambda) \log(1 + |\lambda|) / 2]_h$$

    over heads h. W starts at 0: at first the channel says nothing.

    Args:
        num_heads: heads of the attention.
        dim_model: width of the latents.

    Example:
        >>> state = AttentionState(torch.zeros(3, 2, 4), torch.zeros(3, 2, 4, 8))
        >>> MassChannel(num_heads=2, dim_model=16)(state).shape
        torch.Size([3, 4, 16])
    """

    def __init__(self, num_heads: int, dim_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * num_heads, dim_model, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, state: AttentionState) -> Float[Tensor, "batch latents dim_model"]:
        level = torch.logaddexp(state.lse, state.lse.new_tensor(_FLOOR))
        size = level.sign() * level.abs().log1p() / 2
        features = torch.cat([level.sigmoid(), size], dim=1).mT
        return self.project(features.to(self.project.weight.dtype))


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
        with_mass: whether P also knows how much its first attention found; see `MassChannel`.
        filter: what stands between the points and the first attention, if anything.

    Source: Feng et al., *Memory Efficient Neural Processes via Constant Memory Attention Block*,
    ICML 2024, section 3.

    Example:
        >>> config = LayerConfig(dim_model=16, num_heads=2, dim_feedforward=32)
        >>> block = ConstantMemoryAttentionBlock(config, num_block_latents=4)
        >>> latents, points = torch.randn(3, 8, 16), torch.randn(3, 1000, 16)
        >>> block(latents, block.absorb(points)).shape
        torch.Size([3, 8, 16])
    """

    def __init__(
        self,
        config: LayerConfig,
        num_block_latents: int,
        with_mass: bool = False,
        filter: PointFilter | None = None,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_block_latents, config.dim_model))
        self.attend_points = CrossAttention(config)
        self.mass = MassChannel(config.num_heads, config.dim_model) if with_mass else None
        self.mix_block = nn.Sequential(
            FeedForward(config), SelfAttention(config), FeedForward(config)
        )
        self.attend_block = CrossAttention(config)
        self.mix_latents = nn.Sequential(
            FeedForward(config), SelfAttention(config), FeedForward(config)
        )
        dim_head = config.dim_model // config.num_heads
        self.filter = None if filter is None else filter.build(config.num_heads, dim_head)

    def absorb(
        self,
        points: Float[Tensor, "batch points dim_model"],
        mask: Bool[Tensor, "batch points"] | None = None,
        bias: Float[Tensor, "#batch heads latents points"] | None = None,
    ) -> AttentionState:
        """The block's state of these points; see `AttentionState.from_chunk`."""
        k, v = self.attend_points.keys_values_of(points)
        q, k, v, own = filtered(self.filter, self.attend_points.queries_of(self.latents), k, v)
        added = own if bias is None else bias if own is None else bias + own
        return AttentionState.from_chunk(q.expand(len(points), -1, -1, -1), k, v, mask, added)

    def packed(self, state: AttentionState) -> Float[Tensor, "batch latents dim_model"]:
        """What attention to the points has brought to the block's own latents."""
        return self.attend_points.attention.readout(state)

    def forward(
        self,
        input_latents: Float[Tensor, "batch num_latents dim_model"],
        state: AttentionState,
    ) -> Float[Tensor, "batch num_latents dim_model"]:
        """The input latents, informed by all the points that the state has absorbed."""
        block = self.attend_points.readout(self.latents, state)
        if self.mass is not None:
            block = block + self.mass(state)
        block = self.mix_block(block)
        return self.mix_latents(self.attend_block(input_latents, block))
