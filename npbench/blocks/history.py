"""The Constant Memory Attention Block over events, which may fade."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbench.attention import AttentionState
from npbench.attention.kernels import log_normalised
from npbench.attention.prefixes import faded, final_state, prefix_states
from npbench.blocks.constant_memory import ConstantMemoryAttentionBlock
from npbench.blocks.filters import PointFilter, filtered
from npbench.blocks.layers import LayerConfig


class HistoryBlock(ConstantMemoryAttentionBlock):
    r"""CMAB over a history: with `recency`, events fade, and their number counts.

    For a latent at time t, an event at $t_j$ has a score that falls at a learned rate r. Beside all
    events, the latent may attend to nothing, with a learned score c:

    $$s_j(t) = \frac{q \cdot k_j}{\sqrt{d}} - r\,(t - t_j), \qquad
      \mathrm{out} = \frac{\sum_j e^{s_j(t)}\, v_j}{e^c + \sum_j e^{s_j(t)}}$$

    so that a latent can hold $\sum_j e^{-r (t - t_j)}$, all that the intensity of a Hawkes process
    depends on. Without `recency` it is the paper's block, whose attention knows when an event was,
    but neither how long ago that is, nor how many events there were.

    Args:
        config: the layers' common sizes.
        num_block_latents: number L_B of the block's own latents.
        recency: whether events fade.
        filter: what stands between the events and the first attention, if anything.
    """

    def __init__(
        self,
        config: LayerConfig,
        num_block_latents: int,
        recency: bool,
        filter: PointFilter | None = None,
    ) -> None:
        super().__init__(config, num_block_latents, filter=filter)
        self.log_rates, self.null_scores = None, None
        if recency:
            # The slowest rate lasts a hundred units of time, the fastest a tenth of one.
            rates = torch.logspace(-2, 1, config.num_heads * num_block_latents)
            rates = rates.reshape(num_block_latents, config.num_heads).T
            self.log_rates = nn.Parameter(rates.log())
            # log Σ_j e^{−r (t − t_j)} of events at every unit of time, whose scores are 0.
            self.null_scores = nn.Parameter((1 / rates).log1p())

    def nothing(self, batch_size: int) -> AttentionState:
        """The state of no events: [batch, heads, latents, …]."""
        heads, (latents, width) = self.attend_points.attention.num_heads, self.latents.shape
        out = self.latents.new_zeros(batch_size, heads, latents, width // heads)
        return AttentionState(torch.full_like(out[..., 0], -torch.inf), out)

    def prefixes(
        self,
        points: Float[Tensor, "batch events dim_model"],
        times: Float[Tensor, "batch events"],
        chunk_size: int,
    ) -> AttentionState:
        """The states after every event: [batch, events, heads, latents, …]."""
        return prefix_states(*self._scores_values(points), times, self._rates, chunk_size)

    def final(
        self,
        points: Float[Tensor, "batch events dim_model"],
        times: Float[Tensor, "batch events"],
        mask: Bool[Tensor, "batch events"],
    ) -> AttentionState:
        """The state after all events, at the time of the last: [batch, heads, latents, …]."""
        return final_state(*self._scores_values(points), times, self._rates, mask)

    def faded(self, state: AttentionState, after: Float[Tensor, "batch"]) -> AttentionState:
        """The state some time after."""
        return faded(state, after[:, None, None], self._rates)

    def log_weights(
        self,
        points: Float[Tensor, "batch events dim_model"],
        times: Float[Tensor, "batch events"],
        mask: Bool[Tensor, "batch events"],
    ) -> Float[Tensor, "batch heads latents events"]:
        """The logarithms of the attention to the events, at the time of the last."""
        scores, _ = self._scores_values(points)
        if self._rates is not None:
            scores = scores - self._rates[..., None] * (times[:, -1:] - times)[:, None, None]
        return log_normalised(scores.masked_fill(~mask[:, None, None], -torch.inf))

    def packed(self, state: AttentionState) -> Float[Tensor, "batch latents dim_model"]:
        return super().packed(self._with_nothing(state))

    def forward(
        self, input_latents: Float[Tensor, "batch num_latents dim_model"], state: AttentionState
    ) -> Float[Tensor, "batch num_latents dim_model"]:
        return super().forward(input_latents, self._with_nothing(state))

    def _with_nothing(self, state: AttentionState) -> AttentionState:
        """The state of latents that may attend to nothing too."""
        if self.null_scores is None:
            return state
        share = (state.lse - self.null_scores).sigmoid()
        return AttentionState(state.lse, state.out * share[..., None])

    @property
    def _rates(self) -> Float[Tensor, "heads latents"] | None:
        return None if self.log_rates is None else self.log_rates.exp()

    def _scores_values(
        self, points: Float[Tensor, "batch events dim_model"]
    ) -> tuple[
        Float[Tensor, "batch heads latents events"], Float[Tensor, "batch heads events dim_head"]
    ]:
        keys, values = self.attend_points.keys_values_of(points)
        queries = self.attend_points.queries_of(self.latents)
        q, k, v, bias = filtered(self.filter, queries, keys, values)
        scores = (q * k.shape[-1] ** -0.5) @ k.mT
        return scores if bias is None else scores + bias, v
