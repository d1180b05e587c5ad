"""Maps of classes show what is true, what is known and what is predicted, each at its place."""

from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from helpers import assert_close
from lightning.pytorch.loggers import CSVLogger
from matplotlib.colors import to_rgb
from PIL import Image

from datamodules import GPDataModule, SIRDataModule
from npbench import Task
from npbench.callbacks import PosteriorFigures
from npbench.callbacks.class_maps import class_map_figure, evaluate, write_class_film
from npbench.callbacks.regression import posterior_figure
from npbench.colors import CLASSES, UNKNOWN
from npbench.models import CNP
from npbench.training import MetaRegression

PALETTE = np.array([to_rgb(color) for color in CLASSES[:3]])


def epidemics() -> SIRDataModule:
    return SIRDataModule(
        size=8, num_steps=5, states_per_run=2, min_context=8, max_context=12, num_targets=30,
        batch_size=2, num_val_tasks=2, steps_per_epoch=2,
    )  # fmt: skip


def model() -> CNP:
    return CNP(2, 3, dim_hidden=8, likelihood="categorical").eval()


def pictures(task: Task, of: CNP) -> list[np.ndarray]:
    figure = class_map_figure([of], [task], [[evaluate(of, task)]])
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes[:4]]


def test_a_map_has_the_colour_of_the_class_of_each_site() -> None:
    task, of = epidemics().frames(1)[3], model()
    truth, context, probabilities, _ = pictures(task, of)
    classes = task.yt[0].argmax(dim=-1).reshape(8, 8)
    assert np.allclose(truth, PALETTE[classes])
    known = (task.xc[0, :, None] == task.xt[0]).all(-1).any(0).reshape(8, 8)
    assert int(known.sum()) == task.xc.shape[1] == 10
    assert np.allclose(context[known], PALETTE[classes[known]])
    assert np.allclose(context[~known], to_rgb(UNKNOWN))
    p = evaluate(of, task).mean[0].reshape(8, 8, 3).double().numpy()
    assert np.allclose(probabilities, p @ PALETTE)


def test_the_error_is_darkest_where_the_true_class_is_certain() -> None:
    task = epidemics().frames(1)[3]
    certain = evaluate(model(), task)._replace(mean=task.yt)
    wrong = certain._replace(mean=task.yt.roll(1, dims=-1))
    dark, bright = (
        np.asarray(class_map_figure([model()], [task], [[each]]).axes[3].images[0].get_array())
        for each in (certain, wrong)
    )
    assert dark.max() < 0.02
    assert bright.min() > 0.7


def test_sites_in_another_order_are_drawn_at_the_same_places() -> None:
    task, of = epidemics().frames(1)[3], model()
    order = torch.randperm(64)
    shuffled = Task(task.xc, task.yc, task.xt[:, order], task.yt[:, order])
    for mine, theirs in zip(pictures(shuffled, of), pictures(task, of)):
        assert np.allclose(mine, theirs, atol=1e-6)


def test_frames_are_those_of_one_epidemic_with_the_same_sites_known() -> None:
    data = epidemics()
    frames = data.frames(2, num_context=7)
    assert len(frames) == 6
    assert all(torch.equal(frame.xc, frames[0].xc) for frame in frames)
    susceptible = [float(frame.yt[..., 2].sum()) for frame in frames]
    assert susceptible == sorted(susceptible, reverse=True)
    assert_close(frames[3].yt, data.frames(2)[3].yt)
    with pytest.raises(ValueError, match="num_context=65 must be from 0 to the 64 sites"):
        data.frames(num_context=65)


def test_a_film_has_a_frame_for_each_task(tmp_path: Path) -> None:
    tasks, of = epidemics().frames(2), model()
    file = tmp_path / "film.gif"
    write_class_film(file, of, tasks, labels=[f"step {index}" for index in range(6)])
    with Image.open(file) as film:
        assert film.n_frames == 6
        frames = []
        for index in range(6):
            film.seek(index)
            frames.append(np.asarray(film.convert("RGB"), dtype=float))
    assert all(np.abs(a - b).max() > 50 for a, b in pairwise(frames))


def test_the_callback_draws_classes_with_their_names(tmp_path: Path) -> None:
    data = epidemics()
    figure = posterior_figure([model()], [data.figure_task(0)], data.class_names)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["infected", "recovered", "susceptible", "not known"]
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[PosteriorFigures(num_tasks=1)], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(MetaRegression(model()), data)
    assert (tmp_path / "figures" / "step-000002.png").is_file()


def test_what_is_no_lattice_is_refused() -> None:
    task, of = epidemics().frames(1)[3], model()
    part = Task(task.xc, task.yc, task.xt[:, :63], task.yt[:, :63])
    with pytest.raises(ValueError, match="63 targets do not fill 8 × 8 sites"):
        posterior_figure([of], [part])
    one = GPDataModule().figure_task(0, num_targets=9)
    classes = torch.eye(3)[torch.arange(one.xc.shape[1]) % 3][None]
    targets = torch.eye(3)[torch.arange(9) % 3][None]
    line = Task(one.xc, classes, one.xt, targets)
    with pytest.raises(ValueError, match="maps of classes take 2 inputs, not 1"):
        posterior_figure([CNP(1, 3, dim_hidden=8, likelihood="categorical")], [line])
