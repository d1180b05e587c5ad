from pathlib import Path

import lightning as L
import pandas as pd
import torch
from helpers.training import data, module
from torch import Tensor

from npbench.callbacks import PredictionWriter


def predict(path: Path) -> pd.DataFrame:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[PredictionWriter(str(path))],
        enable_progress_bar=False,
    )
    trainer.predict(module(), data(eval_batch_size=2))
    return pd.read_parquet(path)


def test_predictions_have_one_row_for_each_real_target(tmp_path: Path) -> None:
    frame = predict(tmp_path / "new folder" / "predictions.parquet")
    assert list(frame.columns) == ["task", "target", "x0", "mean0", "std0", "y0"]
    batch = data(eval_batch_size=5).predict_dataloader()
    (task,) = list(batch)
    assert frame.groupby("task").size().tolist() == task.target_mask.sum(-1).tolist()
    with torch.no_grad():
        mean: Tensor = module().eval()(task).mean
    torch.testing.assert_close(
        torch.tensor(frame["mean0"].to_numpy()), mean[task.target_mask][:, 0], rtol=1e-5, atol=1e-5
    )
    assert [path.name for path in tmp_path.rglob("*.*")] == ["predictions.parquet"]
