"""Training of any event model on event sequences."""

from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import Metric

from npbench.errors import InputError
from npbench.events import EventSequences
from npbench.likelihoods import NextEvent
from npbench.metrics import EventMetrics
from npbench.models.contracts.events import EventModel
from npbench.offers import (
    OffersIntervalStatistics,
    OffersNumMarks,
    OffersVocabulary,
    Vocabulary,
)
from npbench.training.gradients import OnNonFinite
from npbench.training.names import TrainingByNames


class EventForecast(NamedTuple):
    """The prediction after each event, and how likely the next event was where there is one."""

    mean: Float[Tensor, "batch events"]
    """The mean of τ; `median` is its median."""
    median: Float[Tensor, "batch events"]
    mark: Int[Tensor, "batch events"]
    """The most probable mark."""
    mark_probability: Float[Tensor, "batch intervals"]
    """The predicted probability of the true mark."""
    log_likelihood: Float[Tensor, "batch intervals"]
    """That of the true time and mark."""


class EventPrediction(TrainingByNames):
    """Train and evaluate an `EventModel` on batches of `EventSequences`.

    It minimises the negative log-likelihood per event, logged as `train/loss`, and logs all of
    `EventMetrics` for `val` and `test`: `val/nll`, by which the best checkpoint is chosen,
    `val/rmse`, …. Where the data module has a dictionary of test loaders, `test` logs each by its
    name, `test/nll/NAME`.

    Training from scratch begins with the units of the training data: the data module's
    `interval_statistics` go to `EventModel.set_time_scale`. A model that has units already keeps
    them: of a checkpoint that is resumed or tested, of one that is loaded and trained on other
    data, and those set by hand. Its weights mean something in these units only. Without a data
    module the units are the model's.

    Marks keep their meaning too: where the data module has a `vocabulary`, this module keeps that
    of its training in `vocabulary`, saves it in its checkpoints, and sets it in every data module
    that it is given later. Set it to None to count marks by the data's own again. `npbench.offers`
    lists all that a data module may offer.

    Args:
        model: an event model with as many marks as the data.
        optimizer: makes an optimiser of parameters; Adam by default.
        lr_scheduler: makes a scheduler of an optimiser; it steps at every training step, or after
            each validation if it is Lightning's `ReduceLROnPlateau`. By default `decay` says what
            the learning rate does.
        decay: how the learning rate falls to 0 over the run, "cosine" or "linear".
        warmup_steps: steps over which the learning rate rises linearly before either.
        on_nonfinite: what to do about a step whose gradients are not finite: "skip" it, with one
            warning, or "raise" an error. Weights are never made of it.
        lr_factors: what the learning rates of parts of the model are multiplied by, by their names.

    Raises:
        InputError: when a run starts, if the data module's `num_marks` is another.

    Example:
        >>> import lightning as L
        >>> from npbench.models import THP
        >>> module = EventPrediction(THP(num_marks=22))
        >>> trainer = L.Trainer(max_epochs=20)
        >>> trainer.fit(module, datamodule=EventSequenceDataModule(path))  # doctest: +SKIP
    """

    monitor: ClassVar[str] = "val/nll"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    metrics: ClassVar[type[EventMetrics]] = EventMetrics
    batch: ClassVar[type[EventSequences]] = EventSequences
    names: ClassVar[str] = "vocabulary"
    offer: ClassVar[type] = OffersVocabulary
    model: EventModel

    def __init__(
        self,
        model: EventModel,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        decay: Literal["cosine", "linear"] = "cosine",
        warmup_steps: int = 0,
        on_nonfinite: OnNonFinite = "skip",
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, lr_scheduler, decay, warmup_steps, on_nonfinite, lr_factors
        )
        self.vocabulary: Vocabulary | None = None

    def forward(self, sequences: EventSequences) -> NextEvent:
        return self.model(sequences)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit" or self._has_units():
            return
        # A checkpoint is restored after this, and brings its own units.
        if isinstance(self._data, OffersIntervalStatistics):
            statistics = self._data.interval_statistics
            self.model.set_time_scale(statistics.mean, statistics.log_mean, statistics.log_std)

    def training_step(self, sequences: EventSequences, batch_idx: int) -> Tensor:
        loss = self.model.loss(sequences)
        self.log("train/loss", loss, prog_bar=True, batch_size=sequences.batch_size)
        return loss

    def predict_step(self, sequences: EventSequences, batch_idx: int) -> EventForecast:
        after, padding = self.model(sequences), ~sequences.predicted
        ahead = after[:, :-1]
        log_mark = ahead.log_prob_mark(sequences.marks[:, 1:].masked_fill(padding, 0))
        return EventForecast(
            mean=after.mean,
            median=after.median,
            mark=after.mark_logits.argmax(dim=-1),
            mark_probability=log_mark.exp(),
            log_likelihood=ahead.log_prob_time(sequences.intervals) + log_mark,
        )

    def prediction_table(self, sequences: EventSequences, prediction: EventForecast) -> pa.Table:
        """One row for each predicted event, and one for what comes after the last of a sequence.

        Its columns are `sequence`, `event` (its index in the sequence, from 1, as the first of all
        is not predicted), its `time`, the `interval` τ since the event ahead with its predicted
        `interval_mean` and `interval_median`, its `mark` with the most probable one,
        `mark_predicted`, the true mark's `mark_probability`, and the `log_likelihood` of interval
        and mark. The row of what comes after the last event holds the prediction alone.
        """
        real = sequences.full_mask
        unknown = ~F.pad(sequences.predicted, (0, 1))[real].cpu().numpy()
        sequence, index = real.nonzero().T

        def column(values: Tensor) -> pa.Array:
            whole = values.shape == real.shape
            rows = (values if whole else F.pad(values, (0, 1)))[real]
            return pa.array(rows.detach().cpu().numpy(), mask=None if whole else unknown)

        columns = {
            "sequence": sequence.cpu().numpy(),
            "event": (index + 1).cpu().numpy(),
            "time": column(sequences.times[:, 1:]),
            "interval": column(sequences.intervals),
            "interval_mean": column(prediction.mean),
            "interval_median": column(prediction.median),
            "mark": column(sequences.marks[:, 1:]),
            "mark_predicted": column(prediction.mark),
            "mark_probability": column(prediction.mark_probability),
            "log_likelihood": column(prediction.log_likelihood),
        }
        return pa.table(columns)

    def _update_metrics(
        self, sequences: EventSequences, metrics: EventMetrics
    ) -> dict[str, Metric]:
        return metrics.update(sequences, self.model.evaluate(sequences))

    def _check_data(self) -> None:
        """Compare the numbers of marks."""
        data = self._data
        if isinstance(data, OffersNumMarks) and data.num_marks != self.model.num_marks:
            raise InputError(
                f"the data has {data.num_marks} marks, the model num_marks={self.model.num_marks}; "
                f"set the model's num_marks to {data.num_marks}"
            )

    def _has_units(self) -> bool:
        model = self.model
        return (model.time_scale, model.log_mean, model.log_std) != (1.0, 0.0, 1.0)
