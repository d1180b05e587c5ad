"""From nothing to four trained neural processes, on a CPU in a few minutes.

    python -m benchmarks.demo            # what `make demo` runs
    python -m benchmarks.demo --short    # the same path in about a minute, too short to learn much

LocatedCMANP, SecondMomentNP, a small CMANP of the paper and a CNP train through `npbench fit`, two
at a time, one core each. Leaves in `demo/`: the four runs, `results.csv`, `predictions.png` (three
of them beside the exact Gaussian process), `learning.png`, and `absorbing.png`: what the trained
LocatedCMANP makes of 50, 5,000 and 500,000 points on three times the range of its training.
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
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.scale import NoisyFunction
from datamodules import GPDataModule
from npbench.callbacks.regression import posterior_figure
from npbench.colors import BAYES, EXACT, colors_of
from npbench.commands.tables import table_of
from npbench.models import LocatedCMANP
from npbench.models.contracts.process import evaluating
from npbench.training import MetaRegression

_OUT = Path("demo")
_COLUMNS = {
    "log_likelihood": "log-lik.",
    "gap": "gap",
    "rmse": "RMSE",
    "coverage_50": "50 %",
    "coverage_95": "95 %",
}
_CORES = 2
_GRID = 256  # draws of hyper-parameters; see `GPDataModule`


@dataclass
class Run:
    """One `npbench fit` in a process of its own."""

    name: str
    config: str
    max_steps: int
    steps_per_epoch: int
    options: tuple[str, ...] = ()
    minutes: float = 0.0

    def start(self, shows_progress: bool) -> None:
        command = [sys.executable, "-m", "npbench", "fit", "--config", self.config]
        command += ["--trainer.max_steps", str(self.max_steps)]
        command += ["--data.steps_per_epoch", str(self.steps_per_epoch)]
        command += ["--data.num_val_tasks", "640", "--trainer.enable_model_summary", "false"]
        command += ["--trainer.default_root_dir", str(self.folder.parent), *self.options]
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        self.folder.parent.mkdir(parents=True)
        self.started = time.monotonic()
        log = None if shows_progress else (self.folder.parent / "output.txt").open("w")
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

    # The curriculum of the small CMANP takes half of its run.
    curriculum = ("--data.curriculum.init_args.num_batches", "100" if short else "1500")
    runs = [
        Run("LocatedCMANP", "configs/gp/located.yaml", *((200, 100) if short else (3000, 500))),
        Run("SecondMomentNP", "configs/gp/second-moment.yaml",
            *((200, 100) if short else (3500, 500))),
        Run("CMANP", "configs/gp/cmanp-small.yaml", *((200, 100) if short else (3000, 500)),
            curriculum),
        Run("CNP", "configs/gp/cnp.yaml", *((500, 250) if short else (6000, 1000))),
    ]  # fmt: skip
    console = Console()
    console.print(f"Training {', '.join(run.name for run in runs)}, two at a time …")
    train(runs, console)

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

    models = {run.name: module.model for run, module in zip(runs, modules)}
    shown = [models[name] for name in ("LocatedCMANP", "SecondMomentNP", "CMANP")]
    tasks = [data.figure_task(index) for index in range(3)]
    posterior_figure(shown, tasks).savefig(_OUT / "predictions.png")
    exact = results[0]["log_likelihood"] + results[0]["gap"]
    unknown = cost_of_not_knowing(num_tasks=16 if short else 640)
    draw_learning(runs, exact, exact - unknown)
    draw_absorbing(models["LocatedCMANP"], sizes=(50, 500) if short else (50, 5000, 500_000))
    console.print(table(results))
    console.print(
        f"Log-likelihood in nats per target, ± standard error over the same "
        f"{data.num_test_tasks:,} test tasks; gap to the exact Gaussian process, which knows each "
        f"task's kernel and scores {exact:.3f}; whoever knows only how kernels are drawn can reach "
        f"about {exact - unknown:.3f}. Coverage of the central 50 and 95 % intervals."
    )
    console.print(
        f"Figures: {_OUT}/predictions.png, {_OUT}/learning.png, {_OUT}/absorbing.png; table: "
        f"{_OUT}/results.csv"
    )


def train(runs: list[Run], console: Console) -> None:
    """Train all, so many at a time as there are cores; if one fails, or on Ctrl-C, stop all."""
    waiting, running = list(runs), []
    try:
        while waiting or running:
            while waiting and len(running) < _CORES:
                run = waiting.pop(0)
                run.start(shows_progress=run is runs[0])
                running.append(run)
            time.sleep(0.2)
            for run in [run for run in running if run.process.poll() is not None]:
                run.minutes = (time.monotonic() - run.started) / 60
                running.remove(run)
                if run.process.returncode:
                    raise SystemExit(f"training {run.name} failed; see {run.folder.parent}")
                console.print(f"{run.name}: {run.max_steps:,} steps in {run.minutes:.1f} minutes")
    finally:
        for run in running:
            run.process.terminate()


def cost_of_not_knowing(num_tasks: int) -> float:
    """How many nats per target the best prediction that knows only the priors is below the exact
    Gaussian process, on the first test tasks."""
    tasks = GPDataModule(num_test_tasks=num_tasks, bayes_grid=_GRID).test_dataloader()
    differences = [task.exact.log_likelihood - task.bayes.log_likelihood for task in tasks]
    return float(torch.cat(differences).mean())


def table(results: list[dict]) -> Table:
    result = table_of(["model", "steps", "min", *_COLUMNS.values()])
    for row in results:
        values = [
            f"{row[name]:.0%}" if name.startswith("coverage") else f"{row[name]:.3f}"
            for name in _COLUMNS
        ]
        values[0] += f" ± {row['log_likelihood_stderr']:.3f}"
        counts = [f"{row['steps']:,}", f"{row['minutes']:.1f}"]
        result.add_row(row["model"], *counts, *values)
    return result


def draw_learning(runs: list[Run], exact: float, attainable: float) -> None:
    """Log-likelihoods against minutes of training, with both ceilings."""
    figure = Figure(figsize=(6, 4.0), layout="constrained", dpi=110)
    axis = figure.subplots()
    colors = colors_of(run.name for run in runs)
    for run in runs:
        curve = run.curve
        axis.plot(curve.index * run.minutes, curve, ".-", color=colors[run.name], label=run.name)
    axis.axhline(exact, color=EXACT, lw=1, ls="--", label="exact Gaussian process")
    axis.axhline(attainable, color=BAYES, lw=1, ls="--", label="best without its kernel")
    axis.set(xlabel="minutes of training", ylabel="log-likelihood per target (nats)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(_OUT / "learning.png")


def draw_absorbing(model: LocatedCMANP, sizes: tuple[int, ...]) -> None:
    """What one trained model makes of more and more points on three times its range."""
    low, high = -6.0, 6.0
    wide = model.on(low, high)
    figure = Figure(figsize=(9.6, 2.2 * len(sizes)), layout="constrained", dpi=110)
    axes = figure.subplots(len(sizes), sharex=True, sharey=True, squeeze=False)[:, 0]
    x = torch.linspace(low, high, 600)[None, :, None]
    color = colors_of(["LocatedCMANP"])["LocatedCMANP"]
    for axis, size in zip(axes, sizes):
        function = NoisyFunction(0.4, 0.7, 0.02, low, high, seed=0)
        start = time.perf_counter()
        with evaluating(wide):
            state = wide.condition(function.chunks(size))
            seconds = time.perf_counter() - start
            mean, std = (z[0, :, 0] for z in wide.marginals(state, x))
        rmse = (mean - function.true(x)[0, :, 0]).square().mean().sqrt()
        grid = x[0, :, 0]
        axis.fill_between(grid, mean - 2 * std, mean + 2 * std, alpha=0.25, color=color)
        axis.plot(grid, mean, color=color, label="LocatedCMANP, mean ± 2 std")
        axis.plot(grid, function.true(x)[0, :, 0], "--", color=EXACT, label="the function")
        if size <= 50:
            points = NoisyFunction(0.4, 0.7, 0.02, low, high, seed=0).draw(size)
            axis.plot(*(z[0, :, 0] for z in points), "k.", ms=4, label="points")
        axis.axvspan(-2, 2, color="black", alpha=0.05, lw=0)
        axis.set_title(
            f"{size:,} points in {seconds:.2f} s; state of {state.nbytes / 1024:.0f} KiB; RMSE "
            f"{rmse:.4f}", fontsize=9,
        )  # fmt: skip
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3,
                  frameon=False, fontsize=8)  # fmt: skip
    axes[-1].set_xlabel("x (trained on the grey range)")
    figure.savefig(_OUT / "absorbing.png")


if __name__ == "__main__":
    main()
