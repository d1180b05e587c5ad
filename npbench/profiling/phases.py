"""Peak memory and time of the phases of a model, as its context grows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from npbench.errors import InputError
from npbench.events import EventSequences
from npbench.likelihoods import NextEvent
from npbench.models import EventModel, EventState, NeuralProcess, SequenceClassifier, State
from npbench.models.contracts.process import Marginals, evaluating, in_mode, unwatched
from npbench.profiling.measurement import Measurement, is_out_of_memory, measure
from npbench.sequences import TokenSequences
from npbench.task import Task

AnyState = TypeVar("AnyState", bound=State | EventState | TokenSequences)

PHASES = ("condition", "query", "update", "train")
AnyModel = NeuralProcess | EventModel | SequenceClassifier


class Phases(ABC, Generic[AnyState]):
    """What a model does with random data, one phase after another."""

    model: AnyModel
    device: torch.device
    known: ClassVar[tuple[str, ...]] = PHASES
    """The phases that such a model has."""

    @abstractmethod
    def condition(self) -> AnyState:
        """The state of the context."""

    @abstractmethod
    def query(self) -> Marginals | NextEvent | Tensor:
        """The predictions from `state`."""

    @abstractmethod
    def update(self) -> AnyState:
        """`state` after more data."""

    @abstractmethod
    def loss(self) -> Tensor:
        """What training minimises."""

    @cached_property
    def state(self) -> AnyState:
        """The state of the context, which the first use works out."""
        with evaluating(self.model):
            return self.condition()

    def measure(self, phase: str, repeats: int = 1) -> Measurement:
        """Peak memory and time of a phase; the model, its gradients and torch's random state are
        left as they were.

        Args:
            phase: one of `PHASES`.
            repeats: timed calls, of which the median counts; an update, which is short, gets
                three at least.
        """
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            if phase == "train":
                with in_mode(self.model, training=True), torch.enable_grad():
                    return measure(self._gradients, self.device, repeats)
            with evaluating(self.model):
                if phase == "condition":
                    return measure(self.condition, self.device, repeats)
                try:
                    _ = self.state
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    return Measurement(None, None)
                if phase == "query":
                    return measure(self.query, self.device, repeats)
                return measure(self.update, self.device, max(repeats, 3))

    def _gradients(self) -> tuple[Tensor | None, ...]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # What the last layer makes of a memory may not be read.
        return torch.autograd.grad(self.loss(), parameters, allow_unused=True)


class PointPhases(Phases[State]):
    """What a neural process does with random points, of one task.

    Args:
        model: on `device`.
        num_context: number of context points.
        num_targets: number of targets.
        num_new: number of points that an update absorbs.
        device: where the points are made.

    Example:
        >>> from npbench.models import CNP
        >>> phases = PointPhases(CNP(dim_x=1, dim_y=1), num_context=100, num_targets=10)
        >>> phases.state.nbytes
        1032
        >>> phases.measure("query").seconds > 0
        True
    """

    model: NeuralProcess

    def __init__(
        self,
        model: NeuralProcess,
        num_context: int,
        num_targets: int,
        num_new: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        generator = torch.Generator(self.device).manual_seed(0)

        def points(number: int) -> tuple[Tensor, Tensor]:
            # These inputs lie within the range of most models' training.
            options = {"device": self.device, "generator": generator}
            x = 2 * torch.rand(1, number, model.dim_x, **options) - 1
            return x, torch.randn(1, number, model.dim_y, **options)

        self.context, self.targets = points(num_context), points(num_targets)
        self.new = points(num_new)

    def condition(self) -> State:
        with unwatched(self.model):
            return self.model.condition(*self.context)

    def query(self) -> Marginals:
        with unwatched(self.model):
            return self.model.marginals(self.state, self.targets[0])

    def update(self) -> State:
        with unwatched(self.model):
            return self.model.update(self.state, *self.new)

    def loss(self) -> Tensor:
        return self.model.loss(Task(*self.context, *self.targets))


class EventPhases(Phases[EventState]):
    """What an event model does with a random sequence, in its own units.

    Args:
        model: on `device`.
        num_events: length of the history.
        device: where the sequence is made.
    """

    model: EventModel

    def __init__(
        self, model: EventModel, num_events: int, device: torch.device | str = "cpu"
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        generator = torch.Generator(self.device).manual_seed(0)
        size = (1, num_events + 1)
        intervals = torch.rand(size, dtype=torch.float64, device=self.device, generator=generator)
        times = (2 * model.time_scale * intervals).cumsum(dim=-1)
        marks = torch.randint(model.num_marks, size, device=self.device, generator=generator)
        self.history = EventSequences(times[:, :-1], marks[:, :-1])
        self.new = times[:, -1], marks[:, -1]

    def condition(self) -> EventState:
        return self.model.condition(self.history.times, self.history.marks)

    def query(self) -> NextEvent:
        return self.model.query(self.state)

    def update(self) -> EventState:
        return self.model.update(self.state, *self.new)

    def loss(self) -> Tensor:
        return self.model.loss(self.history)


class SequencePhases(Phases[TokenSequences]):
    """What a classifier does with a random sequence of tokens, which are all of its state.

    Args:
        model: on `device`.
        length: number of tokens.
        device: where the sequence is made.
    """

    model: SequenceClassifier
    known = ("query", "train")

    def __init__(
        self, model: SequenceClassifier, length: int, device: torch.device | str = "cpu"
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        generator = torch.Generator(self.device).manual_seed(0)
        options = {"device": self.device, "generator": generator}
        self.sequences = TokenSequences(
            torch.randint(model.vocab_size, (1, length), **options),
            torch.zeros(1, dtype=torch.long, device=self.device),
        )

    def condition(self) -> TokenSequences:
        return self.sequences

    def query(self) -> Tensor:
        return self.model(self.state.tokens, self.state.full_mask)

    def update(self) -> TokenSequences:
        return self.state

    def loss(self) -> Tensor:
        return self.model.loss(self.sequences)


def profile(
    model: AnyModel,
    context_sizes: Sequence[int],
    num_targets: int = 1000,
    phases: Sequence[str] = PHASES,
    device: torch.device | str = "cpu",
    time_limit: float = float("inf"),
) -> Iterator[dict[str, Any]]:
    """Peak memory and time of a model's phases for one task or sequence, as its context grows.

    - condition: from the context to the state;
    - query: the targets' means and standard deviations from the state;
    - update: the state after one more point;
    - train: the loss and its gradients, on context and targets.

    The context of an event model is a history of so many events. The model is queried for the next
    event, updated by it, and trained to predict all of the history. A classifier of sequences has
    two phases: its logits for so many tokens (query), and train.

    The model, its gradients and torch's random state are left as they were.

    Args:
        model: on `device`.
        context_sizes: numbers of context points or events, ascending.
        num_targets: number of targets, in query and train; an event model has none.
        phases: those to measure.
        device: where the model is.
        time_limit: seconds that a call may take. A phase is left out from that size on for which
            its time at the size before, if it grows with the square, foretells more.

    Yields:
        One row a size and phase, with `num_context`, `phase`, and the `peak_bytes` and `seconds`
        of `Measurement`; a phase that was left out has no row.

    Raises:
        InputError: on an unknown phase.
    """
    if unknown := set(phases) - set(PHASES):
        raise InputError(f"unknown phase(s) {sorted(unknown)}; known: {', '.join(PHASES)}")
    device = torch.device(device)
    before: dict[str, tuple[int, float]] = {}
    for num_context in context_sizes:
        for phase in phases:
            size, seconds = before.get(phase, (num_context, 0.0))
            if seconds * (num_context / size) ** 2 > time_limit:
                continue
            measured = _measure_phase(model, phase, num_context, num_targets, device)
            if measured is None:
                continue
            before[phase] = num_context, measured.seconds or float("inf")
            yield {"num_context": num_context, "phase": phase} | vars(measured)


def _measure_phase(
    model: AnyModel,
    phase: str,
    num_context: int,
    num_targets: int,
    device: torch.device,
) -> Measurement | None:
    phases: Phases
    if isinstance(model, SequenceClassifier):
        phases = SequencePhases(model, num_context, device)
    elif isinstance(model, EventModel):
        phases = EventPhases(model, num_context, device)
    else:
        phases = PointPhases(model, num_context, num_targets, device=device)
    return phases.measure(phase) if phase in phases.known else None
