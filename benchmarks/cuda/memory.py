"""Peak memory and time of the phases, of models by themselves and in a run of Lightning."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.loggers import CSVLogger

from benchmarks.located import of
from datamodules import GPDataModule
from npbench.callbacks import PeakMemoryProfiler
from npbench.models import CMANP, EQTNP, LBANP, TNPD, NeuralProcess
from npbench.profiling import profile
from npbench.training import MetaRegression

_SIZES = (1000, 10_000, 100_000, 1_000_000)


def memory(device: torch.device, points: int) -> Iterator[dict[str, Any]]:
    """Peak memory and time of the phases of models at their default sizes."""
    sizes = [size for size in _SIZES if size <= points]
    kinds: dict[str, NeuralProcess] = {
        "CMANP": CMANP(1, 1),
        "CMANP, 16,384 at a time": CMANP(1, 1, context_chunk_size=16_384),
        "LocatedCMANP": of("located"),
        "SecondMomentNP": of("second-moment"),
        "LBANP": LBANP(1, 1),
        "EQTNP": EQTNP(1, 1),
        "TNPD": TNPD(1, 1),
    }
    for name, model in kinds.items():
        for row in profile(model.to(device), sizes, device=device, time_limit=5.0):
            size = row["peak_bytes"]
            yield {"model": name, "context": row["num_context"], "phase": row["phase"],
                   "peak_MiB": size and size / 2**20, "seconds": row["seconds"]}  # fmt: skip


def run(device: torch.device, points: int, steps: int) -> Iterator[dict[str, Any]]:
    """Peak memory and time of the phases after an epoch of training, by `PeakMemoryProfiler`."""
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if on_gpu else "cpu", devices=1, max_epochs=1,
            logger=CSVLogger(folder), enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[PeakMemoryProfiler([size for size in _SIZES if size <= points])],
        )  # fmt: skip
        data = GPDataModule(vary_sizes=True, steps_per_epoch=steps, num_val_tasks=16)
        trainer.fit(MetaRegression(of("cmanp-small"), compile=on_gpu), data)
        table = pd.read_csv(Path(str(trainer.log_dir)) / "memory.csv")
        for row in table.itertuples():
            yield {"context": row.num_context, "phase": row.phase,
                   "peak_MiB": row.peak_bytes / 2**20, "seconds": row.seconds}  # fmt: skip
