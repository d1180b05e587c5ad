"""Maps of the classes that models predict over two inputs, and films of how they change."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from npbench.callbacks.recording import undisturbed
from npbench.colors import CLASSES, UNKNOWN, colors_of
from npbench.errors import InputError
from npbench.models.contracts.process import Evaluation, NeuralProcess
from npbench.task import Task

_ERROR = ScalarMappable(Normalize(0.0, 1.0), "magma")

Picture = Float[np.ndarray, "rows columns 3"]


@dataclass(frozen=True)
class _Lattice:
    """Where the targets of a task lie, as rows and columns of pictures."""

    x0: Float[np.ndarray, "rows"]
    x1: Float[np.ndarray, "columns"]
    row: np.ndarray
    column: np.ndarray

    @classmethod
    def of(cls, task: Task) -> "_Lattice":
        if task.xt.shape[-1] != 2:
            raise InputError(f"maps of classes take 2 inputs, not {task.xt.shape[-1]}")
        x = task.xt[0].cpu().numpy()
        (x0, row), (x1, column) = (np.unique(x[:, i], return_inverse=True) for i in range(2))
        if len(x) != len(x0) * len(x1):
            raise InputError(
                f"maps of classes take a whole lattice of targets; {len(x):,} targets do not fill "
                f"{len(x0)} × {len(x1)} sites"
            )
        return cls(x0, x1, row, column)

    def picture(self, colors: Float[np.ndarray, "sites 3"]) -> Picture:
        """The colours of all sites, each at its place."""
        result = np.empty((len(self.x0), len(self.x1), 3))
        result[self.row, self.column] = colors
        return result

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The outer edges of the sites: left, right, bottom, top."""
        bottom, top = _edges(self.x0)
        left, right = _edges(self.x1)
        return left, right, bottom, top


def _edges(centres: Float[np.ndarray, "sites"]) -> tuple[float, float]:
    low, high = float(centres[0]), float(centres[-1])
    half = (high - low) / max(len(centres) - 1, 1) / 2 or 0.5
    return low - half, high + half


def class_map_figure(
    models: Sequence[NeuralProcess],
    tasks: Sequence[Task],
    evaluations: Sequence[list[Evaluation]],
    class_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """A row for each task (the first of each batch): maps over its two inputs.

    The first two maps are the truth and the context. Then come for each model its probabilities,
    which mix the colours of the classes, and its error, the probability of all classes but the true
    one. A class has the same colour in every figure.

    Args:
        models: whose predictions are drawn.
        tasks: whose targets are a whole lattice.
        evaluations: those of each task by all models.
        class_names: of the classes, for the legend.
        labels: of the rows.

    Raises:
        InputError: if there are not two inputs, or the targets are not a lattice.
    """
    columns = 2 + 2 * len(models)
    size = (2.1 * columns + 1.0, 2.1 * len(tasks) + 0.7)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(len(tasks), columns, squeeze=False)
    names = [type(model).__name__ for model in models]
    for index, (row, task, of_models) in enumerate(zip(axes.tolist(), tasks, evaluations)):
        lattice = _Lattice.of(task)
        for axis, picture in zip(row, _pictures(task, lattice, of_models)):
            _show(axis, picture, lattice)
        _title(row, names, of_models)
        if labels is not None:
            row[0].set_ylabel(labels[index], fontsize=9)
    _legend(figure, axes[:, -1].tolist(), tasks[0], class_names)
    return figure


def write_class_film(
    file: str | os.PathLike,
    model: NeuralProcess,
    tasks: Sequence[Task],
    class_names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    frames_per_second: float = 4.0,
) -> None:
    """Write a GIF of what a model predicts of task after task, such as the states of an epidemic.

    A frame is a row of `class_map_figure`, whose arguments these are.

    Args:
        file: a path that ends in .gif.
        model: whose predictions are drawn; it is left as it was.
        tasks: one a frame, with targets that are the same whole lattice.
        class_names: of the classes, for the legend.
        labels: of the frames.
        frames_per_second: how fast they follow.

    Raises:
        InputError: as `class_map_figure`.
    """
    evaluations = [evaluate(model, task) for task in tasks]
    figure = class_map_figure([model], tasks[:1], [[evaluations[0]]], class_names)
    FigureCanvasAgg(figure)
    row, lattice = figure.axes[:4], _Lattice.of(tasks[0])
    writer = PillowWriter(fps=round(frames_per_second))
    writer.setup(figure, os.fspath(file), dpi=80)
    for index, (task, evaluation) in enumerate(zip(tasks, evaluations)):
        for axis, picture in zip(row, _pictures(task, lattice, [evaluation])):
            axis.images[0].set_data(picture)
        _title(row, [type(model).__name__], [evaluation])
        if labels is not None:
            row[0].set_ylabel(labels[index], fontsize=9)
        writer.grab_frame()
    writer.finish()


def evaluate(model: NeuralProcess, task: Task) -> Evaluation:
    """What a model says of a task; the model and torch's random state are left as they were."""
    with undisturbed(model, task.xt.device):
        return model.evaluate(task)


def _pictures(task: Task, lattice: _Lattice, of_models: Sequence[Evaluation]) -> list[Picture]:
    """The truth, the context, and the probabilities and the error of each model."""
    assert task.yt is not None  # `evaluate` has asked for it
    truth = task.yt[0].cpu().double().numpy()
    palette = _palette(truth.shape[-1])
    pictures = [lattice.picture(truth @ palette), _context(task, lattice, palette)]
    for evaluation in of_models:
        p = evaluation.mean[0].cpu().double().numpy()
        pictures.append(lattice.picture(np.clip(p @ palette, 0.0, 1.0)))
        error = np.clip(1.0 - (p * truth).sum(axis=-1), 0.0, 1.0)
        pictures.append(lattice.picture(_ERROR.to_rgba(error)[:, :3]))
    return pictures


def _context(task: Task, lattice: _Lattice, palette: Float[np.ndarray, "classes 3"]) -> Picture:
    """The known sites in the colours of their classes, and all others in the one of no class."""
    picture = np.tile(to_rgb(UNKNOWN), (len(lattice.x0), len(lattice.x1), 1))
    real = slice(None) if task.context_mask is None else task.context_mask[0].cpu()
    x, y = (values[0][real].cpu().double().numpy() for values in (task.xc, task.yc))
    row, column = (
        np.abs(x[:, [i]] - axis).argmin(axis=1) for i, axis in enumerate((lattice.x0, lattice.x1))
    )
    picture[row, column] = y @ palette
    return picture


def _palette(num_classes: int) -> Float[np.ndarray, "classes 3"]:
    return np.array([to_rgb(_color(index)) for index in range(num_classes)])


def _color(index: int) -> str:
    return CLASSES[index % len(CLASSES)]


def _show(axis: Axes, picture: Picture, lattice: _Lattice) -> None:
    axis.imshow(picture, origin="lower", extent=lattice.extent, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _title(row: Sequence[Axes], names: Sequence[str], of_models: Sequence[Evaluation]) -> None:
    row[0].set_title("truth", fontsize=9)
    row[1].set_title("context", fontsize=9)
    for index, (name, evaluation) in enumerate(zip(names, of_models)):
        nats, color = float(evaluation.log_likelihood[0]), colors_of(names)[name]
        row[2 + 2 * index].set_title(f"{name}: {nats:.2f} nats", fontsize=9, color=color)
        row[3 + 2 * index].set_title("error", fontsize=9, color=color)


def _legend(
    figure: Figure, axes: list[Axes], task: Task, class_names: Sequence[str] | None
) -> None:
    """What the colours mean: classes below, errors at the right."""
    num_classes = task.yc.shape[-1]
    if class_names is None:
        class_names = [f"class {index}" for index in range(num_classes)]
    keys = {**dict(zip(class_names, map(_color, range(num_classes)))), "not known": UNKNOWN}
    handles = [
        Line2D([], [], marker="s", ls="", color=color, mec="0.5", mew=0.5, label=name)
        for name, color in keys.items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8,
                  frameon=False)  # fmt: skip
    bar = figure.colorbar(_ERROR, ax=axes, pad=0.02, aspect=15, shrink=0.9)
    bar.set_label("probability of other classes", fontsize=8)
    bar.ax.tick_params(labelsize=7)
