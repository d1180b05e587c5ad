"""What training shows in the terminal."""

import io
import re
from pathlib import Path

import lightning as L
import pytest
from helpers import SIZES
from rich.console import Console

from datamodules import GPDataModule
from npbench.callbacks import ModelLine, ProgressBar
from npbench.models import CMANP
from npbench.training import MetaRegression


def trained(folder: Path) -> ProgressBar:
    bar = ProgressBar()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=6, callbacks=[bar, ModelLine()], logger=False,
        enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    module = MetaRegression(CMANP(dim_x=1, dim_y=1, **SIZES["CMANP"]))
    trainer.fit(module, datamodule=GPDataModule(steps_per_epoch=3, num_val_tasks=4))
    return bar


def test_the_progress_is_one_line_with_values_in_four_digits(tmp_path: Path) -> None:
    bar = trained(tmp_path)
    terminal = io.StringIO()
    Console(file=terminal, width=80).print(bar.progress.get_renderable())
    (line,) = terminal.getvalue().strip().splitlines()
    assert len(line) <= 80
    assert "step 6/6  loss " in line
    numbers = re.findall(r"(?:loss|val) -?([\d.]+)", line)
    assert len(numbers) == 2
    assert all(len(number.replace(".", "").lstrip("0")) <= 4 for number in numbers)


def test_the_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trained(tmp_path)
    model = CMANP(dim_x=1, dim_y=1, **SIZES["CMANP"])
    number = sum(parameter.numel() for parameter in model.parameters())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"CMANP: {number:,} parameters"
    assert not any("RegressionMetrics" in line for line in lines)
