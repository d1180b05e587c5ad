"""Hawkes processes, whose events make others more likely."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from datamodules.events.point_processes import (
    PointProcess,
    intervals_of,
    since_last,
    where_predicted,
)
from npbench.errors import InputError
from npbench.events import EventSequences


class HawkesProcess(PointProcess):
    """Events that excite others: λ_k(t) = μ_k + Σ_{t_j < t} α_{k_j, k} β exp(−β (t − t_j)).

    Sequences are drawn by thinning: the intensity falls between events, and so its present value
    bounds what comes.

    Args:
        baseline: μ of each of the K marks.
        excitation: α, as K rows of K numbers: how many events of mark k follow directly from one of
            mark j.
        decay: β, the rate at which the excitation decays in time.

    Raises:
        InputError: if the shapes do not fit, a number is out of its range, or α's spectral radius
            is not below 1, so that the events would never cease to multiply.

    Source: Ogata, *On Lewis' Simulation Method for Point Processes*, IEEE Transactions on
    Information Theory 1981.

    Example:
        >>> process = HawkesProcess([0.2, 0.1], [[0.3, 0.2], [0.1, 0.4]], decay=1.0)
        >>> process.log_likelihood(process.sample(5, num_events=64)).shape
        torch.Size([5, 63])
    """

    def __init__(
        self, baseline: Sequence[float], excitation: Sequence[Sequence[float]], decay: float = 1.0
    ) -> None:
        super().__init__(len(baseline))
        if [len(row) for row in excitation] != [self.num_marks] * self.num_marks:
            raise InputError(
                f"excitation={excitation} must be {self.num_marks} rows of {self.num_marks} "
                f"numbers, as the baseline has {self.num_marks}"
            )
        self.baseline = torch.tensor(baseline, dtype=torch.float64)
        self.excitation = torch.tensor(excitation, dtype=torch.float64)
        if not ((self.baseline >= 0).all() and 0 < self.baseline.sum() < math.inf):
            raise InputError(f"baseline={baseline} must be 0 or more, and somewhere above 0")
        if not ((self.excitation >= 0) & self.excitation.isfinite()).all():
            raise InputError(f"excitation={excitation} must be 0 or more, and finite")
        if not 0 < decay < math.inf:
            raise InputError(f"decay={decay} must be above 0")
        radius = float(torch.linalg.eigvals(self.excitation).abs().max())
        if radius >= 1:
            raise InputError(
                f"the spectral radius of excitation={excitation} is {radius:.3g} and must be "
                f"below 1: the events would never cease to multiply; take smaller numbers"
            )
        self.decay = decay

    def log_likelihood(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        log_intensity, compensator, _ = self._follow(sequences)
        return log_intensity - compensator

    def compensator(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        return self._follow(sequences)[1]

    def log_survival(self, sequences: EventSequences) -> Float64[Tensor, "batch"]:
        return -self._integral(since_last(sequences), self._follow(sequences)[2])

    def _integral(
        self, interval: Float64[Tensor, "batch"], excited: Float64[Tensor, "batch marks"]
    ) -> Float64[Tensor, "batch"]:
        """The integral of all intensities over intervals without events.

        Args:
            interval: lengths of the intervals.
            excited: excitation of each mark at their beginning.
        """
        decayed = -torch.expm1(-self.decay * interval) / self.decay
        return self.baseline.sum() * interval + excited.sum(-1) * decayed

    def _follow(
        self, sequences: EventSequences
    ) -> tuple[
        Float64[Tensor, "batch intervals"],
        Float64[Tensor, "batch intervals"],
        Float64[Tensor, "batch marks"],
    ]:
        """The log-intensity at each event, the compensator, and λ − μ just after the last event."""
        real = sequences.full_mask.double()
        jumps = self.decay * self.excitation[sequences.marks] * real.unsqueeze(-1)
        intervals, marks = intervals_of(sequences), sequences.marks[:, 1:]
        excited = jumps[:, 0]
        log_intensities, compensator = torch.zeros_like(intervals), torch.zeros_like(intervals)
        for index, interval in enumerate(intervals.unbind(1)):
            compensator[:, index] = self._integral(interval, excited)
            excited = excited * torch.exp(-self.decay * interval).unsqueeze(-1)
            intensity = (self.baseline + excited).gather(1, marks[:, index, None])
            log_intensities[:, index] = intensity.squeeze(1).log()
            excited = excited + jumps[:, index + 1]
        return where_predicted(sequences, log_intensities), compensator, excited

    def _candidates(self, num_sequences: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        time = torch.zeros(num_sequences, dtype=torch.float64)
        excited = torch.zeros(num_sequences, self.num_marks, dtype=torch.float64)
        while True:
            bound = self.baseline.sum() + excited.sum(-1)
            wait = torch.empty_like(time).exponential_() / bound
            time = time + wait
            excited = excited * torch.exp(-self.decay * wait).unsqueeze(-1)
            intensity = self.baseline + excited
            happens = torch.rand_like(time) * bound < intensity.sum(-1)
            mark = torch.multinomial(intensity, 1).squeeze(1)
            excited = excited + self.decay * self.excitation[mark] * happens.unsqueeze(-1)
            yield time, mark, happens
