"""From nothing to a trained CMANP, beside a CNP trained as long, on a CPU in a few minutes.

    python -m benchmarks.demo            # what `make demo` runs
    python -m benchmarks.demo --short    # the same path in about a minute, too short to learn much

Both train at the same time, one core each, through `npbench fit`. Leaves in `demo/`: the two runs,
`results.csv`, `predictions.png` (both models beside the exact Gaussian process) and `learning.png`.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from datamodules import GPDataModule
from npbench.callbacks.regression import posterior_figure
from npbench.commands.tables import table_of
from npbench.training import MetaRegression

_OUT = Path("demo")
_COLUMNS = {
    "log_likelihood": "log-lik.",
    "gap": "gap",
    "rmse": "RMSE",
    "coverage_50": "50 %",
    "coverage_95": "95 %",
}


@dataclass
class Run:
    """One `npbench fit` in a process of its own."""

    name: str
    config: str
    max_steps: int
    steps_per_epoch: int
    minutes: float = 0.0

    def start(self) -> None:
        command = [sys.executable, "-m", "npbench", "fit", "--config", self.config]
        command += ["--trainer.max_steps", str(self.max_steps)]
        command += ["--data.steps_per_epoch", str(self.steps_per_epoch)]
        command += ["--data.num_val_tasks", "640", "--trainer.enable_model_summary", "false"]
        command += ["--trainer.default_root_dir", str(self.folder.parent)]
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        self.folder.parent.mkdir(parents=True)
        self.started = time.monotonic()
        # The first run shows its progress; the other's goes into a file.
        log = None if self.name == "CMANP" else (self.folder.parent / "output.txt").open("w")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @property
    def folder(self) -> Path:
        return _OUT / self.name.lower() / "version_0"

    @property
    def curve(self) -> pd.Series:
        """Validation log-likelihood against the share of the run."""
        metrics = pd.read_csv(self.folder / "metrics.csv").dropna(subset="val/log_likelihood")
        return metrics.set_index(metrics["step"] / self.max_steps)["val/log_likelihood"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps only")
    short = parser.parse_args().short
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    runs = [
        Run("CMANP", "configs/gp/cmanp-small.yaml", *((200, 100) if short else (5000, 500))),
        Run("CNP", "configs/gp/cnp.yaml", *((1000, 500) if short else (20_000, 2000))),
    ]
    console = Console()
    console.print("Training CMANP and CNP side by side, one core each …")
    train(runs)

    data = GPDataModule(num_test_tasks=320 if short else 4800)
    modules = [
        MetaRegression.load_from_checkpoint(run.folder / "checkpoints" / "best.ckpt")
        for run in runs
    ]
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    results = []
    for run, module in zip(runs, modules):
        (metrics,) = trainer.test(module, data, verbose=False)
        results.append(
            {"model": run.name, "parameters": sum(p.numel() for p in module.model.parameters())}
            | {"steps": run.max_steps, "minutes": run.minutes}
            | {name.removeprefix("test/"): value for name, value in metrics.items()}
        )
    pd.DataFrame(results).to_csv(_OUT / "results.csv", index=False)

    tasks = [data.figure_task(index) for index in range(3)]
    posterior_figure([module.model for module in modules], tasks).savefig(_OUT / "predictions.png")
    ceiling = results[0]["log_likelihood"] + results[0]["gap"]
    draw_learning(runs, ceiling)
    console.print(table(results))
    console.print(
        f"Log-likelihood in nats per target, ± standard error over the same "
        f"{data.num_test_tasks:,} test tasks; gap to the exact Gaussian process, which scores "
        f"{ceiling:.3f}; coverage of the central 50 and 95 % intervals."
    )
    console.print(
        f"Figures: {_OUT}/predictions.png, {_OUT}/learning.png; table: {_OUT}/results.csv"
    )


def train(runs: list[Run]) -> None:
    """Train all at once; if one fails, or on Ctrl-C, stop the others."""
    for run in runs:
        run.start()
    try:
        running = list(runs)
        while running:
            time.sleep(0.2)
            for run in [run for run in running if run.process.poll() is not None]:
                run.minutes = (time.monotonic() - run.started) / 60
                running.remove(run)
                if run.process.returncode:
                    raise SystemExit(f"training {run.name} failed; see {run.folder.parent}")
    finally:
        for run in runs:
            run.process.terminate()


def table(results: list[dict]) -> Table:
    result = table_of(["model", "steps", "min", *_COLUMNS.values()])
    for row in results:
        values = [f"{row[name]:.3f}" for name in _COLUMNS]
        values[0] += f" ± {row['log_likelihood_stderr']:.3f}"
        counts = [f"{row['steps']:,}", f"{row['minutes']:.1f}"]
        result.add_row(row["model"], *counts, *values)
    return result


def draw_learning(runs: list[Run], ceiling: float) -> None:
    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=110)
    axis = figure.subplots()
    for run in runs:
        curve = run.curve
        axis.plot(curve.index * run.minutes, curve, marker=".", label=run.name)
    axis.axhline(ceiling, color="black", lw=0.8, ls="--", label="exact Gaussian process")
    axis.set(xlabel="minutes of training", ylabel="log-likelihood per target (nats)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(_OUT / "learning.png")


if __name__ == "__main__":
    main()
