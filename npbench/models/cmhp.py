"""CMHP: attention over a history of any length, at constant memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.attention import AttentionState
from npbench.blocks import (
    CausalConvolution,
    EventEmbedding,
    HistoryBlock,
    LayerConfig,
    PointFilter,
    QueryLayer,
)
from npbench.errors import InputError
from npbench.events import EventSequences
from npbench.models.contracts.events import EventModel, EventState, ends
from npbench.models.contracts.memory import MemoryView
from npbench.models.contracts.process import records_arguments
from npbench.models.segments import Segment, SegmentReader

# How many events `condition` absorbs at a time.
_CONDITION_CHUNK = 256


@dataclass(frozen=True, eq=False)
class CMHPState(EventState):
    """All that CMHP keeps of a history, at a size that does not depend on it: the states of the
    blocks' first attention at the time of the last event, [batch, layers, heads, latents, …], and
    the embeddings of the last events where the model has a convolution."""

    attention: AttentionState
    recent: Float[Tensor, "batch events dim_model"] | None = None

    def of_blocks(self) -> Iterator[AttentionState]:
        """The state of each block: [batch, heads, latents, …]."""
        return map(AttentionState, self.attention.lse.unbind(1), self.attention.out.unbind(1))


class CMHP(EventModel):
    r"""Constant Memory Hawkes Process.

    $$e_j = \mathrm{embed}(t_j, k_j), \qquad Z_i = \mathrm{CMAB}_i(Z_{i-1}, e_1, …, e_n), \qquad
      i = 1, …, K$$
    $$h = \mathrm{LN}(\mathrm{FF}(\mathrm{CrossAttn}(e_n \to Z_K)))$$

    with $Z_0$ learned. Each block's state depends on the embeddings alone, so that an event is one
    update of constant cost, and the states of all prefixes come from one scan; the rest of the
    blocks then takes all prefixes as a batch.

    Args:
        num_marks: number of marks.
        dim_model: width D.
        num_layers: number K of blocks.
        num_latents: number of input latents.
        num_block_latents: number of latents of each block.
        num_heads: heads of every attention.
        dim_feedforward: hidden width of the feed-forward layers.
        num_components: log-normals of the mixture over τ.
        dropout: rate after each feed-forward layer.
        norm_residual: what the layers' residuals add; see `LayerConfig`.
        recency: let events fade as they age; see `HistoryBlock`. This is our addition; False gives
            the paper's block.
        scan_chunk_size: events that the scan over prefixes takes at a time; it changes no result.
            Training takes memory for about 35·(num_latents + num_block_latents)·dim_model numbers
            a block and event.
        min_interval: least τ, in the data's unit; a shorter one counts as this.
        filter: what stands between events and the latents of each block, each event by itself; see
            `npbench.blocks.filters`. By default nothing does.
        convolution: a filter along the history, ahead of all blocks; the state then holds the
            embeddings of the last events too. By default there is none.

    Source: Feng et al., *Constant Memory Attention Block*, arXiv 2306.12599; the decoder is that of
    Shchur, Biloš and Günnemann, *Intensity-Free Learning of Temporal Point Processes*, ICLR 2020.

    Example:
        >>> model = CMHP(num_marks=3).eval()
        >>> times, marks = torch.rand(1, 50).cumsum(-1), torch.randint(3, (1, 50))
        >>> state = model.condition(times[:, :-1], marks[:, :-1])
        >>> state = model.update(state, times[:, -1], marks[:, -1])
        >>> model.query(state).log_prob(torch.tensor([0.5]), torch.tensor([2])).shape
        torch.Size([1])
    """

    @records_arguments
    def __init__(
        self,
        num_marks: int,
        dim_model: int = 64,
        num_layers: int = 2,
        num_latents: int = 8,
        num_block_latents: int = 8,
        num_heads: int = 4,
        dim_feedforward: int = 128,
        num_components: int = 64,
        dropout: float = 0.0,
        norm_residual: bool = True,
        recency: bool = True,
        scan_chunk_size: int = 32,
        min_interval: float = 1e-8,
        filter: PointFilter | None = None,
        convolution: CausalConvolution | None = None,
    ) -> None:
        super().__init__(num_marks, dim_model, num_components, min_interval)
        if scan_chunk_size < 1:
            raise InputError(f"scan_chunk_size={scan_chunk_size} must be 1 or more")
        config = LayerConfig(
            dim_model, num_heads, dim_feedforward, dropout, norm_residual=norm_residual
        )
        self.scan_chunk_size = scan_chunk_size
        self.embed = EventEmbedding(num_marks, dim_model)
        self.latents = nn.Parameter(torch.randn(num_latents, dim_model))
        self.blocks = nn.ModuleList(
            HistoryBlock(config, num_block_latents, recency, filter) for _ in range(num_layers)
        )
        # Checkpoints hold its weights by this name.
        self.read = QueryLayer(config)
        self.norm = nn.LayerNorm(dim_model)
        self.convolve = None if convolution is None else convolution.build(num_heads, dim_model)

    def segment(
        self,
        times: Float[Tensor, "*batch events"],
        marks: Int[Tensor, "*batch events"],
        mask: Bool[Tensor, "*batch events"] | None = None,
        origin: Float[Tensor, "*batch"] | float | None = None,
    ) -> Segment:
        """The segment of a stretch of histories, for `join` and `merge`; see `Segment`.

        Args:
            times, marks, mask: of its events, as of `condition`.
            origin: time of the first event of the whole history; by default it is in this segment.

        Raises:
            InputError: as `condition`; and if there are no events and no origin.
        """
        times, marks, mask = self._checked(times, marks, mask)
        if origin is None:
            if not times.shape[1]:
                raise InputError("a segment without events needs the origin of its history")
            origin = times[:, 0]
        start = torch.as_tensor(origin, dtype=times.dtype, device=times.device).expand(len(times))
        windows = [
            slice(first, first + _CONDITION_CHUNK)
            for first in range(0, max(1, times.shape[1]), _CONDITION_CHUNK)
        ]
        return self.join(*(
            self._segments.absorb(
                self.embed(self._scaled(times[:, w] - start[:, None]), marks[:, w]),
                times[:, w], marks[:, w], mask[:, w], start,
            )
            for w in windows
        ))  # fmt: skip

    def join(self, *segments: Segment) -> Segment:
        """One segment of several that follow on each other.

        Raises:
            InputError: if they are of different histories, or not in the order of their times.
        """
        return reduce(self._segments.join, segments)

    def merge(self, *segments: Segment) -> CMHPState:
        """The state of a history from its segments, in their order; exact, as `condition` is.

        Example:
            >>> model = CMHP(num_marks=3, convolution=CausalConvolution(num_taps=4)).eval()
            >>> times, marks = torch.rand(1, 50).cumsum(-1), torch.randint(3, (1, 50))
            >>> first = model.segment(times[:, :20], marks[:, :20])
            >>> second = model.segment(times[:, 20:], marks[:, 20:], origin=times[:, 0])
            >>> merged, at_once = model.merge(first, second), model.condition(times, marks)
            >>> torch.allclose(model.query(merged).median, model.query(at_once).median, rtol=1e-4)
            True

        Raises:
            InputError: as `join`; and if the first event is not where the segments count from.
        """
        whole = self.join(*segments)
        return CMHPState(
            whole.first, whole.last, whole.mark, self._segments.whole(whole),
            None if self.convolve is None else whole.recent,
        )  # fmt: skip

    @property
    def _segments(self) -> SegmentReader:
        return SegmentReader(list(self.blocks), self.convolve, self._scaled)

    def memory_layers(self, batch: EventSequences) -> list[MemoryView]:
        """What each block keeps of whole sequences, and how it attends to their events."""
        times, marks, mask = self._checked(batch.times, batch.marks, batch.mask)
        since_first = self._scaled(times - times[:, :1])
        points = self._filtered(self.embed(since_first, marks))
        state = self._condition(times, marks, mask)
        latents, layers = self.latents.expand(len(times), -1, -1), []
        for block, kept in zip(self.blocks, state.of_blocks(), strict=True):
            latents = block(latents, kept)
            log_weights = block.log_weights(points, since_first, mask)
            layers.append(MemoryView(block.packed(kept), latents, log_weights))
        return layers

    def _condition(self, times: Tensor, marks: Tensor, mask: Tensor) -> CMHPState:
        nothing = AttentionState.stack([block.nothing(len(times)) for block in self.blocks])
        recent = None
        if self.convolve is not None:
            recent = self.convolve.nothing(self.latents.expand(len(times), -1, -1))
        ahead = ends(times[:, :0], marks, mask)
        state = CMHPState(**ahead, attention=_batch_first(nothing), recent=recent)
        for start in range(0, times.shape[1], _CONDITION_CHUNK):
            window = slice(start, start + _CONDITION_CHUNK)
            state = self._absorb(state, times[:, window], marks[:, window], mask[:, window])
        return state

    def _update(self, state: CMHPState, time: Tensor, mark: Tensor) -> CMHPState:
        mask = torch.ones_like(mark, dtype=torch.bool)
        return self._absorb(state, time[:, None], mark[:, None], mask[:, None])

    def _history(self, state: CMHPState) -> Float[Tensor, "batch dim_model"]:
        since_first = self._scaled((state.last - state.first).nan_to_num(0.0))
        latest = self.embed(since_first, state.mark.clamp(min=0))
        latest = latest.masked_fill(state.mark[:, None] < 0, 0.0)
        return self._decode(state.of_blocks(), latest)

    def _histories(
        self, times: Tensor, marks: Tensor, mask: Tensor
    ) -> Float[Tensor, "batch events dim_model"]:
        since_first = self._scaled(times - times[:, :1])
        points = self.embed(since_first, marks)
        filtered = self._filtered(points)
        # Only prefixes that end in a real event are kept, each as a history of its own.
        states = [
            block.prefixes(filtered, since_first, self.scan_chunk_size).map(lambda z: z[mask])
            for block in self.blocks
        ]
        history = self._decode(states, points[mask])
        return points.new_zeros(points.shape).masked_scatter(mask[..., None], history)

    def _filtered(
        self, points: Float[Tensor, "batch events dim_model"]
    ) -> Float[Tensor, "batch events dim_model"]:
        """What the blocks see of the embeddings of whole histories."""
        if self.convolve is None:
            return points
        return self.convolve(points, self.convolve.nothing(points))

    def _absorb(
        self,
        state: CMHPState,
        times: Float[Tensor, "batch events"],
        marks: Int[Tensor, "batch events"],
        mask: Bool[Tensor, "batch events"],
    ) -> CMHPState:
        """The state after these events, at the time of the last."""
        now = state.ends_after(times, marks, mask)
        since_first = self._scaled((times - now["first"][:, None]).nan_to_num(0.0))
        passed = self._scaled((now["last"] - state.last).nan_to_num(0.0))
        points, recent = self.embed(since_first, marks), None
        if self.convolve is not None and state.recent is not None:
            recent = self.convolve.after(points, state.recent, mask)
            points = self.convolve(points, state.recent)
        new = [
            block.faded(old, passed).merge(block.final(points, since_first, mask))
            for block, old in zip(self.blocks, state.of_blocks())
        ]
        return CMHPState(**now, attention=_batch_first(AttentionState.stack(new)), recent=recent)

    def _decode(
        self,
        states: Iterable[AttentionState],
        latest: Float[Tensor, "batch dim_model"],
    ) -> Float[Tensor, "batch dim_model"]:
        """The history vector, from the blocks' states and the embedding of the last event."""
        latents = self.latents.expand(len(latest), -1, -1)
        for block, state in zip(self.blocks, states, strict=True):
            latents = block(latents, state)
        return self.norm(self.read(latest[:, None], latents)[:, 0])


def _batch_first(state: AttentionState) -> AttentionState:
    return state.map(lambda z: z.transpose(0, 1))
