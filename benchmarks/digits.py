"""A small model that completes pictures of digits, after a few minutes on one core.

    python -m benchmarks.digits
    python -m benchmarks.digits --model CMANPAND --steps 12000 --figure docs/digits-and.png
    python -m benchmarks.digits --model LocatedCMANP --steps 4000

Writes the 1,797 handwritten digits that come with scikit-learn (8×8 grey pixels) as PNGs into a
folder, and trains on it at 16×16 as on any folder of pictures. Prints the error of completing test
pictures beside those of two ways to predict the mean, and leaves `docs/digits.png`.
"""

import argparse
import shutil
import time
from math import inf
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from sklearn.datasets import load_digits

from datamodules import ImageFolderDataModule
from datamodules.loading import Part
from npbench import Task, models
from npbench.blocks import Places, Scales
from npbench.callbacks import ImageFigures, ProgressBar
from npbench.callbacks.images import completion_figure
from npbench.optim import MuonAdam
from npbench.training import MetaRegression

_OUT = Path("runs/digits")
_RESOLUTION = 16
_SIZES = (8, 16, 32, 64, 128)
# As in configs/gp/cmanp-small.yaml.
_SMALL = {
    "num_heads": 2, "num_layers": 2, "num_latents": 32, "num_block_latents": 32,
    "qk_norm": True, "norm_residual": False,
}  # fmt: skip
_SIZES_OF = {
    "CMANP": _SMALL,
    # Of the official 100, more than it trains on, samples are less of one piece.
    "CMANPAND": _SMALL | {"block_size": 10},
    # Pixels lie in [−1, 1]², 2/15 apart: a latent for every fourth of them.
    "LocatedCMANP": {
        "places": Places(-1.0, 1.0, number=64),
        "scales": Scales(
            pack=(0.1, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0),
            mix=(0.3, 0.6, 1.5, inf),
            query=(0.15, 0.25, 0.5, 1.0),
            frequencies=(1.0, 16.0),
        ),
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(_SIZES_OF), default="CMANP")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--figure", type=Path, default=Path("docs/digits.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    out = _OUT / options.model.lower()
    shutil.rmtree(out, ignore_errors=True)
    write_pictures(out / "pictures")
    data = ImageFolderDataModule(
        out / "pictures",
        resolution=_RESOLUTION,
        num_channels=1,
        batch_size=32,
        # Large contexts: from small ones alone a model is slow to learn where the points are.
        max_num_points=200,
        max_num_targets=50,
    )
    module = MetaRegression(
        getattr(models, options.model)(
            dim_x=2, dim_y=1, bound_std=True, **_SIZES_OF[options.model]
        ),
        optimizer=lambda parameters: MuonAdam(parameters, lr=0.01, adam_lr=1e-3),
        decay="linear",
        warmup_steps=200,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        check_val_every_n_epoch=10,
        gradient_clip_val=1.0,
        logger=CSVLogger(out, name=""),
        callbacks=[ImageFigures(every_n_validations=2), ProgressBar()],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    start = time.monotonic()
    trainer.fit(module, data)
    minutes = (time.monotonic() - start) / 60
    trainer.test(module, data)
    print(
        f"{options.steps:,} steps in {minutes:.1f} minutes on one core. RMSE of all pixels that\n"
        f"are not in the context, on {len(data.image_sets[Part.TEST])} test pictures, from black "
        f"(0) to white (1):"
    )
    report(module.eval(), data)
    tasks = [[data.completion_task(index, size) for size in _SIZES[:4]] for index in range(3)]
    completion_figure(module.model, tasks).savefig(options.figure)
    print(f"figure: {options.figure}")


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
        values = (pixels * 255 / 16).round().astype(np.uint8)
        Image.fromarray(values).save(folder / f"{number:04d}-{label}.png")


def report(module: MetaRegression, data: ImageFolderDataModule) -> None:
    """By size of the context: the model, the context's mean, and the mean training picture."""
    training = data.image_sets[Part.TRAIN]
    average = (training[range(len(training))].float().mean(0) / 255 - 0.5).flatten()
    name = type(module.model).__name__
    print(f"{'context':>10}{name:>16}{'mean of the context':>22}{'mean training picture':>24}")
    for size in _SIZES:
        tasks = [
            data.completion_task(index, size) for index in range(len(data.image_sets[Part.TEST]))
        ]
        xc, yc, xt, yt = (
            torch.cat([getattr(task, name) for task in tasks]) for name in ("xc", "yc", "xt", "yt")
        )
        with torch.no_grad():
            mean = module.predict_step(Task(xc, yc, xt), 0).mean
        row, column = ((xt + 1) / 2 * (_RESOLUTION - 1)).round().long().unbind(-1)
        known = average[row * _RESOLUTION + column][..., None]
        predictions = mean, yc.mean(1, keepdim=True), known
        errors = [float((values - yt).square().mean().sqrt()) for values in predictions]
        print("{:>10}{:>16.3f}{:>22.3f}{:>24.3f}".format(size, *errors))


if __name__ == "__main__":
    main()
