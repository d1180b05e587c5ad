"""Maps of what neural processes predict of functions of two inputs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from npbench.colors import EXACT, colors_of
from npbench.models.contracts.process import Evaluation, NeuralProcess
from npbench.task import Task

_VALUES, _STDS = "viridis", "magma"


def map_figure(
    models: Sequence[NeuralProcess], tasks: Sequence[Task], evaluations: Sequence[list[Evaluation]]
) -> Figure:
    """A row for each task (the first of each batch): maps over its first two inputs.

    The first map is the truth, with the values of the context in circles. Then come the mean and
    the standard deviation of each model, and of the exact answer where it is known; points mark the
    context. All maps of a row that show values share their colours, and so do all of standard
    deviations. Of more than two inputs the maps are a slice, and the context, which does not lie in
    it, is left out.

    Args:
        models: whose predictions are drawn.
        tasks: with targets that lie densely over the first two inputs.
        evaluations: those of each task by all models.
    """
    has_exact = any(task.exact is not None for task in tasks)
    columns = 1 + 2 * (len(models) + has_exact)
    size = (2.3 * columns + 1.6, 2.5 * len(tasks) + 0.2)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(len(tasks), columns, squeeze=False, sharex=True, sharey=True)
    names = [type(model).__name__ for model in models]
    colors = colors_of(names)
    for row, task, of_models in zip(axes, tasks, evaluations):
        answers = [
            (name, colors[name], each.mean, each.std, each.log_likelihood)
            for name, each in zip(names, of_models)
        ]
        if (exact := task.exact) is not None:
            answers.append(("Exact", EXACT, exact.mean, exact.std, exact.log_likelihood))
        truth = task.yt if task.truth is None else task.truth
        assert truth is not None  # `evaluate` has asked for it
        known = [_first(truth), _first(task.yc)]
        values = Normalize(min(z.min() for z in known), max(z.max() for z in known))
        stds = Normalize(0.0, max(_first(std).max() for _, _, _, std, _ in answers))
        _map(row[0], task, _first(truth), values, _VALUES)
        row[0].set_title("truth" if task.truth is not None else "observations", fontsize=9)
        if task.xc.shape[-1] == 2:
            row[0].scatter(*_first_points(task.xc), c=_first(task.yc), norm=values, cmap=_VALUES,
                           ec="black", lw=0.6, s=16)  # fmt: skip
        for index, (name, color, mean, std, log_likelihood) in enumerate(answers):
            left, right = row[1 + 2 * index], row[2 + 2 * index]
            _map(left, task, _first(mean), values, _VALUES, marks_context=True)
            _map(right, task, _first(std), stds, _STDS, marks_context=True)
            nats = float(log_likelihood[0])
            left.set_title(f"{name}: {nats:.2f} nats per target", fontsize=9, color=color)
            right.set_title("standard deviation", fontsize=9, color=color)
        for norm, cmap, label in ((values, _VALUES, "value"), (stds, _STDS, "standard deviation")):
            bar = figure.colorbar(ScalarMappable(norm, cmap), ax=row, pad=0.01, aspect=15)
            bar.set_label(label, fontsize=8)
            bar.ax.tick_params(labelsize=7)
    across, up, *_ = models[0].columns[0]
    for axis in axes[-1]:
        axis.set_xlabel(across, fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel(up, fontsize=8)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
    return figure


def _map(
    axis: Axes,
    task: Task,
    values: np.ndarray,
    norm: Normalize,
    cmap: str,
    marks_context: bool = False,
) -> None:
    x = _first_points(task.xt)
    axis.tripcolor(x[0], x[1], values, shading="gouraud", norm=norm, cmap=cmap, rasterized=True)
    if marks_context and task.xc.shape[-1] == 2:
        axis.plot(*_first_points(task.xc), "o", ms=2.5, color="black", mec="white", mew=0.4)
    for limit, line in ((axis.set_xlim, x[0]), (axis.set_ylim, x[1])):
        limit(line.min(), line.max())
    axis.set_aspect("equal")


def _first(values: Tensor) -> np.ndarray:
    """The first output of the first task."""
    return values[0, :, 0].cpu().numpy()


def _first_points(x: Tensor) -> np.ndarray:
    """The first two inputs of the first task, [2, points]."""
    return x[0, :, :2].T.cpu().numpy()
