"""Figures of what a neural process predicts, beside what is true."""

from collections.abc import Sequence

import lightning as L
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from npbench.callbacks.calibration import pit_figure
from npbench.callbacks.class_maps import class_map_figure, evaluate
from npbench.callbacks.maps import map_figure
from npbench.callbacks.recording import FigureCallback
from npbench.colors import EXACT, colors_of
from npbench.errors import InputError
from npbench.metrics import RegressionMetrics
from npbench.models.contracts.process import NeuralProcess
from npbench.offers import OffersClassNames, OffersFigureTask
from npbench.task import Task


class PosteriorFigures(FigureCallback):
    """After validation, draws the model's prediction beside the exact Gaussian process's.

    There is a row for each task: on the left the model's mean and its central 50 and 95 % bands, on
    the right those of the process that made the task. Functions of two inputs are drawn as maps,
    and so are the probabilities of classes. The figure goes to TensorBoard, and to
    `figures/step-….png` in the run's folder. The data module says what to draw: see
    `npbench.offers.OffersFigureTask`. After the test it draws `figures/test-pit.png` too: whether
    the predicted probabilities of all test targets are right (`pit_figure`).

    Args:
        num_tasks: rows of the figure.
        every_n_validations: how often to draw.
    """

    def __init__(self, num_tasks: int = 3, every_n_validations: int = 1) -> None:
        if num_tasks < 1 or every_n_validations < 1:
            raise InputError(
                f"num_tasks={num_tasks} and every_n_validations={every_n_validations} must be 1 "
                f"or more"
            )
        super().__init__("posterior", every_n_validations)
        self.num_tasks = num_tasks

    def check(self, trainer: L.Trainer) -> None:
        self._data_module(trainer, OffersFigureTask)

    def figure(self, trainer: L.Trainer, model: NeuralProcess) -> Figure:
        data = self._data_module(trainer, OffersFigureTask)
        tasks = [data.figure_task(index) for index in range(self.num_tasks)]
        device = next(model.parameters()).device
        names = data.class_names if isinstance(data, OffersClassNames) else None
        return posterior_figure([model], [task.to(device) for task in tasks], names)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        tested = pl_module.named_test_metrics or {"test": pl_module.test_metrics}
        # All processes take part in adding their counts up.
        counts = {
            name: metrics.pit.compute()
            for name, metrics in tested.items()
            if isinstance(metrics, RegressionMetrics)
        }
        if counts:
            self._write(trainer, "test-pit", "calibration", lambda: pit_figure(counts))


def posterior_figure(
    models: Sequence[NeuralProcess],
    tasks: Sequence[Task],
    class_names: Sequence[str] | None = None,
) -> Figure:
    """A row for each task (the first of each batch), and a column for each model.

    The last column is the exact answer, where the tasks have it. The truth is the function without
    the noise of observations, where it is known. Functions of several inputs are drawn as maps, by
    `npbench.callbacks.maps.map_figure`, and classes, which have names, by
    `npbench.callbacks.class_maps.class_map_figure`.

    It leaves the models and torch's random state as they were.
    """
    evaluations = [[evaluate(model, task) for model in models] for task in tasks]
    if models[0].predicts_classes:
        return class_map_figure(models, tasks, evaluations, class_names)
    if tasks[0].xt.shape[-1] > 1:
        return map_figure(models, tasks, evaluations)
    colors = colors_of(type(model).__name__ for model in models)
    columns = len(models) + any(task.exact is not None for task in tasks)
    size = (5.2 * columns, 2.6 * len(tasks) + 0.3)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(len(tasks), columns, squeeze=False, sharex=True, sharey="row")
    for row, task, of_models in zip(axes, tasks, evaluations):
        for axis, model, evaluation in zip(row, models, of_models):
            name = type(model).__name__
            title = _title(name, evaluation.log_likelihood)
            _panel(axis, task, evaluation.mean, evaluation.std, colors[name], title)
        if task.exact is not None:
            title = _title("Exact", task.exact.log_likelihood)
            _panel(row[-1], task, task.exact.mean, task.exact.std, EXACT, title)
    # Outside of the axes, no line crosses it; its colours are those of the first column.
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=5,
                  fontsize=8, frameon=False)  # fmt: skip
    for axis in axes[-1]:
        axis.set_xlabel(_names(models, tasks[-1])[0])
    for axis, task in zip(axes[:, 0], tasks):
        axis.set_ylabel(_names(models, task)[1])
    return figure


def _names(models: Sequence[NeuralProcess], task: Task) -> tuple[str, str]:
    """What the input and the output are called: as in the data, where a model has its units."""
    scaling = models[0].of_task(task).scaling
    return ("x", "") if scaling is None else (scaling.x_names[0], scaling.y_names[0])


def _title(name: str, log_likelihood: Tensor) -> str:
    return f"{name}: {float(log_likelihood[0]):.2f} nats per target"


def _panel(axis: Axes, task: Task, mean: Tensor, std: Tensor, color: str, title: str) -> None:
    truth = task.yt if task.truth is None else task.truth
    xc, yc, x, y, mean, std = (
        values[0, :, 0].cpu().numpy() for values in (task.xc, task.yc, task.xt, truth, mean, std)
    )
    for width, alpha, label in ((1.96, 0.15, "95 %"), (0.674, 0.3, "50 %")):
        axis.fill_between(
            x, mean - width * std, mean + width * std, color=color, alpha=alpha, lw=0, label=label
        )
    axis.plot(x, mean, color=color, lw=1.5, label="mean")
    label = "observations" if task.truth is None else "truth"
    axis.plot(x, y, color="black", lw=0.8, ls=":", label=label)
    axis.plot(xc, yc, "k.", ms=6, label="context")
    low, high = min(y.min(), yc.min()), max(y.max(), yc.max())
    margin = 0.35 * (high - low) + 0.1
    axis.set_ylim(low - margin, high + margin)
    axis.margins(x=0)
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
