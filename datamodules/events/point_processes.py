"""Point processes that draw events, and whose exact likelihood is known."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.distributions import Distribution, Gamma, LogNormal

from npbench.errors import InputError
from npbench.events import EventSequences


class PointProcess(ABC):
    """Marked events in time: p(τ, k | history) = λ_k(t + τ) exp(−∫ Σ_j λ_j(s) ds over (t, t + τ)).

    A sequence begins at time 0 with no history. Its first event is history only, as with all
    `EventSequences`; answers are about the events after it. They are in float64, and 0 at padding.

    Args:
        num_marks: number of kinds of events, K.
    """

    def __init__(self, num_marks: int) -> None:
        self.num_marks = num_marks

    @abstractmethod
    def log_likelihood(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        """log p(τ, k | all events before) of each event: log λ_k(t) minus the compensator."""

    @abstractmethod
    def compensator(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        """∫ Σ_k λ_k(s) ds over each interval.

        If the events are of this process, these are independent draws from Exp(1).
        """

    @abstractmethod
    def log_survival(self, sequences: EventSequences) -> Float64[Tensor, "batch"]:
        """log P(no event between the last one, or time 0, and `sequences.end`).

        Raises:
            InputError: if the sequences have no end.
        """

    @abstractmethod
    def _candidates(
        self, num_sequences: int
    ) -> Iterator[tuple[Float64[Tensor, "batch"], Int[Tensor, "batch"], Bool[Tensor, "batch"]]]:
        """Yield, without end, time and mark of what may be the next event, and whether it is."""

    def sample(
        self, num_sequences: int, num_events: int | None = None, end: float | None = None
    ) -> EventSequences:
        """Draw sequences from torch's generator.

        Args:
            num_sequences: number of sequences, which are drawn side by side.
            num_events: number of events of every sequence.
            end: the time until which each sequence is observed, in place of `num_events`; some have
                more events than others then.

        Raises:
            InputError: if both or none of `num_events` and `end` are given, or it is not above 0.
        """
        if (num_events is None) == (end is None):
            raise InputError(f"give one of num_events={num_events} and end={end}, not both")
        if not (num_events if end is None else end) > 0:
            raise InputError(f"num_events={num_events}, end={end} must be above 0")
        drawn = []
        count = torch.zeros(num_sequences, dtype=torch.long)
        for time, mark, happens in self._candidates(num_sequences):
            if end is not None:
                happens = happens & (time <= end)
            drawn.append((time, mark, happens))
            count += happens
            if (count >= num_events).all() if end is None else (time > end).all():
                break
        times, marks, happens = (torch.stack(each, dim=1) for each in zip(*drawn))
        # Move the events to the front; those beyond the number that was asked for are cut off.
        width = int(count.max()) if num_events is None else num_events
        order = happens.long().argsort(dim=1, descending=True, stable=True)[:, : max(width, 1)]
        times, marks, mask = (values.gather(1, order) for values in (times, marks, happens))
        times = torch.where(mask, times, 0.0).cummax(dim=1).values
        ends = None if end is None else times.new_full([num_sequences], end)
        return EventSequences(times, torch.where(mask, marks, 0), mask, ends)


class _IndependentMarks(PointProcess):
    """A process whose marks are drawn without regard to time and history.

    Args:
        mark_probs: probability of each mark.
    """

    def __init__(self, mark_probs: Sequence[float]) -> None:
        super().__init__(len(mark_probs))
        self.mark_probs = torch.tensor(mark_probs, dtype=torch.float64)
        if not ((self.mark_probs >= 0).all() and abs(self.mark_probs.sum() - 1) < 1e-6):
            raise InputError(f"mark_probs={mark_probs} must be 0 or more, and sum up to 1")

    def _draw_marks(self, number: int) -> Int[Tensor, "number"]:
        return torch.multinomial(self.mark_probs, number, replacement=True)

    def _log_prob_of_marks(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        return self.mark_probs.log()[sequences.marks[:, 1:]]


class RenewalProcess(_IndependentMarks):
    """Intervals that are independent draws from one distribution: p(τ, k | history) = f(τ) P(k).

    Args:
        distribution: distribution of the intervals: log-normal, or gamma, which is the Poisson
            process where `std` equals `mean`.
        mean: mean of the intervals.
        std: standard deviation of the intervals.
        mark_probs: probability of each mark.

    Example:
        >>> process = RenewalProcess("lognormal", mean=2.0, std=0.5, mark_probs=[0.7, 0.3])
        >>> process.sample(5, end=10.0).end
        tensor([10., 10., 10., 10., 10.], dtype=torch.float64)
    """

    def __init__(
        self,
        distribution: Literal["gamma", "lognormal"] = "gamma",
        mean: float = 1.0,
        std: float = 0.5,
        mark_probs: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(mark_probs)
        if not (0 < mean < math.inf and 0 < std < math.inf):
            raise InputError(f"mean={mean} and std={std} must be above 0")
        self.interval: Distribution
        mean, std = (torch.tensor(value, dtype=torch.float64) for value in (mean, std))
        if distribution == "gamma":
            self.interval = Gamma((mean / std) ** 2, mean / std**2)
        elif distribution == "lognormal":
            variance = torch.log1p((std / mean) ** 2)
            self.interval = LogNormal(mean.log() - variance / 2, variance.sqrt())
        else:
            raise InputError(f"distribution={distribution!r} must be 'gamma' or 'lognormal'")

    def log_likelihood(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        interval = torch.where(sequences.predicted, intervals_of(sequences), 1.0)
        log_density = self.interval.log_prob(interval)
        return where_predicted(sequences, log_density + self._log_prob_of_marks(sequences))

    def compensator(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        return where_predicted(sequences, -self._log_tail(intervals_of(sequences)))

    def log_survival(self, sequences: EventSequences) -> Float64[Tensor, "batch"]:
        return self._log_tail(since_last(sequences))

    def _log_tail(self, interval: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """log P(τ > interval)."""
        if isinstance(self.interval, Gamma):
            shape = self.interval.concentration.expand_as(interval)
            return torch.special.gammaincc(shape, self.interval.rate * interval).log()
        return torch.special.log_ndtr((self.interval.loc - interval.log()) / self.interval.scale)

    def _candidates(self, num_sequences: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        time = torch.zeros(num_sequences, dtype=torch.float64)
        while True:
            time = time + self.interval.sample([num_sequences])
            yield time, self._draw_marks(num_sequences), torch.ones_like(time, dtype=torch.bool)


class PoissonProcess(_IndependentMarks):
    """Events at a rate that swings as in the course of a day, whatever came before:

    λ_k(t) = P(k) · rate · (1 + amplitude · sin(2π t / period)).

    The clock matters: sequences that are shifted in time have other likelihoods.

    Args:
        rate: mean number of events in a unit of time.
        amplitude: how far the rate swings, from 0, where it is constant, to 1.
        period: duration of one swing.
        mark_probs: probability of each mark.

    Example:
        >>> process = PoissonProcess(rate=2.0, amplitude=0.8, period=24.0)
        >>> process.compensator(process.sample(5, num_events=10)).shape
        torch.Size([5, 9])
    """

    def __init__(
        self,
        rate: float = 1.0,
        amplitude: float = 0.0,
        period: float = 1.0,
        mark_probs: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(mark_probs)
        if not (0 < rate < math.inf and 0 < period < math.inf):
            raise InputError(f"rate={rate} and period={period} must be above 0")
        if not 0 <= amplitude <= 1:
            raise InputError(f"amplitude={amplitude} must be between 0 and 1: no rate is below 0")
        self.rate = rate
        self.amplitude = amplitude
        self.frequency = 2 * math.pi / period

    def log_likelihood(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        log_rate = self._rate_at(sequences.times[:, 1:].double()).log()
        log_intensity = where_predicted(sequences, log_rate + self._log_prob_of_marks(sequences))
        return log_intensity - self.compensator(sequences)

    def compensator(self, sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
        start = sequences.times[:, :-1].double()
        return self._integral(start, start + intervals_of(sequences))

    def log_survival(self, sequences: EventSequences) -> Float64[Tensor, "batch"]:
        left = since_last(sequences)
        end = sequences.end.double()
        return -self._integral(end - left, end)

    def _rate_at(self, time: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.rate * (1 + self.amplitude * torch.sin(self.frequency * time))

    def _integral(
        self, start: Float[Tensor, "*shape"], stop: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The integral of the rate over intervals."""
        swing = torch.cos(self.frequency * start) - torch.cos(self.frequency * stop)
        return self.rate * (stop - start + self.amplitude / self.frequency * swing)

    def _candidates(self, num_sequences: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        bound = self.rate * (1 + self.amplitude)
        time = torch.zeros(num_sequences, dtype=torch.float64)
        while True:
            time = time + torch.empty_like(time).exponential_() / bound
            happens = torch.rand_like(time) * bound < self._rate_at(time)
            yield time, self._draw_marks(num_sequences), happens


def where_predicted(
    sequences: EventSequences, values: Float64[Tensor, "batch intervals"]
) -> Float64[Tensor, "batch intervals"]:
    """The values, with 0 at padding."""
    return torch.where(sequences.predicted, values, 0.0)


def intervals_of(sequences: EventSequences) -> Float64[Tensor, "batch intervals"]:
    """The intervals between real events in float64, with 0 at padding."""
    return where_predicted(sequences, sequences.times.double().diff(dim=-1))


def since_last(sequences: EventSequences) -> Float64[Tensor, "batch"]:
    """Time from the last event of each sequence (or time 0) to its end."""
    if sequences.end is None:
        raise InputError("the sequences have no end; give EventSequences(..., end=)")
    times = torch.where(sequences.full_mask, sequences.times.double(), 0.0)
    return sequences.end.double() - times.amax(-1)
