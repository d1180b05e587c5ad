"""Steps per second of training CMANP, and how much of the time goes into the data.

    python -m benchmarks.train_step                 # the paper's configuration, batch 16
    python -m benchmarks.train_step --small         # configs/gp/cmanp-small.yaml

Each line is the median over the steps, data and step timed apart. `--reference` times the same
step with the attention's public fallback in place of the fused kernel, in the same run.
"""

import argparse
import statistics
import time
from unittest.mock import patch

import torch

from benchmarks.levers import settings
from datamodules import GPDataModule
from npbench import attention
from npbench.models import CMANP
from npbench.optim import MuonAdam


def time_steps(model: CMANP, optimizer: torch.optim.Optimizer, steps: int) -> tuple[float, float]:
    """Median seconds of (drawing a batch, training on it)."""
    data = GPDataModule()
    drawing, training = [], []
    for index in range(steps + 3):
        start = time.perf_counter()
        task = data.training_batch(index)
        drawn = time.perf_counter()
        loss = model.loss(task)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        drawing.append(drawn - start)
        training.append(time.perf_counter() - drawn)
    return statistics.median(drawing[3:]), statistics.median(training[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--reference", action="store_true")
    arguments = parser.parse_args()

    def run(name: str) -> float:
        torch.manual_seed(0)
        model = CMANP(1, 1, **(settings("shipped")["model"] if arguments.small else {}))
        if arguments.small:
            optimizer = MuonAdam(model.parameters(), lr=0.01)
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
        data, step = time_steps(model, optimizer, arguments.steps)
        print(
            f"{name:<20}{1 / (data + step):8.2f} steps/s{1e3 * step:9.1f} ms a step"
            f"{1e3 * data:8.2f} ms of data ({data / (data + step):.1%})"
        )
        return data + step

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch 16")
    fused = run("fused attention")
    if arguments.reference:
        unfused = patch.object(attention._FusedAttention, "apply", attention.attention_with_lse)
        with unfused:
            print(f"ratio {run('public fallback') / fused:.2f}")


if __name__ == "__main__":
    main()
