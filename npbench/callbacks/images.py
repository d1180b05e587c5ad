"""Figures of images that the model completes from some of their pixels."""

from collections.abc import Sequence

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from npbench.callbacks.recording import FigureCallback, undisturbed
from npbench.errors import InputError
from npbench.models.contracts.process import NeuralProcess
from npbench.offers import OffersCompletionTask
from npbench.task import Task

_KINDS = ("context", "mean", "standard\ndeviation", "sample", "truth")
# Of pixels that are not in the context, and, among standard deviations, of those that are.
_UNSEEN, _SEEN = (0.16, 0.29, 0.52), (0.2, 0.75, 0.7)
_STD_COLORS = colormaps["magma"]
# So many targets' moments are computed at a time: the memory of mixtures grows with them.
_PIECE = 1000


class ImageFigures(FigureCallback):
    """After validation, draws test images completed from few pixels and from more.

    There is a column for each image and size of context, with the context, the model's mean and
    standard deviation, a sample (of an autoregressive model one block of pixels after another), and
    the truth. Pixels of the context are known, and shown as they are; among standard deviations
    they have a colour of their own. The figure goes to TensorBoard, and to `figures/step-….png` in
    the run's folder. The data module says what to draw: see `npbench.offers.OffersCompletionTask`.

    Args:
        num_images: images in the figure.
        context_sizes: numbers of context pixels; by default a twentieth, a fifth and a half of the
            data module's `max_num_points`, and as many as a task can have.
        every_n_validations: how often to draw.
    """

    def __init__(
        self,
        num_images: int = 2,
        context_sizes: Sequence[int] | None = None,
        every_n_validations: int = 1,
    ) -> None:
        if num_images < 1 or every_n_validations < 1:
            raise InputError(
                f"num_images={num_images} and every_n_validations={every_n_validations} must be 1 "
                f"or more"
            )
        if context_sizes is not None and (not context_sizes or min(context_sizes) < 1):
            raise InputError(f"context_sizes={list(context_sizes)} must be sizes of 1 or more")
        super().__init__("completion", every_n_validations)
        self.num_images = num_images
        self.context_sizes = context_sizes

    def check(self, trainer: L.Trainer) -> None:
        self._data_module(trainer, OffersCompletionTask)

    def figure(self, trainer: L.Trainer, model: NeuralProcess) -> Figure:
        data = self._data_module(trainer, OffersCompletionTask)
        sizes = self.context_sizes
        if sizes is None:
            most = data.max_num_points
            sizes = [max(1, most // 20), most // 5, most // 2, most - 4]
        device = next(model.parameters()).device
        tasks = [
            [data.completion_task(index, size).to(device) for size in sizes]
            for index in range(self.num_images)
        ]
        return completion_figure(model, tasks)


def completion_figure(model: NeuralProcess, tasks: Sequence[Sequence[Task]]) -> Figure:
    """Completed images in one grid: a group of columns an image, a column a task.

    It leaves the model and torch's random state as they were.

    Args:
        model: with `dim_x` 2, and `dim_y` 1 (grey) or 3 (RGB).
        tasks: for each image its tasks, the first of each batch; context and targets together are
            all pixels, once, and values 0.5 below those of the image.
    """
    groups = [[_complete(model, task) for task in group] for group in tasks]
    height, width = groups[0][0]["truth"].shape[:2]
    highest = max(panels["std"].max() for group in groups for panels in group)
    gap = max(1, width // 14)
    step = width + gap
    starts = [
        (index * len(group) + column) * step + index * 2 * gap
        for index, group in enumerate(groups)
        for column in range(len(group))
    ]
    rows = [row * (height + gap) for row in range(len(_KINDS))]
    canvas = np.ones((rows[-1] + height, starts[-1] + width, 3))
    for left, panels in zip(starts, (panels for group in groups for panels in group)):
        colors = _STD_COLORS(panels["std"][..., 0] / max(highest, 1e-12))[..., :3]
        panels["std"] = np.where(panels.pop("known") > 0, _SEEN, colors)
        for top, panel in zip(rows, panels.values()):
            canvas[top : top + height, left : left + width] = panel
    sizes = [task.xc.shape[1] for group in tasks for task in group]
    figure = _show(
        canvas, type(model).__name__, [s + width / 2 for s in starts], sizes, rows, height
    )
    (axis,) = figure.axes
    for name, color in (("not in the context", _UNSEEN), ("in the context", _SEEN)):
        axis.plot([], [], "s", color=color, label=name)
    figure.legend(loc="outside lower left", ncols=2, fontsize=8, frameon=False)
    scale = ScalarMappable(Normalize(0.0, highest), _STD_COLORS)
    bar = figure.colorbar(scale, ax=axis, shrink=0.5, aspect=15, pad=0.02)
    bar.set_label("standard deviation", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _show(
    canvas: np.ndarray,
    title: str,
    centers: Sequence[float],
    sizes: Sequence[int],
    rows: Sequence[int],
    height: int,
) -> Figure:
    dpi = 110
    # A panel is an inch high, or as large as it takes for each pixel to be one of the figure.
    scale = max(1.0 / height, 1 / dpi)
    size = (canvas.shape[1] * scale + 2.0, canvas.shape[0] * scale + 1.0)
    figure = Figure(figsize=size, layout="constrained", dpi=dpi)
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.set_xticks([center - 0.5 for center in centers], [f"{size} pixels" for size in sizes])
    axis.set_yticks([top + (height - 1) / 2 for top in rows], _KINDS)
    axis.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)
    return figure


def _complete(model: NeuralProcess, task: Task) -> dict[str, Float[np.ndarray, "height width _"]]:
    """The panels of a task, from top to bottom, with the raw standard deviation."""
    with undisturbed(model, task.xt.device):
        state = model.condition(task.xc, task.yc, task.context_mask)
        pieces = [model.marginals(state, xt) for xt in task.xt.split(_PIECE, dim=1)]
        mean, std = (torch.cat(moments, dim=1) for moments in zip(*pieces))
        sample = model.sample(state, task.xt)[0]
    x = torch.cat([task.xc, task.xt], dim=1)[0].cpu()
    row, column = (axis.unique(return_inverse=True)[1] for axis in x.unbind(-1))

    def image(context: Tensor, targets: Tensor) -> np.ndarray:
        values = torch.cat([context[0], targets[0]]).float().cpu()
        pixels = values.new_zeros(int(row.max()) + 1, int(column.max()) + 1, values.shape[-1])
        pixels[row, column] = values
        return pixels.numpy()

    def picture(context: Tensor, targets: Tensor) -> np.ndarray:
        pixels = image(context, targets)
        return np.clip(pixels + 0.5, 0, 1).repeat(3 // pixels.shape[-1], axis=-1)

    std = std.mean(dim=-1, keepdim=True)
    known = image(torch.ones_like(task.xc[..., :1]), torch.zeros_like(std))
    return {
        "known": known,
        "context": np.where(known > 0, picture(task.yc, torch.zeros_like(mean)), _UNSEEN),
        "mean": picture(task.yc, mean),
        "std": image(torch.zeros_like(task.xc[..., :1]), std),
        "sample": picture(task.yc, sample),
        "truth": picture(task.yc, task.yt),
    }
