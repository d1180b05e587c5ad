"""CMHP and THP on the same sequences of events, beside a Poisson process and the exact answer.

    python -m benchmarks.events hawkes
    python -m benchmarks.events stackoverflow --path data/events/stackoverflow

Trains the configurations in `configs/events/`, each on one core, two at a time, and tests the best
checkpoint of each on the same test sequences. Leaves `runs/benchmarks/TASK/`, with the table.
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
from rich import box
from rich.console import Console
from rich.table import Table

from datamodules.event_data import EventDataModule
from datamodules.loading import TRAIN
from npbench.commands.sections import instantiate

_OUT = Path("runs/benchmarks")
_MODELS = ["cmhp", "thp"]
_COLUMNS = {
    "nll": "NLL", "nll_time": "time", "nll_mark": "mark", "rmse": "RMSE",
    "median_absolute_error": "median |error|", "accuracy": "accuracy", "ks": "KS",
    "gap": "above exact", "minutes": "minutes",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["hawkes", "stackoverflow"])
    parser.add_argument("--path", type=Path, help="folder of the Stack Overflow data")
    parser.add_argument("--epochs", type=int, help="by default those of the configurations")
    options = parser.parse_args()
    out = _OUT / options.task
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    data = [] if options.path is None else ["--data.path", str(options.path)]
    epochs = [] if options.epochs is None else ["--trainer.max_epochs", str(options.epochs)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        trained = pool.map(lambda name: train(options.task, name, out, data, epochs), _MODELS)
        rows = dict(zip(_MODELS, trained))
    config = Path("configs/events") / options.task / "thp.yaml"
    rows["poisson"] = poisson(instantiate(config, "data", EventDataModule, data))
    results = pd.DataFrame(rows).T.reindex(columns=list(_COLUMNS)).dropna(axis="columns", how="all")
    results.to_csv(out / "results.csv", index_label="model")
    Console().print(render(results))


def train(task: str, name: str, out: Path, data: list[str], epochs: list[str]) -> dict[str, float]:
    """Fit and test one configuration; its test metrics, and the minutes that fitting took."""
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    config = ["--config", f"configs/events/{task}/{name}.yaml", *data, *quiet]
    start = time.monotonic()
    run(out / f"{name}.txt", "fit", *config, *epochs, "--trainer.default_root_dir", str(out / name))
    minutes = (time.monotonic() - start) / 60
    checkpoint = out / name / "version_0" / "checkpoints" / "best.ckpt"
    run(
        out / f"{name}-test.txt", "test", *config, "--ckpt_path", str(checkpoint),
        "--trainer.default_root_dir", str(out / f"{name}-test"),
    )  # fmt: skip
    metrics = pd.read_csv(out / f"{name}-test" / "version_0" / "metrics.csv").iloc[-1]
    of_test = {key.removeprefix("test/"): value for key, value in metrics.items()}
    return {**of_test, "minutes": minutes}


def run(log: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "npbench", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.run(command, env=environment, stdout=output, stderr=output)
    if process.returncode:
        raise SystemExit(f"npbench {arguments[0]} failed; see {log}")


def poisson(data: EventDataModule) -> dict[str, float]:
    """Events of a constant rate, and marks by their frequency, as in the training data."""
    data.setup()
    mean = data.interval_statistics.mean
    training = data.windows(TRAIN)
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
    table = Table(box=box.SIMPLE_HEAD, caption="Means over test events, in nats and units of time.")
    for name in ("", *(_COLUMNS[column] for column in results)):
        table.add_column(name, justify="right" if name else "left")
    for name, row in results.iterrows():
        table.add_row(str(name), *("–" if pd.isna(value) else f"{value:.3f}" for value in row))
    return table


if __name__ == "__main__":
    main()
