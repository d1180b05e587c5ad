"""Figures of what an event model predicts, beside the events that came."""

from collections.abc import Callable, Sequence

import lightning as L
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from npbench.callbacks.recording import FigureCallback, undisturbed
from npbench.colors import EXACT, colors_of
from npbench.errors import InputError
from npbench.events import EventSequences
from npbench.likelihoods import NextEvent
from npbench.metrics import KolmogorovSmirnov
from npbench.models import EventModel
from npbench.offers import (
    KnownProcess,
    OffersFigureSequences,
    OffersProcess,
    OffersTimeName,
    OffersVocabulary,
)

Compensator = Callable[[EventSequences], Tensor]

_MOST_SEQUENCES = 2
# The intensity is drawn along so many intervals of a sequence, and cells of each.
_MOST_INTERVALS, _CELLS = 30, 40
_MOST_POINTS = 250
# So many marks have all their names on the axis.
_MOST_NAMES = 12
# The Kolmogorov–Smirnov distance of n uniform draws is below this over √n in 95 of 100 cases.
_KS_95 = 1.358


class EventFigures(FigureCallback):
    """After validation, draws the model's intensity, its intervals and their calibration.

    `event_figure` goes to TensorBoard, and to `figures/step-….png` in the run's folder. The data
    module says what to draw: see `npbench.offers.OffersFigureSequences`. If it offers
    `OffersVocabulary` and `OffersTimeName`, marks and the unit of time have their names. If it
    offers the process that made the events (`OffersProcess`), its intensity is drawn too. Where the
    sequences have no event to predict, nothing is drawn.

    Args:
        every_n_validations: how often to draw.
    """

    def __init__(self, every_n_validations: int = 1) -> None:
        if every_n_validations < 1:
            raise InputError(f"every_n_validations={every_n_validations} must be 1 or more")
        super().__init__("events", every_n_validations)

    def check(self, trainer: L.Trainer) -> None:
        self._data_module(trainer, OffersFigureSequences)

    def figure(self, trainer: L.Trainer, model: EventModel) -> Figure | None:
        data = self._data_module(trainer, OffersFigureSequences)
        sequences = data.figure_sequences(test=trainer.testing)
        if not sequences.num_predicted:
            return None
        known = isinstance(data, OffersProcess) and isinstance(data.process, KnownProcess)
        device = next(model.parameters()).device
        return event_figure(
            model,
            sequences.to(device),
            data.process.compensator if known else None,
            data.vocabulary if isinstance(data, OffersVocabulary) else None,
            data.time_name if isinstance(data, OffersTimeName) else None,
        )


def event_figure(
    model: EventModel,
    sequences: EventSequences,
    compensator: Compensator | None = None,
    marks: Sequence[object] | None = None,
    time_name: str | None = None,
) -> Figure:
    r"""What a model predicts of sequences, in three ways.

    - On the left, along the longest two sequences, stands the intensity of all marks together,
      $\lambda(t) = p(\tau) / P(\text{later than } \tau)$, with the events; below, grey levels show
      the predicted probability of each mark, with the mark that came at the end of each interval.
    - On the right, above, stand the median and the central half of each predicted interval against
      the true one.
    - Below it are the quantiles of $u = F(\tau)$, uniform if the model is right, with their
      Kolmogorov–Smirnov distance, and the band in which 95 of 100 right models stay.

    It leaves the model and torch's random state as they were.

    Args:
        model: an event model with the sequences' marks, on their device.
        sequences: the events, some of which are predicted.
        compensator: that of the process that made the sequences, if it is known: from sequences to
            the integral of the intensity over each of their intervals.
        marks: what each mark is called; by default its number.
        time_name: what a unit of time is called, such as "days".

    Raises:
        InputError: if there is no event to predict.

    Example:
        >>> from npbench.models import THP
        >>> sequences = EventSequences(torch.rand(4, 9).cumsum(-1), torch.randint(3, (4, 9)))
        >>> figure = event_figure(THP(num_marks=3), sequences)
        >>> figure.savefig("events.png")  # doctest: +SKIP
    """
    with undisturbed(model, sequences.times.device):
        # Float64 keeps the digits of differences of small numbers.
        dist = model.evaluate(sequences).dist.to("cpu").map(Tensor.double)
    sequences = sequences.to("cpu")
    if not sequences.num_predicted:
        raise InputError("the sequences have no event to predict: each needs two at least")
    lengths = sequences.predicted.sum(dim=-1)
    rows = [row for row in lengths.argsort(descending=True)[:_MOST_SEQUENCES] if lengths[row]]
    tau, predicted = sequences.intervals.double(), sequences.predicted
    u = dist.cdf(tau)[predicted].clamp(max=1.0)

    figure = Figure(figsize=(13, 6.4), layout="constrained", dpi=110)
    left, right = figure.subfigures(1, 2, width_ratios=(2.3, 1))
    color = colors_of([type(model).__name__])[type(model).__name__]
    unit = f" ({time_name})" if time_name else ""
    panels = 1 if model.num_marks == 1 else 2
    heights = (2.0, 1.0)[:panels] * len(rows)
    axes = left.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for top, row in zip(axes[::panels], rows):
        _intensity_panel(top, dist, sequences, int(row), model.num_marks, compensator, color)
        top.set_ylabel(f"events per {time_name.removesuffix('s')}" if time_name else "intensity",
                       fontsize=8)  # fmt: skip
    for bottom, row in zip(axes[1::panels] if panels == 2 else [], rows):
        _marks_panel(bottom, dist, sequences, int(row), model.num_marks)
        if marks is not None:
            _name_marks(bottom, marks)
    axes[0].set_title(f"{type(model).__name__}: intensity and events", fontsize=9)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=7, frameon=False, ncols=2)
    axes[-1].set_xlabel(f"time{unit}", fontsize=8)
    above, below = right.subplots(2)
    _intervals_panel(above, dist[predicted], tau[predicted], u, color, unit)
    _calibration_panel(below, u, color)
    for axis in figure.axes:
        axis.tick_params(which="both", labelsize=8)
        for line in (axis.xaxis, axis.yaxis):
            line.get_offset_text().set_fontsize(8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _stretch(sequences: EventSequences, row: int) -> slice:
    """The last intervals of a sequence, whose histories are the longest."""
    stop = int(sequences.predicted[row].sum())
    return slice(max(0, stop - _MOST_INTERVALS), stop)


def _since_stretch(sequences: EventSequences, row: int, stretch: slice) -> np.ndarray:
    """Times of the events around the intervals, from the first on."""
    times = sequences.times[row, stretch.start : stretch.stop + 1].double()
    return (times - times[0]).numpy()


def _colors(num_marks: int, marks: Tensor) -> np.ndarray:
    if num_marks <= 10:
        return colormaps["tab10"](marks.numpy())
    return colormaps["turbo"]((marks.numpy() + 0.5) / num_marks)


def _intensity_panel(
    axis: Axes,
    dist: NextEvent,
    sequences: EventSequences,
    row: int,
    num_marks: int,
    compensator: Compensator | None,
    color: str,
) -> None:
    stretch = _stretch(sequences, row)
    times = _since_stretch(sequences, row, stretch)
    tau = torch.linspace(0, 1, _CELLS + 1) * sequences.intervals[row, stretch, None].double()
    compensators = {"model": (-dist[row, stretch][:, None].log_survival(tau), color, "-")}
    if compensator is not None:
        exact = _exact_compensator(compensator, sequences, row, stretch, tau)
        compensators["exact"] = exact, EXACT, "--"
    centers = torch.from_numpy(times[:-1, None]) + (tau[:, 1:] + tau[:, :-1]) / 2
    highest = 0.0
    for name, (integral, line_color, style) in compensators.items():
        # The mean over each cell; simultaneous events have no time between them.
        intensity = (integral.diff(dim=-1) / tau.diff(dim=-1)).nan_to_num(posinf=0.0)
        highest = max(highest, 1.15 * float(intensity.quantile(0.995)))
        lines = torch.stack([centers, intensity], dim=-1).numpy()
        axis.add_collection(
            LineCollection(lines, colors=line_color, linestyles=style, lw=1.3, label=name)
        )
    colors = _colors(num_marks, sequences.marks[row, stretch.start : stretch.stop + 1])
    axis.vlines(times, -0.1, 0, colors=colors, lw=1.6, transform=axis.get_xaxis_transform(),
                clip_on=False)  # fmt: skip
    axis.set_xlim(0, times[-1] or 1.0)
    axis.set_ylim(0, highest or 1.0)
    axis.tick_params("x", bottom=False, labelbottom=num_marks == 1, pad=14)


def _exact_compensator(
    compensator: Compensator, sequences: EventSequences, row: int, stretch: slice, tau: Tensor
) -> Tensor:
    """Sequences that end τ after each event of the stretch, as if the next event came then."""
    integrals = []
    for index, until in zip(range(stretch.start, stretch.stop), tau):
        history, marks = (z[row, : index + 1].repeat(len(until), 1)
                          for z in (sequences.times, sequences.marks))  # fmt: skip
        times = torch.cat([history.double(), history[:, -1:] + until[:, None]], dim=-1)
        marks = torch.cat([marks, marks[:, -1:]], dim=-1)
        integrals.append(compensator(EventSequences(times, marks))[:, -1])
    return torch.stack(integrals)


def _marks_panel(
    axis: Axes, dist: NextEvent, sequences: EventSequences, row: int, num_marks: int
) -> None:
    stretch = _stretch(sequences, row)
    times = _since_stretch(sequences, row, stretch)
    marks = sequences.marks[row, stretch.start + 1 : stretch.stop + 1]
    axis.pcolormesh(times, np.arange(num_marks + 1) - 0.5, dist[row, stretch].mark_probs.mT,
                    cmap="Greys", vmin=0, vmax=1, rasterized=True)  # fmt: skip
    axis.scatter(times[1:], marks, s=18, c=_colors(num_marks, marks), ec="white", lw=0.5, zorder=3,
                 clip_on=False)  # fmt: skip
    axis.set_xlim(0, times[-1] or 1.0)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axis.set_ylabel("mark", fontsize=8)


def _name_marks(axis: Axes, marks: Sequence[object]) -> None:
    """The names of marks, cut short, in place of their numbers."""

    def name(value: object, _: object) -> str:
        index = round(float(value))
        return f"{marks[index]!s:.16}" if index == value and 0 <= index < len(marks) else ""

    if len(marks) <= _MOST_NAMES:
        axis.set_yticks(range(len(marks)))
    axis.yaxis.set_major_formatter(FuncFormatter(name))


def _intervals_panel(
    axis: Axes, dist: NextEvent, tau: Tensor, u: Tensor, color: str, unit: str
) -> None:
    chosen = (tau > dist.floor).nonzero()[:, 0]
    places = torch.linspace(0, max(0, len(chosen) - 1), min(len(chosen), _MOST_POINTS)).long()
    chosen = chosen[places]
    dist, tau = dist[chosen], tau[chosen]
    low, median, high = (dist.quantile(level) for level in (0.25, 0.5, 0.75))
    axis.vlines(tau, low, high, colors=color, alpha=0.25, lw=1)
    axis.plot(tau, median, ".", color=color, ms=3.5)
    axis.axline((1, 1), slope=1, color="black", lw=0.8, ls=":")
    axis.set_xscale("log")
    axis.set_yscale("log")
    share = ((u >= 0.25) & (u <= 0.75)).double().mean()
    axis.set_title(f"{100 * share:.0f} % of events in the central 50 %", fontsize=9)
    axis.set_xlabel(f"true interval{unit}", fontsize=8)
    axis.set_ylabel(f"predicted interval{unit}", fontsize=8)


def _calibration_panel(axis: Axes, u: Tensor, color: str) -> None:
    levels = (torch.arange(len(u)) + 0.5) / len(u)
    # One process draws, and must not wait for the others.
    metric = KolmogorovSmirnov(sync_on_compute=False)
    metric.update(u)
    uniform, band = np.linspace(0, 1, 101), _KS_95 / len(u) ** 0.5
    axis.fill_between(uniform, uniform - band, uniform + band, color="black", alpha=0.1, lw=0)
    axis.plot(uniform, uniform, color="black", lw=0.8, ls=":")
    axis.plot(levels, u.sort().values, color=color, lw=1.5)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_aspect("equal")
    axis.set_title(
        f"KS distance of {len(u):,} events: {metric.compute():.3f}\n(grey: 95 of 100 right models)",
        fontsize=9,
    )
    axis.set_xlabel("uniform quantile", fontsize=8)
    axis.set_ylabel("quantile of u = F(τ)", fontsize=8)
