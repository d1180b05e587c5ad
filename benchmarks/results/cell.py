"""One cell of the results: a model is trained for a time, tested and measured."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.results.rivals import RIVALS, Rival
from benchmarks.results.tasks import BENCHMARKS, Benchmark, random_points
from datamodules.loading import Part, TaskDataModule
from npbench.metrics import metrics_of
from npbench.models import NeuralProcess
from npbench.models.contracts.process import evaluating, unwatched

NUM_CONTEXT, NUM_TARGETS = 1000, 1000
"""Points and targets with which states and times are measured."""

_WARMUP = 0.05
_CLIP = 1.0
_TOGETHER = 16
_REPEATS = 9


@dataclass
class Training:
    """What a training came to: its steps, those whose gradients were not finite, and its time."""

    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0


def cell(task: str, name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Train, test and measure a model on a task.

    Args:
        task: a name in `BENCHMARKS`.
        name: a name in `RIVALS`.
        seconds: of the processor, for training alone.
        seed: of the initial weights and of the training tasks.
    """
    benchmark, rival = BENCHMARKS[task], RIVALS[name]
    record = {"task": task, "model": name, "seconds": seconds, "seed": seed}
    torch.manual_seed(seed)
    model = rival.build(benchmark)
    if model is None:
        return record | {"metrics": None}
    data = benchmark.data(seed)
    training = train(model, data, rival, seconds)
    with evaluating(model), unwatched(model):
        metrics = evaluate(model, data, benchmark.num_tasks, Part.TEST)
        sizes = measure(model, benchmark)
    exact = metrics["log_likelihood"] + metrics["gap"] if "gap" in metrics else None
    return record | {
        "metrics": metrics,
        "exact": exact,
        "num_test_tasks": benchmark.num_tasks,
        **sizes,
        "steps": training.steps,
        "skipped_steps": training.skipped,
        "cpu_seconds": round(training.seconds, 1),
        "class": rival.family,
        "arguments": getattr(model, "hparams", {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "optimizer": type(rival.optimizer(model.parameters())).__name__,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s) used",
    }


def train(model: NeuralProcess, data: TaskDataModule, rival: Rival, seconds: float) -> Training:
    """Train for so many seconds of the processor, the drawing of tasks included.

    The learning rate rises over the first twentieth of the time, and falls to 0 by a line.
    """
    optimizer = rival.optimizer(model.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    done = Training()
    model.train()
    while done.seconds < seconds:
        start = time.process_time()
        share = factor(done.seconds / seconds)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = share * rate
        done.skipped += not step(model, optimizer, data.training_batch(done.steps))
        done.steps += 1
        done.seconds += time.process_time() - start
    return done


def factor(progress: float) -> float:
    """The learning rate's factor after a share of the time."""
    return min((progress + 1e-3) / _WARMUP, (1 - progress) / (1 - _WARMUP))


def step(model: NeuralProcess, optimizer: torch.optim.Optimizer, task: Any) -> bool:
    """One step of training; False if the gradients were not finite, and nothing was done."""
    optimizer.zero_grad()
    try:
        model.loss(task).backward()
    except torch.linalg.LinAlgError:
        return False
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    if not norm.isfinite():
        return False
    optimizer.step()
    return True


def evaluate(
    model: NeuralProcess, data: TaskDataModule, num_tasks: int, part: Part
) -> dict[str, float]:
    """The metrics of `npbench test` on the first fixed tasks."""
    metrics, measured = metrics_of(model), {}
    for first in range(0, num_tasks, _TOGETHER):
        task = data.evaluation_batch(range(first, min(first + _TOGETHER, num_tasks)), part)
        measured = metrics.update(task, model.evaluate(task), model.scores_jointly)
    return {name: float(metric.compute()) for name, metric in measured.items()}


def measure(model: NeuralProcess, benchmark: Benchmark) -> dict[str, Any]:
    """Bytes of the state of a task, and seconds of the processor to condition and to query."""
    x, y = random_points(benchmark, NUM_CONTEXT, seed=0)
    xt, _ = random_points(benchmark, NUM_TARGETS, seed=1)
    half = NUM_CONTEXT // 2
    state, smaller = model.condition(x, y), model.condition(x[:, :half], y[:, :half])
    return {
        "num_context": NUM_CONTEXT,
        "num_targets": NUM_TARGETS,
        "state_bytes": state.nbytes,
        "bytes_per_point": (state.nbytes - smaller.nbytes) / half,
        "condition_seconds": processor_seconds(lambda: model.condition(x, y)),
        "query_seconds": processor_seconds(lambda: model.marginals(state, xt)),
    }


def processor_seconds(function: Callable[[], object]) -> float:
    """The median time that a call takes of the processor, after one that warms up."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def commit() -> str | None:
    """The commit of the code, with a + if files have changed since; None outside of git."""
    try:
        git = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
