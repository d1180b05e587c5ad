"""LocatedCMANP beside CMANP: a million points, a million targets, and a training step.

    python -m benchmarks.located              # 3 minutes on one core

1. A million points become a state, of the paper's CMANP, of the small one of
   `configs/gp/cmanp-small.yaml`, and of `configs/gp/located.yaml`.
2. Each state answers a million targets.
3. A training step with 16 tasks of their own 3 to 46 points and 64 targets, by the optimiser of
   both configurations.
4. Conditioning the located model on points of 16 times the range, with as many times the places.

The models take their turns within each repetition, so that all meet the machine in its moods; times
are of the processor, the median over repetitions.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datamodules import GPDataModule
from npbench import Task
from npbench.commands.sections import instantiate
from npbench.models import CMANP, NeuralProcess
from npbench.models.contracts.process import evaluating
from npbench.optim import MuonAdam
from npbench.training import MetaRegression

_CONFIGS = Path(__file__).parents[1] / "configs" / "gp"
_WIDER = 16

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=float, default=1e6)
    parser.add_argument("--targets", type=float, default=1e6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    models = {"CMANP": CMANP(1, 1), "CMANP-small": of("cmanp-small"), "located": of("located")}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    number, targets = int(options.points), int(options.targets)
    compare_inference(models, number, targets, options.repeats)
    compare_training({k: v for k, v in models.items() if k != "CMANP"}, options.steps)


def of(name: str) -> NeuralProcess:
    """The untrained model of a configuration."""
    return instantiate(_CONFIGS / f"{name}.yaml", "model", MetaRegression).model


def compare_inference(
    models: dict[str, NeuralProcess], number: int, targets: int, repeats: int
) -> None:
    (x, y), xt = function(number), 4 * torch.rand(1, targets, 1) - 2
    wide = models["located"].on(-2.0 * _WIDER, 2.0 * _WIDER)
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(repeats):
        for name, model in models.items():
            with evaluating(model):
                state, taken = timed(lambda: model.condition(x, y))  # noqa: B023
                times["condition"][name].append(taken)
                _, taken = timed(lambda: model.query(state, xt))  # noqa: B023
                times["query"][name].append(taken)
        with evaluating(wide):
            _, taken = timed(lambda: wide.condition(_WIDER * x, y))
            times["condition"]["located, wide"].append(taken)
    for verb, size in (("condition", number), ("query", targets)):
        medians = {name: statistics.median(values) for name, values in times[verb].items()}
        for name, median in medians.items():
            ratio = medians["CMANP"] / median
            print(f"{verb:<10}{size:>10,} {name:<14}{median:8.2f} s{ratio:8.2f} × CMANP's speed")


def compare_training(models: dict[str, NeuralProcess], steps: int) -> None:
    data = GPDataModule(vary_sizes=True, num_targets=64)
    optimizers = {name: MuonAdam(model.parameters(), lr=0.01) for name, model in models.items()}

    def step(name: str, task: Task) -> None:
        optimizers[name].zero_grad()
        models[name].loss(task).backward()
        optimizers[name].step()

    times = defaultdict(list)
    for index in range(steps + 3):
        task = data.training_batch(index)
        for name in models:
            times[name].append(timed(lambda: step(name, task))[1])  # noqa: B023
    for name, values in times.items():
        print(f"a training step of {name:<14}{1e3 * statistics.median(values[3:]):8.1f} ms")


def function(number: int) -> tuple[Tensor, Tensor]:
    """Noisy points of a smooth function."""
    x = 4 * torch.rand(1, number, 1) - 2
    return x, (3 * x).sin() + 0.1 * torch.randn_like(x)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the processor time that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


if __name__ == "__main__":
    main()
