from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from helpers import small
from helpers.training import data, module
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from npbench.callbacks import PosteriorFigures
from npbench.callbacks.calibration import pit_figure
from npbench.callbacks.regression import posterior_figure
from npbench.colors import EXACT, colors_of
from npbench.models import CNP
from npbench.training import MetaRegression


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl: L.LightningModule, out: dict, *_) -> None:
        self.values.append(float(out["loss"]))


def fit(path: Path, callbacks: Sequence[L.Callback]) -> list[float]:
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=10,
        logger=CSVLogger(path, name="", version=""),
        callbacks=[losses, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module(), data())
    return losses.values


def test_figures_change_nothing_in_training(tmp_path: Path) -> None:
    without = fit(tmp_path / "without", [])
    with_figures = fit(tmp_path / "with", [PosteriorFigures(num_tasks=1)])
    assert with_figures == without
    assert sorted(f.name for f in (tmp_path / "with/figures").iterdir()) == [
        "step-000004.png",
        "step-000008.png",
    ]


def test_the_test_reports_calibration_and_joint_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small("TNPND", dim_x=1, dim_y=1)
    trainer = L.Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[PosteriorFigures(num_tasks=1)], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    (found,) = trainer.test(MetaRegression(model), data(num_test_tasks=3), verbose=False)
    assert {"test/crps", "test/interval_score_95", "test/pit_ks"} < found.keys()
    assert found["test/energy_score"] > 0
    assert found["test/sampling_ms"] > 0
    names = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert names == ["test-pit.png", "test.png"]
    (marginal,) = trainer.test(MetaRegression(CNP(1, 1)), data(num_test_tasks=3), verbose=False)
    assert "test/pit_ks" in marginal
    assert not {"test/energy_score", "test/sampling_ms"} & marginal.keys()


def test_a_histogram_of_transforms_is_a_density() -> None:
    counts = {"one": torch.tensor([5, 15, 10, 10]), "other": torch.tensor([1, 1])}
    axes = pit_figure(counts).axes
    assert [axis.get_title() for axis in axes] == ["one: 40 values", "other: 2 values"]
    (patch,) = (p for p in axes[0].patches if hasattr(p, "get_data"))
    np.testing.assert_allclose(patch.get_data().values, [0.5, 1.5, 1.0, 1.0])


def test_drawing_leaves_a_frozen_layer_frozen() -> None:
    model = module().model.train()
    model.blocks.eval()
    posterior_figure([model], [data().figure_task()])
    assert model.training
    assert not any(block.training for block in model.blocks.modules())


@pytest.mark.parametrize("num_targets", [1, 50])
def test_a_figure_has_a_column_for_each_model_and_the_exact_answer(num_targets: int) -> None:
    tasks = [data().figure_task(index, num_targets=num_targets) for index in range(2)]
    models = [module().model, CNP(1, 1, dim_hidden=8)]
    figure = posterior_figure(models, tasks)
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert [title.split(":")[0] for title in titles] == ["CMANP", "CNP", "Exact"]
    assert len(figure.axes) == 6
    assert all(model.training for model in models)


def test_without_an_exact_answer_there_is_no_column_for_it() -> None:
    task = data(t_noise=0.15).figure_task()
    assert len(posterior_figure([CNP(1, 1, dim_hidden=8)], [task]).axes) == 1


def test_figures_need_a_data_module_that_has_them(tmp_path: Path) -> None:
    class NoFigures(L.LightningDataModule):
        def test_dataloader(self) -> DataLoader:
            return data(num_test_tasks=2).test_dataloader()

    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[PosteriorFigures()], enable_progress_bar=False
    )
    with pytest.raises(ValueError, match=r"needs a data module with figure_task.*NoFigures"):
        trainer.test(module(), NoFigures(), verbose=False)


def test_the_truth_is_drawn_without_the_noise_of_observations() -> None:
    task = data(noise_std=0.5).figure_task()
    for shown, label, values in (
        (task, "truth", task.truth),
        (replace(task, truth=None), "observations", task.yt),
    ):
        axis, _ = posterior_figure([CNP(1, 1, dim_hidden=8)], [shown]).axes
        (line,) = (line for line in axis.lines if line.get_label() == label)
        np.testing.assert_array_equal(line.get_ydata(), values[0, :, 0])


def test_functions_of_two_inputs_are_drawn_as_maps_with_the_context_where_it_is() -> None:
    tasks = [data(dim_x=2).figure_task(index, num_targets=49) for index in range(2)]
    figure = posterior_figure([CNP(2, 1, dim_hidden=8)], tasks)
    titles = [axis.get_title().split(":")[0] for axis in figure.axes[:5]]
    std = "standard deviation"
    assert titles == ["truth", "CNP", std, "Exact", std]
    truth, _, _, mean, _ = figure.axes[:5]
    mesh, context = truth.collections
    np.testing.assert_allclose(mesh.get_array(), tasks[0].truth[0, :, 0])
    np.testing.assert_allclose(context.get_offsets(), tasks[0].xc[0])
    np.testing.assert_allclose(context.get_array(), tasks[0].yc[0, :, 0])
    np.testing.assert_allclose(mean.collections[0].get_array(), tasks[0].exact.mean[0, :, 0])
    np.testing.assert_allclose(np.transpose(mean.lines[0].get_data()), tasks[0].xc[0])


def test_a_slice_of_more_inputs_shows_no_context_that_is_not_in_it() -> None:
    figure = posterior_figure(
        [CNP(3, 1, dim_hidden=8)], [data(dim_x=3).figure_task(num_targets=49)]
    )
    assert [len(axis.collections) for axis in figure.axes[:5]] == [1] * 5
    assert not any(axis.lines for axis in figure.axes[:5])


def test_no_line_crosses_a_legend() -> None:
    figure = posterior_figure([CNP(1, 1, dim_hidden=8)], [data().figure_task(num_targets=9)])
    assert all(axis.get_legend() is None for axis in figure.axes)
    (legend,) = figure.legends
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert not any(box.overlaps(axis.get_window_extent()) for axis in figure.axes)


def test_a_model_has_its_colour() -> None:
    figure = posterior_figure([CNP(1, 1, dim_hidden=8)], [data().figure_task(num_targets=9)])
    colors = [axis.lines[0].get_color() for axis in figure.axes]
    assert colors == [colors_of(["CNP"])["CNP"], EXACT]
