"""Metrics of predictions of the next event."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.utilities import dim_zero_cat

from npbench.events import EventSequences
from npbench.metrics.uniformity import KolmogorovSmirnov
from npbench.models.contracts.events import EventEvaluation


class PerEvent(Metric):
    """A sum over all that was predicted, divided by the number of predicted events.

    Example:
        >>> metric = PerEvent()
        >>> metric.update(torch.tensor([1.0, 2.0]), num_events=2)
        >>> metric.update(torch.tensor([6.0]), num_events=1)
        >>> metric.compute()
        tensor(3., dtype=torch.float64)
    """

    full_state_update = False
    total: Tensor
    num_events: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_events", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor, num_events: int) -> None:
        self.total += values.double().sum()
        self.num_events += num_events

    def compute(self) -> Tensor:
        return self.total / self.num_events


class MedianAbsoluteError(Metric):
    """The median of |prediction − truth|; for an even number, the mean of the two in the middle.

    It keeps every error, which takes four bytes an event.

    Example:
        >>> metric = MedianAbsoluteError()
        >>> metric.update(torch.tensor([1.0, 2.0, 9.0]), torch.zeros(3))
        >>> metric.compute()
        tensor(2.)
    """

    full_state_update = False
    errors: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("errors", [], dist_reduce_fx="cat")

    def update(self, prediction: Float[Tensor, "events"], truth: Float[Tensor, "events"]) -> None:
        self.errors.append((prediction.double() - truth).abs().float())

    def compute(self) -> Tensor:
        # The errors are a list until those of all processes have been gathered.
        errors = dim_zero_cat(self.errors) if len(self.errors) else torch.tensor(torch.nan)
        # Torch gives the lower of the two numbers in the middle.
        return (errors.median() - errors.neg().median()) / 2


class EventMetrics(nn.Module):
    """All that is measured of a model on event sequences, by name.

    Numbers are per predicted event, without padding:

    - `nll`, the negative log-likelihood in nats, where times have the data's own unit. It is the
      sum of `nll_time`, `nll_mark` and, where the ends of the sequences are known, `nll_survival`,
      which says that no event came between the last and the end;
    - `rmse` of the mean of τ, which follows the rarest, longest intervals; infinite if one of the
      means exceeds all numbers;
    - `rmse_median` and `median_absolute_error` of the median of τ;
    - `accuracy` of the most probable mark;
    - `ks`, the Kolmogorov–Smirnov distance of F(τ) from uniform: how far the times are from
      calibrated;
    - `gap`, where the sequences know their exact log-likelihood: how many nats an event, its time
      and its mark, the model loses against the process that made them.
    """

    def __init__(self) -> None:
        super().__init__()
        names = ("nll", "nll_time", "nll_mark", "nll_survival", "accuracy", "gap")
        self.per_event = nn.ModuleDict({name: PerEvent() for name in names})
        # The square of a mean may exceed what float32 holds.
        self.rmse, self.rmse_median = (
            MeanSquaredError(squared=False).set_dtype(torch.float64) for _ in range(2)
        )
        self.median_absolute_error = MedianAbsoluteError()
        self.ks = KolmogorovSmirnov()

    def update(self, sequences: EventSequences, evaluation: EventEvaluation) -> dict[str, Metric]:
        """Add a batch; returns the metrics that apply to it.

        Args:
            sequences: the events, all but the first of which were predicted.
            evaluation: what the model says of them.
        """
        predicted = sequences.predicted
        dist = evaluation.dist[predicted]
        tau, marks = sequences.intervals[predicted].double(), sequences.marks[:, 1:][predicted]
        nll = {"nll_time": -evaluation.log_prob_time, "nll_mark": -evaluation.log_prob_mark}
        if sequences.end is not None:
            nll["nll_survival"] = -evaluation.log_survival
        values = {"nll": torch.cat([part.flatten() for part in nll.values()]), **nll}
        values["accuracy"] = dist.mark_logits.argmax(dim=-1) == marks
        if sequences.exact is not None:
            values["gap"] = (sequences.exact - evaluation.log_prob)[predicted]
        for name, value in values.items():
            self.per_event[name].update(value, len(tau))
        median = dist.median.double()
        self.rmse.update(dist.mean.double(), tau)
        self.rmse_median.update(median, tau)
        self.median_absolute_error.update(median, tau)
        self.ks.update(dist.cdf(tau))
        by_name = {name: self.per_event[name] for name in values}
        others = ("rmse", "rmse_median", "median_absolute_error", "ks")
        return by_name | {name: getattr(self, name) for name in others}
