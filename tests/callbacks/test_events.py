"""Figures of events show what the model says of them, and training does not notice."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import lightning as L
import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from datamodules import GPDataModule, SyntheticEventDataModule
from datamodules.events.hawkes import HawkesProcess
from datamodules.events.point_processes import PoissonProcess, RenewalProcess
from npbench import EventSequences
from npbench.callbacks import EventFigures, PeakMemoryProfiler
from npbench.callbacks.events import event_figure
from npbench.likelihoods import NextEvent
from npbench.models import THP, EventModel
from npbench.training import EventPrediction

HAWKES = HawkesProcess([0.2, 0.1], [[0.3, 0.2], [0.1, 0.4]], decay=1.0)


def thp(num_marks: int = 2, **arguments: float) -> THP:
    return THP(num_marks, dim_model=8, num_layers=1, dim_feedforward=8, num_components=3,
               **arguments)  # fmt: skip


def random_sequences(batch: int, events: int, num_marks: int = 2) -> EventSequences:
    times = torch.empty(batch, events, dtype=torch.float64).exponential_().cumsum(dim=-1)
    return EventSequences(times, torch.randint(num_marks, (batch, events)))


class Known(EventModel):
    """Says the same of every next event: τ log-normal around e² with so wide a log, and mark 1 with
    three times the probability of mark 0."""

    def __init__(self, log_std: float = 0.5) -> None:
        super().__init__(2, 8, 1, 1e-8)
        self.width = log_std

    def _predict(self, history: Tensor) -> NextEvent:
        one = history.new_ones(*history.shape[:-1], 1)
        logits = torch.cat([0 * one, np.log(3) * one], dim=-1)
        return NextEvent(0 * one, 2 * one, self.width * one, logits)

    def _histories(self, times: Tensor, marks: Tensor, mask: Tensor) -> Tensor:
        return times.new_zeros(*times.shape, 8)

    def _condition(self, *_: Tensor) -> None: ...

    def _update(self, *_: Tensor) -> None: ...

    def _history(self, *_: Tensor) -> None: ...


def panels(figure: Figure) -> dict[str, list[Axes]]:
    """By what stands at their vertical axes."""
    named: dict[str, list[Axes]] = {}
    for axis in figure.axes:
        named.setdefault(axis.get_ylabel(), []).append(axis)
    return named


def intensities(axis: Axes) -> dict[str, np.ndarray]:
    """(time, intensity) at the middle of each cell of each interval."""
    return {lines.get_label(): np.stack(lines.get_segments()) for lines in axis.collections[:-1]}


def renewals(count: int, log_std: float = 0.5) -> EventSequences:
    """Of the process that `Known` knows: intervals that are independent of each other."""
    tau = torch.distributions.LogNormal(2.0, log_std).sample([count, 30])
    marks = (torch.rand(count, 31) < 0.75).long()
    return EventSequences(torch.nn.functional.pad(tau.cumsum(dim=-1), (1, 0)), marks)


def test_the_intensity_is_the_density_over_the_survival() -> None:
    model, sequences = Known(), renewals(1)
    (axis,) = panels(event_figure(model, sequences))["intensity"]
    shown = intensities(axis)["model"]
    dist = model(sequences)[0, :-1][:, None]
    start = sequences.times[0, :-1, None].numpy()
    tau = torch.from_numpy(shown[..., 0] - start)
    expected = (dist.log_prob_time(tau) - dist.log_survival(tau)).exp()
    assert shown.shape == (30, 40, 2)
    assert (tau > 0).all()
    assert (tau < sequences.intervals[0, :, None]).all()
    # A mean over the cell, and its middle.
    np.testing.assert_allclose(shown[..., 1], expected, atol=2e-3)
    assert axis.get_xlim() == pytest.approx((0, float(sequences.times[0, -1])))


@pytest.mark.parametrize(
    "process",
    [PoissonProcess(rate=2.0), RenewalProcess("gamma", 1.0, 1.0), HAWKES],
    ids=lambda process: type(process).__name__,
)
def test_beside_it_stands_the_intensity_of_the_process(process: HawkesProcess) -> None:
    sequences = process.sample(2, num_events=40)
    figure = event_figure(thp(), sequences, process.compensator)
    for row, axis in zip(range(2), panels(figure)["intensity"], strict=True):
        shown = intensities(axis)
        assert list(shown) == ["model", "exact"]
        # The last 30 intervals, from their first event on.
        times, marks = sequences.times[row], sequences.marks[row]
        at = torch.from_numpy(shown["exact"][..., 0]) + times[9]
        if isinstance(process, HawkesProcess):
            age = at[..., None] - times
            alpha = process.excitation.sum(dim=-1)[marks]
            excited = (alpha * (-age).exp()).masked_fill(age <= 0, 0.0).sum(dim=-1)
            expected = process.baseline.sum() + excited
        else:
            expected = torch.full_like(at, 2.0 if isinstance(process, PoissonProcess) else 1.0)
        np.testing.assert_allclose(shown["exact"][..., 1], expected, rtol=2e-3)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["model", "exact"]


def test_marks_are_shown_with_the_probability_that_was_said_of_them() -> None:
    sequences = renewals(1)
    (axis,) = panels(event_figure(Known(), sequences))["mark"]
    mesh, events = axis.collections
    np.testing.assert_allclose(mesh.get_array(), np.repeat([[0.25], [0.75]], 30, axis=1), rtol=1e-6)
    times, marks = events.get_offsets().T
    np.testing.assert_allclose(times, sequences.times[0, 1:], rtol=1e-6)
    assert (marks == sequences.marks[0, 1:].numpy()).all()
    # Each probability until the event that it is for.
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], sequences.times[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "drawn"), [((5, 20, 1, 9), [20, 9]), ((1, 5, 1), [5]), ((2,), [2])]
)
def test_the_sequences_of_most_events_are_drawn(lengths: tuple[int, ...], drawn: list[int]) -> None:
    sequences = random_sequences(len(lengths), 20)
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    sequences = EventSequences(sequences.times, sequences.marks, mask)
    shown = [
        intensities(axis)["model"] for axis in panels(event_figure(thp(), sequences))["intensity"]
    ]
    assert [len(lines) + 1 for lines in shown] == drawn


def test_the_intensity_along_a_very_short_interval_is_as_exact_as_elsewhere() -> None:
    """In float32 it would be a difference of numbers that rounding has made the same."""
    model = thp()
    model.set_time_scale(1.0, 0.0, 3.0)
    sequences = EventSequences(1e-5 * torch.arange(4.0)[None], torch.zeros(1, 4).long())
    shown = [intensities(panels(event_figure(of_type, sequences))["intensity"][0])["model"]
             for of_type in (model, deepcopy(model).double())]  # fmt: skip
    np.testing.assert_allclose(*shown, rtol=1e-3)


def test_intervals_are_shown_with_the_median_and_the_central_half() -> None:
    sequences = renewals(1)
    (axis,) = panels(event_figure(Known(), sequences))["predicted interval"]
    median = axis.lines[0]
    np.testing.assert_allclose(median.get_xdata(), sequences.intervals[0], rtol=1e-6)
    np.testing.assert_allclose(median.get_ydata(), np.exp(2.0), rtol=1e-6)
    for bar, tau in zip(axis.collections[0].get_segments(), sequences.intervals[0], strict=True):
        np.testing.assert_allclose(bar[:, 0], float(tau), rtol=1e-6)
        np.testing.assert_allclose(np.log(bar[:, 1]), 2 + 0.5 * 0.67449 * np.array([-1, 1]), 1e-4)
    assert axis.get_xscale() == axis.get_yscale() == "log"


def test_of_many_intervals_some_are_shown_and_none_of_no_length() -> None:
    sequences = renewals(40)
    times = sequences.times.clone()
    times[:, 3] = times[:, 2]
    figure = event_figure(Known(), EventSequences(times, sequences.marks))
    (axis,) = panels(figure)["predicted interval"]
    tau = axis.lines[0].get_xdata()
    assert len(tau) == 250
    assert tau.min() > 1e-3
    assert "1,200 events" in panels(figure)["quantile of u = F(τ)"][0].get_title()


@pytest.mark.parametrize(("log_std", "share"), [(0.5, 50), (0.25, 82), (1.0, 26)])
def test_the_share_in_the_central_half_tells_calibration(log_std: float, share: int) -> None:
    figure = event_figure(Known(), renewals(200, log_std))
    title = panels(figure)["predicted interval"][0].get_title()
    assert title.endswith("% of events in the central 50 %")
    assert int(title.split()[0]) == pytest.approx(share, abs=2)


def test_quantiles_of_a_right_model_are_the_uniform_ones() -> None:
    (axis,) = panels(event_figure(Known(), renewals(200)))["quantile of u = F(τ)"]
    _, quantiles = axis.lines
    assert len(quantiles.get_xdata()) == 6000
    np.testing.assert_allclose(quantiles.get_xdata(), (np.arange(6000) + 0.5) / 6000)
    distance = np.abs(quantiles.get_ydata() - quantiles.get_xdata()).max()
    assert distance < 1.36 / 6000**0.5
    title, _ = axis.get_title().splitlines()
    shown = float(title.removeprefix("KS distance of 6,000 events: "))
    assert shown == pytest.approx(distance, abs=1e-3)
    (band,) = axis.collections
    heights = band.get_paths()[0].get_extents().intervaly
    assert heights == pytest.approx((-1.358 / 6000**0.5, 1 + 1.358 / 6000**0.5))


@pytest.mark.parametrize("num_marks", [1, 2, 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_marks_and_type_can_be_drawn(num_marks: int, dtype: torch.dtype) -> None:
    sequences = random_sequences(3, 6, num_marks)
    figure = event_figure(thp(num_marks).to(dtype), sequences)
    assert len(panels(figure).get("mark", [])) == (0 if num_marks == 1 else 2)
    figure.canvas.draw()


def test_events_have_the_color_of_their_mark() -> None:
    sequences = EventSequences(torch.arange(13.0)[None], torch.arange(13)[None])
    figure = event_figure(thp(13), sequences)
    ticks = panels(figure)["intensity"][0].collections[-1].get_colors()
    points = panels(figure)["mark"][0].collections[1].get_facecolors()
    assert len(np.unique(ticks, axis=0)) == 13
    np.testing.assert_array_equal(ticks[1:], points)


def test_what_lies_behind_the_events_is_not_drawn() -> None:
    """Padding of any length and content, as with the sequence alone."""
    alone = random_sequences(1, 8)
    padded = EventSequences(
        torch.cat([alone.times, torch.full((1, 5), torch.nan)], dim=-1),
        torch.cat([alone.marks, torch.full((1, 5), 7)], dim=-1),
        torch.arange(13)[None] < 8,
    )
    model = thp()
    for mine, theirs in zip(
        event_figure(model, padded).axes, event_figure(model, alone).axes, strict=True
    ):
        assert mine.get_title() == theirs.get_title()
        for first, second in zip(mine.lines, theirs.lines, strict=True):
            np.testing.assert_allclose(first.get_xydata(), second.get_xydata(), rtol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("events", [2, 5])
def test_events_that_come_at_once_can_be_drawn(events: int) -> None:
    sequences = EventSequences(torch.ones(2, events), torch.zeros(2, events).long())
    figure = event_figure(thp(), sequences, HAWKES.compensator)
    for axis in panels(figure)["intensity"]:
        assert all((lines[..., 1] == 0).all() for lines in intensities(axis).values())
    figure.canvas.draw()


def test_there_must_be_something_to_predict() -> None:
    mask = torch.tensor([[True, False]])
    sequences = EventSequences(torch.zeros(1, 2), torch.zeros(1, 2).long(), mask)
    with pytest.raises(ValueError, match="no event to predict: each needs two at least"):
        event_figure(thp(), sequences)


def test_drawing_leaves_the_model_and_the_random_state_alone() -> None:
    model = thp(dropout=0.5).train()
    model.layers.eval()
    model.loss(random_sequences(2, 5)).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    sequences = random_sequences(2, 5)
    state = torch.random.get_rng_state()
    event_figure(model, sequences)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not model.layers.training
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def data(**arguments: int) -> SyntheticEventDataModule:
    sizes = {"num_events": 12, "num_train": 16, "num_val": 10, "num_test": 4, "batch_size": 4}
    return SyntheticEventDataModule(HAWKES, **(sizes | arguments))


def fit(path: Path, callbacks: Sequence[L.Callback]) -> Tensor:
    torch.manual_seed(0)
    # Dropout draws from torch's generator at every step: whoever disturbs it shows.
    module = EventPrediction(thp(dropout=0.2))
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[*callbacks], log_every_n_steps=1,
        logger=[TensorBoardLogger(path, name="", version=""), CSVLogger(path, name="", version="")],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, data())
    return torch.cat([parameter.flatten() for parameter in module.parameters()])


@pytest.mark.slow
def test_figures_and_profiles_change_nothing_in_training(tmp_path: Path) -> None:
    without = fit(tmp_path / "without", [])
    callbacks = [EventFigures(), PeakMemoryProfiler([3, 9], phases=["condition", "update"])]
    assert torch.equal(fit(tmp_path / "with", callbacks), without)
    files = sorted((tmp_path / "with/figures").iterdir())
    assert [file.name for file in files] == ["step-000004.png", "step-000008.png"]
    assert matplotlib.image.imread(files[0]).std() > 0.05
    events = EventAccumulator(str(tmp_path / "with"))
    events.Reload()
    assert [image.step for image in events.Images("events")] == [4, 8]
    assert [scalar.step for scalar in events.Scalars("memory/update")] == [3, 9, 3, 9]


def test_figures_can_be_drawn_now_and_then(tmp_path: Path) -> None:
    fit(tmp_path, [EventFigures(every_n_validations=2)])
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["step-000008.png"]


def test_the_data_module_says_what_to_draw() -> None:
    module, figures = data(num_val=130, num_test=5), EventFigures()
    trainer = L.Trainer(accelerator="cpu", logger=False)
    trainer.datamodule = module  # as `fit` does
    sequences = module.figure_sequences()
    assert sequences.batch_size == 44  # every third
    assert module.figure_sequences(200).batch_size == 130
    figure = figures.figure(trainer, thp())
    assert f"{44 * 11} events" in figure.axes[-1].get_title()
    assert list(intensities(figure.axes[0])) == ["model", "exact"]
    trainer.testing = True
    figure = figures.figure(trainer, thp())
    assert f"{5 * 11} events" in figure.axes[-1].get_title()


def test_where_nothing_is_predicted_nothing_is_drawn(tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=CSVLogger(tmp_path, name="", version=""))
    trainer.datamodule = data()
    alone = random_sequences(2, 1)
    trainer.datamodule.figure_sequences = lambda test: alone
    assert EventFigures().figure(trainer, thp()) is None
    EventFigures().on_test_end(trainer, EventPrediction(thp()))
    assert not (tmp_path / "figures").exists()


def test_figures_need_a_data_module_that_has_them() -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False)
    trainer.datamodule = GPDataModule()
    with pytest.raises(ValueError, match=r"needs a data module with figure_sequences; GPDataM"):
        EventFigures().figure(trainer, thp())


def test_every_n_validations_is_1_or_more() -> None:
    with pytest.raises(ValueError, match="every_n_validations=0 must be 1 or more"):
        EventFigures(every_n_validations=0)


def test_marks_and_times_have_their_names() -> None:
    names = ["a question that was good", "an answer"]
    figure = event_figure(Known(), renewals(1), marks=names, time_name="days")
    labels = {axis.get_xlabel() for axis in figure.axes} | {a.get_ylabel() for a in figure.axes}
    assert {"time (days)", "true interval (days)", "events per day"} <= labels
    (axis,) = panels(figure)["mark"]
    figure.draw_without_rendering()
    shown = [text.get_text() for text in axis.get_yticklabels() if text.get_text()]
    assert shown == ["a question that ", "an answer"]


def test_many_marks_have_some_of_their_names() -> None:
    model = thp(40)
    sequences = EventSequences(torch.rand(1, 9).cumsum(-1), torch.randint(40, (1, 9)))
    figure = event_figure(model, sequences, marks=[f"mark {i}" for i in range(40)])
    figure.draw_without_rendering()
    (axis,) = panels(figure)["mark"]
    shown = {text.get_text() for text in axis.get_yticklabels()} - {""}
    assert 2 <= len(shown) <= 12
    assert shown <= {f"mark {i}" for i in range(40)}
