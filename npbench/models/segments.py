"""Adjacent segments of a history, each absorbed by itself: side by side, or on several machines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbench.attention import AttentionState
from npbench.blocks.convolution import CausalConvolutionLayer
from npbench.blocks.history import HistoryBlock
from npbench.errors import InputError
from npbench.models.contracts.events import EventState, ends


@dataclass(frozen=True, eq=False)
class Segment(EventState):
    """All that a CMHP keeps of a stretch of a history, which others may precede and follow.

    A convolution of k taps makes the outputs of the first k − 1 events from events ahead of the
    segment too. Until these are known, the outputs are held back: `earliest` has the embeddings
    that they are made of, and `attention` has absorbed the outputs from the k-th on.
    """

    origin: Float[Tensor, "batch"]
    """The time of the first event of the whole history, from which embeddings count."""
    count: Int[Tensor, "batch"]
    attention: AttentionState
    """As of `CMHPState`, at the time of the last event."""
    earliest: Float[Tensor, "batch held dim_model"]
    earliest_times: Float[Tensor, "batch held"]
    """Since the origin, in the model's units."""
    recent: Float[Tensor, "batch held dim_model"]
    """The embeddings of the last k − 1 events, with 0 ahead where there are fewer."""


@dataclass(frozen=True)
class SegmentReader:
    """What makes segments of events, and joins them.

    Args:
        blocks: their latents attend to the events.
        convolve: the filter along the history, if there is one.
        scaled: from differences of times to the model's units.
    """

    blocks: Sequence[HistoryBlock]
    convolve: CausalConvolutionLayer | None
    scaled: Callable[[Tensor], Tensor]

    def absorb(
        self,
        points: Float[Tensor, "batch events dim_model"],
        times: Float[Tensor, "batch events"],
        marks: Int[Tensor, "batch events"],
        mask: Bool[Tensor, "batch events"],
        origin: Float[Tensor, "batch"],
    ) -> Segment:
        """The segment of these events, whose padding lies behind them.

        Args:
            points: their embeddings.
            times: by the clock of the history.
            marks: of the events.
            mask: True where an event is real.
            origin: as of `Segment`.
        """
        now, since = ends(times, marks, mask), self.scaled(times - origin[:, None])
        nothing = points.new_zeros(len(points), self.held, points.shape[-1])
        released = mask & (torch.arange(points.shape[1], device=mask.device) >= self.held)
        outputs = self._outputs(points, nothing)
        return Segment(
            **now,
            origin=origin,
            count=mask.sum(dim=-1),
            attention=self._final(outputs, since, released, self._since(now["last"], origin)),
            earliest=_first(points, self.held),
            earliest_times=_first(since[..., None], self.held)[..., 0],
            recent=nothing if self.convolve is None else self.convolve.after(points, nothing, mask),
        )

    def join(self, first: Segment, second: Segment) -> Segment:
        """The segment of two that follow on each other; joining is associative.

        Raises:
            InputError: if they are of different numbers of sequences or origins, or overlap.
        """
        _check_adjacent(first, second)
        held, index = self.held, torch.arange(self.held, device=first.count.device)
        before, after = first.count[:, None], second.count[:, None]
        outputs = self._outputs(second.earliest, first.recent)
        released = (index < after) & (before + index >= held)
        now = self._since(second.last, second.origin)
        new = self._final(outputs, second.earliest_times, released, now)
        passed = self.scaled((second.last - first.last).nan_to_num(0.0))
        faded = _stacked(
            block.faded(
                AttentionState(first.attention.lse[:, i], first.attention.out[:, i]), passed
            )
            for i, block in enumerate(self.blocks)
        )
        # The first k − 1 of both, and the last k − 1 of both, are some of the first's and then some
        # of the second's.
        head = torch.where(index < before, index, held + index - before)
        fresh = after.clamp(max=held)
        tail = torch.where(index >= held - fresh, held + index, index + fresh)
        empty = second.mark < 0
        return Segment(
            first=first.first.where(first.mark >= 0, second.first),
            last=first.last.where(empty, second.last),
            mark=first.mark.where(empty, second.mark),
            origin=first.origin,
            count=first.count + second.count,
            attention=faded.merge(second.attention).merge(new),
            earliest=_taken(first.earliest, second.earliest, head),
            earliest_times=_taken(
                first.earliest_times[..., None], second.earliest_times[..., None], head
            )[..., 0],
            recent=_taken(first.recent, second.recent, tail),
        )

    def whole(self, segment: Segment) -> AttentionState:
        """The attention of a segment that no other comes ahead of: nothing is held back.

        Raises:
            InputError: if its first event is not the origin.
        """
        wrong = (segment.first != segment.origin) & (segment.mark >= 0)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise InputError(
                f"sequence {row} begins at {float(segment.first[row])}, and its segments count "
                f"from origin={float(segment.origin[row])}: give them the time of the first event"
            )
        outputs = self._outputs(segment.earliest, torch.zeros_like(segment.recent))
        real = torch.arange(self.held, device=segment.count.device) < segment.count[:, None]
        now = self._since(segment.last, segment.origin)
        return segment.attention.merge(self._final(outputs, segment.earliest_times, real, now))

    @property
    def held(self) -> int:
        """The number k − 1 of outputs that wait for what comes ahead."""
        return 0 if self.convolve is None else self.convolve.memory

    def _outputs(self, inputs: Tensor, before: Tensor) -> Tensor:
        return inputs if self.convolve is None else self.convolve(inputs, before)

    def _since(self, time: Tensor, origin: Tensor) -> Tensor:
        return self.scaled((time - origin).nan_to_num(0.0))

    def _final(self, outputs: Tensor, since: Tensor, mask: Tensor, now: Tensor) -> AttentionState:
        """The states of these outputs at the time `now`, [batch, layers, …]."""
        # The last column, which is padding, tells the time.
        outputs, mask = F.pad(outputs, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        since = torch.cat([since, now[:, None]], dim=1)
        return _stacked(block.final(outputs, since, mask) for block in self.blocks)


def _stacked(states: Iterable[AttentionState]) -> AttentionState:
    return AttentionState.stack(list(states)).map(lambda z: z.transpose(0, 1))


def _first(
    values: Float[Tensor, "batch events dim"], number: int
) -> Float[Tensor, "batch number dim"]:
    """The first so many, with 0 behind where there are fewer."""
    return F.pad(values[:, :number], (0, 0, 0, max(0, number - values.shape[1])))


def _taken(
    first: Float[Tensor, "batch held dim"],
    second: Float[Tensor, "batch held dim"],
    index: Int[Tensor, "batch held"],
) -> Float[Tensor, "batch held dim"]:
    """Those at these indices of both, one after the other."""
    both = torch.cat([first, second], dim=1)
    return both.gather(1, index[..., None].expand(-1, -1, both.shape[-1]))


def _check_adjacent(first: Segment, second: Segment) -> None:
    if first.batch_size != second.batch_size:
        raise InputError(
            f"segments of {first.batch_size} and of {second.batch_size} sequences do not join"
        )
    if not torch.equal(first.origin, second.origin):
        raise InputError(
            "the segments count from different origins: give each the time of the first event of "
            "its whole history"
        )
    if (wrong := second.first < first.last).any():
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"in sequence {row} a segment that begins at {float(second.first[row])} comes after "
            f"one that ends at {float(first.last[row])}: join them in the order of their times"
        )
