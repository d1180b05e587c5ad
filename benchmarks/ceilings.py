"""What the best predictors score on the fixed test tasks: who knows each kernel, who knows priors.

    python -m benchmarks.ceilings rbf matern52 --tasks 1600        # 3 minutes on one core
    python -m benchmarks.ceilings periodic --tasks 640 --draws 1024
    python -m benchmarks.ceilings rbf --tasks 640 --dim_x 2

Exact: Gaussian processes with the true hyper-parameters. Bayes: averaged over the hyper-parameters
that the context leaves possible (`datamodules.bayes`), as a mixture and as the Gaussian of its
moments. Log-likelihood per target in nats, one by one and jointly, with standard errors over tasks.
"""

import argparse
import time
from pathlib import Path

import torch

from datamodules import GPDataModule
from datamodules.loading import Part
from npbench.commands.sections import instantiate
from npbench.task import Task

_CONFIGS = Path(__file__).parents[1] / "configs" / "gp"
_TOGETHER = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="+", help="names in configs/gp/kernels")
    parser.add_argument("--tasks", type=int, default=1600)
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--dim_x", type=int, default=1, help="number of inputs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kernel in options.kernels:
        start = time.process_time()
        tasks = evaluation_tasks(kernel, options.tasks, options.draws, options.dim_x)
        seconds = time.process_time() - start
        print(f"{kernel}: {options.tasks} tasks, {options.draws} draws, {seconds:.0f} CPU seconds")
        for name, answer, field in (
            ("exact", "exact", "log_likelihood"),
            ("Bayes, a mixture", "bayes", "log_likelihood"),
            ("Bayes, a Gaussian", "bayes", "gaussian_log_likelihood"),
        ):
            columns = [
                torch.cat([getattr(getattr(task, answer), joint + field) for task in tasks])
                for joint in ("", "joint_")
            ]
            print(f"  {name:<20}" + "".join(f"{written(z):>18}" for z in columns), flush=True)


def evaluation_tasks(kernel: str, number: int, draws: int, dim_x: int) -> list[Task]:
    """The first test tasks of a kernel, in batches."""
    options = [
        f"--data.kernel={_CONFIGS}/kernels/{kernel}.yaml",
        f"--data.bayes_grid={draws}",
        f"--data.dim_x={dim_x}",
    ]
    data = instantiate(_CONFIGS / "located.yaml", "data", GPDataModule, options)
    starts = range(0, number, _TOGETHER)
    return [data.evaluation_batch(range(i, min(i + _TOGETHER, number)), Part.TEST) for i in starts]


def written(values: torch.Tensor) -> str:
    error = values.std() / len(values) ** 0.5
    return f"{values.mean():.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
