"""CMHP and THP on the same sequences of events, beside a Poisson process and the exact answer.

    python -m benchmarks.events hawkes
    python -m benchmarks.events stackoverflow --data.path data/events/stackoverflow
    python -m benchmarks.events hawkes --models cmhp --model.model.recency false

Trains the configurations in `configs/events/`, each on one core, two at a time, and tests the best
checkpoint of each on the same test sequences. Any field of the configurations can be set. Leaves
`runs/benchmarks/TASK/`, with the table.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from datamodules.events.base import EventDataModule
from datamodules.loading import Part
from npbench.commands.sections import instantiate
from npbench.commands.tables import table_of
from npbench.models import EventModel
from npbench.training import EventPrediction

_OUT = Path("runs/benchmarks")
_RUN = "version_0"
_MODELS = ["cmhp", "thp"]
_ROWS = {
    "nll": "negative log-likelihood",
    "nll_time": "of the time",
    "nll_mark": "of the mark",
    "gap": "above the exact process",
    "rmse": "RMSE of the mean",
    "median_absolute_error": "median absolute error",
    "accuracy": "accuracy of the mark",
    "ks": "Kolmogorov–Smirnov distance",
    "kib_10": "state after 10 events, KiB",
    "kib_10000": "after 10,000 events",
    "minutes": "minutes of training",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["hawkes", "stackoverflow"])
    parser.add_argument("--models", choices=_MODELS, nargs="+", default=_MODELS)
    options, fields = parser.parse_known_args()
    out = _OUT / options.task
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        trained = pool.map(lambda name: train(options.task, name, out, fields), options.models)
        rows = dict(zip(options.models, trained))
    config = out / options.models[0] / _RUN / "config.yaml"
    rows["poisson"] = poisson(instantiate(config, "data", EventDataModule))
    results = pd.DataFrame(rows).T.reindex(columns=list(_ROWS)).dropna(axis="columns", how="all")
    results.to_csv(out / "results.csv", index_label="model")
    Console().print(render(results))


def train(task: str, name: str, out: Path, fields: list[str]) -> dict[str, float]:
    """Fit and test one configuration; its test metrics, and the minutes that fitting took."""
    start = time.monotonic()
    run(
        out / f"{name}.txt", "fit", "--config", f"configs/events/{task}/{name}.yaml", *fields,
        "--trainer.default_root_dir", str(out / name),
    )  # fmt: skip
    minutes = (time.monotonic() - start) / 60
    checkpoint = out / name / _RUN / "checkpoints" / "best.ckpt"
    run(
        out / f"{name}-test.txt", "test", "--config", str(out / name / _RUN / "config.yaml"),
        "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(out / f"{name}-test"),
    )  # fmt: skip
    metrics = pd.read_csv(out / f"{name}-test" / _RUN / "metrics.csv").iloc[-1]
    of_test = {key.removeprefix("test/"): value for key, value in metrics.items()}
    model = EventPrediction.load_from_checkpoint(checkpoint, map_location="cpu").model
    sizes = {f"kib_{number}": state_size(model, number) / 2**10 for number in (10, 10_000)}
    return {**of_test, **sizes, "minutes": minutes}


def state_size(model: EventModel, num_events: int) -> int:
    """Bytes that the model keeps of so many events."""
    times = torch.arange(num_events, dtype=torch.float64)[None]
    with torch.no_grad():
        return model.condition(times, torch.zeros_like(times, dtype=torch.long)).nbytes


def run(log: Path, *arguments: str) -> None:
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    command = [sys.executable, "-m", "npbench", *arguments, *quiet]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.run(command, env=environment, stdout=output, stderr=output)
    if process.returncode:
        raise SystemExit(f"npbench {arguments[0]} failed; see {log}")


def poisson(data: EventDataModule) -> dict[str, float]:
    """Events of a constant rate, and marks by their frequency, as in the training data."""
    data.setup()
    mean = data.interval_statistics.mean
    training = data.windows(Part.TRAIN)
    frequency = torch.from_numpy(training.marks).bincount(minlength=data.num_marks) + 1.0
    log_prob = (frequency / frequency.sum()).log()
    batches = list(data.test_dataloader())
    tau, mark = (
        torch.cat([values[batch.predicted] for values, batch in zip(each, batches)])
        for each in ([b.intervals for b in batches], [b.marks[:, 1:] for b in batches])
    )
    time_nll = float((tau / mean).mean() + torch.tensor(mean).log())
    mark_nll = -float(log_prob[mark].mean())
    metrics = {
        "nll": time_nll + mark_nll,
        "nll_time": time_nll,
        "nll_mark": mark_nll,
        "rmse": float((tau - mean).square().mean().sqrt()),
        "median_absolute_error": float((tau - mean * math.log(2)).abs().median()),
        "accuracy": float((mark == log_prob.argmax()).double().mean()),
    }
    if batches[0].exact is not None:
        exact = sum(float(batch.exact.sum()) for batch in batches) / len(tau)
        metrics["gap"] = metrics["nll"] + exact
    return metrics


def render(results: pd.DataFrame) -> Table:
    caption = "Means over test events, in nats and the data's unit of time."
    table = table_of(["", *results.index], caption)
    for column, values in results.items():
        cells = ("–" if pd.isna(value) else f"{value:,.3f}" for value in values)
        table.add_row(_ROWS[column], *cells)
    return table


if __name__ == "__main__":
    main()
