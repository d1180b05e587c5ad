"""Completed images are drawn as they are, and training does not notice."""

from pathlib import Path

import lightning as L
import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import ONE_INPUT, SIZES, small
from helpers.image_files import write_emnist, write_pictures
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Distribution, Independent, Normal

from datamodules import EMNISTDataModule, GPDataModule, ImageFolderDataModule
from npbench import Task
from npbench.callbacks import ImageFigures
from npbench.callbacks.images import _SEEN, _UNSEEN, completion_figure
from npbench.models import CMANP, CNP
from npbench.training import MetaRegression


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> EMNISTDataModule:
    folder = tmp_path_factory.mktemp("emnist")
    write_emnist(folder)
    return EMNISTDataModule(folder, batch_size=4, num_val_tasks=4, max_num_points=40)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageFolderDataModule:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return ImageFolderDataModule(folder, resolution=9, max_num_points=40)


def fit(digits: EMNISTDataModule, path: Path, callbacks: list[L.Callback]) -> torch.Tensor:
    torch.manual_seed(0)
    # Dropout draws from torch's generator at every step: whoever disturbs it shows.
    sizes = {"dim_model": 16, "num_layers": 1, "num_latents": 4, "num_block_latents": 4}
    module = MetaRegression(CMANP(2, 1, dropout=0.2, **sizes))
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=3, callbacks=callbacks,
        logger=[TensorBoardLogger(path, name="", version=""), CSVLogger(path, name="", version="")],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, digits)
    return torch.cat([parameter.flatten() for parameter in module.parameters()])


def test_figures_change_nothing_in_training(digits: EMNISTDataModule, tmp_path: Path) -> None:
    without = fit(digits, tmp_path / "without", [])
    figures = ImageFigures(num_images=1, context_sizes=[5, 20])
    assert torch.equal(fit(digits, tmp_path / "with", [figures]), without)
    files = sorted((tmp_path / "with/figures").iterdir())
    assert [file.name for file in files] == ["step-000003.png", "step-000006.png"]
    assert matplotlib.image.imread(files[0]).std() > 0.1
    events = EventAccumulator(str(tmp_path / "with"))
    events.Reload()
    assert [image.step for image in events.Images("completion")] == [3, 6]


class Known(CNP):
    """Says of a pixel what its place is: the mean half the row coordinate, the standard deviation
    0.1 on the left and 0.2 on the right; and draws 0.25 everywhere."""

    def _query(self, state: object, xt: torch.Tensor) -> Distribution:
        row, column = xt.unbind(-1)
        mean, std = (row / 2).unsqueeze(-1), torch.where(column < 0, 0.1, 0.2).unsqueeze(-1)
        size = (*xt.shape[:2], self.dim_y)
        return Independent(Normal(mean.expand(size), std.expand(size)), 1)

    def _sample(self, state: object, xt: torch.Tensor, num_samples: int) -> torch.Tensor:
        return torch.full((num_samples, *xt.shape[:2], self.dim_y), 0.25)


def panels(figure: object, height: int, width: int, gap: int) -> list[np.ndarray]:
    """The five of the first column."""
    canvas = figure.axes[0].images[0].get_array()
    return [canvas[top : top + height, :width] for top in range(0, len(canvas), height + gap)]


@pytest.mark.parametrize("channels", [1, 3])
def test_panels_show_what_the_model_says_where_it_says_it(
    digits: EMNISTDataModule, pictures: ImageFolderDataModule, channels: int
) -> None:
    data, size = (digits, 28) if channels == 1 else (pictures, 9)
    (truth,) = data.image_sets[2][[0]].permute(0, 2, 3, 1).numpy() / 255
    task = data.completion_task(num_context=30)
    figure = completion_figure(Known(2, channels, dim_hidden=8), [[task]])
    context, mean, std, sample, shown = panels(figure, size, size, gap=max(1, size // 14))
    assert np.allclose(shown, np.broadcast_to(truth, shown.shape), atol=1e-6)
    known = np.zeros((size, size), bool)
    row, column = ((task.xc[0] + 1) / 2 * (size - 1)).round().long().unbind(-1)
    known[row, column] = True
    assert known.sum() == 30
    for panel in (context, mean, sample):
        assert np.allclose(panel[known], shown[known])
    assert len(np.unique(context[~known], axis=0)) == 1
    ramp = np.linspace(0, 1, size)[:, None, None] * np.ones((size, size, 3))
    assert np.allclose(mean[~known], ramp[~known], atol=1e-6)
    assert np.allclose(sample[~known], 0.75)
    left = np.arange(size) < (size - 1) / 2
    assert (std[known] == std[known][0]).all()
    for side in (left, ~left):
        unknown = std[:, side][~known[:, side]]
        assert (unknown == unknown[0]).all()
    assert np.allclose(std[known][0], _SEEN)
    assert std[:, left][~known[:, left]][0].sum() < std[:, ~left][~known[:, ~left]][0].sum()


def test_a_grid_has_a_column_for_each_image_and_context(pictures: ImageFolderDataModule) -> None:
    tasks = [[pictures.completion_task(i, size) for size in (3, 30)] for i in range(3)]
    axis, _ = completion_figure(CNP(2, 3, dim_hidden=8), tasks).axes
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["3 pixels", "30 pixels"] * 3
    assert [label.get_text() for label in axis.get_yticklabels()][::4] == ["context", "truth"]
    assert "CNP" in axis.get_title()


def test_standard_deviations_have_one_scale(pictures: ImageFolderDataModule) -> None:
    """One column of all pixels, and one of a single pixel on the left, where it is 0.1 at most."""
    tasks = [pictures.completion_task(index, 80) for index in range(6)]
    left = next(task for task in tasks if task.xt[0, 0, 1] < 0)
    model, right = Known(2, 3, dim_hidden=8), pictures.completion_task(0, 5)
    for columns, highest in (([[left]], 0.1), ([[right]], 0.2), ([[left], [right]], 0.2)):
        _, bar = completion_figure(model, columns).axes
        assert bar.get_ylabel() == "standard deviation"
        assert bar.get_ylim() == pytest.approx((0.0, highest))


def test_what_is_and_is_not_in_the_context_has_a_legend(pictures: ImageFolderDataModule) -> None:
    figure = completion_figure(CNP(2, 3, dim_hidden=8), [[pictures.completion_task(0, 5)]])
    (legend,) = figure.legends
    colors = {text.get_text(): handle.get_color()
              for text, handle in zip(legend.get_texts(), legend.legend_handles)}  # fmt: skip
    assert colors == {"not in the context": _UNSEEN, "in the context": _SEEN}


@pytest.mark.parametrize("name", [name for name in SIZES if name not in ONE_INPUT])
def test_every_model_completes_images_and_is_left_as_it_was(
    name: str, pictures: ImageFolderDataModule
) -> None:
    model = small(name, dim_x=2, dim_y=3).float().train()
    before = torch.get_rng_state()
    completion_figure(model, [[pictures.completion_task(num_context=20)]])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_a_model_in_training_is_drawn_as_in_evaluation(pictures: ImageFolderDataModule) -> None:
    sizes = {"dim_model": 16, "num_layers": 1, "num_latents": 4, "num_block_latents": 4}
    model, task = CMANP(2, 3, dropout=0.9, **sizes), pictures.completion_task(num_context=20)
    pictured = [
        panels(completion_figure(model.train(mode), [[task]]), 9, 9, gap=1)
        for mode in (True, False)
    ]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*pictured))


def test_the_model_is_shown_nothing_but_the_context(pictures: ImageFolderDataModule) -> None:
    task = pictures.completion_task(num_context=20)
    model = small("CMANPAND", dim_x=2, dim_y=3).float()
    blank = Task(task.xc, task.yc, task.xt, torch.zeros_like(task.yt))
    torch.manual_seed(1)
    figures = [panels(completion_figure(model, [[each]]), 9, 9, gap=1) for each in (task, blank)]
    for ours, theirs in list(zip(*figures))[:4]:
        assert np.array_equal(ours, theirs)


def test_the_sizes_follow_the_data(digits: EMNISTDataModule) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.datamodule = digits
    axis, _ = ImageFigures(num_images=1).figure(trainer, CNP(2, 1, dim_hidden=8)).axes
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["2 pixels", "8 pixels", "20 pixels", "36 pixels"]


def test_figures_need_a_data_module_that_has_images() -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[ImageFigures()], enable_progress_bar=False
    )
    data = GPDataModule(num_test_tasks=2)
    with pytest.raises(ValueError, match=r"ImageFigures needs .* completion_task.*GPDataModule"):
        trainer.test(MetaRegression(CNP(1, 1, dim_hidden=8)), data, verbose=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images=0 and every_n_validations=1 must be 1"),
        ({"every_n_validations": 0}, "every_n_validations=0 must be 1"),
        ({"context_sizes": []}, r"context_sizes=\[\] must be sizes of 1 or more"),
        ({"context_sizes": [5, 0]}, r"context_sizes=\[5, 0\] must be"),
    ],
    ids=["images", "validations", "none", "zero"],
)
def test_figures_of_nothing_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFigures(**arguments)
