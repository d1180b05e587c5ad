"""EventSequences: what data modules give to event models."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbench.structure import TensorRecord, counted


@dataclass(frozen=True, eq=False)
class EventSequences(TensorRecord):
    """A batch of sequences of marked events, each as a history of the next.

    The first event of each sequence is history only, and all others are predicted. A mask is True
    where an event is real, and None means that all are; padding lies behind the real events. Times
    do not fall within a sequence; float64 holds seconds since 1970 with milliseconds.

    Args:
        times: of the events, in the data's own unit.
        marks: from 0 to K − 1.
        mask: True where an event is real.
        end: until when each sequence was observed, if that is known: there is no event between the
            last one and the end. It is not before the last event.
        exact: the log-likelihood of each predicted event under the process that made the data, 0 at
            padding. It is the ceiling of any model, and known of synthetic sequences only.

    Example:
        >>> sequences = EventSequences(torch.rand(4, 9).cumsum(-1), torch.randint(3, (4, 9)))
        >>> sequences.intervals.shape
        torch.Size([4, 8])
        >>> sequences
        EventSequences(4 sequences of 9 events or fewer, on cpu)
    """

    times: Float[Tensor, "batch events"]
    marks: Int[Tensor, "batch events"]
    mask: Bool[Tensor, "batch events"] | None = None
    end: Float[Tensor, "batch"] | None = None
    exact: Float[Tensor, "batch intervals"] | None = None

    @property
    def batch_size(self) -> int:
        return len(self.times)

    def contents(self) -> str:
        """The number of sequences, and of the events of the longest."""
        longest = counted(self.times.shape[1], "event")
        return f"{counted(self.batch_size, 'sequence')} of {longest} or fewer"

    @property
    def full_mask(self) -> Bool[Tensor, "batch events"]:
        return torch.ones_like(self.marks, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def intervals(self) -> Float[Tensor, "batch intervals"]:
        """From each event to the next, τ; 0 at padding."""
        return self.times.diff(dim=-1).masked_fill(~self.predicted, 0.0)

    @property
    def predicted(self) -> Bool[Tensor, "batch intervals"]:
        """Whether the event that ends each interval is real."""
        return self.full_mask[:, 1:]

    @property
    def num_predicted(self) -> int:
        """Number of predicted events of the whole batch."""
        return int(self.predicted.sum())
