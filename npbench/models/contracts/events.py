"""The contract of the models of event sequences: a state that absorbs events."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from npbench.errors import InputError
from npbench.events import EventSequences
from npbench.likelihoods import NextEvent, NextEventHead
from npbench.models.contracts.process import State, one_line

# How many events are checked at a time.
_CHECK_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class EventState(State):
    """What a model keeps of a history. Where it is empty, its times are NaN and its mark is −1."""

    first: Float[Tensor, "batch"]
    last: Float[Tensor, "batch"]
    mark: Int[Tensor, "batch"]

    def ends_after(self, times: Tensor, marks: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """These fields after further events, with padding behind."""
        new = ends(times, marks, mask)
        none = new["mark"] < 0
        return {
            "first": self.first.where(self.mark >= 0, new["first"]),
            "last": self.last.where(none, new["last"]),
            "mark": self.mark.where(none, new["mark"]),
        }


def ends(times: Tensor, marks: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The fields of `EventState` of histories with padding behind."""
    if not times.shape[1]:
        nothing = times.new_full(times.shape[:1], torch.nan)
        return {"first": nothing, "last": nothing, "mark": torch.full_like(nothing, -1).long()}
    empty = ~mask[:, 0]
    index = mask.sum(dim=-1).sub(1).clamp(min=0)[:, None]
    return {
        "first": times[:, 0].masked_fill(empty, torch.nan),
        "last": times.gather(1, index)[:, 0].masked_fill(empty, torch.nan),
        "mark": marks.gather(1, index)[:, 0].masked_fill(empty, -1),
    }


class EventEvaluation(NamedTuple):
    """What a model says of sequences; one pass serves all metrics. Logarithms are 0 at padding."""

    dist: NextEvent
    """The distribution of each event but the first."""
    log_prob_time: Float[Tensor, "batch intervals"]
    log_prob_mark: Float[Tensor, "batch intervals"]
    log_survival: Float[Tensor, "batch"]
    """The log-probability that no event comes between the last and the end; 0 without an end."""

    @property
    def log_prob(self) -> Float[Tensor, "batch intervals"]:
        return self.log_prob_time + self.log_prob_mark


class EventModel(nn.Module, ABC):
    """The distribution of the next event of a sequence, through a state that absorbs events.

        state = model.condition(times, marks)      # a history becomes a state
        state = model.update(state, time, mark)    # exact: the same as conditioning on all of it
        dist  = model.query(state)                 # over the interval τ and the mark of the next

    `forward` predicts after every prefix of every sequence at once. Times are in the data's own
    unit, and only their differences matter. A model implements `_condition`, `_update`, `_history`
    and `_histories`; the public methods check what they are given first. Its `__init__` is
    decorated with `records_arguments`.

    Args:
        num_marks: number K of marks.
        dim_model: width D of the history vector.
        num_components: log-normals of the mixture over τ.
        min_interval: least τ, in the data's unit; a shorter one counts as this.
    """

    hparams: dict[str, Any]

    def __init__(
        self, num_marks: int, dim_model: int, num_components: int, min_interval: float
    ) -> None:
        super().__init__()
        if num_marks < 1 or num_components < 1:
            raise InputError(
                f"num_marks={num_marks} and num_components={num_components} must be 1 or more"
            )
        if not min_interval > 0:
            raise InputError(f"min_interval={min_interval} must be above 0")
        self.num_marks = num_marks
        self.head = NextEventHead(dim_model, dim_model, num_marks, num_components, min_interval)
        for name, value in (("time_scale", 1.0), ("log_mean", 0.0), ("log_std", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def __repr__(self) -> str:
        return one_line(self)

    @abstractmethod
    def _condition(self, times: Tensor, marks: Tensor, mask: Tensor) -> EventState:
        """The state of these histories, whose padding lies behind the real events."""

    @abstractmethod
    def _update(self, state: EventState, time: Tensor, mark: Tensor) -> EventState:
        """The state after one more event of each sequence."""

    @abstractmethod
    def _history(self, state: EventState) -> Float[Tensor, "batch dim_model"]:
        """The history vector."""

    @abstractmethod
    def _histories(
        self, times: Tensor, marks: Tensor, mask: Tensor
    ) -> Float[Tensor, "batch events dim_model"]:
        """The history vector after every event; at padding it may be anything finite."""

    def set_time_scale(self, mean: float, log_mean: float, log_std: float) -> None:
        """Fit the model's units to data. Checkpoints keep them, and training does not change them.

        Args:
            mean: mean of the training intervals, the unit in which the model counts times.
            log_mean: mean of their logarithms.
            log_std: standard deviation of their logarithms.

        Raises:
            InputError: if the mean is not above 0, or a value is not finite.
        """
        if not (mean > 0 and log_std >= 0 and np.isfinite([mean, log_mean, log_std]).all()):
            raise InputError(
                f"mean={mean}, log_mean={log_mean} and log_std={log_std} are no statistics of "
                f"intervals"
            )
        self.time_scale.fill_(mean)
        self.log_mean.fill_(log_mean)
        # Where all intervals are the same, their logarithms have no width to measure in.
        self.log_std.fill_(log_std or 1.0)

    def condition(
        self,
        times: Float[Tensor, "*batch events"] | np.ndarray,
        marks: Int[Tensor, "*batch events"] | np.ndarray,
        mask: Bool[Tensor, "*batch events"] | np.ndarray | None = None,
    ) -> EventState:
        """The state of histories, [B, n], or of one, [n]; they may have no events.

        Args:
            times: of the events, which do not fall; in float64 where they are large, as seconds
                since 1970 are.
            marks: from 0 to K − 1.
            mask: True where an event is real; padding lies behind the real events.

        Raises:
            InputError: on shapes that differ, times that fall or are not finite, and unknown marks.
        """
        return self._condition(*self._checked(times, marks, mask))

    def update(
        self,
        state: EventState,
        time: Float[Tensor, "*batch"] | float,
        mark: Int[Tensor, "*batch"] | int,
    ) -> EventState:
        """The state after one more event of each sequence.

        Args:
            state: of the histories.
            time: of the events, [B] or one for all, by the clock of the history and not before
                its last event.
            mark: from 0 to K − 1.

        Raises:
            InputError: as `condition`.
        """
        time = torch.as_tensor(time, dtype=state.last.dtype, device=state.last.device)
        mark = torch.as_tensor(mark, device=state.mark.device)
        for name, value in (("time", time), ("mark", mark)):
            if value.ndim and value.shape != (state.batch_size,):
                raise InputError(
                    f"{name} has shape {list(value.shape)}; expected [{state.batch_size}], one for "
                    f"each sequence of the state"
                )
        time, mark = time.expand(state.batch_size), mark.expand(state.batch_size)
        self._checked(time[:, None], mark[:, None], None)
        if not torch.compiler.is_compiling() and (early := time < state.last).any():
            row = int(early.nonzero()[0])
            raise InputError(
                f"sequence {row} has an event at {float(time[row])}, before its last, at "
                f"{float(state.last[row])}"
            )
        return self._update(state, time, mark)

    def query(self, state: EventState) -> NextEvent:
        """The distribution of the next event of each sequence, of batch shape [B]."""
        return self._predict(self._history(state))

    def forward(self, sequences: EventSequences) -> NextEvent:
        """The distribution of the next event after every event, of batch shape [B, n].

        Raises:
            InputError: as `condition`.
        """
        checked = self._checked(sequences.times, sequences.marks, sequences.mask)
        return self._predict(self._histories(*checked))

    def evaluate(self, sequences: EventSequences) -> EventEvaluation:
        """The distribution of every event but the first, given those before, and its logarithms.

        Raises:
            InputError: as `condition`; and if an end is not finite, or before the last event.
        """
        after = self(sequences)
        dist, padding = after[:, :-1], ~sequences.predicted
        time = dist.log_prob_time(sequences.intervals).masked_fill(padding, 0.0)
        mark = dist.log_prob_mark(sequences.marks[:, 1:].masked_fill(padding, 0))
        survival = self._log_survival(after, sequences)
        return EventEvaluation(dist, time, mark.masked_fill(padding, 0.0), survival)

    def log_likelihood(self, sequences: EventSequences) -> Float[Tensor, "batch intervals"]:
        """log p(τ, k) of every event but the first, given those before; 0 at padding.

        Raises:
            InputError: as `condition`.
        """
        return self.evaluate(sequences).log_prob

    def loss(self, sequences: EventSequences) -> Float[Tensor, ""]:
        """What training minimises: the negative log-likelihood per predicted event, to which the
        observation that no event comes between the last and the end belongs."""
        evaluation = self.evaluate(sequences)
        total = evaluation.log_prob.sum() + evaluation.log_survival.sum()
        return -total / max(1, sequences.num_predicted)

    def sample(
        self, state: EventState, num_events: int, until: float | None = None
    ) -> EventSequences:
        """A future of each history, event by event, without gradients.

        It draws from torch's random state. `state.repeat(times)` gives many futures of a history.

        Args:
            state: of the histories.
            num_events: how many events follow, at most.
            until: when to stop, by the clock of the histories; later events are masked out.

        Raises:
            InputError: if `num_events` is not 1 or more.
        """
        if num_events < 1:
            raise InputError(f"num_events={num_events} must be 1 or more")
        times, marks = [], []
        with torch.no_grad():
            while len(times) < num_events:
                tau, mark = self.query(state).sample()
                time = state.last.nan_to_num(0.0) + tau
                if until is not None and (time > until).all():
                    break
                state = self._update(state, time, mark)
                times.append(time)
                marks.append(mark)
        if not times:
            empty = state.last.new_zeros(state.batch_size, 0)
            return EventSequences(empty, empty.long(), empty.bool())
        times, marks = torch.stack(times, dim=1), torch.stack(marks, dim=1)
        mask = torch.ones_like(marks, dtype=torch.bool) if until is None else times <= until
        return EventSequences(times, marks, mask)

    def _predict(self, history: Tensor) -> NextEvent:
        return self.head(history, self.log_mean, self.log_std)

    def _log_survival(self, after: NextEvent, sequences: EventSequences) -> Tensor:
        if sequences.end is None:
            return sequences.times.new_zeros(sequences.batch_size, dtype=self.log_mean.dtype)
        real = sequences.full_mask
        last = real.sum(dim=-1).sub(1).clamp(min=0)[:, None]
        rest = sequences.end - sequences.times.gather(1, last)[:, 0]
        rest = rest.masked_fill(~real.any(dim=-1), 0.0)
        wrong = (rest < 0) | ~rest.isfinite()
        if not torch.compiler.is_compiling() and wrong.any():
            row = int(wrong.nonzero()[0])
            raise InputError(
                f"sequence {row} ends at {float(sequences.end[row])}: an end is finite, and not "
                f"before the last event"
            )
        survival = after[torch.arange(len(rest), device=rest.device), last[:, 0]].log_survival(rest)
        # No time at all says nothing, though the least interval of the head would say a little.
        return survival.masked_fill(rest == 0, 0.0)

    def _scaled(self, times: Tensor) -> Tensor:
        """Differences of times in the model's units and type."""
        return (times / self.time_scale).to(self.log_mean.dtype)

    def _checked(self, times: Any, marks: Any, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Checked histories [B, n]; at padding stand the time of the last event and the mark 0."""
        device = self.log_mean.device
        times, marks, mask = (
            z if z is None or isinstance(z, Tensor) else torch.as_tensor(z, device=device)
            for z in (times, marks, mask)
        )
        padded = mask is not None
        if not padded:
            # `expand` allocates nothing; histories may be long.
            mask = torch.ones((), dtype=torch.bool, device=marks.device).expand(marks.shape)
        shapes = [list(z.shape) for z in (times, marks, mask)]
        if times.ndim not in (1, 2) or shapes != [shapes[0]] * 3:
            raise InputError(
                f"times, marks and mask have shapes {', '.join(map(str, shapes))}; expected "
                f"[batch, events], or [events] of one sequence, of all three"
            )
        if marks.is_floating_point() or mask.dtype != torch.bool:
            raise InputError(f"marks are {marks.dtype} and the mask {mask.dtype}, not int and bool")
        marks = marks.long()
        times, marks, mask = (z[None] if z.ndim == 1 else z for z in (times, marks, mask))
        times = times if times.is_floating_point() else times.double()
        if not torch.compiler.is_compiling():
            for start in range(0, times.shape[1], _CHECK_CHUNK):
                self._check_values(times, marks, mask, start)
        if not padded or not times.shape[1]:
            return times, marks, mask
        times = times.masked_fill(~mask, -torch.inf).cummax(dim=-1).values
        return times.nan_to_num(neginf=0.0), marks.masked_fill(~mask, 0), mask

    def _check_values(self, times: Tensor, marks: Tensor, mask: Tensor, start: int) -> None:
        """Check a chunk of the events, and that each comes after the one ahead of it."""
        first = max(0, start - 1)
        window = slice(first, start + _CHECK_CHUNK)
        times, marks, mask = times[:, window], marks[:, window], mask[:, window]
        problems = {
            "is real behind padding": F.pad(mask[:, 1:] & ~mask[:, :-1], (1, 0)),
            "is not finite": mask & ~times.isfinite(),
            "lies before the event ahead of it": F.pad(times.diff(dim=-1) < 0, (1, 0)) & mask,
            f"has a mark outside 0, …, {self.num_marks - 1}": mask
            & ((marks < 0) | (marks >= self.num_marks)),
        }
        for problem, where in problems.items():
            if where.any():
                row, index = where.nonzero()[0].tolist()
                raise InputError(
                    f"event {first + index} of sequence {row} {problem} (time "
                    f"{float(times[row, index])}, mark {int(marks[row, index])})"
                )
