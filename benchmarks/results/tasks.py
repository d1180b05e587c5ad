"""The tasks of the results: how they are drawn for training, and which are fixed for the test."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datamodules import GPDataModule, SIRDataModule
from datamodules.images.base import ImageDataModule, ImageSet
from datamodules.loading import Part, TaskDataModule
from datamodules.sampling import TaskSizes
from npbench.commands.sections import instantiate

_CONFIGS = Path(__file__).parents[2] / "configs"
# In training each task has its own number of context points, and all have so many targets.
_NUM_TARGETS = 64


@dataclass(frozen=True)
class Benchmark:
    """A family of tasks.

    Args:
        title: what the table calls it.
        dim_x: number of inputs.
        dim_y: number of outputs, or of classes.
        data: from a seed of the training tasks to the data module.
        num_tasks: number of fixed test tasks.
        box: the ends of the range of every input.
        min_std: least standard deviation that models may predict, where the values are discrete
            and a density would know no bound.
        classes: whether the outputs are one-hot classes.
    """

    title: str
    dim_x: int
    dim_y: int
    data: Callable[[int], TaskDataModule]
    num_tasks: int
    box: tuple[float, float] = (-2.0, 2.0)
    min_std: float = 0.0
    classes: bool = False


class DigitsDataModule(ImageDataModule):
    """The 1,797 digits of scikit-learn at 16×16 pixels: 1,297 for training, 100 for validation and
    400 for the test, in the order of the file."""

    resolution = 16
    _ends = (1297, 1397, 1797)

    def __init__(self, seed: int) -> None:
        super().__init__(
            num_pixels=self.resolution**2,
            batch_size=16,
            eval_batch_size=16,
            min_num_points=3,
            max_num_points=130,
            max_num_targets=None,
            vary_sizes=True,
            num_test_tasks=None,
            num_predict_tasks=16,
            t_noise=None,
            seed=seed,
            eval_seed=0,
            num_workers=0,
        )
        self.sizes = TaskSizes(3, 130, num_targets=_NUM_TARGETS, vary=True)

    def _load_images(self) -> dict[Part, ImageSet]:
        size = self.resolution, self.resolution
        pictures = (load_digits().images * 255 / 16).round().astype(np.uint8)
        array = np.stack([np.asarray(Image.fromarray(each).resize(size)) for each in pictures])
        rows = np.split(np.arange(len(array)), self._ends)
        parts = Part.TRAIN, Part.VALIDATE, Part.TEST
        return {part: ImageSet(array[:, None], each) for part, each in zip(parts, rows)}


def _of_gp(config: str, kernel: str, seed: int) -> GPDataModule:
    options = {
        "kernel": _CONFIGS / kernel, "vary_sizes": "true", "num_targets": _NUM_TARGETS, "seed": seed
    }  # fmt: skip
    fields = [f"--data.{name}={value}" for name, value in options.items()]
    return instantiate(_CONFIGS / config, "data", GPDataModule, fields)


def _in_1d(kernel: str) -> Callable[[int], GPDataModule]:
    return lambda seed: _of_gp("gp/cnp.yaml", f"gp/kernels/{kernel}.yaml", seed)


def _epidemics(seed: int) -> SIRDataModule:
    """Smaller lattices than the paper's, and fewer points, as in `benchmarks.epidemics`."""
    return SIRDataModule(size=32, min_context=32, max_context=128, num_targets=192, seed=seed)


BENCHMARKS = {
    "rbf": Benchmark("GP, RBF", 1, 1, _in_1d("rbf"), 1600),
    "sir": Benchmark("epidemics (SIR)", 2, 3, _epidemics, 800, classes=True),
    "digits": Benchmark(
        "digits", 2, 1, DigitsDataModule, 400, box=(-1.0, 1.0), min_std=0.05
    ),
    "matern": Benchmark("GP, Matérn-5/2", 1, 1, _in_1d("matern52"), 1600),
    "gp2d": Benchmark(
        "GP, two inputs", 2, 1,
        lambda seed: _of_gp("gp2d/cmanp.yaml", "gp2d/kernels/rbf.yaml", seed), 800,
    ),
    "periodic": Benchmark("GP, periodic", 1, 1, _in_1d("periodic"), 1600),
}  # fmt: skip
"""The tasks by their names, in the order in which they are trained."""


def random_points(
    benchmark: Benchmark, number: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of one task that mean nothing, to measure times and sizes with."""
    generator = torch.Generator().manual_seed(seed)
    low, high = benchmark.box
    x = low + (high - low) * torch.rand(1, number, benchmark.dim_x, generator=generator)
    if not benchmark.classes:
        return x, torch.randn(1, number, benchmark.dim_y, generator=generator)
    classes = torch.randint(benchmark.dim_y, (1, number), generator=generator)
    return x, torch.nn.functional.one_hot(classes, benchmark.dim_y).float()
