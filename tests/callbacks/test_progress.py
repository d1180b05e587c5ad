"""What training shows in the terminal."""

import io
import re
from pathlib import Path

import lightning as L
import pytest
from helpers import SIZES
from helpers.training import data, module
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


class Counting(ProgressBar):
    """Notes, batch by batch, how many of how many batches are done."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[tuple[int, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        self.counts.append((batch_idx + 1, self.total_train_batches))


def counts(folder: Path, max_steps: int, steps_per_epoch: int, **options: object) -> list:
    """Of a run that ends with a checkpoint, and may begin with one."""
    bar = Counting()
    trainer = L.Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", logger=False, callbacks=[bar],
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=folder, accumulate_grad_batches=options.pop("accumulated", 1),
    )  # fmt: skip
    trainer.fit(module(), data(steps_per_epoch=steps_per_epoch), weights_only=True, **options)
    trainer.save_checkpoint(folder / "last.ckpt")
    return bar.counts


@pytest.mark.parametrize(
    ("first", "steps_per_epoch", "accumulated"), [(3, 3, 1), (4, 3, 1), (2, 10, 1), (2, 10, 2)]
)
def test_a_resumed_run_counts_to_its_own_end(
    first: int, steps_per_epoch: int, accumulated: int, tmp_path: Path
) -> None:
    options = {"steps_per_epoch": steps_per_epoch * accumulated, "accumulated": accumulated}
    begun = counts(tmp_path, first, **options)
    last = str(tmp_path / "last.ckpt")
    resumed = counts(tmp_path, first + 2, **options, ckpt_path=last)
    assert len(resumed) == 2 * accumulated
    for run in (begun, resumed):
        assert all(count <= total for count, total in run)
        # An epoch ends at its total, and so does the run.
        ends = [run[i] for i in range(len(run)) if i + 1 == len(run) or run[i + 1][0] == 1]
        assert all(count == total for count, total in ends)
