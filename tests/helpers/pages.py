"""What the code of the documentation takes for granted: files, and names of the reader's own."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch

import npbench
from helpers import small_cmanp
from npbench.models import NeuralProcess
from npbench.scaling import Column, Scaling
from npbench.training import MetaRegression
from npbench.training.lightning_parts import save_untrained

ROOT = Path(__file__).parents[2]
# The folder that pages call RUN, or $RUN.
RUN = "runs/gp/cmanp-small/version_0"


class ShortTrainer(L.Trainer):
    """Two steps, without progress."""

    def __init__(self, **options: Any) -> None:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        short = {"max_steps": 2, "limit_val_batches": 1, "accelerator": "cpu"}
        super().__init__(**options | quiet | short)


def table(hours: np.ndarray) -> pd.DataFrame:
    celsius = 15 + 5 * np.sin(2 * np.pi * (hours - 9) / 24)
    day = np.arange(len(hours)) % 8
    return pd.DataFrame({"hour": hours, "celsius": celsius, "day": day})


def fields(seed: int) -> pd.DataFrame:
    values = np.random.default_rng(seed).uniform(-2, 2, size=(50, 3))
    return pd.DataFrame(values, columns=["lat", "lon", "temperature"])


def make_files(page: str) -> None:
    series = table(np.linspace(0, 24, 240))
    for name in ("temperatures", "mine", "grid", "today", "points"):
        series.to_csv(f"{name}.csv", index=False)
    series.rename(columns={"celsius": "load"}).to_csv("readings.csv", index=False)
    fields(0).to_parquet("points.parquet")
    fields(1).to_parquet("grid.parquet")
    Path("card.md").write_text("A model for a test.")
    model = run_model(page)
    checkpoints = Path(RUN) / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt"):
        save_untrained(MetaRegression(model), checkpoints / name)
    config = "events/hawkes/cmhp" if page == "docs/events.md" else "gp/cmanp"
    config = "listops/convluna-short" if page == "docs/sequences.md" else config
    text = (ROOT / f"configs/{config}.yaml").read_text()
    for path in (checkpoints.parent / "config.yaml", Path("OTHER.yaml")):
        path.write_text(text.replace("kernels/", f"{ROOT}/configs/gp/kernels/"))
    if page == "docs/commands.md":
        fields(2).to_csv("today.csv", index=False)
        fields(0)[:5].to_csv("unwanted.csv", index=False)
        Path("folder").mkdir()
        for number, name in enumerate(("folder/one.csv", "more-1.csv")):
            fields(number).to_csv(name, index=False)
        with torch.no_grad():
            for name in ("monday", "tuesday"):
                state = model.condition(torch.randn(1, 5, 2), torch.randn(1, 5, 1))
                notes = {"checkpoint": str((checkpoints / "best.ckpt").resolve())}
                state.save(f"{name}.safetensors", model, **notes, x="lat,lon", y="temperature")


def run_model(page: str) -> NeuralProcess:
    """The model of RUN: of two inputs where the page has fields, in units where it has a table."""
    if page not in ("docs/tables.md", "docs/fine-tuning.md"):
        return small_cmanp(dim_x=2 if page == "docs/commands.md" else 1)
    hour = Column("hour", "min-max", shift=12.0, scale=6.0)
    return npbench.load("gp-1d").scaled(Scaling((hour,), (Column("celsius", shift=15.0),)))


def names_of(page: str) -> dict[str, Any]:
    """What the first block of a page takes for granted."""
    series = table(np.linspace(0, 24, 240))
    if page == "README.md":
        points = {name: torch.randn(1, 5, 1) for name in ("xc", "yc", "x", "y", "xt")}
        return {"model": npbench.load("gp-1d").requires_grad_(False), **points}
    rows = {"today": series[:10], "monday": series[:10], "grid": series[["hour"]][:7]}
    return {"table": series, **rows}
