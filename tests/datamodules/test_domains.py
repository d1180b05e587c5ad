"""Shifted and scaled domains: every data module has them, and the models that claim to be
invariant to translation predict on a shifted one what they predict on that of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZES, assert_close
from helpers.image_files import write_emnist
from torch import Tensor

from datamodules import EMNISTDataModule, GPDataModule, SIRDataModule
from datamodules.loading import TaskDataModule
from npbench import Task, models
from npbench.blocks import Places
from npbench.blocks.set_convolution import Grid
from npbench.models import NeuralProcess

_SHIFT = 8.0
_SIR = {
    "size": 12, "num_steps": 10, "min_context": 8, "max_context": 32, "num_targets": 40,
    "states_per_run": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emnist")
    write_emnist(folder)
    return folder


def gp(root: Path, x_range: tuple[float, float], **arguments: Any) -> GPDataModule:
    return GPDataModule(x_range=x_range, vary_sizes=True, num_targets=20, **arguments)


def gp_2d(root: Path, x_range: tuple[float, float]) -> GPDataModule:
    return gp(root, x_range, dim_x=2)


def sir(root: Path, x_range: tuple[float, float]) -> SIRDataModule:
    return SIRDataModule(x_range=x_range, **_SIR)


def images(root: Path, x_range: tuple[float, float]) -> EMNISTDataModule:
    return EMNISTDataModule(
        root, x_range=x_range, num_val_tasks=10, batch_size=8, max_num_points=60
    )


def real(task: Task, name: str) -> tuple[Tensor, Tensor]:
    """The inputs and outputs of all real points of the context, or of all real targets."""
    x, y = (getattr(task, f"{letter}{name[0]}") for letter in "xy")
    mask = getattr(task, f"{name}_mask")
    return (x, y) if mask is None else (x[mask], y[mask])


Make = Callable[[Path, tuple[float, float]], TaskDataModule]
every_module = pytest.mark.parametrize("make", [gp, gp_2d, sir, images])


@every_module
def test_a_shifted_domain_moves_the_inputs_and_nothing_else(root: Path, make: Make) -> None:
    there = make(root, (_SHIFT - 2.0, _SHIFT + 2.0))
    here = make(root, (-2.0, 2.0))
    for batch in (
        lambda data: data.training_batch(3),
        lambda data: data.evaluation_batch(range(2, 5)),
    ):
        task, moved = batch(here), batch(there)
        for name in ("context", "target"):
            x, y, moved_x, moved_y = (z for each in (task, moved) for z in real(each, name))
            assert moved_x.amin() >= _SHIFT - 2.0
            assert moved_x.amax() <= _SHIFT + 2.0
            assert_close(moved_x, x + _SHIFT, 1e-6)
            assert_close(moved_y, y, 1e-5)


@every_module
def test_a_range_that_goes_down_is_refused(root: Path, make: Make) -> None:
    with pytest.raises(ValueError, match=r"x_range=\(2.0, -2.0\) must go from a number to a great"):
        make(root, (2.0, -2.0))


def on_places(dim_x: int, dim_y: int, **likelihood: str) -> NeuralProcess:
    arguments = SIZES["LocatedCMANP"] | {"places": Places(-2.0, 2.0, number=9)}
    return models.LocatedCMANP(dim_x, dim_y, **arguments, **likelihood)


def on_grid(dim_x: int, dim_y: int, **likelihood: str) -> NeuralProcess:
    grid = Grid(-2.0, 2.0, spacing=0.25)
    return models.ConvCNP(dim_x, dim_y, grid, dim_hidden=8, num_levels=2, **likelihood)


def by_distance(dim_x: int, dim_y: int, **likelihood: str) -> NeuralProcess:
    return models.TNPKR(dim_x, dim_y, **SIZES["TNPKR"], **likelihood)


def by_moments(dim_x: int, dim_y: int) -> NeuralProcess:
    return models.SecondMomentNP(dim_x, dim_y)


@pytest.mark.parametrize(
    ("build", "make"),
    [
        *((build, make) for build in (on_places, on_grid, by_distance)
          for make in (gp, gp_2d, sir, images)),
        *((by_moments, make) for make in (gp, gp_2d, images)),
    ],
)  # fmt: skip
def test_an_invariant_model_predicts_the_same_on_a_shifted_domain(
    root: Path, build: Callable[..., NeuralProcess], make: Make
) -> None:
    there = make(root, (_SHIFT - 2.0, _SHIFT + 2.0)).evaluation_batch(range(6))
    task = make(root, (-2.0, 2.0)).evaluation_batch(range(6))
    classes = {"likelihood": "categorical"} if make is sir else {}
    model = build(task.xc.shape[-1], task.yc.shape[-1], **classes).eval()
    on = getattr(model, "on", None)
    moved = model if on is None else on(_SHIFT - 2.0, _SHIFT + 2.0)
    with torch.no_grad():
        mean, std = model.evaluate(task)[1:3]
        moved_mean, moved_std = moved.evaluate(there)[1:3]
    if task.target_mask is not None:
        mean, std, moved_mean, moved_std = (
            values[task.target_mask] for values in (mean, std, moved_mean, moved_std)
        )
    assert_close(moved_mean, mean, 1e-5)
    assert_close(moved_std, std, 1e-5)
    assert mean.std() > 1e-4, "what is predicted differs from target to target"


def test_a_scaled_lattice_and_larger_images_keep_their_spacing(root: Path) -> None:
    larger = SIRDataModule(**_SIR | {"size": 23, "x_range": (-4.0, 4.0)}).positions
    assert_close(larger[:, 0].unique().diff(), torch.full((22,), 4 / 11), 1e-5)
    x, _ = real(images(root, (-2.0, 2.0)).evaluation_batch(range(4)), "target")
    assert_close(x[:, 0].unique().diff().amin(), torch.tensor(4 / 27), 1e-5)
