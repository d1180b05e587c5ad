from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.training import data, module
from lightning.pytorch.loggers import TensorBoardLogger

from npbench.callbacks import MemoryDegradation
from npbench.cli import main
from npbench.models import CNP
from npbench.profiling import MEASURES
from npbench.training import MetaRegression


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl: L.LightningModule, out: dict, *_) -> None:
        self.values.append(float(out["loss"]))


def fit(path: Path, *callbacks: L.Callback, steps: int = 8, **options: object) -> MetaRegression:
    trained = module()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=TensorBoardLogger(path, name="", version=""),
        callbacks=[*callbacks], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(trained, data(), **options)
    return trained


def test_a_run_with_it_is_bitwise_the_run_without(tmp_path: Path) -> None:
    """With dropout, which draws at every step; losses, weights and torch's random state."""
    losses, weights, states = [], [], []
    for callbacks in ([], [MemoryDegradation(num_tasks=2)]):
        seen = Losses()
        trained = fit(tmp_path / str(len(callbacks)), seen, *callbacks)
        losses.append(seen.values)
        weights.append([p.detach().clone() for p in trained.parameters()])
        states.append(torch.get_rng_state())
        assert trained.model.training
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    assert torch.equal(*states)


def test_it_writes_a_row_for_each_validation_and_layer_and_one_figure(tmp_path: Path) -> None:
    fit(tmp_path, MemoryDegradation())
    table = pd.read_csv(tmp_path / "degradation.csv")
    assert list(table) == ["step", "layer", *MEASURES]
    assert table["step"].tolist() == [0, 4, 8]
    assert np.isfinite(table).all(axis=None)
    assert table["cosine_packed"].between(-1, 1).all()
    assert table["rank_latents"].between(1, 4 + 1e-4).all()
    assert table["relative_entropy"].between(0, 1 + 1e-4).all()
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["degradation.png"]
    assert list(tmp_path.glob("events*"))


def test_it_looks_now_and_then(tmp_path: Path) -> None:
    fit(tmp_path, MemoryDegradation(every_n_validations=2))
    assert pd.read_csv(tmp_path / "degradation.csv")["step"].tolist() == [0, 8]


def test_a_run_that_is_resumed_goes_on_with_the_rows_of_before(tmp_path: Path) -> None:
    fit(tmp_path / "first", MemoryDegradation())
    (checkpoint,) = (tmp_path / "first").rglob("*.ckpt")
    options = {"ckpt_path": checkpoint, "weights_only": True}
    fit(tmp_path / "second", MemoryDegradation(), steps=12, **options)
    table = pd.read_csv(tmp_path / "second/degradation.csv")
    assert table["step"].tolist() == [0, 4, 8, 12]
    before = pd.read_csv(tmp_path / "first/degradation.csv")
    pd.testing.assert_frame_equal(table[:3], before)


def test_a_model_without_a_memory_is_refused_before_it_trains(tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", max_steps=1, callbacks=[MemoryDegradation()],
                        default_root_dir=tmp_path, logger=False)  # fmt: skip
    with pytest.raises(ValueError, match=r"looks at models that have a memory, and CNP has none"):
        trainer.fit(MetaRegression(CNP(1, 1, dim_hidden=8)), data())


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("arguments", [{"num_tasks": 0}, {"every_n_validations": 0}])
def test_arguments_that_make_no_sense_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        MemoryDegradation(**arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("task", ["gp/cmanp-small", "events/hawkes/cmhp"])
def test_a_configuration_asks_for_it_beside_a_filter(task: str, tmp_path: Path) -> None:
    """As `--trainer.callbacks+` and `--model.model.filter`, for regression and for events."""
    sizes = ["--data.num_val_tasks", "8"] if task.startswith("gp") else ["--data.batch_size", "2"]
    assert main([
        "fit", "--config", f"configs/{task}.yaml", "--trainer.max_steps", "2",
        "--trainer.limit_val_batches", "1", "--trainer.default_root_dir", str(tmp_path),
        "--trainer.callbacks+", "npbench.callbacks.MemoryDegradation",
        "--model.model.filter", "npbench.blocks.PointGate", "--model.model.filter.open", "0.7",
        "--trainer.enable_progress_bar", "false", *sizes,
    ]) is None  # fmt: skip
    table = pd.read_csv(tmp_path / "version_0/degradation.csv")
    assert table["layer"].tolist() == [1, 2] * (len(table) // 2)
    assert (
        "class_path: npbench.blocks.PointGate" in (tmp_path / "version_0/config.yaml").read_text()
    )
