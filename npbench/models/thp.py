"""THP: attention of every event to all before it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.blocks import EventEmbedding, LayerConfig, TransformerLayer
from npbench.models.contracts.events import EventModel, EventState, ends
from npbench.models.contracts.process import records_arguments


@dataclass(frozen=True, eq=False)
class THPState(EventState):
    """The history itself, which grows with every event."""

    times: Float[Tensor, "batch events"]
    marks: Int[Tensor, "batch events"]
    mask: Bool[Tensor, "batch events"]


class THP(EventModel):
    r"""Transformer Hawkes Process, in the form that predicts with a mixture.

    $$H_0 = E, \qquad
      H_i = \mathrm{TransformerLayer}_i(H_{i-1} + \mathrm{enc}(t)), \qquad i = 1, …, K$$

    where each event attends to itself and those before it; the history vector is the last event's
    in $H_K$. The state is the history: memory and the cost of a query grow with it.

    Args:
        num_marks: number of marks.
        dim_model: width D.
        num_layers: number K of layers.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the layers.
        num_components: log-normals of the mixture over τ.
        dropout: rate in the layers.
        min_interval: least τ, in the data's unit; a shorter one counts as this.

    Source: Zuo et al., *Transformer Hawkes Process*, ICML 2020; with the decoder of Shchur, Biloš
    and Günnemann, *Intensity-Free Learning of Temporal Point Processes*, ICLR 2020.

    Example:
        >>> model = THP(num_marks=3).eval()
        >>> times, marks = torch.rand(1, 50).cumsum(-1), torch.randint(3, (1, 50))
        >>> model.query(model.condition(times, marks)).mark_probs.shape
        torch.Size([1, 3])
    """

    @records_arguments
    def __init__(
        self,
        num_marks: int,
        dim_model: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        dim_feedforward: int = 128,
        num_components: int = 64,
        dropout: float = 0.0,
        min_interval: float = 1e-8,
    ) -> None:
        super().__init__(num_marks, dim_model, num_components, min_interval)
        config = LayerConfig(dim_model, num_heads, dim_feedforward, dropout)
        self.embed = EventEmbedding(num_marks, dim_model)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(num_layers))

    def _condition(self, times: Tensor, marks: Tensor, mask: Tensor) -> THPState:
        fields = {"times": times, "marks": marks, "mask": mask.contiguous()}
        return THPState(**ends(times, marks, mask), **fields)

    def _update(self, state: THPState, time: Tensor, mark: Tensor) -> THPState:
        new = time[:, None], mark[:, None], torch.ones_like(mark[:, None], dtype=torch.bool)
        old = state.times, state.marks, state.mask
        times, marks, mask = (torch.cat(parts, dim=1) for parts in zip(old, new))
        return THPState(**state.ends_after(*new), times=times, marks=marks, mask=mask)

    def _history(self, state: THPState) -> Float[Tensor, "batch dim_model"]:
        if not state.mask.shape[1]:
            return self.log_mean.new_zeros(state.batch_size, self.embed.mark.embedding_dim)
        times = state.times - state.first.nan_to_num(0.0)[:, None]
        encoded = self._encode(times, state.marks, state.mask)
        # There may be padding between the events of `condition` and those of `update`.
        index = torch.arange(1, state.mask.shape[1] + 1, device=state.mask.device) * state.mask
        history = encoded[torch.arange(state.batch_size), index.argmax(dim=-1)]
        return history.where(state.mask.any(dim=-1, keepdim=True), 0.0)

    def _histories(
        self, times: Tensor, marks: Tensor, mask: Tensor
    ) -> Float[Tensor, "batch events dim_model"]:
        return self._encode(times - times[:, :1], marks, mask)

    def _encode(
        self, times: Tensor, marks: Tensor, mask: Tensor
    ) -> Float[Tensor, "batch events dim_model"]:
        """The history vector after every event, from the times since the first."""
        size = times.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=times.device).tril()
        encoding, h = self.embed.time(self._scaled(times)), self.embed.mark(marks)
        for layer in self.layers:
            h = h + encoding
            h = layer(h, h, causal & mask[:, None])
        return h
