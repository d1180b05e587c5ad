"""What a data module may offer to training and callbacks beyond its batches.

Each offer is a `Protocol`: a data module makes it by having the attributes that the protocol names,
and imports nothing for it. Whoever writes a data module finds all of them here, with who asks for
them. No offer is compulsory: training does without, and a figure that needs one says so.

Example:
    >>> from datamodules import GPDataModule
    >>> isinstance(GPDataModule(), OffersFigureTask), isinstance(GPDataModule(), OffersVocabulary)
    (True, False)
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from npbench.events import EventSequences
from npbench.scaling import Scaling
from npbench.task import Task

Vocabulary = list[int] | list[str]


@runtime_checkable
class OffersFigureTask(Protocol):
    """Functions to draw; `PosteriorFigures` asks for them."""

    def figure_task(self, index: int = 0) -> Task:
        """The task of this index.

        Its targets lie densely and in order along its input, or on a grid of its first two inputs
        while any others are 0. Where its `truth` is known, that is drawn, and else its `yt`.
        """


@runtime_checkable
class OffersClassNames(Protocol):
    """What the classes are called; `PosteriorFigures` writes it in legends."""

    @property
    def class_names(self) -> Sequence[str]:
        """The names, in the order of the one-hot outputs."""


@runtime_checkable
class OffersCompletionTask(Protocol):
    """Images to complete; `ImageFigures` asks for them."""

    @property
    def max_num_points(self) -> int:
        """The number that context and targets of a task stay below in training."""

    def completion_task(self, index: int = 0, num_context: int = 50) -> Task:
        """The task of this index, whose targets are all pixels that are not in the context."""


@runtime_checkable
class OffersFigureSequences(Protocol):
    """Sequences of events to draw; `EventFigures` asks for them."""

    def figure_sequences(self, *, test: bool) -> EventSequences:
        """Sequences of all lengths, of the test data or else of the validation data."""


@runtime_checkable
class KnownProcess(Protocol):
    """A process that makes events, and whose intensity is known."""

    def compensator(self, sequences: EventSequences) -> Float[Tensor, "batch intervals"]:
        """The integral of the intensity of all marks over each interval."""


@runtime_checkable
class OffersProcess(Protocol):
    """The process that made the events; `EventFigures` draws its intensity beside the model's."""

    @property
    def process(self) -> KnownProcess:
        """The process."""


@runtime_checkable
class OffersNamedPredictions(Protocol):
    """Predictions in the data's own terms; `PredictionWriter` writes these in place of numbers."""

    def named_predictions(self, table: pa.Table) -> pa.Table:
        """The same predictions, under the names and by the clocks and units of the data."""


@runtime_checkable
class OffersScaling(Protocol):
    """The units of the data, whose values its batches hold.

    `MetaRegression` gives them to the model of a new run, which then computes with other numbers,
    answers in these units, and keeps them in its checkpoints.
    """

    @property
    def scaling(self) -> Scaling | None:
        """The units, fitted on the training data; None if models take the values as they are."""


@runtime_checkable
class OffersNumMarks(Protocol):
    """The number of marks; `EventPrediction` compares it with the model's."""

    @property
    def num_marks(self) -> int:
        """Number of kinds of events, K."""


@runtime_checkable
class OffersVocabulary(Protocol):
    """The marks themselves, in the order of their indices.

    `EventPrediction` owns the vocabulary: it takes that of the data it is trained on, saves it in
    its checkpoints, and sets it in every data module that it is given later. The data module counts
    marks by it from then on, and saves nothing.
    """

    vocabulary: Vocabulary


@runtime_checkable
class OffersClasses(Protocol):
    """The names of classes, in the order of their indices, and the number of tokens.

    `SequenceClassification` owns the classes as `EventPrediction` owns a vocabulary: it takes those
    of the data it is trained on, saves them in its checkpoints, and sets them in every data module
    that it is given later.
    """

    classes: list[str]

    @property
    def vocab_size(self) -> int:
        """Number of tokens, padding included."""


@runtime_checkable
class OffersTimeName(Protocol):
    """What a unit of time is called; `EventFigures` writes it on axes."""

    @property
    def time_name(self) -> str | None:
        """The name, such as "days"; None if it has none."""


@runtime_checkable
class Intervals(Protocol):
    """Statistics of the intervals τ between the events of a training set."""

    @property
    def mean(self) -> float:
        """Mean of τ."""

    @property
    def log_mean(self) -> float:
        """Mean of log τ."""

    @property
    def log_std(self) -> float:
        """Standard deviation of log τ."""


@runtime_checkable
class OffersIntervalStatistics(Protocol):
    """The unit of time of the data, in which `EventPrediction` begins to train."""

    @property
    def interval_statistics(self) -> Intervals:
        """Statistics of the intervals of the training data, in the unit of its times."""
